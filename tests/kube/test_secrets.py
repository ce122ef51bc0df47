"""Pull secrets: whose are read, how often, what is said about those that cannot be used, and what changed."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from copycat.errors import KubeDenied
from copycat.kube.client import KubeClient
from copycat.kube.secrets import REREAD, Coverage, Keys, PullSecrets, Ref
from copycat.kube.workload import Workload
from copycat.oci.reference import Reference
from copycat.sandbox.kube_api import KubeApi

CANARY = "canary-5d1c"
JSON_TYPE, LEGACY_TYPE = "kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"
ALL = Coverage(everywhere=True)


def b64(text: str | bytes) -> str:
    """As in an object's data."""
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def logins(*hosts: str, user: str = "u", password: str = CANARY) -> str:
    """A config.json with a login for each host."""
    return json.dumps({"auths": {host: {"auth": b64(f"{user}:{password}")} for host in hosts}})


def secret(
    name: str, content: str = "", *, namespace: str = "shop", kind: str = JSON_TYPE
) -> dict[str, Any]:
    """A Secret."""
    key = ".dockercfg" if kind == LEGACY_TYPE else ".dockerconfigjson"
    return {
        "metadata": {"name": name, "namespace": namespace},
        "type": kind,
        "data": {key: b64(content)} if content else {},
    }


def account(name: str = "default", *secrets: str, namespace: str = "shop") -> dict[str, Any]:
    """A ServiceAccount."""
    return {
        "metadata": {"name": name, "namespace": namespace},
        "imagePullSecrets": [{"name": s} for s in secrets],
    }


def workload(
    *secrets: str, kind: str = "Deployment", namespace: str = "shop", account: str = ""
) -> Workload:
    """A workload that names these Secrets."""
    return Workload(
        kind=kind,
        namespace=namespace,
        name="web",
        owner_kind=kind,
        owner_name="web",
        service_account=account,
        pull_secrets=secrets,
    )


class World:
    """Pull secrets with a clock that stands."""

    def __init__(self, client: KubeClient, coverage: Coverage = ALL) -> None:
        self.now = 1000.0
        self.changed: list[Ref] = []
        self.secrets = PullSecrets(client, coverage=coverage, clock=lambda: self.now)
        self.secrets.changed = self.changed.append

    async def keys(self, *workloads: Workload) -> Keys:
        """What they hold."""
        return await self.secrets.keys(workloads)

    async def later(self, seconds: float, *refs: Ref) -> None:
        """Time passes, then these are looked at again."""
        self.now += seconds
        await self.secrets.reread(refs)


def users(keys: Keys, image: str) -> list[str]:
    """The user names of the logins for an image."""
    return [auth.credentials.username for auth in keys.of(Reference.parse(image))]


HUB = Ref("secrets", "shop", "hub")


@pytest.fixture
def world(client: KubeClient) -> World:
    """All namespaces are covered."""
    return World(client)


