"""Nodes and their platforms."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from copycat.kube.client import open_api
from copycat.kube.nodes import NodeReader, read_node
from copycat.oci.platform import Platform
from copycat.sandbox.kube_api import KubeApi
from tests.kube.support import until


@pytest.mark.parametrize(
    ("status", "platform"),
    [
        ('{"nodeInfo": {"operatingSystem": "linux", "architecture": "arm64"}}', Platform("linux", "arm64")),
        ('{"nodeInfo": {"operatingSystem": "", "architecture": ""}}', None),
        ("{}", None),
        ("null", None),
    ],
    ids=["arm64", "virtual", "silent", "new"],
)  # fmt: skip
def test_read_node(status: str, platform: Platform | None) -> None:
    """A node's platform is what it reports; one that reports none has none."""
    node = read_node(f'{{"metadata": {{"name": "n1"}}, "status": {status}}}'.encode())
    assert (node.name, node.platform) == ("n1", platform)


def node(name: str, architecture: str) -> dict[str, object]:
    """A node that says what it is."""
    info = {"operatingSystem": "linux", "architecture": architecture}
    return {"metadata": {"name": name}, "status": {"nodeInfo": info}}


async def test_nodes_are_read_one_by_one(tmp_path: Path) -> None:
    """Each node that is wanted is asked for once; one that is not there again with its next Pod."""
    found: dict[str, Platform | None] = {}
    async with KubeApi() as api, open_api(str(api.kubeconfig(tmp_path / "k")), environ={}) as client:  # fmt: skip
        reader = NodeReader(client, found.__setitem__)
        api.create("nodes", node("n1", "amd64"))
        for name in ("n1", "n1", "later", ""):
            reader.want(name)
        assert api.count("get", "nodes") == 0
        await reader.settle()
        assert found == {"n1": Platform("linux", "amd64")}
        api.create("nodes", node("later", "arm64"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.run)
            reader.want("n1")
            reader.want("later")
            await until(lambda: "later" in found)
            tasks.cancel_scope.cancel()
        assert api.count("get", "nodes") == 3
        assert found["later"] == Platform("linux", "arm64")


async def test_a_refusal_is_asked_about_once(tmp_path: Path) -> None:
    """Where nodes may not be read the first questions find it out; the next ones come minutes later, for all that are wanted."""
    found: dict[str, Platform | None] = {}
    slept: list[float] = []
    go_on = anyio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await go_on.wait()

    async with KubeApi() as api, open_api(str(api.kubeconfig(tmp_path / "k")), environ={}) as client:  # fmt: skip
        reader = NodeReader(client, found.__setitem__, sleep=sleep)
        rule = api.forbid("nodes")
        names = [f"n{number}" for number in range(20)]
        for name in names:
            api.create("nodes", node(name, "amd64"))
            reader.want(name)
        with capture_logs() as logs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reader.run)
                await until(lambda: bool(slept))
                assert reader.denied
                assert api.count("get", "nodes") <= 8
                assert len(logs) == 1
                api.permit(rule)
                go_on.set()
                await until(lambda: set(found) == set(names))
                tasks.cancel_scope.cancel()
        assert slept == [300.0]
        assert not reader.denied


async def test_who_comes_second_waits(tmp_path: Path) -> None:
    """Two that settle at once both return when the node is read."""
    found: dict[str, Platform | None] = {}
    async with KubeApi() as api, open_api(str(api.kubeconfig(tmp_path / "k")), environ={}) as client:  # fmt: skip
        api.create("nodes", node("n1", "amd64"))
        reader = NodeReader(client, found.__setitem__)
        reader.want("n1")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.settle)
            await anyio.lowlevel.checkpoint()
            await reader.settle()
            assert "n1" in found
