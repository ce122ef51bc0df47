"""Bodies of uploads: when they are cut off, what they raise, how they are closed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from copycat.errors import DigestMismatch
from copycat.registry.answers import SLOW_RATE, SLOW_WINDOW
from copycat.registry.body import Beat, close, whole

PIECE = b"x" * 100


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def pieces(count: int) -> AsyncIterator[bytes]:
    """So many of them."""
    for _ in range(count):
        yield PIECE


async def test_told() -> None:
    """What the sink took is counted and told, chunk by chunk; the end is known."""
    told: list[int] = []
    beat = Beat(Clock(), told.append)
    assert b"".join([chunk async for chunk in beat.follow(pieces(3))]) == PIECE * 3
    assert (told, beat.taken, beat.finished, beat.since) == ([100] * 3, 300, True, None)


async def test_own_error() -> None:
    """What the body raises is kept."""

    async def broken() -> AsyncIterator[bytes]:
        yield PIECE
        raise DigestMismatch("no")

    beat = Beat(Clock(), None)
    with pytest.raises(DigestMismatch):
        await whole(beat.follow(broken()))
    assert isinstance(beat.error, DigestMismatch)
    assert not beat.finished


async def watched(beat: Beat, clock: Clock, steps: list[tuple[float, int]]) -> str:
    """What the watch says while time passes and bytes are taken; "" if it says nothing."""
    said = ""

    async def watch() -> None:
        nonlocal said
        said = await beat.watch(0.004)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        for seconds, taken in steps:
            clock.now += seconds
            beat.taken += taken
            await anyio.sleep(0.004)
        tasks.cancel_scope.cancel()
    return said


ENOUGH = int(SLOW_RATE * SLOW_WINDOW)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        pytest.param([(SLOW_WINDOW, ENOUGH)] * 3, "", id="just-enough"),
        pytest.param([(SLOW_WINDOW - 1, 0)], "", id="not-long-enough"),
        pytest.param([(SLOW_WINDOW, ENOUGH - 1)], "slow", id="too-little"),
        pytest.param([(SLOW_WINDOW, 9 * ENOUGH), (SLOW_WINDOW, 10)], "slow", id="later"),
    ],
)
async def test_slow(steps: list[tuple[float, int]], said: str) -> None:
    """A body that hardly moves over the window is cut off; what it moved before does not count."""
    clock = Clock()
    assert await watched(Beat(clock, None), clock, steps) == said


async def test_a_piece_moves() -> None:
    """What goes out of a piece is movement, and the piece is no chunk that the sink holds."""
    clock = Clock()
    beat = Beat(clock, None)
    beat.since = clock()
    beat.moves(ENOUGH)
    assert await watched(beat, clock, [(SLOW_WINDOW, 0)]) == ""
    assert await watched(beat, clock, [(SLOW_WINDOW, 0), (SLOW_WINDOW, 0)]) == "slow"


async def test_waiting_for_the_answer_is_not_slow() -> None:
    """Once the body is out, the time that storing it takes is no slowness."""
    clock = Clock()
    beat = Beat(clock, None)
    beat.finished = True
    assert await watched(beat, clock, [(SLOW_WINDOW, 0)] * 3) == ""


async def test_stalled() -> None:
    """A chunk that the sink holds for too long is a stall; a source that is waited for is not."""
    clock = Clock()
    beat = Beat(clock, None)
    assert await watched(beat, clock, [(100.0, 0)]) == ""
    beat.since = clock.now
    assert await watched(beat, clock, [(100.0, 0)]) == "stalled"


async def test_close() -> None:
    """Closing what is no generator does nothing; one that is running is closed when it has stopped."""
    gate = anyio.Event()
    closed = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            await gate.wait()
            yield PIECE
        finally:
            closed = True

    class Plain:
        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

    await close(Plain())
    running = body()

    async def read() -> None:
        async for _ in running:
            return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        gate.set()
        await close(running)
    assert closed
