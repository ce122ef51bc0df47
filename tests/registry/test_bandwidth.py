"""The limit over all transfers, in a time that passes only while everybody waits."""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import count

import anyio
import pytest

from copycat.registry.bandwidth import Bandwidth

MIB = 1024 * 1024
RATE = 10 * MIB


class Time:
    """A clock that jumps to the next one who wakes up."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
        self._number = count()

    def clock(self) -> float:
        """Seconds."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Wait in this time."""
        event = anyio.Event()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._number), event))
        await event.wait()

    async def pass_by(self) -> None:
        """Go on for ever."""
        while True:
            await anyio.wait_all_tasks_blocked()
            if not self._sleepers:
                await anyio.lowlevel.checkpoint()
                continue
            self.now, _, event = heapq.heappop(self._sleepers)
            event.set()


@asynccontextmanager
async def passing() -> AsyncIterator[Time]:
    """Time that passes while the block runs."""
    time = Time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(time.pass_by)
        yield time
        tasks.cancel_scope.cancel()


async def chunks(
    total: int, size: int, *, time: Time | None = None, every: float = 0.0
) -> AsyncGenerator[bytes]:
    """So many bytes in chunks of this size, each after a while."""
    for at in range(0, total, size):
        if time is not None:
            await time.sleep(every)
        yield bytes([at % 251]) * min(size, total - at)


async def drain(limit: Bandwidth, source: AsyncGenerator[bytes], seen: list[int]) -> None:
    """Read everything, counting in `seen[0]`."""
    async for piece in limit.paced(source):
        seen[0] += len(piece)


@pytest.mark.parametrize("size", [1000, 64 * 1024, 4 * MIB])
async def test_rate(size: int) -> None:
    """50 MiB at 10 MiB/s take five seconds, whatever the chunks are."""
    async with passing() as time:
        limit, seen, begun = Bandwidth(RATE, clock=time.clock, sleep=time.sleep), [0], time.now
        await drain(limit, chunks(50 * MIB, size), seen)
        assert seen == [50 * MIB]
        assert time.now - begun == pytest.approx(5.0, rel=0.03)


async def test_rate_of_all() -> None:
    """The limit is that of all streams together, and of what is read whole."""
    async with passing() as time:
        limit, begun = Bandwidth(RATE, clock=time.clock, sleep=time.sleep), time.now
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(drain, limit, chunks(5 * MIB, 64 * 1024), [0])
            tasks.start_soon(limit.spend, 10 * MIB)
        assert time.now - begun == pytest.approx(3.0, rel=0.03)


async def test_fair() -> None:
    """Large chunks get no more than small ones: each stream has its part of the rate."""
    async with passing() as time:
        limit = Bandwidth(RATE, clock=time.clock, sleep=time.sleep)
        seen = {size: [0] for size in (2000, 64 * 1024, MIB)}
        async with anyio.create_task_group() as tasks:
            for size, counted in seen.items():
                tasks.start_soon(drain, limit, chunks(100 * MIB, size), counted)
            await time.sleep(3.0)
            tasks.cancel_scope.cancel()
        for counted in seen.values():
            assert counted[0] == pytest.approx(RATE, rel=0.06)


async def test_a_slow_stream_takes_its_own_alone() -> None:
    """What a slow source does not need, the others have."""
    async with passing() as time:
        limit = Bandwidth(RATE, clock=time.clock, sleep=time.sleep)
        slow, fast = [0], [0]
        async with anyio.create_task_group() as tasks:
            source = chunks(100 * MIB, 100 * 1024, time=time, every=0.1)
            tasks.start_soon(drain, limit, source, slow)
            tasks.start_soon(drain, limit, chunks(100 * MIB, 64 * 1024), fast)
            await time.sleep(4.0)
            tasks.cancel_scope.cancel()
        assert slow[0] == pytest.approx(MIB * 4, rel=0.3)
        assert slow[0] + fast[0] == pytest.approx(4 * RATE, rel=0.05)


async def test_no_burst() -> None:
    """A pause is not saved up: the second after it moves hardly more than a second's bytes."""
    async with passing() as time:
        limit, seen = Bandwidth(RATE, clock=time.clock, sleep=time.sleep), [0]
        await time.sleep(3600.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain, limit, chunks(100 * MIB, 256 * 1024), seen)
            await time.sleep(1.0)
            tasks.cancel_scope.cancel()
        assert RATE <= seen[0] <= RATE * 1.15


async def test_what_is_not_used_is_given_back() -> None:
    """Many tiny blobs cost what they weigh, not a turn each."""
    async with passing() as time:
        limit, begun = Bandwidth(RATE, clock=time.clock, sleep=time.sleep), time.now
        for _ in range(500):
            await drain(limit, chunks(1024, 1024), [0])
        assert time.now - begun < 0.5


async def test_bytes_and_closing() -> None:
    """The bytes are unchanged and in order, and a reader that leaves closes the source."""
    closed = []

    async def source() -> AsyncGenerator[bytes]:
        try:
            yield b"a" * 5000
            yield b"b" * 3
            yield b"c" * 5000
        finally:
            closed.append(True)

    async with passing() as time:
        limit = Bandwidth(100_000, clock=time.clock, sleep=time.sleep)
        whole = b"".join([piece async for piece in limit.paced(source())])
        assert whole == b"a" * 5000 + b"b" * 3 + b"c" * 5000
        async with aclosing(limit.paced(source())) as paced:
            async for _ in paced:
                break
    assert closed == [True, True]


async def test_low_rates() -> None:
    """Even at a low rate no piece is held for long: whoever reads sees bytes move."""
    async with passing() as time:
        limit = Bandwidth(20_000, clock=time.clock, sleep=time.sleep)
        last, longest = time.now, 0.0
        async for _ in limit.paced(chunks(200_000, 64 * 1024)):
            last, longest = time.now, max(longest, time.now - last)
        assert longest < 0.2
