"""Time that a test lets pass: hours for the program's own clocks, none for its sockets."""

from __future__ import annotations

import time
from collections import Counter

import anyio

from copycat.app.process import Program


class Time:
    """The clocks and the sleep of a program. They run on as usual, and jump when told."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._jumped = anyio.Event()
        self.sleeping: Counter[float] = Counter()
        """How many sleep for so many seconds now."""

    def clock(self) -> float:
        """Seconds that only grow."""
        return time.monotonic() + self._ahead

    def wall(self) -> float:
        """Unix time."""
        return time.time() + self._ahead

    async def sleep(self, seconds: float) -> None:
        """Until that much has gone by, jumped or waited for."""
        end = self.clock() + seconds
        self.sleeping[seconds] += 1
        try:
            while self.clock() < end:
                with anyio.move_on_after(end - self.clock()):
                    await self._jumped.wait()
        finally:
            self.sleeping[seconds] -= 1

    def jump(self, seconds: float) -> None:
        """So much later."""
        self._ahead += seconds
        self._jumped.set()
        self._jumped = anyio.Event()

    def pass_by(self, program: Program, *, minutes: float = 0.0, seconds: float = 0.0) -> None:
        """So much later; what the program meant to do until then is due."""
        self.jump(minutes * 60.0 + seconds)
        controller = program.facade.controller
        assert controller is not None
        # its workers sleep by the real clock until the next key is due
        controller.queue._wake()
