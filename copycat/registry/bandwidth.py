"""A limit on the bytes that all transfers move together, shared fairly between them.

Every stream buys the right to the next few bytes from one account and waits for its turn in the order of
asking. All buy the same amount at a time, so a stream of large chunks gets no more than one of small
ones, and a stream that is slow by itself takes nothing from the others.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio

__all__ = ["Bandwidth"]

#: What is bought at a time is worth so many seconds, but never less than this many bytes.
_TURN, _LEAST = 0.02, 1024
#: Seconds of the past that may be made up for: a pause is no savings account.
_CREDIT = 0.1


class Bandwidth:
    """The account: a moment up to which the rate is spent."""

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        """Args: `rate` is in bytes a second, over everything that asks here."""
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._spent_until = clock()
        self._turn = max(_LEAST, int(rate * _TURN))

    async def spend(self, count: int) -> None:
        """Wait until so many bytes may move; in turns, so that others are not kept waiting for long."""
        while count > 0:
            turn = min(count, self._turn)
            await self._buy(turn)
            count -= turn

    async def paced(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """The same bytes, no faster than the account allows. `chunks` is closed at the end."""
        bought = 0
        try:
            async for chunk in chunks:
                at = 0
                while at < len(chunk):
                    if not bought:
                        await self._buy(self._turn)
                        bought = self._turn
                    piece = chunk[at : at + bought] if at or len(chunk) > bought else chunk
                    at += len(piece)
                    bought -= len(piece)
                    yield piece
        finally:
            self._spent_until -= bought / self._rate
            with anyio.CancelScope(shield=True):
                await chunks.aclose()

    async def _buy(self, count: int) -> None:
        """Take a place at the end of the line, and wait for it."""
        now = self._clock()
        begin = max(self._spent_until, now - _CREDIT)
        self._spent_until = begin + count / self._rate
        if begin > now:
            await self._sleep(begin - now)
