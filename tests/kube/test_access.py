"""What is missing is asked once and told as one table, with the rules to add; nobody waits for it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import yaml

from copycat import logs
from copycat.errors import KubeError
from copycat.kube.access import Permission, check_access, find_missing, rules, table
from copycat.kube.client import KubeClient
from copycat.sandbox.kube_api import KubeApi

PODS = Permission(resource="pods", verbs=("list", "watch"), cost="images of pods get no copy")
SHOP = Permission(
    group="apps",
    resource="deployments",
    verbs=("list", "watch"),
    namespace="shop",
    cost="images of deployments get no copy",
)
LEASE = Permission(
    group="coordination.k8s.io",
    resource="leases",
    verbs=("get", "update"),
    namespace="tools",
    name="copycat",
    cost="no leader can be chosen",
)
CREATE = Permission(
    group="coordination.k8s.io",
    resource="leases",
    verbs=("create",),
    namespace="tools",
    cost="no leader can be chosen",
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged, for machines."""
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    yield stream
    logs.unconfigure()


async def test_nothing_is_missing(api: KubeApi, client: KubeClient, stream: io.StringIO) -> None:
    """Where everything is granted one quiet line says so."""
    await check_access(client, [PODS, SHOP, LEASE])
    [line] = map(json.loads, stream.getvalue().splitlines())
    assert (line["level"], line["msg"], line["checked"]) == ("info", "permissions are complete", 6)


async def test_exactly_what_is_missing(api: KubeApi, client: KubeClient) -> None:
    """Only the verbs that are missing are named, in their namespaces, and by the name of the object."""
    api.forbid("pods", verbs=["watch"])
    api.forbid("deployments", namespace="garden")
    api.forbid("leases", verbs=["update"], namespace="tools", names=["copycat"])
    missing = await find_missing(client, [PODS, SHOP, CREATE, LEASE])
    assert [(p.resource, p.verbs, p.namespace, p.name) for p in missing] == [
        ("pods", ("watch",), "", ""),
        ("leases", ("update",), "tools", "copycat"),
    ]


async def test_the_log_has_one_table(api: KubeApi, client: KubeClient, stream: io.StringIO) -> None:
    """One warning holds the table and the rules, also for machines."""
    api.forbid("deployments", "leases")
    await check_access(client, [PODS, SHOP, CREATE])
    [line] = map(json.loads, stream.getvalue().splitlines())
    assert (line["level"], line["msg"], line["count"]) == ("warn", "permissions are missing", 2)
    assert line["table"].splitlines() == [
        "MISSING      ON                          IN     WITHOUT IT",
        "list, watch  deployments.apps            shop   images of deployments get no copy",
        "create       leases.coordination.k8s.io  tools  no leader can be chosen",
    ]
    assert "resources: [deployments]" in line["add"]


async def test_people_read_it_as_it_is(api: KubeApi, client: KubeClient) -> None:
    """In the text format table and rules stand below the line, with their columns."""
    stream = io.StringIO()
    logs.configure("info", "text", stream=stream)
    api.forbid("pods")
    try:
        await check_access(client, [PODS])
    finally:
        logs.unconfigure()
    head, *block = stream.getvalue().splitlines()
    assert head.endswith("permissions are missing count=1")
    assert block == [
        "    MISSING      ON    IN                 WITHOUT IT",
        "    list, watch  pods  the whole cluster  images of pods get no copy",
        "    # a ClusterRole:",
        '    - apiGroups: [""]',
        "      resources: [pods]",
        "      verbs: [list, watch]",
    ]


def test_the_rules_are_yaml() -> None:
    """What is told to be added is valid YAML of the same permissions; alike ones share a rule."""
    jobs = Permission(group="apps", resource="daemonsets", verbs=("list", "watch"), cost="")
    text = rules([PODS, SHOP, LEASE, CREATE, jobs])
    parts = text.split("# a ")
    assert [part.partition(":\n")[0] for part in parts[1:]] == [
        "ClusterRole",
        "Role in the namespace shop",
        "Role in the namespace tools",
    ]
    assert yaml.safe_load(parts[3].partition("\n")[2]) == [
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": ["copycat"],
            "verbs": ["get", "update"],
        },
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    ]


def test_many_namespaces_share_a_line() -> None:
    """The same permission in many namespaces is one line, however many there are."""
    many = [
        Permission(resource="pods", verbs=("list",), namespace=f"team-{n}", cost="no copy")
        for n in range(20)
    ]
    assert table(many).splitlines()[1:] == [
        "list     pods  team-0, team-1, team-2 and 17 more  no copy"
    ]


@pytest.mark.parametrize("trouble", ["down", "answer"])
async def test_an_api_without_an_answer(
    api: KubeApi, client: KubeClient, stream: io.StringIO, trouble: str
) -> None:
    """An API that gives no usable answer is said at info, and nothing is raised."""
    if trouble == "down":
        await api.stop()
        with pytest.raises(KubeError):
            await find_missing(client, [PODS])
    target = client if trouble == "down" else _Odd()
    await check_access(target, [PODS])
    [line] = map(json.loads, stream.getvalue().splitlines())
    assert (line["level"], line["msg"]) == ("info", "permissions could not be checked")


class _Odd(KubeClient):
    """A client of something that is no API server."""

    def __init__(self) -> None: ...

    async def request(self, method: str, path: str, **options: object) -> bytes:
        """200, and a page."""
        return b"<h1>Log in</h1>"
