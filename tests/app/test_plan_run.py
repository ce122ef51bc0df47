"""A plan decides as a run does: the same world is planned, then run, and compared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from copycat.admin.api import Image as ApiRow
from copycat.app.process import Program
from copycat.oci.digest import Digest
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.app.plans import Planned, contents, planned, untouched
from tests.app.support import World, until
from tests.app.test_pull_secrets import deploy, secret


def anchor(image: Image) -> str:
    """The tag that keeps an image."""
    return Digest.parse(image.digest).anchor


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """A world with every kind of image in it, and a second source that wants one of the first's tags."""

    world: World
    other: Registry

    def settings(self) -> dict[str, object]:
        """What names both sources, excludes one host and does not allow another."""
        hosts = [r.address for r in (self.world.source, self.other, self.world.target)]
        return {
            "insecure_registries": ",".join(hosts[:2]),
            "exclude_registries": "excluded.example",
            "allowed_registries": ",".join([*hosts, "excluded.example"]),
            "registry_retry_attempts": 1,
        }


@pytest.fixture
async def everything(world: World) -> AsyncIterator[Everything]:
    """Built anew for each test."""
    async with Registry() as other:
        _fill(world, other)
        yield Everything(world=world, other=other)


def _fill(world: World, other: Registry) -> None:
    source, target = world.source, world.target
    shared = images.layer(40_000, seed="shared")
    source.add_image("a", "1", seed="a", layers=[5_000, shared])
    source.add_image("b", "1", seed="b", layers=[3_000, shared])
    stands = source.add_image("stands", "1", seed="stands")
    target.add("mirror/stands", stands, "1")
    # half of it is at the target
    half = source.add_image("half", "1", seed="half", layers=[2_000, 7_000])
    target.put_blob("mirror/half", next(iter(half.blobs.values())))
    # its tag stands for something that copycat put there, and for something that it did not
    old = images.image(seed="old")
    for name, tags in {"moved": ["1", anchor(old)], "foreign": ["1"]}.items():
        source.add_image(name, "1", seed=name)
        for tag in tags:
            target.add(f"mirror/{name}", old, tag)
    multi = images.index(
        images.image(seed="m1", platform="linux/amd64"),
        images.image(seed="m2", platform="linux/arm64"),
        attestations=True,
    )
    for name in ("multi", "single", "pinned"):
        source.add(name, multi, "1")
    signed = source.add_image("signed", "1", seed="signed")
    source.add("signed", images.signature(signed), images.cosign_tag(signed))
    source.add("signed", images.artifact(seed="sbom", size=5_000, subject=signed))
    source.add_image("vendor", "1", layers=[1_000, images.foreign_layer()])
    runs = source.add_image("runs", "1", seed="runs-now")
    earlier = images.image(seed="runs-earlier")
    source.add("runs", earlier)
    for number, registry in enumerate((source, other)):
        registry.add_image("same", "1", seed=number)
    target.add_image("mine", "1", seed="mine")
    _use(world, other, pinned=multi.digest, earlier=earlier.digest, now=runs.digest)


def _use(world: World, other: Registry, *, pinned: str, earlier: str, now: str) -> None:
    used = [
        *(world.image(f"{n}:1") for n in ("a", "b", "stands", "half", "moved", "foreign", "multi", "vendor", "signed", "same", "gone")),
        world.image(f"pinned@{pinned}"),
        f"{other.address}/same:1",
        f"{world.target.address}/mine:1",
        "excluded.example/x:1",
        "denied.example/x:1",
        "NO IMAGE",
    ]  # fmt: skip
    for number, image in enumerate(used):
        world.deployment(f"d{number}", image)
    for number, architecture in enumerate(("amd64", "arm64")):
        info = {"operatingSystem": "linux", "architecture": architecture}
        world.api.create(
            "nodes", {"metadata": {"name": f"n{number}"}, "status": {"nodeInfo": info}}
        )
    name = world.image("runs:1")
    world.pod("p0", name, image_id=f"{world.image('runs')}@{earlier}", node="n0")
    world.pod("p1", name, image_id=f"{world.image('runs')}@{now}", node="n1")
    world.pod("p2", world.image("single:1"), node="n0")


def _settled(program: Program) -> bool:
    status = program.facade.status()
    rows = program.facade.images()
    return bool(rows) and not status.queued and not status.working and not _pending(rows)


