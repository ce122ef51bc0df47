"""The body of an upload on its way: who waits for whom, since when, and how it ends.

No timer of aiohttp covers a sink that stops reading (registry notes 3.2), and a generator that fails
inside of aiohttp is reported as a failure of the connection. So the body is watched from here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel

from copycat.registry.answers import SLOW_RATE, SLOW_WINDOW

__all__ = ["Beat", "close", "whole"]


class Beat:
    """When the sink took its last chunk: one time stamp, looked at now and then, instead of a timer per chunk."""

    __slots__ = ("begun", "clock", "error", "finished", "moved", "on_bytes", "since", "taken")

    def __init__(self, clock: Callable[[], float], on_bytes: Callable[[int], None] | None) -> None:
        """Args: `clock` in seconds; `on_bytes` is told what the sink took."""
        self.clock, self.on_bytes = clock, on_bytes
        self.begun = clock()
        #: Since when the sink holds a chunk; None while the source is waited for, and at the end.
        self.since: float | None = None
        #: Bytes that the sink took.
        self.taken = 0
        #: Bytes of a chunk that the sink has not taken whole yet.
        self.moved = 0
        #: What the body raised: aiohttp hides it behind an error of its own.
        self.error: Exception | None = None
        self.finished = False

    async def follow(self, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """The body's chunks, timed."""
        clock, on_bytes = self.clock, self.on_bytes
        try:
            async for chunk in body:
                self.since = clock()
                yield chunk
                self.since = None
                self.taken += len(chunk)
                if on_bytes is not None:
                    on_bytes(len(chunk))
        except Exception as error:
            self.error = error
            raise
        self.finished = True

    def moves(self, count: int) -> None:
        """A piece of form D goes out, which lasts on a narrow line. The wire watches it, as all that it has whole."""
        self.moved += count
        self.since = None

    async def watch(self, silence: float, slow_rate: float = SLOW_RATE) -> str:
        """Return when the body is to be cut off, with the reason: `stalled` or `slow`.

        Args: `silence` in seconds; `slow_rate` in bytes a second, over `SLOW_WINDOW`.
        """
        marked, taken = self.begun, 0
        while True:
            await anyio.sleep(silence / 4)
            now = self.clock()
            if self.since is not None and now - self.since >= silence:
                return "stalled"
            if now - marked < SLOW_WINDOW:
                continue
            moved = self.taken + self.moved
            if not self.finished and moved - taken < slow_rate * (now - marked):
                return "slow"
            marked, taken = now, moved


async def whole(body: AsyncIterator[bytes]) -> bytes:
    """All of a body at once."""
    try:
        return b"".join([chunk async for chunk in body])
    finally:
        await close(body)


async def close(body: AsyncIterator[bytes]) -> None:
    """Close a generator whose last reader, a task of aiohttp's, may still be on its way out."""
    if not isinstance(body, AsyncGenerator):
        return
    for _ in range(100):
        with suppress(RuntimeError):  # "asynchronous generator is already running"
            await body.aclose()
            return
        await anyio.lowlevel.checkpoint()
