"""`copycat run` from end to end: what a cluster uses arrives, and the program ends in good order."""

from __future__ import annotations

import io
import json
import logging
import os
import signal

import anyio
import pytest

from copycat import logs
from copycat.app.process import Program
from copycat.program import RealProgram
from copycat.sandbox.images import index
from tests.app.support import World, fetch, in_state, named, protected, repository, row_of, until


async def test_what_a_cluster_uses_arrives(world: World) -> None:
    """Images of a Deployment, a CronJob and a Pod's init container are at the target, whole."""
    web = world.source.add("shop/web", index(seed="web", layers=(2000,)), "1")
    job = world.source.add_image("ops/job", "nightly", seed="job")
    init = world.source.add_image("shop/init", "7", seed="init")
    main = world.source.add_image("shop/main", "7", seed="main")
    world.deployment("web", world.image("shop/web:1"))
    spec = {"containers": [{"name": "job", "image": world.image("ops/job:nightly")}]}
    world.api.create(
        "cronjobs",
        {
            "metadata": named("job"),
            "spec": {"jobTemplate": {"spec": {"template": {"spec": spec}}}},
        },
    )
    world.pod("p", world.image("shop/main:7"), init=world.image("shop/init:7"))
    async with world.running() as program:
        await protected(program, 4)
        for name, content in (
            ("shop/web:1", web),
            ("ops/job:nightly", job),
            ("shop/init:7", init),
            ("shop/main:7", main),
        ):
            row = row_of(program, world.image(name))
            assert row.state == "protected"
            assert row.digest == content.digest
            assert world.holds(row, content, name.partition(":")[2])
        assert (await fetch(program, "health", "/readyz"))[0] == 200
        assert (await fetch(program, "health", "/healthz"))[0] == 200
    assert world.source.violations == []
    assert world.target.violations == []


async def test_an_image_that_comes_later_arrives(world: World) -> None:
    """A Deployment that is created while the program runs is copied as well."""
    world.source.add_image("late", "1", seed="late")
    async with world.running() as program:
        await until(lambda: program.facade.status().ready)
        world.deployment("late", world.image("late:1"))
        await protected(program, 1)


async def test_stop_ends_everything(world: World) -> None:
    """After stop the listeners are closed, the watches too, and no upload is left open."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    async with world.running() as program:
        await protected(program, 1)
        assert program.facade.status().ready
    assert program.stopping
    await program.wait_stopping()
    assert program.facade.controller is None
    await until(lambda: world.api.watching("deployments") == 0)
    await until(lambda: world.target.open_connections == 0)
    assert world.target.sessions == 0


async def test_stop_cuts_what_takes_longer_than_the_grace(world: World) -> None:
    """A copy that hangs is cut after the grace period, and its tag was never written."""
    world.source.add_image("slow", "1", seed="slow")
    world.deployment("slow", world.image("slow:1"))
    hang = world.source.fail("get_blob", stall_at=0, times=None)
    async with world.running(shutdown_grace_seconds="1s") as program:
        with anyio.fail_after(10):
            await hang.reached.wait()
        assert program.facade.status().working == 1
    assert all(not tags for tags in world.target.tags.values())


async def test_a_signal_ends_the_program(world: World) -> None:
    """SIGTERM ends `RealProgram.run` cleanly."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    settings = world.settings()
    config = world.kubeconfig
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: RealProgram().run(settings, kubeconfig=config, context=None))
            await world.target.wait_for(lambda r: r.phase == "put_manifest" and r.done)
            os.kill(os.getpid(), signal.SIGTERM)


async def test_changes_of_pods_cost_no_request(world: World) -> None:
    """Annotating a workload, and scaling it, asks no registry anything."""
    content = world.source.add_image("a", "1", seed="a")
    name = world.image("a:1")
    world.deployment("a", name)
    identity = f"{world.image('a')}@{content.digest}"
    world.pod("a-0", name, image_id=identity)
    async with world.running() as program:
        await protected(program, 1)
        before = world.source.ledger.count(), world.target.ledger.count()
        world.api.patch("deployments", "demo", "a", {"metadata": {"annotations": {"x": "y"}}})
        world.api.patch("pods", "demo", "a-0", {"metadata": {"annotations": {"x": "y"}}})
        world.api.patch("deployments", "demo", "a", {"spec": {"replicas": 20}})
        for number in range(1, 20):
            world.pod(f"a-{number}", name, image_id=identity)
        world.deployment("b", name)
        await until(lambda: program.facade.status().workloads == 22)
        await protected(program, 1)
        assert (world.source.ledger.count(), world.target.ledger.count()) == before


