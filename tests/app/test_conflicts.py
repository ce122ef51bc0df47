"""Two sources that want one tag at the target: neither copy is lost, and restarts change nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from copycat.app.process import Program
from copycat.oci.digest import Digest
from copycat.sandbox.images import Image, image
from copycat.sandbox.registry import Registry
from tests.app.support import World, in_state, protected, row_of, until

REPOSITORY = "grafana/loki"
PATH = f"mirror/{REPOSITORY}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rivals:
    """Two registries with an image of one name and tag, in the order of their names."""

    world: World
    first: Registry
    second: Registry
    other: Registry
    contents: tuple[Image, Image]

    def reference(self, registry: Registry) -> str:
        """The image there."""
        return f"{registry.address}/{REPOSITORY}:1"

    def use(self, *registries: Registry) -> None:
        """Deployments of the image from there."""
        for number, registry in enumerate(registries):
            name = "first" if registry is self.first else "second"
            self.world.deployment(f"{name}-{number}", self.reference(registry))

    @property
    def flags(self) -> dict[str, object]:
        """Both sources are plain HTTP."""
        return {"insecure_registries": f"{self.first.address},{self.second.address}"}

    def tag(self) -> str:
        """What the tag at the target stands for."""
        return self.world.target.tags[PATH].get("1", "")

    def kept(self) -> bool:
        """Both contents are at the target, whole and anchored."""
        tags = self.world.target.tags[PATH]
        return all(
            self.world.target.has(PATH, c) and tags.get(Digest.parse(c.digest).anchor) == c.digest
            for c in self.contents
        )


@pytest.fixture
async def rivals(world: World) -> AsyncIterator[Rivals]:
    """The world's source, and another one."""
    async with Registry() as other:
        first, second = sorted((world.source, other), key=lambda r: r.address)
        contents = image(seed="first"), image(seed="second")
        first.add(REPOSITORY, contents[0], "1")
        second.add(REPOSITORY, contents[1], "1")
        yield Rivals(world=world, first=first, second=second, other=other, contents=contents)


async def settled(rivals: Rivals, program: Program, *states: str) -> None:
    """Wait for the states of both, and that both contents are kept."""
    for registry, state in zip((rivals.first, rivals.second), states, strict=True):
        await in_state(program, rivals.reference(registry), state)
    await until(rivals.kept)


async def test_the_first_by_name_gets_it(rivals: Rivals) -> None:
    """An absent tag goes to the first by name; the other is kept by digest and told what to do; also after restarts."""
    rivals.use(rivals.second, rivals.first)
    for _ in range(3):
        async with rivals.world.running(**rivals.flags) as program:
            await settled(rivals, program, "protected", "conflict")
            row = row_of(program, rivals.reference(rivals.second))
            assert row.protected
            assert "$registry" in row.message
            assert rivals.reference(rivals.first) in row.message
            assert rivals.tag() == rivals.contents[0].digest


async def test_whose_content_stands_there_keeps_it(rivals: Rivals) -> None:
    """A claimant that comes later does not take the tag, though it is the first by name; nor after a restart."""
    rivals.use(rivals.second)
    async with rivals.world.running(**rivals.flags) as program:
        await protected(program, 1)
        rivals.use(rivals.first)
        await settled(rivals, program, "conflict", "protected")
        assert rivals.tag() == rivals.contents[1].digest
    async with rivals.world.running(**rivals.flags) as program:
        await settled(rivals, program, "conflict", "protected")
        assert rivals.tag() == rivals.contents[1].digest


async def test_nobodys_content(rivals: Rivals) -> None:
    """A tag that holds something else goes to nobody until one claimant is left."""
    rivals.world.target.add(PATH, theirs := image(seed="theirs"), "1")
    rivals.use(rivals.first, rivals.second)
    async with rivals.world.running(**rivals.flags) as program:
        await settled(rivals, program, "conflict", "conflict")
        assert rivals.tag() == theirs.digest
        rivals.world.api.delete("deployments", "demo", "first-0")
        await in_state(program, rivals.reference(rivals.second), "protected")
        assert rivals.tag() == rivals.contents[1].digest


