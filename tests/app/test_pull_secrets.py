"""Pull secrets from a cluster's objects to the copies: whose secret lets what in, and where it goes."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
from structlog.testing import capture_logs

from copycat.admin.api import Image as Row
from copycat.app.process import Program
from copycat.controller.pulls import LOOK
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.app.support import World, fetch, until
from tests.app.times import Time

CANARY = "canary-91ce"
#: Content that both tenants' images have.
BASE = images.layer(3000, seed="base")
EVERYWHERE = {"pull_secrets": "all", "docker__repo_prefix": "mirror/$namespace"}


def may(user: str, repository: str, action: str) -> bool:
    """Everybody reads public/…, a user what is below his own name, `both` everything."""
    return action == "pull" and (repository.startswith(("public/", f"{user}/")) or user == "both")


@pytest.fixture(params=["token", "basic"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A source where users a, b and both may read different things."""
    async with (
        Registry(auth=request.param, anonymous=True, allow=may) as source,
        Registry() as target,
        KubeApi() as api,
    ):
        for user in ("a", "b", "both"):
            source.authority.set_password(user, f"{CANARY}-{user}")
        yield World(source=source, target=target, api=api, folder=tmp_path)
        assert source.violations == []
        assert target.violations == []


def secret(
    world: World,
    user: str,
    *,
    namespace: str,
    name: str = "hub",
    password: str = "",
    host: str = "",
) -> dict[str, Any]:
    """A pull secret with a user's login to the source."""
    login = f"{user}:{password or f'{CANARY}-{user}'}"
    auths = {host or world.source.address: {"auth": base64.b64encode(login.encode()).decode()}}
    content = json.dumps({"auths": auths}).encode()
    return {
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(content).decode()},
    }


def deploy(world: World, image: str, *secrets: str, namespace: str, name: str = "web") -> None:
    """A Deployment of an image of the source, with pull secrets."""
    spec = {
        "containers": [{"name": "main", "image": world.image(image)}],
        "imagePullSecrets": [{"name": s} for s in secrets],
    }
    metadata = {"name": name, "namespace": namespace}
    world.api.create("deployments", {"metadata": metadata, "spec": {"template": {"spec": spec}}})


def rows(program: Program) -> list[Row]:
    """Those that were tried, once nothing is worked on."""
    status = program.facade.status()
    found = list(program.facade.images())
    idle = not status.queued and not status.working and status.ready
    return found if idle and all(row.state != "pending" for row in found) else []


async def settled(program: Program, count: int) -> list[Row]:
    """Wait until so many images were tried."""
    await until(lambda: len(rows(program)) == count)
    return rows(program)


def private(world: World, name: str = "a/app") -> Image:
    """An image that only its owner may read."""
    return world.source.add(name, images.image(seed=name, layers=(BASE, 500)), "1")


async def idle(time: Time) -> None:
    """Wait until the program sleeps before it looks at Secrets again, so that a jump of time ends that."""
    await until(lambda: time.sleeping[LOOK] > 0)


def logins(world: World) -> Sequence[str]:
    """Who showed credentials to the source, by name."""
    found = []
    for request in world.source.requests:
        header = request.headers.get("Authorization", "")
        if header.startswith("Basic "):
            found.append(base64.b64decode(header[6:]).decode().partition(":")[0])
    return found


async def test_each_namespace_for_itself(world: World) -> None:
    """Who has the secret gets the copy, under its own name; who has not gets nothing of it."""
    image = private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    deploy(world, "a/app:1", "hub", namespace="team-a")

    async with world.running(**EVERYWHERE) as program:
        await settled(program, 1)
        # now a token for it, its blobs' places and the registry's ways are known
        deploy(world, "a/app:1", namespace="team-b")
        first, second = await settled(program, 2)

    assert (first.state, second.state) == ("protected", "failed")
    assert "mirror/team-a/" in first.target
    assert "mirror/team-b/" in second.target
    assert world.target.has("mirror/team-a/a/app", image, "1")
    assert not world.target.blobs.get("mirror/team-b/a/app")
    assert not world.target.manifests.get("mirror/team-b/a/app")
    assert second.reason in {"unauthorized", "denied"}
    assert not [r for r in world.target.requests if r.authorized]