async def test_a_tag_that_moved_is_followed_when_forced(world: World) -> None:
    """After a forced pass the tag means the new image; the old one keeps the anchor that holds it."""
    old = world.source.add_image("a", "1", seed="old")
    world.deployment("a", world.image("a:1"))
    async with world.running() as program:
        [row] = await protected(program, 1)
        new = world.source.add_image("a", "1", seed="new")
        status, _ = await fetch(program, "metrics", "/force-reconcile", "POST")
        assert status == 200
        assert row_of(program, world.image("a:1")).digest == new.digest
        tags = world.target.tags[repository(row)]
        assert tags["1"] == new.digest
        assert {tags[f"digest-{i.digest.removeprefix('sha256:')}"] for i in (old, new)} == {
            old.digest,
            new.digest,
        }
        assert world.holds(row, old)
        assert world.holds(row, new, "1")


async def test_a_restart_without_the_source(world: World) -> None:
    """With the source gone a restart finds every copy; since when its tags are unknown is told, nothing cools down."""
    for name in ("a", "b"):
        world.source.add_image(name, "1", seed=name)
        world.deployment(name, world.image(f"{name}:1"))
    async with world.running() as program:
        await protected(program, 2)
    await world.source.stop()
    async with world.running() as program:
        rows = await protected(program, 2)
        assert all(row.protected and row.unknown_since is not None for row in rows)
        assert (await fetch(program, "health", "/readyz"))[0] == 200
        assert program.facade.controller is not None
        assert all(r.cooling_until == 0 for _, r in program.facade.controller.ledger)
        assert (await program.facade.reset_cooldown()).cleared == 0


async def test_one_leads_and_the_other_stands_by(world: World) -> None:
    """With leader election one works; the other is ready, refuses orders, and takes over when the first ends."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    async with world.running(leader_elect=True) as second:
        await until(lambda: second.facade.leading)
        await protected(second, 1)
        first = second
        async with world.running(leader_elect=True) as standby:
            await until(lambda: bool(standby.facade.holder()))
            assert standby.facade.holder() == first.facade.holder()
            assert (await fetch(standby, "health", "/readyz"))[0] == 200
            for path in ("/force-reconcile", "/reset-cooldown"):
                assert (await fetch(standby, "metrics", path, "POST"))[0] == 503
            assert standby.facade.images() == ()
            assert standby.facade.transfers() == ()
            standby.facade.refresh()
            assert not standby.facade.status().ready
        assert first.facade.leading


async def test_a_standby_takes_over(world: World) -> None:
    """When the leader stops it gives its Lease back, and the standby goes on."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    async with world.running(leader_elect=True) as first:
        await until(lambda: first.facade.leading)
        async with world.running(leader_elect=True) as second:
            await until(lambda: bool(second.facade.holder()))
            first.stop()
            await until(lambda: second.facade.leading)
            await protected(second, 1)
            assert second.facade.status().leading


