"""A cluster is listed once, or it is said why not."""

from __future__ import annotations

import pytest

from copycat.app.informers import list_cluster
from copycat.errors import KubeDenied, KubeUnavailable
from copycat.kube.client import open_api
from copycat.sandbox.kube_api import Fault
from tests.app.support import World


def node(name: str, architecture: str) -> dict[str, object]:
    """A node; without an architecture it is a virtual one."""
    info = {"operatingSystem": "linux", "architecture": architecture}
    return {"metadata": {"name": name}, "status": {"nodeInfo": info if architecture else {}}}


async def test_everything_is_listed(world: World) -> None:
    """Workloads, the platforms of nodes that have one, and the kinds that may not be listed."""
    world.deployment("a", world.image("a:1"))
    world.pod("p", world.image("a:1"))
    world.api.create("nodes", node("n1", "arm64"))
    world.api.create("nodes", node("virtual", ""))
    world.api.forbid("jobs")
    async with open_api(world.kubeconfig, None) as client:
        listing = await list_cluster(world.settings(check_node_platform=True), client)
    assert sorted(w.name for w in listing.workloads) == ["a", "p"]
    assert {n: str(p) for n, p in listing.nodes.items()} == {"n1": "linux/arm64"}
    assert listing.denied == ("jobs",)
    assert {r.method for r in world.api.requests} == {"GET"}


async def test_nodes_are_not_asked_for_without_need(world: World) -> None:
    """Without checkNodePlatform no permission for nodes is needed."""
    world.api.forbid("nodes")
    async with open_api(world.kubeconfig, None) as client:
        listing = await list_cluster(world.settings(), client)
    assert listing.denied == ()
    assert world.api.count("list", "nodes") == world.api.count("watch", "nodes") == 0


async def test_nodes_that_may_only_be_read(world: World) -> None:
    """With `get` alone the nodes that Pods run on are read, no other."""
    for name, architecture in (("n1", "arm64"), ("n2", "amd64")):
        world.api.create("nodes", node(name, architecture))
    world.pod("p", world.image("a:1"), node="n1")
    world.api.forbid("nodes", verbs=("list", "watch"))
    async with open_api(world.kubeconfig, None) as client:
        listing = await list_cluster(world.settings(check_node_platform=True), client)
    assert {n: str(p) for n, p in listing.nodes.items()} == {"n1": "linux/arm64"}
    assert world.api.count("get", "nodes") == 1
    assert listing.denied == ()


async def test_nodes_that_may_not_be_read_at_all(world: World) -> None:
    """They are named among what is not seen."""
    world.api.create("nodes", node("n1", "arm64"))
    world.pod("p", world.image("a:1"), node="n1")
    world.api.forbid("nodes")
    async with open_api(world.kubeconfig, None) as client:
        listing = await list_cluster(world.settings(check_node_platform=True), client)
    assert (dict(listing.nodes), listing.denied) == ({}, ("nodes",))


async def test_an_api_that_is_down(world: World) -> None:
    """Nobody waits for an API that does not answer."""
    kubeconfig = world.kubeconfig
    await world.api.stop()
    async with open_api(kubeconfig, None) as client:
        with pytest.raises(KubeUnavailable):
            await list_cluster(world.settings(), client)


async def test_a_kind_that_never_comes(world: World) -> None:
    """What is not listed in time is named."""
    world.api.fail(Fault.WATCH_500, resource="pods", times=1000)
    async with open_api(world.kubeconfig, None) as client:
        with pytest.raises(KubeUnavailable, match="did not list pods within"):
            await list_cluster(world.settings(), client, limit=0.5)


async def test_a_login_that_is_not_accepted(world: World) -> None:
    """A wrong token is an error, not a long wait."""
    world.api.access.tokens = {"another"}
    async with open_api(world.kubeconfig, None) as client:
        with pytest.raises(KubeDenied):
            await list_cluster(world.settings(), client)