async def test_no_way_around_by_a_digest(world: World) -> None:
    """B has an image of its own that names A's private layer: the layer is not given to B out of A's copy."""
    image = private(world)
    bait = world.source.add("b/bait", images.image(seed="bait", layers=(BASE, 70)), "1")
    del world.source.blobs["b/bait"][BASE.digest]
    for tenant in ("a", "b"):
        world.api.create("secrets", secret(world, tenant, namespace=f"team-{tenant}"))
    deploy(world, "a/app:1", "hub", namespace="team-a")

    async with world.running(**EVERYWHERE) as program:
        await settled(program, 1)
        deploy(world, "b/bait:1", "hub", namespace="team-b")
        _, second = await settled(program, 2)

    assert world.target.has("mirror/team-a/a/app", image, "1")
    assert second.state == "failed"
    assert BASE.digest not in world.target.blobs.get("mirror/team-b/b/bait", {})
    assert not world.target.has("mirror/team-b/b/bait", bait)


async def test_two_tenants_of_one_image(world: World) -> None:
    """Each has a login that lets it in: each gets a copy, by its own secret, and mounts nothing of the other."""
    image = private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    world.api.create("secrets", secret(world, "both", namespace="team-b"))
    deploy(world, "a/app:1", "hub", namespace="team-a")
    deploy(world, "a/app:1", "hub", namespace="team-b")

    async with world.running(**EVERYWHERE) as program:
        assert [row.state for row in await settled(program, 2)] == ["protected", "protected"]

    for tenant in ("a", "b"):
        assert world.target.has(f"mirror/team-{tenant}/a/app", image, "1")
    mounts = [r for r in world.target.requests if "mount=" in r.query]
    assert all(unquote(r.query).endswith(f"&from={r.repository}") for r in mounts)
    assert set(logins(world)) == {"a", "both"}


async def test_a_public_image_needs_none(world: World) -> None:
    """Where nobody refuses no Secret is read, and one copy serves all namespaces; content is mounted across."""
    image = world.source.add("public/app", images.image(seed="p", layers=(BASE,)), "1")
    for tenant in ("a", "b"):
        world.api.create("secrets", secret(world, tenant, namespace=f"team-{tenant}"))
        deploy(world, "public/app:1", "hub", namespace=f"team-{tenant}")

    async with world.running(**EVERYWHERE) as program:
        assert [row.state for row in await settled(program, 2)] == ["protected", "protected"]

    assert all(world.target.has(f"mirror/team-{t}/public/app", image, "1") for t in "ab")
    assert world.api.count("get", "secrets") == 0
    assert logins(world) == []
    assert [r for r in world.target.requests if "mount=" in r.query]


async def test_the_service_accounts_secret(world: World) -> None:
    """A template that names none has those of its ServiceAccount."""
    image = private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    metadata = {"name": "default", "namespace": "team-a"}
    world.api.create(
        "serviceaccounts", {"metadata": metadata, "imagePullSecrets": [{"name": "hub"}]}
    )
    deploy(world, "a/app:1", namespace="team-a")

    async with world.running(**EVERYWHERE) as program:
        [row] = await settled(program, 1)

    assert row.state == "protected"
    assert world.target.has("mirror/team-a/a/app", image, "1")
    assert {r.verb for r in world.api.requests if r.resource in {"secrets", "serviceaccounts"}} == {
        "get"
    }


async def test_the_next_one_is_tried(world: World) -> None:
    """Of several that match, one is refused with 401, one with 403, and the last lets it in."""
    image = private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a", name="x1", password="wrong"))
    world.api.create("secrets", secret(world, "b", namespace="team-a", name="x2"))
    world.api.create("secrets", secret(world, "a", namespace="team-a", name="x3"))
    deploy(world, "a/app:1", "x1", "x2", "gone", "x3", namespace="team-a")

    async with world.running(**EVERYWHERE) as program:
        [row] = await settled(program, 1)

    assert row.state == "protected"
    assert world.target.has("mirror/team-a/a/app", image, "1")


@pytest.mark.parametrize("host", ["other.example.com", "*.example.com", "127.0.0.1"])
async def test_only_to_its_host(world: World, host: str) -> None:
    """A login for another registry is shown neither to the source nor to the target."""
    private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a", host=host))
    world.api.create(
        "secrets", secret(world, "a", namespace="team-a", name="own", host=world.target.address)
    )
    deploy(world, "a/app:1", "hub", "own", namespace="team-a")

    async with world.running(**EVERYWHERE) as program:
        [row] = await settled(program, 1)

    assert row.state == "failed"
    assert logins(world) == []
    assert not [r for r in world.target.requests if r.authorized]