async def test_those_of_the_workload(api: KubeApi, world: World) -> None:
    """All Secrets that a workload names, each from its own namespace; nobody lists or watches."""
    api.create("secrets", secret("hub", logins("reg.io", user="hub")))
    older = json.dumps({"reg.io": {"auth": b64("old:x")}})
    api.create("secrets", secret("old", older, kind=LEGACY_TYPE))
    api.create("secrets", secret("hub", logins("reg.io", user="other"), namespace="other"))
    api.create("secrets", secret("unnamed", logins("reg.io", user="unnamed")))

    keys = await world.keys(workload("hub", "old"), workload("old", kind="Pod"))

    assert users(keys, "reg.io/app:1") == ["hub", "old"]
    assert users(keys, "reg.io.evil.org/app:1") == []
    assert (keys.withheld, keys.unusable, keys.unavailable) == ((), (), "")
    assert [a.credentials.source for a in keys.auths] == [
        "the pull secret shop/hub",
        "the pull secret shop/old",
    ]
    assert {(r.verb, r.resource) for r in api.requests} == {("get", "secrets")}
    assert keys.refs == {HUB, Ref("secrets", "shop", "old")}


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        pytest.param(workload(), ["default"], id="default account"),
        pytest.param(workload(account="robot"), ["robot", "more"], id="named account"),
        pytest.param(workload("own", account="robot"), ["own"], id="its own win"),
        pytest.param(
            workload(kind="Pod", account="robot"), [], id="a Pod has what admission gave it"
        ),
    ],
)
async def test_those_of_the_service_account(
    api: KubeApi, world: World, user: Workload, expected: list[str]
) -> None:
    """A template without any has its ServiceAccount's, as its Pods will."""
    for name in ("default", "robot", "more", "own"):
        api.create("secrets", secret(name, logins("reg.io", user=name)))
    api.create("serviceaccounts", account("default", "default"))
    api.create("serviceaccounts", account("robot", "robot", "more"))

    keys = await world.keys(user)

    assert users(keys, "reg.io/app:1") == expected
    assert {r.verb for r in api.requests} <= {"get"}


@pytest.mark.parametrize(
    ("coverage", "covered"),
    [
        (Coverage(), set()),
        (Coverage(namespaces=frozenset({"shop"})), {"shop"}),
        (ALL, {"shop", "other"}),
    ],
    ids=["off", "a list", "all"],
)
async def test_coverage(
    api: KubeApi, client: KubeClient, coverage: Coverage, covered: set[str]
) -> None:
    """What the setting does not cover is not asked for, and what to set is said."""
    world = World(client, coverage)
    for namespace in ("shop", "other"):
        api.create("secrets", secret("hub", logins("reg.io", user=namespace), namespace=namespace))

    keys = await world.keys(
        workload("hub"), workload("hub", namespace="other"), workload(account="x")
    )

    assert set(users(keys, "reg.io/app:1")) == covered
    assert coverage.any is bool(covered)
    told = " ".join(keys.withheld)
    for namespace in ("shop", "other"):
        assert (f"the pull secret {namespace}/hub is not read" in told) is (
            namespace not in covered
        )
        assert (f"a list with {namespace}," in told) is (namespace not in covered)
    assert api.count("get", "secrets") == len(covered)


async def test_read_once_in_five_minutes(api: KubeApi, world: World) -> None:
    """However many ask, and however often."""
    api.create("secrets", secret("hub", logins("reg.io")))
    api.create("serviceaccounts", account("default", "hub"))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(world.keys, workload("hub"), workload())
    await world.later(REREAD - 1, HUB)
    await world.keys(workload("hub"))
    assert (api.count("get", "secrets"), api.count("get", "serviceaccounts")) == (1, 1)

    await world.later(1, HUB)
    await world.keys(workload("hub"))
    assert api.count("get", "secrets") == 2
    assert world.changed == []


async def test_a_change_is_told(api: KubeApi, world: World) -> None:
    """New content is used and told; a version that is the same is not parsed again."""
    api.create("secrets", secret("hub", logins("reg.io", user="old")))
    before = await world.keys(workload("hub"))
    await world.later(REREAD, HUB)
    again = await world.keys(workload("hub"))
    assert again.auths[0] is before.auths[0]

    api.update("secrets", secret("hub", logins("reg.io", user="new")))
    assert users(await world.keys(workload("hub")), "reg.io/a") == ["old"]
    await world.later(REREAD, HUB)

    assert users(await world.keys(workload("hub")), "reg.io/a") == ["new"]
    assert world.changed == [HUB]


