"""One works, the others wait."""

from __future__ import annotations

import anyio
import pytest

from copycat.errors import Unavailable
from copycat.registry.singleflight import SingleFlight


class Work:
    """Counts its calls, waits until it may go on."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls, self.error = 0, error
        self.begun, self.go = anyio.Event(), anyio.Event()

    async def __call__(self) -> int:
        self.calls += 1
        self.begun.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return self.calls


async def test_shared_result() -> None:
    """Everybody gets what one found; afterwards there is nothing left."""
    flights, work, found = SingleFlight[str, int](), Work(), []

    async def ask() -> None:
        found.append(await flights.do("key", work))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
        await work.begun.wait()
        await anyio.wait_all_tasks_blocked()
        work.go.set()

    assert found == [1] * 5
    assert await flights.do("key", work) == 2


async def test_shared_error() -> None:
    """A failure is everybody's who waited, and is not remembered."""
    flights, work, failed = SingleFlight[str, int](), Work(Unavailable("away")), 0

    async def ask() -> None:
        nonlocal failed
        with pytest.raises(Unavailable):
            await flights.do("key", work)
        failed += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
        await work.begun.wait()
        await anyio.wait_all_tasks_blocked()
        work.go.set()

    assert (failed, work.calls) == (5, 1)


async def test_handed_on() -> None:
    """Who is cancelled leaves the work to one that waits."""
    flights, work, found = SingleFlight[str, int](), Work(), []

    async def ask() -> None:
        found.append(await flights.do("key", work))

    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as first:
            first.start_soon(ask)
            await work.begun.wait()
            for _ in range(2):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        work.go.set()

    assert found == [2, 2]
