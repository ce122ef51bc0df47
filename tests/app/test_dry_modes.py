"""The dry modes by the whole program: who is asked what, counted at source, token service, target and AWS.

dryRun asks both sides by HEAD and writes nothing. dryPull asks the target alone. Both together ask nobody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from copycat.admin.api import Image as Row
from copycat.app.process import Program
from copycat.oci.digest import Digest
from copycat.sandbox.images import Image, image, index
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.app.support import World, counters, fetch, in_state, protected, row_of, until

RUN, PULL, BOTH = {"dry_run": True}, {"dry_pull": True}, {"dry_run": True, "dry_pull": True}
MODES = [
    pytest.param(RUN, id="run"),
    pytest.param(PULL, id="pull"),
    pytest.param(BOTH, id="both"),
]
Flags = dict[str, bool]

#: What changes nothing and moves no content.
_LOOKS = {Phase.PING, Phase.TOKEN, Phase.HEAD_MANIFEST}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A source that wants anonymous tokens and a target that wants a login."""
    async with (
        Registry(auth="token", anonymous=True) as source,
        Registry(auth="token", username="robot", password="s3cret") as target,
        KubeApi() as api,
    ):
        yield World(source=source, target=target, api=api, folder=tmp_path)


@pytest.fixture
def login() -> dict[str, str]:
    """The target's."""
    return {"docker.username": "robot", "docker.password": "s3cret"}


class Cluster:
    """Three images: one that stands at the target, one whose tag moved since, one that is new and named by digest too."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stands = self._put("stands", "1", image(seed="stands"))
        self.moved = self._put("moved", "1", old := image(seed="old"))
        self.old, self.new = old, image(seed="new")
        for name, content in (("stands", image(seed="stands")), ("moved", old)):
            world.target.add(f"mirror/{name}", content, "1")
            anchor = Digest.parse(content.digest).anchor
            world.target.tags[f"mirror/{name}"][anchor] = content.digest
        world.source.add("moved", self.new, "1")
        self.fresh = self._put("fresh", "1", content := index(seed="fresh"))
        self.pinned = world.image(f"fresh@{content.digest}")
        world.deployment("pinned", self.pinned)

    def _put(self, name: str, tag: str, content: Image) -> str:
        self.world.source.add(name, content, tag)
        reference = self.world.image(f"{name}:{tag}")
        self.world.deployment(name, reference)
        return reference


async def looked(program: Program, count: int) -> list[Row]:
    """Wait until each of that many images was looked at; their rows."""

    def done() -> bool:
        rows, status = program.facade.images(), program.facade.status()
        return len(rows) == count and all(r.state == "dry_run" for r in rows) and not status.working

    await until(done)
    return list(program.facade.images())


def phases(registry: Registry) -> set[Phase]:
    """The kinds of requests that a registry saw."""
    return {phase for request in registry.requests for phase in request.phases}


async def test_run(world: World, login: dict[str, str]) -> None:
    """dryRun: one HEAD for each image at both sides, pings and tokens, nothing else; each row says what would happen."""
    cluster = Cluster(world)
    before = snapshot(world.target)
    async with world.running(**login, **RUN) as program:
        await looked(program, 4)
        assert phases(world.source) == _LOOKS
        assert phases(world.target) <= _LOOKS
        assert world.source.ledger.count(Phase.HEAD_MANIFEST) == 4
        assert world.target.ledger.count(Phase.HEAD_MANIFEST) == 4
        row = row_of(program, cluster.stands)
        assert row.protected
        assert "nothing to do" in row.message
        assert f"would move {world.target.address}/mirror/moved:1 from {cluster.old.digest} to {cluster.new.digest}" in row_of(program, cluster.moved).message  # fmt: skip
        assert "would copy" in row_of(program, cluster.fresh).message
        assert "would copy" in row_of(program, cluster.pinned).message
    assert snapshot(world.target) == before


async def test_pull(world: World, login: dict[str, str]) -> None:
    """dryPull: neither the source nor its token service is asked; the target by HEAD alone."""
    cluster = Cluster(world)
    before = snapshot(world.target)
    async with world.running(**login, **PULL) as program:
        await looked(program, 4)
        assert world.source.requests == []
        assert phases(world.target) == _LOOKS
        assert world.target.ledger.count(Phase.HEAD_MANIFEST) == 4
        for reference in (cluster.stands, cluster.moved):
            assert "whether its tag moved was not asked" in row_of(program, reference).message
        for reference in (cluster.fresh, cluster.pinned):
            assert "would be copied to" in row_of(program, reference).message
    assert snapshot(world.target) == before


async def test_both(world: World, login: dict[str, str]) -> None:
    """Both together: no registry and no token service is asked; each row says where it would go."""
    cluster = Cluster(world)
    async with world.running(**login, **BOTH) as program:
        await looked(program, 4)
        for reference in (cluster.stands, cluster.moved, cluster.fresh, cluster.pinned):
            row = row_of(program, reference)
            assert f"would copy to {world.target.address}/mirror/" in row.message
            assert not row.protected
    assert world.source.requests == []
    assert world.target.requests == []


async def test_neither(world: World, login: dict[str, str]) -> None:
    """Without a dry mode the same cluster is copied: the fourth of the combinations."""
    cluster = Cluster(world)
    async with world.running(**login) as program:
        await until(lambda: world.target.tags["mirror/moved"].get("1") == cluster.new.digest)
        await until(lambda: "1" in world.target.tags["mirror/fresh"])
        await in_state(program, cluster.pinned, "protected")


@pytest.mark.parametrize("flags", MODES)
async def test_forced_passes_and_uses_of_copies(world: World, flags: Flags) -> None:
    """A forced pass stays as dry as the mode, and so does looking for the copy that a workload runs itself."""
    world.deployment("there", world.image("a:1"))
    world.source.add("a", image(seed="a"), "1")
    world.target.authority.mode = "none"
    world.target.add("mirror/own", image(seed="own"), "1")
    world.deployment("own", f"{world.target.address}/mirror/own:1")
    async with world.running(**flags, extra_images=world.image("a:1")) as program:
        await until(lambda: program.facade.status().images == {"dry_run": 1, "in_place": 1})
        status, _ = await fetch(program, "metrics", "/force-reconcile", "POST")
        assert status == 200
    assert bool(world.source.requests) is (flags == RUN)
    assert bool(world.target.requests) is (flags != BOTH)
    assert phases(world.source) | phases(world.target) <= _LOOKS


@pytest.mark.parametrize("flags", MODES)
async def test_what_runs_counts(world: World, login: dict[str, str], flags: Flags) -> None:
    """A digest that runs and is not kept is named, also where the tag stands."""
    cluster = Cluster(world)
    gone = Digest.parse(image(seed="gone").digest)
    world.pod("p", cluster.stands, image_id=f"{world.image('stands')}@{gone}")
    async with world.running(**login, **flags) as program:
        await looked(program, 4)
        row = row_of(program, cluster.stands)
        assert (str(gone) in row.message) is (flags != BOTH)
        assert not row.protected


async def test_a_narrowed_copy_that_stands(world: World, login: dict[str, str]) -> None:
    """What stands narrowed to the wanted platforms is recognised by its marker, though its digest is another than the source's."""
    world.source.add("a", index(seed="a"), "1")
    world.deployment("a", reference := world.image("a:1"))
    async with world.running(**login, mirror_platforms="linux/amd64") as program:
        await in_state(program, reference, "tag_only")
    world.source.ledger.clear()
    for platforms, words in (
        ("linux/amd64", "nothing to do"),
        ("linux/arm64", "would move"),
    ):
        async with world.running(**login, **RUN, mirror_platforms=platforms) as program:
            await looked(program, 1)
            assert words in row_of(program, reference).message
    assert phases(world.source) <= _LOOKS


