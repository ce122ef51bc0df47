"""When signatures are looked for: in forced passes and after a look that failed, never in a plain check."""

from __future__ import annotations

from dataclasses import replace

from copycat.controller.controller import Intervals
from tests.controller.test_controller import World, good, template

HOUR = 3600.0


async def test_forced_passes_look_for_signatures() -> None:
    """What a first attempt, a check and a restart do not ask for, a forced pass does."""
    world = World(intervals=Intervals(target_check=HOUR, tag_refresh=0))
    async with world.working() as controller:
        await world.see(template())
        await world.later(HOUR)
        assert [need.check_signatures for _, need in world.mirror.needs] == [False, False]
        await controller.force()
        assert world.mirror.needs[-1][1].check_signatures
        assert world.mirror.needs[-1][1].check_anchors
        await world.later(HOUR)
        assert not world.mirror.needs[-1][1].check_signatures


async def test_a_look_that_failed_is_made_again() -> None:
    """At the next attempt, whatever it is for, everything is looked at; until a look succeeds. In between nothing is due."""
    world = World(
        good(signatures_due=True),
        good(signatures_due=True),
        good(signatures_due=None),
        good(signatures_due=False),
        intervals=Intervals(target_check=HOUR, tag_refresh=0),
    )
    async with world.working():
        await world.see(template())
        await world.later(60)
        assert world.tried == 1
        for _ in range(4):
            await world.later(HOUR)
    needs = [need for _, need in world.mirror.needs]
    assert [need.check_signatures for need in needs] == [False, True, True, True, False]
    assert all(need.anchored == frozenset() for need in needs[1:4])


async def test_the_image_is_no_less_protected() -> None:
    """A look that failed is no failure of the image: it has its state, no next try and no cool-down."""
    told = good(signatures_due=True, message="signatures: gone")
    world = World(replace(told))
    async with world.working():
        await world.see(template())
        (_, record), *_ = world.ledger
        assert record.protected
        assert (record.next_try, record.cooling_until, record.failures) == (0.0, 0.0, 0)
        assert record.result is not None
        assert record.result.message == "signatures: gone"
