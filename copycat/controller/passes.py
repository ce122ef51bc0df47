"""Forced passes: everything is looked at anew, and whoever asked hears when each image was tried once.

A pass belongs to nobody who waits for it: a client that leaves does not end it, one that comes while
it runs joins it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import anyio

from copycat.mirror.request import MirrorRequest

__all__ = ["Pass", "Passes"]


@dataclass(slots=True)
class Pass:
    """One forced pass."""

    pending: set[MirrorRequest]
    failed: set[MirrorRequest] = field(default_factory=set)
    done: anyio.Event = field(default_factory=anyio.Event)


class Passes:
    """At most one pass at a time."""

    def __init__(self, begin: Callable[[], Iterable[MirrorRequest]]) -> None:
        """Args: `begin` queues everything and says what it queued."""
        self._begin = begin
        self._current: Pass | None = None

    async def run(self) -> Pass:
        """Start a pass, or join the one that runs; returns when it is over."""
        current = self._current
        if current is None:
            current = Pass(set(self._begin()))
            if not current.pending:
                return current
            self._current = current
        await current.done.wait()
        return current

    def tried(self, request: MirrorRequest, *, failed: bool) -> None:
        """An image was tried once, or turned out to need nothing."""
        current = self._current
        if current is None or request not in current.pending:
            return
        current.pending.discard(request)
        if failed:
            current.failed.add(request)
        if not current.pending:
            self._current = None
            current.done.set()

    def abandon(self) -> None:
        """Nobody works any more: what was not tried counts as failed, and whoever waits is let go."""
        current = self._current
        if current is None:
            return
        self._current = None
        current.failed |= current.pending
        current.pending.clear()
        current.done.set()
