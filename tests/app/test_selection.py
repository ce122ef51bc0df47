"""What is mirrored, by the whole program: lists, wildcards, owners, registries, and every place that names an image."""

from __future__ import annotations

from typing import Any

import pytest

from copycat.app.process import Program
from copycat.sandbox.images import image
from tests.app.support import World, in_state, protected, row_of, until


def put(world: World, namespace: str, name: str, *, kind: str = "deployments") -> str:
    """A workload with an image of its own; its reference."""
    repository = f"{namespace}/{name}"
    world.source.add(repository, image(seed=repository), "1")
    reference = world.image(f"{repository}:1")
    containers = {"containers": [{"name": "main", "image": reference}]}
    spec: dict[str, Any] = {"template": {"spec": containers}}
    if kind == "pods":
        spec = containers
    elif kind == "cronjobs":
        spec = {"jobTemplate": {"spec": spec}}
    world.api.create(kind, {"metadata": {"name": name, "namespace": namespace}, "spec": spec})
    return reference


def known(world: World, program: Program) -> set[str]:
    """Namespace and name of what is mirrored."""
    start = len(world.source.address) + 1
    return {row.source[start:].removesuffix(":1") for row in program.facade.images()}


async def test_namespaces(world: World) -> None:
    """Names and wildcards say which namespaces count, those that appear later too; skipping wins."""
    for namespace in ("team-a", "team-x", "shop", "other"):
        put(world, namespace, "app")
    flags = {"include_namespaces": "team-*,shop", "skip_namespaces": "team-x*"}
    async with world.running(**flags) as program:
        await protected(program, 2)
        assert known(world, program) == {"team-a/app", "shop/app"}
        put(world, "team-later", "app")
        put(world, "team-x2", "app")
        put(world, "later", "app")
        await protected(program, 3)
        assert known(world, program) == {"team-a/app", "shop/app", "team-later/app"}
    assert {r.repository for r in world.source.requests} == {"", *known_repositories(world)}


def known_repositories(world: World) -> set[str]:
    """What of the source is at the target."""
    return {name.removeprefix("mirror/") for name, tags in world.target.tags.items() if tags}


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        pytest.param("deployments", "deployments", id="deployments"),
        pytest.param("stateful_sets", "statefulsets", id="statefulsets"),
        pytest.param("daemon_sets", "daemonsets", id="daemonsets"),
        pytest.param("jobs", "jobs", id="jobs"),
        pytest.param("cron_jobs", "cronjobs", id="cronjobs"),
        pytest.param("pods", "pods", id="pods"),
    ],
)
async def test_names(world: World, flag: str, kind: str) -> None:
    """Each kind has its list: `name` everywhere, `namespace/name` there; `*` is all of them."""
    for namespace in ("one", "two"):
        for name in ("redis", "web", "app"):
            put(world, namespace, name, kind=kind)
    other = "pods" if kind != "pods" else "jobs"
    put(world, "three", "redis", kind=other)
    async with world.running(**{f"skip_names__{flag}": "redis,one/web"}) as program:
        await protected(program, 4)
        assert known(world, program) == {"one/app", "two/app", "two/web", "three/redis"}
    async with world.running(**{f"skip_names__{flag}": "*"}) as program:
        await protected(program, 1)
        assert known(world, program) == {"three/redis"}


async def test_a_pod_is_skipped_with_its_owners(world: World) -> None:
    """A Pod of a Deployment's ReplicaSet, and one of a CronJob's Job, go with the entry of their top owner."""

    def owned(name: str, kind: str, owner: str, **labels: str) -> None:
        reference = {"kind": kind, "name": owner, "controller": True, "apiVersion": "x/v1", "uid": "u"}  # fmt: skip
        world.source.add(name, image(seed=name), "1")
        spec = {"containers": [{"name": "main", "image": world.image(f"{name}:1")}]}
        metadata = {"name": name, "namespace": "demo", "labels": labels, "ownerReferences": [reference]}  # fmt: skip
        world.api.create("pods", {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}})  # fmt: skip

    owned("web-1", "ReplicaSet", "web-6d4b", **{"pod-template-hash": "6d4b"})
    owned("night-1", "Job", "night-29000000")
    owned("free-1", "ReplicaSet", "free-6d4b", **{"pod-template-hash": "6d4b"})
    flags = {"skip_names__deployments": "web", "skip_names__cron_jobs": "demo/night"}
    async with world.running(**flags) as program:
        [row] = await protected(program, 1)
        assert row.source == world.image("free-1:1")
        [user] = row.users
        assert (user.kind, user.name) == ("Deployment", "free")
    assert {r.repository for r in world.source.requests} == {"", "free-1"}