def _pending(rows: object) -> bool:
    assert isinstance(rows, list | tuple)
    return any(isinstance(r, ApiRow) and r.state == "pending" for r in rows)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"mirror_platforms": "linux/arm64"}, id="one-platform"),
        pytest.param({"mirror_platforms": "linux/s390x"}, id="missing-platform"),
        pytest.param({"check_node_platform": True}, id="nodes"),
        pytest.param({"digest_pull": True}, id="digest-pull"),
        pytest.param({"allow_different_digest_repush": False}, id="held"),
        pytest.param({"overwrite_foreign_tags": False}, id="foreign"),
        pytest.param({"docker__repo_prefix": "m/$registry/$namespace"}, id="placeholders"),
    ],
)
async def test_a_plan_is_what_a_run_does(everything: Everything, flags: dict[str, object]) -> None:
    """State, reason, target and digest of each image, the bytes sent and the counted requests are those of the run.

    And the plan leaves everything as it was.
    """
    world, sources = everything.world, (everything.world.source, everything.other)
    found = await same(world, sources, {**everything.settings(), **flags})
    assert not found.good


async def same(
    world: World,
    sources: Sequence[Registry],
    settings: dict[str, object],
) -> Planned:
    """Plan, see that nothing was touched, run, and compare."""
    before = contents(world.target)
    found = await planned(world, world.settings(**settings))

    assert contents(world.target) == before
    assert all(untouched(registry) for registry in (*sources, world.target))
    assert {r.method for r in world.api.requests} == {"GET"}

    for registry in (*sources, world.target):
        registry.ledger.clear()
    async with world.running(**settings) as program:
        await until(lambda: _settled(program))
        rows = {row.source: row for row in program.facade.images()}

    told = {s: (r["state"], r["reason"], r["target"], r["digest"]) for s, r in found.images.items()}
    done = {s: (r.state, r.reason, r.target, r.digest) for s, r in rows.items()}
    for name in ("excluded.example/x:1", "denied.example/x:1", "NO IMAGE"):
        # they have no target in a plan
        assert told.pop(name, ("",))[0] == done.pop(name, ("",))[0]
    assert told == done
    assert found.summary["bytes"] == world.target.ledger.bytes_in(Phase.UPLOAD_BODY)
    assert _reads(found) == sum(map(_pulls, sources))
    return found


def _reads(found: Planned) -> int:
    """Counted requests as a plan has them, of images whose tag nobody else wants."""
    total = sum(load["manifestReads"] for load in found.summary["sources"])
    contested = [r["manifestReads"] for s, r in found.images.items() if "/same:" in s]
    return int(total - sum(contested))


def _pulls(registry: Registry) -> int:
    """Manifests that were asked for and not refused for want of a login.

    Of a contested tag as many as the order wants: who loses looks again when the winner has written.
    """
    asked = [r for r in registry.ledger.select(Phase.GET_MANIFEST) if r.repository != "same"]
    return sum(r.status not in {401, 403} for r in asked)


@pytest.mark.parametrize(
    ("flags", "states", "secrets"),
    [
        pytest.param(
            {"pull_secrets": "all", "docker__repo_prefix": "m/$namespace"},
            {"a": "protected", "b": "failed"},
            [],
            id="separate",
        ),
        pytest.param(
            {"pull_secrets": "all", "private_images": "shared"},
            {"a": "protected", "b": "failed"},
            [],
            id="shared",
        ),
        pytest.param({"pull_secrets": "all"}, {"a": "denied", "b": "failed"}, [], id="nowhere-to-put-it"),
        pytest.param(
            {"pull_secrets": "off"}, {"a": "failed", "b": "failed"}, ["team-a", "team-b"], id="off"
        ),
    ],
)  # fmt: skip
async def test_pull_secrets(
    tmp_path: Path, flags: dict[str, object], states: dict[str, str], secrets: list[str]
) -> None:
    """A plan uses the cluster's pull secrets as a run does, and names the namespaces where that is not allowed."""
    async with (
        Registry(auth="token", username="a", password="pass-a") as source,
        Registry() as target,
        KubeApi() as api,
    ):
        world = World(source=source, target=target, api=api, folder=tmp_path)
        for user in ("a", "b"):
            source.add_image(f"{user}/app", "1", seed=user)
            api.create(
                "secrets", secret(world, user, namespace=f"team-{user}", password=f"pass-{user}")
            )
            deploy(world, f"{user}/app:1", "hub", namespace=f"team-{user}")
        found = await same(world, (source,), {**flags, "registry_retry_attempts": 1})
        assert {u: found.images[world.image(f"{u}/app:1")]["state"] for u in states} == states
        assert [item["namespace"] for item in found.summary["pullSecrets"]] == secrets


async def test_two_plans_are_the_same(everything: Everything) -> None:
    """Whoever answers first: nothing in a plan depends on it."""
    world = everything.world
    settings = world.settings(**everything.settings())
    first = await planned(world, settings)
    second = await planned(world, settings)
    assert first == second