async def test_a_secret_comes_and_goes(api: KubeApi, world: World) -> None:
    """A missing Secret is told once; that it came, and that it went, are changes."""
    with capture_logs() as logs:
        missing = await world.keys(workload("hub"))
        await world.later(REREAD, HUB)
    assert missing.unusable == ("the pull secret shop/hub does not exist",)
    assert missing.refs == {HUB}
    assert [(line["event"], line["problem"]) for line in logs] == [
        ("pull secret not used", "the pull secret shop/hub does not exist")
    ]
    assert world.changed == []

    api.create("secrets", secret("hub", logins("reg.io")))
    await world.later(REREAD, HUB)
    assert world.changed == [HUB]
    assert users(await world.keys(workload("hub")), "reg.io/a") == ["u"]

    api.delete("secrets", "shop", "hub")
    await world.later(REREAD, HUB)
    assert world.changed == [HUB, HUB]
    assert (await world.keys(workload("hub"))).auths == ()


async def test_an_accounts_list_changes(api: KubeApi, world: World) -> None:
    """Its list matters, the rest of it does not."""
    ref = Ref("serviceaccounts", "shop", "default")
    api.create("serviceaccounts", account("default", "a"))
    keys = await world.keys(workload())
    assert keys.refs == {ref, Ref("secrets", "shop", "a")}

    api.patch("serviceaccounts", "shop", "default", {"metadata": {"labels": {"x": "y"}}})
    await world.later(REREAD, ref)
    assert world.changed == []

    api.update("serviceaccounts", account("default", "a", "b"))
    await world.later(REREAD, ref)
    assert world.changed == [ref]


@pytest.mark.parametrize("resource", ["secrets", "serviceaccounts"])
async def test_denied(api: KubeApi, world: World, resource: str) -> None:
    """403: the others are used, the way to allow it is said once, and the permission is noticed when it comes."""
    api.create("secrets", secret("hub", logins("reg.io", user="hub")))
    api.create("secrets", secret("hub", logins("reg.io", user="other"), namespace="other"))
    api.create("serviceaccounts", account("default", "hub"))
    rule = api.forbid(resource, verbs=("get",), namespace="shop")
    asked = [workload(), workload("hub", namespace="other")]

    with capture_logs() as logs:
        keys = await world.keys(*asked)
        await world.keys(*asked)

    assert users(keys, "reg.io/a") == ["other"]
    [told] = keys.withheld
    assert f"allow `get` on {resource} in the namespace shop" in told
    assert [line["problem"] for line in logs] == [told]
    assert keys.unusable == ()

    api.permit(rule)
    await world.later(REREAD, *keys.refs)
    assert {ref.resource for ref in world.changed} == {resource}
    assert (await world.keys(*asked)).withheld == ()


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (secret("hub", kind="Opaque"), "has the type Opaque"),
        ({**secret("hub"), "type": ""}, "has the type Opaque"),
        ({**secret("hub"), "data": None}, "has nothing under .dockerconfigjson"),
        (secret("hub", kind=LEGACY_TYPE), "has nothing under .dockercfg"),
        (secret("hub", f"{CANARY}"), "cannot be used: it is not JSON of the form"),
        (
            secret("hub", f'{{"reg.io": "{CANARY}"}}', kind=LEGACY_TYPE),
            "is not an object of strings",
        ),
        (
            secret("hub", json.dumps({"auths": {"reg.io": {"auth": b64(CANARY)}}})),
            "the entry 'reg.io' has an auth without a colon",
        ),
        (
            secret("hub", json.dumps({"auths": {f"{n}.io": 1 for n in range(9)}})),
            "is not an object of strings; and so on",
        ),
        (secret("hub", '{"auths": {"a": ' + "[" * 100_000), "cannot be used: it is not JSON"),
        (
            {"metadata": {"name": "hub", "namespace": "shop"}, "data": CANARY},
            "is not what Kubernetes",
        ),
    ],
    ids=[
        "opaque",
        "no type",
        "no data",
        "no key",
        "no json",
        "entry",
        "auth",
        "many",
        "deep",
        "no secret",
    ],
)
async def test_malformed(api: KubeApi, world: World, item: Mapping[str, Any], problem: str) -> None:
    """It is told once, without its content, and the workload's other Secrets are used."""
    api.create("secrets", dict(item))
    api.create("secrets", secret("good", logins("reg.io", user="good")))

    with capture_logs() as logs:
        keys = await world.keys(workload("hub", "good"))
        await world.keys(workload("hub", "good"))

    assert users(keys, "reg.io/a") == ["good"]
    [told] = keys.unusable
    assert problem in told
    assert told.startswith("the pull secret shop/hub")
    assert [line["problem"] for line in logs] == [told]
    assert CANARY not in f"{logs} {keys}"