async def test_separate_without_a_place_of_its_own(world: World) -> None:
    """Private images are denied with the remedy, and nothing of them is read; public ones are copied."""
    private(world)
    public = world.source.add_image("public/app", "1", seed="public")
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    deploy(world, "a/app:1", "hub", namespace="team-a")
    deploy(world, "public/app:1", "hub", namespace="team-a", name="other")

    async with world.running(pull_secrets="all") as program:
        denied, copied = await settled(program, 2)

    assert (denied.state, denied.reason) == ("denied", "private_image")
    assert "Put $namespace into the target's repoPrefix" in denied.message
    assert "privateImages: shared" in denied.message
    assert copied.state == "protected"
    assert world.target.has("mirror/public/app", public, "1")
    assert "mirror/a/app" not in world.target.manifests
    assert not [r for r in world.source.ledger.select(Phase.GET_BLOB) if r.repository == "a/app"]


async def test_a_wrong_secret_is_no_denial(world: World) -> None:
    """What the secret does not let in either is not private but refused."""
    private(world)
    world.api.create("secrets", secret(world, "b", namespace="team-a"))
    deploy(world, "a/app:1", "hub", namespace="team-a")

    async with world.running(pull_secrets="all") as program:
        [row] = await settled(program, 1)

    assert row.state == "failed"
    assert row.reason in {"unauthorized", "denied"}


async def test_shared(world: World) -> None:
    """The owner accepts it: one copy, by the secret of whoever has one."""
    image = private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    deploy(world, "a/app:1", "hub", namespace="team-a")
    deploy(world, "a/app:1", namespace="team-b")

    async with world.running(pull_secrets="all", private_images="shared") as program:
        [row] = await settled(program, 1)

    assert row.state == "protected"
    assert world.target.has("mirror/a/app", image, "1")


async def test_a_copy_stays_when_sharing_ends(world: World) -> None:
    """What was copied under `shared` is protected still, and says why it is not renewed."""
    private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    deploy(world, "a/app:1", "hub", namespace="team-a")
    async with world.running(pull_secrets="all", private_images="shared") as program:
        await settled(program, 1)

    async with world.running(pull_secrets="all") as program:
        [row] = await settled(program, 1)

    assert (row.state, row.protected, row.reason) == ("protected", True, "private_image")


@pytest.mark.parametrize(
    ("flags", "works"),
    [
        pytest.param({"pull_secrets": "off"}, False, id="off"),
        pytest.param({}, False, id="auto, cluster-wide"),
        pytest.param({"include_namespaces": "team-a"}, True, id="auto, literal"),
        pytest.param({"include_namespaces": "team-*"}, False, id="auto, wildcard"),
        pytest.param({"pull_secrets": "team-b"}, False, id="another namespace"),
        pytest.param({"pull_secrets": "team-a,team-b"}, True, id="listed"),
    ],
)
async def test_the_setting(world: World, flags: dict[str, object], works: bool) -> None:
    """Where it does not cover the namespace, no Secret is asked for and the remedy is said."""
    private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    deploy(world, "a/app:1", "hub", namespace="team-a")

    async with world.running(docker__repo_prefix="mirror/$namespace", **flags) as program:
        [row] = await settled(program, 1)

    assert world.api.count("get", "secrets") == works
    if works:
        assert row.state == "protected"
    else:
        assert (row.state, row.reason) == ("failed", "pull_secret_not_allowed")
        assert "set pullSecrets to a list with team-a, or to `all`" in row.message
        assert "team-a/hub" in row.message


async def test_permission_given_later(world: World) -> None:
    """The API refuses: said with the remedy; five minutes after the permission came the image is there."""
    private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    deploy(world, "a/app:1", "hub", namespace="team-a")
    rule = world.api.forbid("secrets", verbs=("get",))
    time = Time()

    async with world.running(time, **EVERYWHERE) as program:
        [row] = await settled(program, 1)
        assert (row.state, row.reason) == ("failed", "pull_secret_not_allowed")
        assert "allow `get` on secrets in the namespace team-a" in row.message
        world.api.permit(rule)
        await idle(time)
        time.pass_by(program, minutes=5.5)
        await until(lambda: [row.state for row in rows(program)] == ["protected"])


