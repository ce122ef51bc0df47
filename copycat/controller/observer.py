"""Who hears of attempts while they run: the status page, the progress bars of a terminal."""

from __future__ import annotations

from typing import Literal, Protocol

from copycat.mirror.request import MirrorRequest, MirrorResult

__all__ = ["Nobody", "Observer"]


class Observer(Protocol):
    """Hears of every attempt, in the event loop's thread."""

    def started(self, request: MirrorRequest) -> None:
        """An attempt begins."""
        ...

    def moved(self, request: MirrorRequest, direction: Literal["pull", "push"], count: int) -> None:
        """So many bytes went by."""
        ...

    def finished(self, request: MirrorRequest, result: MirrorResult) -> None:
        """An attempt is over."""
        ...


class Nobody:
    """Does not listen."""

    def started(self, request: MirrorRequest) -> None:
        """Nothing."""

    def moved(self, request: MirrorRequest, direction: Literal["pull", "push"], count: int) -> None:
        """Nothing."""

    def finished(self, request: MirrorRequest, result: MirrorResult) -> None:
        """Nothing."""