async def test_a_kind_that_is_denied_does_not_stop_the_others(world: World) -> None:
    """Without permission for CronJobs everything else is copied, and what is not covered is named."""
    world.api.forbid("cronjobs")
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    async with world.running() as program:
        await protected(program, 1)
        uncovered = program.facade.status().uncovered
        assert any("cronjobs" in text and "permission" in text for text in uncovered)
        assert (await fetch(program, "health", "/readyz"))[0] == 200


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param({"include_namespaces": "demo"}, "namespaces other than demo", id="named"),
        pytest.param({"include_namespaces": "de*"}, "do not match de*", id="pattern"),
        pytest.param({"skip_namespaces": "kube-*"}, "that match kube-*", id="skipped"),
        pytest.param({"watch_resources": "deployments"}, "pods (not in watchResources)", id="kind"),
    ],
)
async def test_what_the_configuration_leaves_out(
    world: World, flags: dict[str, str], words: str
) -> None:
    """The status names what is not protected because of the configuration; the rest is."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    async with world.running(**flags) as program:
        await protected(program, 1)
        assert any(words in text for text in program.facade.status().uncovered)


async def test_the_platforms_of_the_nodes(world: World) -> None:
    """With checkNodePlatform the nodes are watched, those that go too, and what runs on them is copied."""
    content = index(seed="x", platforms=("linux/amd64", "linux/arm64"), layers=(900,))
    world.source.add("x", content, "1")
    for name, architecture in (("n1", "amd64"), ("n2", "amd64")):
        world.api.create(
            "nodes",
            {
                "metadata": {"name": name},
                "status": {"nodeInfo": {"operatingSystem": "linux", "architecture": architecture}},
            },
        )
    world.pod("p", world.image("x:1"), node="n1")
    async with world.running(check_node_platform=True) as program:
        await protected(program, 1)
        controller = program.facade.controller
        assert controller is not None
        assert {str(p) for p in controller.inventory.nodes.values()} == {"linux/amd64"}
        world.api.delete("nodes", "", "n2")
        await until(lambda: set(controller.inventory.nodes) == {"n1"})


@pytest.mark.parametrize("verbs", [("list", "watch"), ("*",)], ids=["get alone", "nothing"])
async def test_nodes_that_may_not_be_listed(world: World, verbs: tuple[str, ...]) -> None:
    """Where `get` on nodes is all that is granted, checkNodePlatform works as well; without it the whole image is copied."""
    content = index(seed="x", platforms=("linux/amd64", "linux/arm64"), layers=(900,))
    world.source.add("x", content, "1")
    info = {"operatingSystem": "linux", "architecture": "arm64"}
    for name in ("n1", "n2"):
        world.api.create("nodes", {"metadata": {"name": name}, "status": {"nodeInfo": info}})
    world.pod("p", world.image("x:1"), node="n1")
    world.api.forbid("nodes", verbs=verbs)
    async with world.running(check_node_platform=True) as program:
        [row] = await protected(program, 1)
        allowed = verbs != ("*",)
        assert row.state == ("tag_only" if allowed else "protected")
        assert world.holds(row, content, "1") is not allowed
        uncovered = [text for text in program.facade.status().uncovered if "nodes" in text]
        assert bool(uncovered) is not allowed
        asked = world.api.count("get", "nodes")
        for number in range(5):
            world.pod(f"p{number}", world.image("x:1"), node="n2" if number else "n1")
        await until(lambda: program.facade.status().workloads == 6)
        controller = program.facade.controller
        assert controller is not None
        if allowed:
            await until(lambda: set(controller.inventory.nodes) == {"n1", "n2"})
            assert world.api.count("get", "nodes") == asked + 1


async def test_extra_images_need_no_workload(world: World) -> None:
    """What extraImages names is copied though nothing uses it."""
    world.source.add_image("extra", "1", seed="extra")
    async with world.running(extra_images=world.image("extra:1")) as program:
        [row] = await protected(program, 1)
        assert row.source == world.image("extra:1")


async def test_the_lines_of_one_attempt_belong_together(world: World) -> None:
    """Whatever is logged during an attempt names the image, a namespace that uses it, and the attempt."""
    root = logging.getLogger()
    level, handlers, stream = root.level, list(root.handlers), io.StringIO()
    logs.configure("debug", "json", stream=stream)
    try:
        world.deployment("absent", world.image("absent:1"))
        for name in ("a", "b"):
            world.source.add_image(name, "1", seed=name)
            world.deployment(name, world.image(f"{name}:1"))
        async with world.running() as program:
            await protected(program, 2)
            await in_state(program, world.image("absent:1"), "failed")
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        logs.unconfigure()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    bound = [line for line in lines if "reconcile_id" in line]
    assert {line["image"] for line in bound} == {
        world.image(f"{n}:1") for n in ("a", "b", "absent")
    }
    assert {line["namespace"] for line in bound} == {"demo"}
    by_attempt = {line["reconcile_id"]: line["image"] for line in bound}
    assert all(by_attempt[line["reconcile_id"]] == line["image"] for line in bound)
    assert {line["msg"] for line in bound} >= {"image mirrored", "image not mirrored"}


async def test_who_lost_the_lease_counts_nothing(world: World) -> None:
    """A leader that becomes a standby shows no images and no queue as if it still knew them, and is ready."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    world.deployment("b", world.image("absent:1"))
    world.source.fail("get_blob", stall_at=0, times=None)
    async with world.running(leader_elect=True) as program:
        await until(lambda: program.facade.status().working > 0)
        await in_state(program, world.image("absent:1"), "failed")
        assert await _sample(program, 'k8s_copycat_images{state="failed"}') == 1
        assert await _sample(program, "k8s_copycat_oldest_unprotected_image_age_seconds") > 0
        [lease] = world.api.objects("leases")
        lease["spec"] |= {"holderIdentity": "another", "leaseDurationSeconds": 3600}
        world.api.update("leases", lease)
        await until(lambda: not program.facade.leading)
        _, text = await fetch(program, "metrics", "/metrics")
        names = ("k8s_copycat_images{", "k8s_copycat_oldest_", "k8s_copycat_workqueue_depth{")
        shown = [
            line for line in text.splitlines() if line.startswith((*names, "k8s_copycat_leader "))
        ]
        assert len(shown) > len(names)
        assert [line for line in shown if not line.endswith(" 0.0")] == []
        assert (await fetch(program, "health", "/readyz"))[0] == 200


async def _sample(program: Program, name: str) -> float:
    _, text = await fetch(program, "metrics", "/metrics")
    [value] = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)]
    return float(value)
