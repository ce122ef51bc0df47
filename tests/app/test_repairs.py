"""What only time shows, by the whole program: copies that vanish come back, tags are followed, failures are tried again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from copycat.app.process import Program
from copycat.controller.controller import Controller
from copycat.oci.digest import Digest
from copycat.sandbox.images import image, index
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.app.support import (
    World,
    counters,
    fetch,
    in_state,
    protected,
    repository,
    row_of,
    until,
)
from tests.app.times import Time

DAY = 24 * 60.0


def controller_of(program: Program) -> Controller:
    """The controller of the present term."""
    assert program.facade.controller is not None
    return program.facade.controller


def wipe(registry: Registry) -> None:
    """Somebody deletes all that a registry has."""
    for store in (registry.tags, registry.manifests, registry.blobs):
        store.clear()


async def idle(program: Program) -> None:
    """Wait until nothing is worked on and nothing is ready."""
    await until(lambda: not program.facade.status().working and not program.facade.status().queued)


async def checked(world: World, program: Program, time: Time, *, minutes: float) -> None:
    """Let time pass and wait until the checks that are due then are done."""
    before = world.target.ledger.count()
    time.pass_by(program, minutes=minutes)
    await until(lambda: world.target.ledger.count() > before)
    await idle(program)


async def test_a_copy_deleted_at_the_target_comes_back(world: World) -> None:
    """targetCheckMinutes: the target is looked at, the source is not; what is gone there is copied again, anchors too."""
    world.source.add("a", content := index(seed="a"), "1")
    world.deployment("a", world.image("a:1"))
    world.deployment("pinned", world.image(f"a@{content.digest}"))
    time = Time()
    async with world.running(time, target_check_minutes=60, tag_refresh_minutes=0) as program:
        rows = await protected(program, 2)
        world.source.ledger.clear()
        await checked(world, program, time, minutes=60)
        assert world.source.requests == []
        wipe(world.target)
        time.pass_by(program, minutes=60)
        anchor = Digest.parse(content.digest).anchor
        await until(lambda: set(world.target.tags["mirror/a"]) == {"1", anchor})
        assert world.target.has(repository(rows[0]), content, "1")
        await protected(program, 2)


@pytest.mark.parametrize("lost", ["tag", "anchor"])
async def test_a_lost_name_comes_back(world: World, lost: str) -> None:
    """A tag or an anchor that vanished is written again from what stands at the target: nothing is read at the source but its tag."""
    world.source.add("a", content := image(seed="a"), "1")
    world.deployment("a", world.image("a:1"))
    name = "1" if lost == "tag" else Digest.parse(content.digest).anchor
    time = Time()
    async with world.running(time, target_check_minutes=60, tag_refresh_minutes=0) as program:
        await protected(program, 1)
        world.source.ledger.clear()
        del world.target.tags["mirror/a"][name]
        time.pass_by(program, minutes=60)
        await until(lambda: world.target.tags["mirror/a"].get(name) == content.digest)
    assert world.source.ledger.count(Phase.GET_BLOB) == 0


async def test_a_tag_that_moved_is_followed_in_time(world: World) -> None:
    """tagRefreshMinutes: one HEAD tells whether the tag moved; digests are never asked again at the source."""
    world.source.add("a", old := image(seed="old"), "1")
    world.source.add("b", pinned := image(seed="pinned"))
    world.deployment("a", world.image("a:1"))
    world.deployment("b", world.image(f"b@{pinned.digest}"))
    time = Time()
    async with world.running(time, target_check_minutes=60, tag_refresh_minutes=600) as program:
        await protected(program, 2)
        world.source.add("a", new := image(seed="new"), "1")
        world.source.ledger.clear()
        for _ in range(4):
            await checked(world, program, time, minutes=61)
        assert world.source.requests == []
        assert world.target.tags["mirror/a"]["1"] == old.digest
        time.pass_by(program, minutes=600)
        await until(lambda: world.target.tags["mirror/a"]["1"] == new.digest)
        assert world.target.has("mirror/a", old)
        await idle(program)
    heads = [r.reference for r in world.source.ledger.select(Phase.HEAD_MANIFEST)]
    assert [h for h in heads if not h.startswith("sha256-")] == ["1"]
    assert len(heads) == 1 + 3  # whether somebody signed what is new
    assert {r.repository for r in world.source.requests} == {"a"}


async def test_no_checks(world: World) -> None:
    """0 turns both checks off: days later nobody was asked anything."""
    world.source.add("a", image(seed="a"), "1")
    world.deployment("a", world.image("a:1"))
    time = Time()
    async with world.running(time, target_check_minutes=0, tag_refresh_minutes=0) as program:
        await protected(program, 1)
        asked = world.source.ledger.count(), world.target.ledger.count()
        time.pass_by(program, minutes=30 * DAY)
        world.source.add("b", image(seed="b"), "1")
        world.deployment("b", world.image("b:1"))
        await protected(program, 2)
        assert [r for r in world.source.requests[asked[0] :] if r.repository == "a"] == []
        assert [r for r in world.target.requests[asked[1] :] if r.repository == "mirror/a"] == []


async def test_forced_passes_come_by_themselves(world: World) -> None:
    """forceReconcileMinutes: source and target are looked at anew on a fixed cadence, and what differs is mended."""
    world.source.add("a", image(seed="old"), "1")
    world.source.add("b", kept := image(seed="b"), "1")
    for name in ("a", "b"):
        world.deployment(name, world.image(f"{name}:1"))
    time = Time()
    async with world.running(
        time, force_reconcile_minutes=30, target_check_minutes=0, tag_refresh_minutes=0
    ) as program:
        await protected(program, 2)
        for number in range(3):
            world.source.add("a", new := image(seed=number), "1")
            for store in (world.target.tags, world.target.manifests, world.target.blobs):
                store.pop("mirror/b")
            # the pass before has returned, and the next one is waited for
            await until(lambda: time.sleeping[30 * 60.0] == 1)
            time.pass_by(program, minutes=30)
            await until(lambda new=new: world.target.tags["mirror/a"].get("1") == new.digest)  # type: ignore[misc] # bound now
            await until(lambda: world.target.has("mirror/b", kept, "1"))
            await idle(program)


#: What is configured, and the minutes between one try and the next.
COOLDOWNS = [
    pytest.param({}, (1, 5, 15, 60, 240, 1440, 1440), id="growing"),
    pytest.param({"failure_cooldown_minutes": 60}, (60, 60, 60), id="flat"),
]


@pytest.mark.parametrize(("flags", "waits"), COOLDOWNS)
async def test_cooldowns(world: World, flags: dict[str, Any], waits: tuple[int, ...]) -> None:
    """A terminal failure waits: not a request before its time, one attempt at it, and the next wait."""
    world.source.create_repository("a")
    world.deployment("a", reference := world.image("a:1"))
    time = Time()
    async with world.running(time, **flags) as program:
        await in_state(program, reference, "failed")
        for number, minutes in enumerate(waits, start=1):
            await idle(program)
            assert row_of(program, reference).attempts == number
            asked = world.source.ledger.count()
            time.pass_by(program, seconds=minutes * 60 - 10)
            world.deployment(f"again{number}", reference)  # one more user is no change
            await until(lambda n=number: program.facade.status().workloads == n + 1)  # type: ignore[misc] # bound now
            await idle(program)
            assert world.source.ledger.count() == asked
            time.pass_by(program, seconds=11)
            await until(lambda a=asked: world.source.ledger.count() > a)  # type: ignore[misc] # bound now
        await idle(program)


async def test_no_cooldown(world: World) -> None:
    """failureCooldownMinutes 0: no state of cooling down; failed images are retried as after temporary errors."""
    world.source.create_repository("a")
    world.deployment("a", reference := world.image("a:1"))
    time = Time()
    async with world.running(time, failure_cooldown_minutes=0) as program:
        await in_state(program, reference, "failed")
        await idle(program)
        _, text = await fetch(program, "metrics", "/reset-cooldown", "POST")
        assert json.loads(text) == {
            "reset": False,
            "clearedTargets": 0,
            "message": "failure cooldown disabled",
        }
        world.source.add("a", image(seed="a"), "1")
        time.pass_by(program, seconds=6)
        await in_state(program, reference, "protected")


async def change_template(world: World, program: Program) -> None:
    world.api.patch("deployments", "demo", "a", {"spec": {"template": {"metadata": {"labels": {"v": "2"}}}}})  # fmt: skip


async def turn_running(world: World, program: Program) -> None:
    world.pod("a-0", world.image("a:1"), image_id="sha256:" + "0" * 64)


async def report(world: World, program: Program) -> None:
    """A container has come and gone between two looks: only its imageID tells."""
    status = {"name": "main", "image": world.image("a:1"), "imageID": "sha256:" + "0" * 64}
    status["state"] = {"terminated": {"exitCode": 0}}  # type: ignore[assignment] # as JSON
    world.api.patch("pods", "demo", "waits", {"status": {"containerStatuses": [status]}})


async def reset(world: World, program: Program) -> None:
    _, text = await fetch(program, "metrics", "/reset-cooldown", "POST")
    assert json.loads(text) == {
        "reset": True,
        "clearedTargets": 1,
        "message": "failure cooldown reset",
    }


async def force(world: World, program: Program) -> None:
    _, text = await fetch(program, "metrics", "/force-reconcile", "POST")
    assert json.loads(text) == {
        "triggered": True,
        "success": True,
        "workloadsProcessed": 1,
        "imagesMirrored": 1,
        "message": "force reconcile completed",
    }


@pytest.mark.parametrize("clear", [change_template, turn_running, report, reset, force])
async def test_what_ends_a_cooldown(world: World, clear: Any) -> None:
    """A change of the template, a container that runs, a new imageID, a reset and a forced pass: the image is tried at once."""
    world.source.create_repository("a")
    reference = world.image("a:1")
    if clear is report:
        world.pod("waits", reference)
    else:
        world.deployment("a", reference)
    async with world.running(failure_cooldown_minutes=1440) as program:
        await in_state(program, reference, "failed")
        await idle(program)
        world.source.add("a", image(seed="a"), "1")
        await clear(world, program)
        await in_state(program, reference, "protected")
        assert controller_of(program).ledger.reset() == []


async def test_annotations_and_scale_do_not_end_a_cooldown(world: World) -> None:
    """Metadata, status and scale are no change: nobody is asked before the time."""
    world.source.create_repository("a")
    world.deployment("a", reference := world.image("a:1"))
    async with world.running(failure_cooldown_minutes=1440) as program:
        await in_state(program, reference, "failed")
        await idle(program)
        asked = world.source.ledger.count()
        world.api.patch("deployments", "demo", "a", {"metadata": {"annotations": {"x": "y"}}})
        world.api.patch("deployments", "demo", "a", {"spec": {"replicas": 20}})
        world.source.add("b", image(seed="b"), "1")
        world.deployment("b", world.image("b:1"))
        await protected(program, 1)
        assert [r for r in world.source.requests[asked:] if r.repository == "a"] == []


async def test_temporary_errors_never_cool_down(world: World) -> None:
    """A source that is down is tried again by itself, and a reset finds nothing to end."""
    world.source.add("a", image(seed="a"), "1")
    world.deployment("a", reference := world.image("a:1"))
    await world.source.stop()
    time = Time()
    async with world.running(time) as program:
        await in_state(program, reference, "failed")
        await idle(program)
        _, text = await fetch(program, "metrics", "/reset-cooldown", "POST")
        assert json.loads(text)["message"] == "no cooldown entries to reset"
        await world.source.start()
        time.pass_by(program, seconds=7)
        await in_state(program, reference, "protected")


async def test_a_target_that_refuses_holds_its_part(world: World) -> None:
    """A missing permission holds the target's project, not the images: one probe in five minutes, others go on, nothing cools."""
    for name in ("shut/a", "shut/b", "shut/c", "open/a"):
        world.source.add(name, image(seed=name), "1")
        world.deployment(name.replace("/", "-"), world.image(f"{name}:1"))
    world.target.fail(
        Phase.START_UPLOAD, status=403, code="DENIED", times=None, match=lambda r: "shut" in r.path
    )
    time = Time()
    one_worker = {"watch_resources": "deployments", "max_concurrent_reconciles": 1}
    async with world.running(time, docker__repo_prefix="", **one_worker) as program:
        await in_state(program, world.image("open/a:1"), "protected")
        await until(lambda: program.facade.status().images.get("failed") == 3)
        await idle(program)
        assert (await program.facade.reset_cooldown()).cleared == 0
        for name in ("shut/a", "shut/b", "shut/c"):
            message = row_of(program, world.image(f"{name}:1")).message
            assert "/shut/" in message
            assert "check that the project exists" in message
        probes = len(refused := world.target.ledger.select(Phase.START_UPLOAD))
        assert len({r.repository for r in refused if "shut" in r.repository}) == 1
        time.pass_by(program, minutes=5)
        await until(lambda: world.target.ledger.count(Phase.START_UPLOAD) > probes)
        await idle(program)
        names = {r.repository for r in world.target.ledger.select(Phase.START_UPLOAD)[probes:]}
        assert len(names) == 1
        world.target.faults.clear()
        time.pass_by(program, minutes=5)
        await protected(program, 4)


