"""What the listeners tell and pass on, over the real listener."""

from __future__ import annotations

import json

import anyio
import pytest

from copycat.app.facade import MAX_USERS
from copycat.errors import Unavailable
from tests.app.support import World, fetch, protected, row_of, until


async def test_the_listeners_tell_what_stands(world: World) -> None:
    """Images, status and metrics over HTTP name what was copied, who uses it and how it is spelt."""
    content = world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    world.pod("p", world.image("a:1"), image_id=f"{world.image('a')}@{content.digest}")
    async with world.running() as program:
        await protected(program, 1)
        status, text = await fetch(program, "metrics", "/api/v1/images")
        assert status == 200
        assert world.image("a:1") in text
        assert content.digest in text
        row = row_of(program, world.image("a:1"))
        assert row.running == [content.digest]
        assert {(u.kind, u.name) for u in row.users} == {("Deployment", "a"), ("Pod", "p")}
        assert row.spellings == [world.image("a:1")]
        assert row.unknown_since is None
        status, text = await fetch(program, "metrics", "/api/v1/status")
        assert status == 200
        assert json.loads(text)["protected"] == 1
        status, text = await fetch(program, "metrics", "/metrics")
        assert status == 200
        assert "copycat_" in text


async def test_verdicts_and_invalid_references_have_rows(world: World) -> None:
    """What is excluded, not allowed, or no reference at all has a row that says why; nobody is asked for it."""
    world.source.add_image("a", "1", seed="a")
    for name, reference in (
        ("good", world.image("a:1")),
        ("excluded", "excluded.example/x:1"),
        ("denied", "denied.example/x:1"),
        ("bad", "NOT A REFERENCE"),
    ):
        world.deployment(name, reference)
    async with world.running(
        exclude_registries="excluded.example",
        allowed_registries=f"{world.source.address},excluded.example",
    ) as program:
        await until(lambda: program.facade.status().protected == 1)
        states = {row.source: row.state for row in program.facade.images()}
        assert states == {
            world.image("a:1"): "protected",
            "excluded.example/x:1": "excluded",
            "denied.example/x:1": "denied",
            "NOT A REFERENCE": "failed",
        }
        assert row_of(program, "denied.example/x:1").message.endswith("nobody was contacted")
        assert program.facade.status().images == {
            "denied": 1,
            "excluded": 1,
            "failed": 1,
            "protected": 1,
        }


async def test_reset_ends_cooldowns_and_force_names_failures(world: World) -> None:
    """A missing image cools down; force names it, and more than five are counted; reset lets it be tried again."""
    for number in range(7):
        world.deployment(f"d{number}", world.image(f"gone{number}:1"))
    async with world.running() as program:
        await until(lambda: program.facade.status().images == {"failed": 7})
        row = row_of(program, world.image("gone0:1"))
        assert row.attempts == 1
        assert row.next_try is not None
        assert row.message
        assert not row.protected
        status, text = await fetch(program, "metrics", "/force-reconcile", "POST")
        assert status == 200
        assert json.loads(text)["success"] is False
        assert "7 images failed" in text
        assert "and 2 more" in text
        world.source.add_image("gone0", "1", seed="back")
        status, text = await fetch(program, "metrics", "/reset-cooldown", "POST")
        assert status == 200
        await until(lambda: row_of(program, world.image("gone0:1")).protected)


async def test_a_few_failures_are_all_named(world: World) -> None:
    """Up to five failures of a forced pass are named, without a count of more."""
    world.deployment("d", world.image("gone:1"))
    async with world.running() as program:
        await until(lambda: program.facade.status().images == {"failed": 1})
        result = await program.facade.force_reconcile()
        assert result.failure == f"1 images failed: {world.image('gone:1')}"


async def test_blobs_under_way_are_told(world: World) -> None:
    """A blob that is on its way is among the transfers."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    held = world.source.fail("get_blob", stall_at=10, times=None)
    async with world.running(shutdown_grace_seconds="1s") as program:
        with anyio.fail_after(10):
            await held.reached.wait()
        await until(lambda: bool(program.facade.transfers()))
        status, text = await fetch(program, "metrics", "/api/v1/transfers")
        assert status == 200
        assert "a:1" in text
        held.times = 0
        held.release()


async def test_many_users_are_cut(world: World) -> None:
    """A row names no more workloads than fit, though more use the image."""
    world.source.add_image("a", "1", seed="a")
    for number in range(MAX_USERS + 5):
        world.deployment(f"d{number}", world.image("a:1"))
    async with world.running(dry_run=True) as program:
        await until(lambda: program.facade.status().images == {"dry_run": 1})
        assert len(row_of(program, world.image("a:1")).users) == MAX_USERS
        assert program.facade.status().mode == "dryRun"


async def test_orders_after_the_end_are_refused(world: World) -> None:
    """A program that does not lead any more refuses orders with the reason."""
    async with world.running() as program:
        await until(lambda: program.facade.status().ready)
    with pytest.raises(Unavailable, match="does not lead"):
        await program.facade.reset_cooldown()
