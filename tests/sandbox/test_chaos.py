"""Random trouble for soaks: as much as was asked for, and the same for the same seed."""

from __future__ import annotations

import aiohttp

from copycat.sandbox.chaos import unleash
from copycat.sandbox.registry import Registry
from tests.sandbox.driver import Driver, driving


async def outcomes(share: float, seed: int) -> list[int]:
    """Statuses of 300 requests; 0 where the connection broke."""
    async with driving(Registry()) as client:
        client.registry.add_image("team/app", "1")
        unleash(client.registry.faults, share=share, seed=seed)
        return [await status(client) for _ in range(300)]


async def status(client: Driver) -> int:
    """Of one request."""
    try:
        return (await client.manifest("team/app", "1")).status
    except aiohttp.ClientError:
        return 0


async def test_share() -> None:
    """About the share of the requests is spoiled; with the same seed the same ones."""
    found = await outcomes(0.2, 7)
    assert 30 <= sum(status != 200 for status in found) <= 90
    assert await outcomes(0.2, 7) == found
    assert await outcomes(0.2, 8) != found


async def test_none() -> None:
    """A share of nothing spoils nothing."""
    assert set(await outcomes(0.0, 7)) == {200}