async def test_one_bad_entry_never_stops_the_next(world: World) -> None:
    """With one worker: what is missing, denied, unreadable, broken or no reference at all fails alone, in its own words."""
    good = world.source.add_image("good", "1", seed="good")
    world.source.create_repository("missing")
    world.source.add("broken", image(seed="broken", layers=(3000,)), "1")
    world.source.fail(Phase.GET_BLOB, corrupt_at=10, times=None, match=lambda r: "broken" in r.path)
    world.source.add_image("denied", "1", seed="denied")
    world.source.fail(
        Phase.GET_MANIFEST, status=403, times=None, match=lambda r: "denied" in r.path
    )
    world.source.put_manifest("odd", b'{"schemaVersion": 7}', "application/json", tag="1")
    bad = {
        world.image("missing:1"): "not_found",
        world.image("broken:1"): "digest_mismatch",
        world.image("denied:1"): "denied",
        world.image("odd:1"): "invalid_manifest",
        "not//an:image!": "invalid_reference",
        "localhost:1/nobody:1": "host_not_allowed",
    }
    for number, reference in enumerate(bad):
        world.deployment(f"bad{number}", reference)
    world.deployment("z-good", world.image("good:1"))
    async with world.running(watch_resources="deployments", max_concurrent_reconciles=1) as program:
        row = await in_state(program, world.image("good:1"), "protected")
        assert row.digest == good.digest
        await until(lambda: all(row_of(program, r).state in {"failed", "denied"} for r in bad))
        assert {reference: row_of(program, reference).reason for reference in bad} == bad
        status, text = await fetch(program, "metrics", "/force-reconcile", "POST")
        answer = json.loads(text)
        assert (status, answer["success"]) == (200, False)
        assert answer["message"].startswith("force reconcile failed: ")
        assert (answer["workloadsProcessed"], answer["imagesMirrored"]) == (7, 1)


async def test_series_vanish_with_the_last_reference(world: World) -> None:
    """The four counters begin at 0 for each image that is known, count each side, and go with the image's last user."""
    world.source.add_image("a", "1", seed="1")
    world.source.add_image("a", "2", seed="2")
    name, prefix = world.image("a"), "demo"
    for tag in ("1", "2"):
        world.deployment(f"a{tag}", f"{name}:{tag}")
    async with world.running() as program:
        await protected(program, 2)
        assert await counters(program) == {
            ("pull_success", name): 2,
            ("pull_error", name): 0,
            ("push_success", name): 2,
            ("push_error", name): 0,
        }
        world.api.delete("deployments", prefix, "a1")
        await until(lambda: len(program.facade.images()) == 1)
        assert (await counters(program))["pull_success", name] == 2
        world.api.delete("deployments", prefix, "a2")
        await until(lambda: not program.facade.images())
        assert await counters(program) == {}