@pytest.mark.parametrize("name", ["../../other/secrets/hub", "hub?watch=1", "hub/../hub", "", ".."])
async def test_a_name_is_no_path(api: KubeApi, world: World, name: str) -> None:
    """The API does not check names of pull secrets: one that is a path leads to no other namespace."""
    api.create("secrets", secret("hub", logins("reg.io"), namespace="other"))

    keys = await world.keys(workload(name), workload(account=name or "x/y"))

    assert keys.auths == ()
    assert all("Kubernetes has no such names" in told for told in keys.unusable)
    assert api.requests == []


async def test_nobody_needs_so_many(api: KubeApi, world: World) -> None:
    """A workload or account that names thousands does not make the program read them all, and hears of it."""
    many = [f"s{n}" for n in range(2000)]
    api.create("serviceaccounts", account("default", *many))

    named = await world.keys(workload(*many))
    assert len(named.refs) == api.count("get", "secrets") == 50
    assert named.unusable[0] == "Deployment shop/web names 2000 pull secrets, of which 50 are used"
    listed = await world.keys(workload())
    assert len(listed.refs) == 51
    assert (
        listed.unusable[0]
        == "the ServiceAccount shop/default names 2000 pull secrets, of which 50 are used"
    )


async def test_an_api_that_is_down(api: KubeApi, world: World) -> None:
    """What is known is used on; what is not known yet is said to be not available. Nothing changed."""
    api.create("secrets", secret("hub", logins("reg.io")))
    await world.keys(workload("hub"))
    await api.stop()
    world.now += REREAD

    keys = await world.keys(workload("hub"), workload("new"))

    assert users(keys, "reg.io/a") == ["u"]
    assert "could not be reached" in keys.unavailable
    await api.start()
    api.create("secrets", secret("new", logins("reg.io", user="new")))
    again = await world.keys(workload("hub"), workload("new"))
    assert users(again, "reg.io/a") == ["u", "new"]
    assert again.unavailable == ""
    assert world.changed == []


class Expired:
    """A client whose token is not taken."""

    async def request(self, method: str, path: str) -> bytes:
        """401."""
        raise KubeDenied(f"{method} {path}: 401", status=401)


async def test_a_token_that_is_refused_is_no_permission() -> None:
    """401 says nothing about the Secret: it is asked for again, and it is not told as a matter of roles."""
    keys = await PullSecrets(Expired(), coverage=ALL).keys([workload("hub")])

    assert (keys.withheld, keys.unusable) == ((), ())
    assert "401" in keys.unavailable


async def test_many_are_remembered_within_bounds(api: KubeApi, client: KubeClient) -> None:
    """What was not used for long is forgotten, and read again when it is asked for."""
    for name in ("a", "b", "c"):
        api.create("secrets", secret(name, logins("reg.io", user=name)))
    secrets = PullSecrets(client, coverage=ALL, remembered=2)

    for name in ("a", "b", "c", "a"):
        assert users(await secrets.keys([workload(name)]), "reg.io/x") == [name]

    assert api.count("get", "secrets") == 4


def test_refs_say_what_they_are() -> None:
    """In messages."""
    assert str(HUB) == "the pull secret shop/hub"
    assert str(Ref("serviceaccounts", "a", "b")) == "the ServiceAccount a/b"