async def test_a_changed_secret_is_tried_at_once(world: World) -> None:
    """The image cools down for hours; the Secret changes, is read again, and the image is copied."""
    private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a", password="wrong"))
    deploy(world, "a/app:1", "hub", namespace="team-a")
    time = Time()

    async with world.running(time, **EVERYWHERE, failure_cooldown_minutes=600) as program:
        [row] = await settled(program, 1)
        assert row.state == "failed"
        assert row.reason in {"unauthorized", "denied"}
        asked = len(world.source.requests)
        await idle(time)
        time.pass_by(program, minutes=5.5)
        await until(lambda: world.api.count("get", "secrets") == 2)
        await idle(time)
        assert len(world.source.requests) == asked
        world.api.update("secrets", secret(world, "a", namespace="team-a"))
        time.pass_by(program, minutes=4)
        await anyio.wait_all_tasks_blocked()
        await idle(time)
        assert world.api.count("get", "secrets") == 2
        time.pass_by(program, minutes=1.5)
        await until(lambda: [row.state for row in rows(program)] == ["protected"])


async def test_a_rotated_password(world: World) -> None:
    """A copy that stands is checked with the secret that is known to be needed; after a rotation, with the new one."""
    private(world)
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    deploy(world, "a/app:1", "hub", namespace="team-a")
    time = Time()

    async with world.running(time, **EVERYWHERE, tag_refresh_minutes=60) as program:
        await settled(program, 1)
        before = len([r for r in world.source.requests if r.status in {401, 403}])
        world.source.authority.set_password("a", "new")
        world.source.authority.expire_tokens()
        world.api.update("secrets", secret(world, "a", namespace="team-a", password="new"))
        time.pass_by(program, minutes=61)
        await until(lambda: world.api.count("get", "secrets") == 2 and bool(rows(program)))
        [row] = rows(program)
        assert (row.state, row.reason) == ("protected", "")
        # no anonymous attempt first: at most a challenge
        assert len([r for r in world.source.requests if r.status in {401, 403}]) <= before + 1


async def test_secrets_are_said_nowhere(world: World) -> None:
    """No log, message, metric, page or Event holds a value of a Secret, whatever goes wrong with it."""
    private(world)
    private(world, "b/app")
    world.api.create("secrets", secret(world, "a", namespace="team-a"))
    world.api.create("secrets", secret(world, "b", namespace="team-b", password=f"{CANARY}-wrong"))
    broken = secret(world, "x", namespace="team-c")
    broken["data"] = {".dockerconfigjson": base64.b64encode(CANARY.encode()).decode()}
    world.api.create("secrets", broken)
    deploy(world, "a/app:1", "hub", namespace="team-a")
    deploy(world, "b/app:1", "hub", namespace="team-b")
    deploy(world, "b/app:1", "hub", namespace="team-c")

    with capture_logs() as logs:
        async with world.running(**EVERYWHERE) as program:
            found = await settled(program, 3)
            pages = [
                (await fetch(program, "metrics", path))[1]
                for path in ("/metrics", "/api/v1/images", "/")
            ]

    assert min(row.reason for row in found) == ""
    assert "pull_secret_unusable" in {row.reason for row in found}
    told = f"{logs} {found} {pages} {world.api.objects('events')} {world.target.requests}"
    assert "team-b" in told
    assert CANARY not in told
    for user in ("a", "b"):
        for password in (f"{CANARY}-{user}", f"{CANARY}-wrong"):
            assert base64.b64encode(f"{user}:{password}".encode()).decode() not in told


async def test_a_job_that_is_gone(world: World) -> None:
    """Its image is still wanted, and on its behalf: the last user's secret counts."""
    image = private(world)
    deploy(world, "a/app:1", "hub", namespace="team-a", name="hook")
    time = Time()

    async with world.running(time, **EVERYWHERE) as program:
        [row] = await settled(program, 1)
        assert row.reason == "pull_secret_unusable"
        world.api.delete("deployments", "team-a", "hook")
        await until(lambda: program.facade.status().workloads == 0)
        world.api.create("secrets", secret(world, "a", namespace="team-a"))
        await idle(time)
        time.pass_by(program, minutes=5.5)
        await until(lambda: world.target.has("mirror/team-a/a/app", image, "1"))
