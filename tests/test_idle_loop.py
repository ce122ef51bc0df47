"""What counts as time in the tests' event loop."""

from __future__ import annotations

import time

import anyio
from anyio.lowlevel import checkpoint


def _work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def test_work_is_no_silence() -> None:
    """A limit does not end while something works, however long that takes."""
    begin = anyio.current_time()
    with anyio.fail_after(0.2):
        for _ in range(3):
            _work(0.1)
            await checkpoint()
    assert anyio.current_time() - begin < 0.1


async def test_waiting_counts() -> None:
    """A limit ends when nothing happens for so long, and by the wall's clock as well."""
    began = time.monotonic()
    with anyio.move_on_after(0.05) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert time.monotonic() - began >= 0.04


async def test_time_passes_for_whoever_only_yields() -> None:
    """A loop that never waits meets its limit too."""
    with anyio.move_on_after(0.05) as scope:
        while True:
            await checkpoint()
    assert scope.cancelled_caught
