"""A plan for people, as a table on a terminal and as lines in a pipe, and for programs, as JSON objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from copycat.app.plan_model import Load, Plan, Row, Summary
from copycat.progress import one_line, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

__all__ = ["JsonPlan", "LinesPlan", "Printer", "TablePlan", "make_printer"]


class Printer(AbstractContextManager["Printer"], Protocol):
    """Hears how the planning goes on, and shows what came out."""

    def looked(self, done: int, total: int) -> None:
        """So many of the images were looked at."""
        ...

    def show(self, plan: Plan) -> None:
        """The plan is complete."""
        ...


def make_printer(out: TextIO, *, as_json: bool) -> Printer:
    """The form that fits: objects if asked for, a table if `out` is a terminal, else lines."""
    if as_json:
        return JsonPlan(out)
    return TablePlan(out) if out.isatty() else LinesPlan(out)


class _Quiet:
    """The parts that a form need not have."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to end."""

    def looked(self, done: int, total: int) -> None:
        """Not shown."""


# For programs


class JsonPlan(_Quiet):
    """One object for each image (`kind: image`), and one about them all (`kind: summary`)."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, plan: Plan) -> None:
        """Write the objects, one a line."""
        for item in plan.rows:
            self._write({"kind": "image", **_image(item)})
        self._write({"kind": "summary", "good": plan.good, **_summary(plan.summary)})

    def _write(self, item: dict[str, Any]) -> None:
        self._out.write(json.dumps(item) + "\n")
        self._out.flush()


def _image(row: Row) -> dict[str, Any]:
    return {
        "source": row.source,
        "target": row.target,
        "digest": row.digest,
        "state": row.state,
        "action": row.action,
        "reason": row.reason,
        "message": row.message,
        "good": row.good,
        "bytes": row.size,
        "measured": row.measured,
        "manifestReads": row.reads,
        "tagMoves": [{"tag": m.tag, "from": m.before, "to": m.after} for m in row.moves],
        "users": list(row.users),
    }


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "images": sum(summary.states.values()),
        "states": dict(summary.states),
        "actions": dict(summary.actions),
        "bytes": summary.size,
        "unmeasuredImages": summary.unmeasured,
        "sources": [_load(load) for load in summary.loads],
        "repositories": [asdict(item) for item in summary.repositories],
        "pullSecrets": [asdict(item) for item in summary.pull_secrets],
        "deniedKinds": list(summary.denied_kinds),
        "notes": list(summary.notes),
    }


def _load(load: Load) -> dict[str, Any]:
    told = load.remaining is not None
    quota = {"limit": load.limit, "remaining": load.remaining, "windowSeconds": load.window}
    return {
        "registry": load.registry,
        "images": load.images,
        "manifestReads": load.requests,
        "atLeast": load.at_least,
        "quota": quota if told else None,
        "doneBy": load.done_by.isoformat(timespec="seconds") if load.done_by else None,
        "note": load.note,
    }


# For people


class LinesPlan(_Quiet):
    """One line for each image, then what concerns them all."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, plan: Plan) -> None:
        """Write it."""
        for item in plan.rows:
            self._write(_line(item))
        for text in _words(plan.summary):
            self._write(text)
        self._out.flush()

    def _write(self, text: str) -> None:
        self._out.write(one_line(text) + "\n")