async def test_a_source_without_head(world: World, login: dict[str, str]) -> None:
    """Only where the source knows no HEAD it is asked by GET."""
    world.source.fail(Phase.HEAD_MANIFEST, status=405, times=None)
    world.source.add("a", image(seed="a"), "1")
    world.deployment("a", world.image("a:1"))
    async with world.running(**login, **RUN) as program:
        await looked(program, 1)
    assert world.source.ledger.count(Phase.GET_MANIFEST) == 1
    assert world.source.ledger.count(Phase.GET_BLOB) == 0


async def test_a_missing_image_is_told(world: World, login: dict[str, str]) -> None:
    """dryRun finds what the source does not have; the counters of pulls and pushes count nothing in a dry mode."""
    world.source.add("a", image(seed="a"), "1")
    world.deployment("a", world.image("a:1"))
    world.deployment("none", missing := world.image("a:none"))
    async with world.running(**login, **RUN) as program:
        await until(lambda: program.facade.status().images == {"dry_run": 1, "failed": 1})
        assert row_of(program, missing).reason == "not_found"
        assert set((await counters(program)).values()) == {0}


@pytest.mark.parametrize("flags", MODES)
async def test_results_are_forgotten_when_the_mode_ends(
    world: World, login: dict[str, str], flags: Flags
) -> None:
    """After a start without the mode everything is looked at anew, and copied."""
    cluster = Cluster(world)
    async with world.running(**login, **flags) as program:
        await looked(program, 4)
    async with world.running(**login) as program:
        await protected(program, 4)
        assert row_of(program, cluster.moved).digest == cluster.new.digest


def snapshot(registry: Registry) -> tuple[object, ...]:
    """All that a registry holds."""
    tags = {name: dict(found) for name, found in registry.tags.items() if found}
    blobs = {name: set(found) for name, found in registry.blobs.items() if found}
    manifests = {name: set(found) for name, found in registry.manifests.items() if found}
    return tags, blobs, manifests, set(registry.store.repositories)