@pytest.mark.parametrize(
    "entry",
    ["docker.io", "index.docker.io", "registry-1.docker.io", "docker.io/library", "docker.io/library/alpine"],
)  # fmt: skip
async def test_docker_hub_in_every_spelling(world: World, entry: str) -> None:
    """An exclusion of Docker Hub holds for every way to write an image of it; nobody is asked for one."""
    spellings = ("alpine:3.19", "docker.io/alpine:3.19", "index.docker.io/library/alpine:3.19", "library/alpine:3.19")  # fmt: skip
    for number, spelling in enumerate(spellings):
        world.deployment(f"d{number}", spelling)
    reference = put(world, "demo", "app")
    async with world.running(exclude_registries=entry) as program:
        await in_state(program, reference, "protected")
        assert row_of(program, "docker.io/library/alpine:3.19").state == "excluded"
        assert len(program.facade.images()) == 2


async def test_registries_end_at_a_segment(world: World) -> None:
    """`host/team` excludes what is below it and not its neighbours; what is not allowed is denied; both unasked."""
    inside, outside = put(world, "team", "app"), put(world, "team-b", "app")
    async with world.running(exclude_registries=world.image("team")) as program:
        await in_state(program, outside, "protected")
        assert row_of(program, inside).state == "excluded"
    assert {r.repository for r in world.source.requests} == {"", "team-b/app"}
    world.source.ledger.clear()
    async with world.running(allowed_registries=world.image("team")) as program:
        await in_state(program, inside, "protected")
        row = row_of(program, outside)
        assert (row.state, row.protected) == ("denied", False)
        assert "allowedRegistries" in row.message
    assert {r.repository for r in world.source.requests} == {"", "team/app"}


async def test_every_place_that_names_an_image(world: World) -> None:
    """Containers, init containers, ephemeral ones, image volumes and extraImages; what names the target is in place."""
    names = ("main", "init", "debug", "data", "extra")
    for name in names:
        world.source.add(name, image(seed=name), "1")
    world.target.add("mirror/own", own := image(seed="own"), "1")
    spec = {
        "initContainers": [{"name": "init", "image": world.image("init:1")}],
        "containers": [
            {"name": "main", "image": world.image("main:1")},
            {"name": "own", "image": f"{world.target.address}/mirror/own:1"},
        ],
        "ephemeralContainers": [{"name": "debug", "image": world.image("debug:1")}],
        "volumes": [{"name": "data", "image": {"reference": world.image("data:1")}}],
    }
    metadata = {"name": "p", "namespace": "demo"}
    world.api.create("pods", {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}})
    async with world.running(extra_images=world.image("extra:1")) as program:
        await protected(program, 6)
        assert all(row_of(program, world.image(f"{n}:1")).state == "protected" for n in names)
        row = row_of(program, f"{world.target.address}/mirror/own:1")
        assert (row.state, row.digest, row.protected) == ("in_place", own.digest, True)
    assert set(world.target.tags["mirror/own"]) == {"1"}


async def test_scaled_to_zero_suspended_and_never_run(world: World) -> None:
    """What does not run now counts: no replicas, a suspended CronJob, a Job that waits."""
    references = [put(world, "demo", k, kind=k) for k in ("deployments", "cronjobs", "jobs")]
    for kind, change in (("deployments", {"replicas": 0}), ("cronjobs", {"suspend": True}), ("jobs", {"suspend": True})):  # fmt: skip
        world.api.patch(kind, "demo", kind, {"spec": change})
    async with world.running() as program:
        await protected(program, 3)
        assert all(row_of(program, reference).protected for reference in references)


async def test_a_pod_that_is_gone_is_wanted_until_it_is_copied(world: World) -> None:
    """The image of a hook that ended before its copy was made is copied all the same, and then forgotten."""
    content = world.source.add_image("hook", "1", seed="hook")
    hang = world.source.fail("get_manifest", stall_at=0, times=1)
    world.pod("hook", world.image("hook:1"))
    async with world.running(request_timeout="1s", registry_retry_attempts=3) as program:
        await hang.reached.wait()
        world.api.delete("pods", "demo", "hook")
        await until(lambda: world.target.has("mirror/hook", content, "1"))
        await until(lambda: not program.facade.images())