class TablePlan:
    """A table of the images, then what concerns them all; a counter while the registries are asked."""

    def __init__(self, out: TextIO) -> None:
        # rich costs 50 ms to import, and only a terminal needs it
        from rich.console import Console

        self._console: Console = Console(file=out, highlight=False, markup=False)
        self._status: Status = self._console.status("looking")

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the counter away."""
        self._status.stop()

    def looked(self, done: int, total: int) -> None:
        """Move the counter."""
        self._status.update(f"{done} of {total} images looked at")

    def show(self, plan: Plan) -> None:
        """Draw it."""
        from rich.table import Table
        from rich.text import Text

        self._status.stop()
        table = Table(box=None, pad_edge=False)
        table.add_column("what")
        table.add_column("image", overflow="fold")
        table.add_column("bytes", justify="right", no_wrap=True)
        for item in plan.rows:
            cell = Text(one_line(item.source))
            for text in filter(None, (item.target and f"→ {item.target}", *_remarks(item))):
                cell.append(f"\n{one_line(text)}", style="dim")
            style = "green" if item.good else "red"
            table.add_row(Text(_word(item), style=style), cell, _bytes(item))
        if plan.rows:
            self._console.print(table)
        for line in _words(plan.summary):
            self._console.print(one_line(line), soft_wrap=True)


#: What is done, where the state that it leads to is the one that everybody wants.
_ACTIONS = {"copy": "copy", "tag": "tag", "none": "stands"}


def _word(row: Row) -> str:
    return _ACTIONS[row.action] if row.state in {"protected", "tag_only"} else row.state


def _bytes(row: Row) -> str:
    if row.action != "copy":
        return "" if row.measured else "?"
    return size(row.size) if row.measured else f"{size(row.size)} + ?"


def _remarks(row: Row) -> Iterator[str]:
    """What else is to be said of an image."""
    if row.state == "tag_only":
        yield "of a part of the platforms"
    for move in row.moves:
        yield f"moves the tag {move.tag} from {move.before} to {move.after}"
    if row.message or row.reason:
        yield row.message or row.reason


def _line(row: Row) -> str:
    parts = [f"{_word(row):<13} {row.source}"]
    if row.target:
        parts.append(f"→ {row.target}")
    if row.action == "copy":
        parts.append(f"({_bytes(row)})")
    remarks = "; ".join(_remarks(row))
    return " ".join([*parts, *([f"| {remarks}"] if remarks else [])])


def _words(summary: Summary) -> Iterator[str]:
    """What concerns all images, in lines."""
    parts: list[Callable[[Summary], Iterator[str]]] = [
        _totals,
        _sources,
        _repositories,
        _secrets,
        _unseen,
    ]
    for part in parts:
        yield from part(summary)


def _totals(summary: Summary) -> Iterator[str]:
    count = sum(summary.states.values())
    states = ", ".join(f"{n} {state}" for state, n in summary.states.items())
    actions = summary.actions
    yield ""
    yield (
        f"{_many(count, 'image')}{f', then {states}' if states else ''}. To copy: {actions.get('copy', 0)};"
        f" to tag: {actions.get('tag', 0)}"
    )
    unknown = f"; not all is known of {_many(summary.unmeasured, 'image')}" if summary.unmeasured else ""  # fmt: skip
    yield (
        f"to send: {size(summary.size)} (blobs that images share are counted once, those that stand at the"
        f" target are not{unknown})"
    )


def _sources(summary: Summary) -> Iterator[str]:
    for load in summary.loads:
        least = "at least " if load.at_least else ""
        what = f"{least}{_many(load.requests, 'manifest read')} for {_many(load.images, 'image')}"
        yield f"source {load.registry}: {what}; {'; '.join(_quota(load))}"


def _quota(load: Load) -> Iterator[str]:
    if load.remaining is not None:
        of = f" of {load.limit}" if load.limit is not None else ""
        per = f" in {load.window / 3600:g} h" if load.window else ""
        yield f"{load.remaining}{of} left{per}"
        if load.requests:
            yield _when(load)
    if load.note:
        yield load.note


def _when(load: Load) -> str:
    if load.done_by is None:
        return "how long that takes is not known: it does not say how much it allows"
    return f"done by {load.done_by:%Y-%m-%d %H:%M} UTC{' (at once)' if load.at_once else ''}"


#: As many repositories are named that are made by themselves.
_SHOWN = 10
_HOW = {
    "create": "copycat makes",
    "on_push": "the first push makes",
    "missing": "YOU have to make",
    "no_project": "YOU have to make the project of",
}


def _repositories(summary: Summary) -> Iterator[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for item in summary.repositories:
        groups.setdefault((item.how, item.note), []).append(item.repository)
    for (how, note), names in groups.items():
        # what nobody has to do by hand need not be listed to its end
        shown = names[:_SHOWN] if how in {"create", "on_push"} else names
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        yield f"repositories that {_HOW[how]}: {', '.join(shown)}{more}{f' ({note})' if note else ''}"
    if any(item.how == "on_push" for item in summary.repositories):
        yield "note: who only reads is not told whether the target lets us push, or wants a project made first"


def _secrets(summary: Summary) -> Iterator[str]:
    for item in summary.pull_secrets:
        what = f"pull secrets of {item.namespace} ({', '.join(item.secrets)}) may be needed for {', '.join(item.images)}"
        if item.covered:
            yield f"{what}: a run reads them; plan with --kubeconfig or --context to see what that gives"
        else:
            yield (
                f"{what}: set pullSecrets to [{item.namespace}], or give registryCredentials with"
                f" namespaces: [{item.namespace}]"
            )


def _unseen(summary: Summary) -> Iterator[str]:
    if summary.denied_kinds:
        kinds = ", ".join(summary.denied_kinds)
        yield f"NOT SEEN: {kinds}: we may not list and watch them; allow it, or leave them out of watchResources"
    for note in summary.notes:
        yield f"note: {note}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
