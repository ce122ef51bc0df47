"""An event loop whose time is the time that it waits, and of its work next to nothing.

Servers and clients of a test share one loop. A limit of a tenth of a second on a server's silence then means a tenth of
a second in which nobody has anything to do; on the wall's clock it would be a bet that the machine does the rest in
that time, and a busy machine loses it.
"""

from __future__ import annotations

import asyncio
import selectors
import time

#: Seconds of work that count in one turn of the loop: time must pass for whoever only yields, too.
TURN = 0.001


class _Selector(selectors.DefaultSelector):
    """Adds up how long it waited."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = time.monotonic()
        self.now = self._ended

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for files, for `timeout` seconds at most, of which no more count however long it takes."""
        begin = time.monotonic()
        ready = super().select(timeout)
        worked, self._ended = begin - self._ended, time.monotonic()
        waited = self._ended - begin
        self.now += min(worked, TURN) + (waited if timeout is None else min(waited, timeout))
        return ready


class IdleLoop(asyncio.SelectorEventLoop):
    """The usual loop, but for its time."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Seconds, from the moment of the monotonic clock in which the loop was made."""
        return self._clock.now