async def test_a_claimant_that_never_came(rivals: Rivals) -> None:
    """The first by name is not at its source: while something uses it the tag waits for it, then the other gets it."""
    rivals.first.tags[REPOSITORY].clear()
    rivals.use(rivals.first, rivals.second)
    async with rivals.world.running(**rivals.flags) as program:
        await in_state(program, rivals.reference(rivals.first), "failed")
        await in_state(program, rivals.reference(rivals.second), "conflict")
        rivals.world.api.delete("deployments", "demo", "first-0")
        await in_state(program, rivals.reference(rivals.second), "protected")
        assert rivals.tag() == rivals.contents[1].digest


async def test_a_newer_digest_of_the_owner(rivals: Rivals) -> None:
    """The tag's owner may move it: a source's own newer digest is no conflict."""
    rivals.use(rivals.first, rivals.second)
    async with rivals.world.running(**rivals.flags) as program:
        await settled(rivals, program, "protected", "conflict")
        rivals.first.add(REPOSITORY, newer := image(seed="newer"), "1")
        await program.facade.force_reconcile()
        assert rivals.tag() == newer.digest
        assert row_of(program, rivals.reference(rivals.first)).state == "protected"
        assert row_of(program, rivals.reference(rivals.second)).state == "conflict"


@pytest.mark.parametrize("mover", ["first", "second"])
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "both-have-it"])
async def test_a_newer_digest_over_a_restart(rivals: Rivals, mover: str, shared: bool) -> None:
    """Nobody remembers over a restart whose tag it is: the source that has what stands there may move it, one of them at most."""
    moves, stays = (rivals.first, rivals.second)[:: 1 if mover == "first" else -1]
    contents = rivals.contents[:: 1 if mover == "first" else -1]
    rivals.use(moves)
    async with rivals.world.running(**rivals.flags) as program:
        await protected(program, 1)
    moves.add(REPOSITORY, newer := image(seed="newer"), "1")
    if shared:
        stays.add(REPOSITORY, contents[0])
    rivals.use(stays)
    # the first by name of those that have it; it may want the tag for other content than the one that put it there
    owner = rivals.first if shared else moves
    for _ in range(2):
        async with rivals.world.running(**rivals.flags) as program:
            for registry in (rivals.first, rivals.second):
                state = "protected" if registry is owner else "conflict"
                await in_state(program, rivals.reference(registry), state)
            await program.facade.force_reconcile()
            assert rivals.tag() == (newer.digest if owner is moves else contents[1].digest)


@pytest.mark.parametrize("slow", ["first", "second", "neither"])
async def test_equal_content(rivals: Rivals, slow: str) -> None:
    """Two sources of one content have nothing to quarrel about, whichever is copied first."""
    rivals.second.add(REPOSITORY, rivals.contents[0], "1")
    rivals.use(rivals.first, rivals.second)
    if slow != "neither":
        registry = rivals.first if slow == "first" else rivals.second
        registry.fail("get_manifest", delay=0.3)
    async with rivals.world.running(**rivals.flags) as program:
        for registry in (rivals.first, rivals.second):
            await in_state(program, rivals.reference(registry), "protected")
        assert rivals.tag() == rivals.contents[0].digest


async def test_the_registry_in_the_prefix(rivals: Rivals) -> None:
    """With `$registry` each source has a place of its own."""
    rivals.use(rivals.first, rivals.second)
    async with rivals.world.running(docker__repo_prefix="mirror/$registry", **rivals.flags) as program:  # fmt: skip
        await protected(program, 2)
        assert {row.state for row in program.facade.images()} == {"protected"}
        assert sum("1" in tags for tags in rivals.world.target.tags.values()) == 2
