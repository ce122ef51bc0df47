"""A plan as data: one row for each image, and what can only be said about them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from copycat.app.outcomes import is_good, verdict_key
from copycat.controller.inventory import Entry, Invalid
from copycat.mirror.request import MirrorResult
from copycat.mirror.stage import Notes, TagWrite

__all__ = [
    "Action",
    "Load",
    "Missing",
    "Move",
    "Plan",
    "PullSecrets",
    "Row",
    "Summary",
    "decided",
    "invalid",
    "row",
]

#: What would be done: content is sent, tags alone are written, nothing.
Action = Literal["copy", "tag", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A tag at the target that would come to stand for something else."""

    tag: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image."""

    source: str
    target: str = ""
    digest: str = ""
    state: str
    """The state that a run would leave it in: one of `copycat.metrics.STATES`."""
    action: Action = "none"
    """What a run would do, also where it fails in the end."""
    reason: str = ""
    message: str = ""
    good: bool
    """Whether it would be at the target as asked."""
    size: int = 0
    """Bytes to send that no earlier row sends."""
    measured: bool = True
    """False if the look at the image did not come to its end: there may be more to send."""
    reads: int = 0
    """Manifests to read at the source."""
    moves: tuple[Move, ...] = ()
    users: tuple[str, ...] = ()
    """`Kind namespace/name` of the top owners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a run would ask of one source, and when that is allowed."""

    registry: str
    images: int
    """Images to copy or to look into."""
    requests: int
    """Manifest reads, which is what pull quotas count."""
    at_least: bool = False
    """Some images could not be looked into, so there are more."""
    limit: int | None = None
    remaining: int | None = None
    window: float | None = None
    """Of the quota, in seconds; all three None: the registry told of no quota."""
    done_by: datetime | None = None
    """When the last one is allowed; None: not known."""
    at_once: bool = False
    """Whether what is left of the quota now is enough."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A repository at the target that is not there, or may not be."""

    repository: str
    how: Literal["create", "on_push", "missing", "no_project"]
    """`create`: by copycat; `on_push`: by the registry, if it is not there already; `missing`: by you;
    `no_project`: by you, with the project that it belongs to."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSecrets:
    """A namespace whose images the source did not show to us, and whose workloads have pull secrets."""

    namespace: str
    secrets: tuple[str, ...]
    images: tuple[str, ...]
    covered: bool = False
    """Whether a run reads them: `pullSecrets` covers the namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What can only be said about all images."""

    states: Mapping[str, int]
    actions: Mapping[str, int]
    size: int
    """Bytes to send, shared blobs once."""
    unmeasured: int = 0
    """Images whose bytes are not known."""
    loads: tuple[Load, ...] = ()
    repositories: tuple[Missing, ...] = ()
    pull_secrets: tuple[PullSecrets, ...] = ()
    denied_kinds: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything."""

    rows: tuple[Row, ...]
    summary: Summary

    @property
    def good(self) -> bool:
        """Whether every image would be at the target as asked."""
        return all(row.good for row in self.rows)


def users_of(entry: Entry | Invalid) -> tuple[str, ...]:
    """Who uses it, in words."""
    names = {
        f"{w.owner_kind} {w.namespace}/{w.owner_name}" if w.namespace else w.owner_kind
        for w in entry.users.values()
    }
    return tuple(sorted(names))


def decided(entry: Entry) -> Row:
    """An image that the configuration alone decides."""
    return Row(
        source=str(entry.request.source),
        state=entry.verdict,
        good=entry.verdict == "excluded",
        reason=entry.verdict,
        message=f"by {verdict_key(entry.verdict)}",
        users=users_of(entry),
    )


def invalid(bad: Invalid) -> Row:
    """A text that names no image."""
    return Row(
        source=bad.image,
        state="failed",
        good=False,
        reason="invalid_reference",
        message=bad.message,
        users=users_of(bad),
    )


def row(entry: Entry, result: MirrorResult, notes: Notes, *, size: int) -> Row:
    """An image that was rehearsed. Args: `size` are the bytes that are sent for it first."""
    measured = result.state not in {"failed", "waiting_quota", "dry_run"}
    return Row(
        source=str(entry.request.source),
        target=str(result.target),
        digest=str(result.digest) if result.digest else "",
        state=result.state,
        action=_action(notes),
        reason=result.reason,
        message=result.message,
        # that takes time and nothing else
        good=result.state == "waiting_quota" or is_good(result, dry=result.state == "dry_run"),
        size=size,
        measured=measured,
        reads=notes.reads,
        moves=tuple(
            _move(write) for write in notes.tags if write.before not in {None, write.digest}
        ),
        users=users_of(entry),
    )


def _action(notes: Notes) -> Action:
    if notes.blobs or notes.manifests:
        return "copy"
    return "tag" if notes.tags else "none"


def _move(write: TagWrite) -> Move:
    return Move(tag=write.tag, before=str(write.before), after=str(write.digest))
