"""What `copycat mirror` shows while it works: bars on a terminal, lines in a pipe, objects for programs.

The work reports to a `Reporter` and does not know who reads. Results go to standard output, whatever
the form; a program that reads them gets lines that are complete, one per image, as soon as it ends.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = [
    "Bars",
    "Direction",
    "JsonLines",
    "Lines",
    "Outcome",
    "Reporter",
    "make_reporter",
    "one_line",
    "size",
]

#: `pull`: read from a source; `push`: written to the target.
Direction = Literal["pull", "push"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one image."""

    source: str
    target: str = ""
    digest: str = ""
    state: str
    """One of `copycat.metrics.STATES`."""
    good: bool
    """Whether the image is at the target as asked."""
    reason: str = ""
    message: str = ""
    bytes_pulled: int = 0
    bytes_pushed: int = 0
    bytes_mounted: int = 0


class Reporter(AbstractContextManager["Reporter"], Protocol):
    """Hears of every image, from the thread of the event loop.

    A key is a text for people that is unique among the images of the run.
    """

    def expect(self, images: int) -> None:
        """So many images will be reported in all."""
        ...

    def started(self, key: str) -> None:
        """Work on an image begins."""
        ...

    def moved(self, key: str, direction: Direction, count: int) -> None:
        """`count` further bytes of the image went by."""
        ...

    def finished(self, key: str, outcome: Outcome) -> None:
        """Work on an image is over."""
        ...

    def beside(self, err: TextIO) -> TextIO:
        """Where log lines may go that were meant for `err`, so that they do not run into what is shown."""
        ...


def make_reporter(out: TextIO, *, as_json: bool) -> Reporter:
    """The form that fits: objects if asked for, bars if `out` is a terminal, else lines."""
    if as_json:
        return JsonLines(out)
    return Bars(out) if out.isatty() else Lines(out)


_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes for people: `0 B`, `1.5 MiB`."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def describe(outcome: Outcome) -> str:
    """One line about an image."""
    parts = [f"{outcome.state:<10} {outcome.source}"]
    if outcome.target:
        parts.append(f"→ {outcome.target}")
    if outcome.digest and outcome.digest not in outcome.target:
        parts.append(outcome.digest)
    moved = [
        f"{size(count)} {word}"
        for count, word in (
            (outcome.bytes_pulled, "pulled"),
            (outcome.bytes_pushed, "pushed"),
            (outcome.bytes_mounted, "mounted"),
        )
        if count
    ]
    if moved:
        parts.append(f"({', '.join(moved)})")
    if outcome.message or outcome.reason:
        parts.append(f"| {outcome.message or outcome.reason}")
    return one_line(" ".join(parts))


def one_line(text: str) -> str:
    """Text from elsewhere without line breaks and control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


@dataclass(slots=True)
class _Totals:
    states: Counter[str] = field(default_factory=Counter)
    pulled: int = 0
    pushed: int = 0

    def add(self, outcome: Outcome) -> None:
        self.states[outcome.state] += 1
        self.pulled += outcome.bytes_pulled
        self.pushed += outcome.bytes_pushed

    def __str__(self) -> str:
        count = self.states.total()
        states = ", ".join(f"{n} {state}" for state, n in self.states.most_common())
        return (
            f"{count} image{'s' * (count != 1)}: {states or 'nothing to do'};"
            f" {size(self.pulled)} pulled, {size(self.pushed)} pushed"
        )


@dataclass(slots=True)
class _Row:
    task: TaskID
    moved: Counter[Direction] = field(default_factory=Counter)


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
        """Say goodbye."""

    def expect(self, images: int) -> None:
        """Not shown."""

    def started(self, key: str) -> None:
        """Not shown."""

    def moved(self, key: str, direction: Direction, count: int) -> None:
        """Not shown."""

    def beside(self, err: TextIO) -> TextIO:
        """There: lines disturb nothing."""
        return err


class JsonLines(_Quiet):
    """One object per image, for programs."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def finished(self, key: str, outcome: Outcome) -> None:
        """Write the object, at once: a reader may follow."""
        row = {
            "source": outcome.source,
            "target": outcome.target,
            "digest": outcome.digest,
            "state": outcome.state,
            "reason": outcome.reason,
            "message": outcome.message,
            "bytesPulled": outcome.bytes_pulled,
            "bytesPushed": outcome.bytes_pushed,
            "bytesMounted": outcome.bytes_mounted,
        }
        self._out.write(json.dumps(row) + "\n")
        self._out.flush()


class Lines(_Quiet):
    """One line per image as it ends, and one about them all."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._totals = _Totals()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """The line about them all, unless the work was cut off."""
        if error is None:
            self._write(str(self._totals))

    def finished(self, key: str, outcome: Outcome) -> None:
        """Write the line, at once."""
        self._totals.add(outcome)
        self._write(describe(outcome))

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


class _Above(io.TextIOBase):
    """Lines of a log on the screen that shows bars: printed above them, where their redrawing leaves them alone."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str, /) -> int:
        """Print it; the bars move down."""
        self._console.print(text, end="")
        return len(text)


class Bars:
    """A bar over all images, and below it a line with moving bytes for each that is worked on."""

    def __init__(self, out: TextIO) -> None:
        # rich costs 50 ms to import, and only a terminal needs it
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._console: Console = Console(file=out, highlight=False, markup=False, soft_wrap=True)
        self._progress: Progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=16),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._all: TaskID = self._progress.add_task("images", total=None, detail="")
        self._expected = 0
        self._totals = _Totals()
        self._rows: dict[str, _Row] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bars away; say how it went unless the work was cut off."""
        self._progress.stop()
        if error is None:
            self._console.print(str(self._totals))

    def beside(self, err: TextIO) -> TextIO:
        """Above the bars, if `err` is a screen; a file gets what it would have got."""
        return cast(TextIO, _Above(self._console)) if err.isatty() else err

    def expect(self, images: int) -> None:
        """The length of the bar over all."""
        self._expected = images
        self._count()

    def started(self, key: str) -> None:
        """A line of its own."""
        name = key if len(key) <= 60 else "…" + key[-59:]
        self._rows[key] = _Row(self._progress.add_task(one_line(name), total=None, detail=""))

    def moved(self, key: str, direction: Direction, count: int) -> None:
        """Move its numbers."""
        row = self._rows.get(key)
        if row is None:
            return
        row.moved[direction] += count
        detail = f"{size(row.moved['pull'])} pulled, {size(row.moved['push'])} pushed"
        self._progress.update(row.task, detail=detail)

    def finished(self, key: str, outcome: Outcome) -> None:
        """The line gives way to a lasting one above the bars."""
        self._totals.add(outcome)
        row = self._rows.pop(key, None)
        if row is not None:
            self._progress.remove_task(row.task)
        self._count()
        self._console.print(describe(outcome), style=None if outcome.good else "red")

    def _count(self) -> None:
        done = self._totals.states.total()
        self._progress.update(
            self._all,
            total=self._expected or None,
            completed=done,
            detail=f"{done} of {self._expected}",
        )
