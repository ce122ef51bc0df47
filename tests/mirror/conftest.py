"""Two real registries with a mirror between them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Unpack

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from typing_extensions import TypedDict

from copycat.mirror.blobs import Blobs
from copycat.mirror.copy import Copier
from copycat.mirror.mirror import Mirror
from copycat.mirror.naming import Naming
from copycat.mirror.policy import Policy
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.mirror.signatures import Kind, Signatures
from copycat.oci.digest import Digest
from copycat.oci.reference import Reference
from copycat.registry.target import Target
from copycat.sandbox.images import Image
from copycat.sandbox.registry import Registry
from tests.registry.support import World, world

__all__ = ["Bench"]


class PolicyOptions(TypedDict, total=False):
    """The owner's will that a test sets."""

    digest_pull: bool
    digest_pull_ignored_tags: frozenset[str]
    allow_different_digest_repush: bool
    overwrite_foreign_tags: bool
    dry_run: bool
    dry_pull: bool


class MirrorOptions(PolicyOptions, total=False):
    """What makes a mirror."""

    signatures: Kind


@dataclass(slots=True)
class Bench:
    """A source, a target, and what makes attempts between them."""

    source: Registry
    target: Registry
    world: World
    naps: list[float] = field(default_factory=list)
    copier: Copier = field(init=False)
    plain: Target = field(init=False)

    def __post_init__(self) -> None:
        """One copier: what it knows is shared by all mirrors of a test."""
        self.use(Target(self.world.transport, self.target.address))

    def use(self, target: Target) -> None:
        """Another kind of target, with nothing known of it."""
        self.plain = target
        self.copier = Copier(
            Blobs(transport=self.world.transport, target=target, metrics=self.world.metrics)
        )

    async def nap(self, seconds: float) -> None:
        """A sleep that takes no time."""
        self.naps.append(seconds)

    def mirror(
        self,
        policy: Policy | None = None,
        *,
        prefix: str = "",
        signatures: Kind = "none",
        sleep: Callable[[float], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Unpack[PolicyOptions],
    ) -> Mirror:
        """A mirror with this policy. Args: `clock` of the signatures."""
        policy = policy or Policy(**options)
        follow = None
        if signatures != "none":
            follow = Signatures(copier=self.copier, kind=signatures, policy=policy, clock=clock)
        return Mirror(
            transport=self.world.transport,
            target=self.plain,
            naming=Naming(prefix=prefix),
            copier=self.copier,
            policy=policy,
            signatures=follow,
            sleep=sleep or self.nap,
        )

    def ask(
        self, reference: str = "team/app:1.0", *, repository: str = "copy/app"
    ) -> MirrorRequest:
        """A request for an image of the source."""
        return MirrorRequest(Reference.parse(f"{self.source.address}/{reference}"), repository)

    async def run(
        self,
        reference: str = "team/app:1.0",
        need: Need | None = None,
        *,
        repository: str = "copy/app",
        **options: Unpack[MirrorOptions],
    ) -> MirrorResult:
        """One attempt."""
        request = self.ask(reference, repository=repository)
        return await self.mirror(**options).run(request, need or Need())

    def tag(self, name: str, repository: str = "copy/app") -> str | None:
        """What a tag of the target stands for."""
        return self.target.tags.get(repository, {}).get(name)

    def anchored(self, image: Image, repository: str = "copy/app") -> bool:
        """The image stands at the target, whole and under its anchor."""
        return self.target.has(repository, image, Digest.parse(image.digest).anchor)

    def forget_requests(self) -> None:
        """Count from here."""
        self.source.ledger.clear()
        self.target.ledger.clear()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Both registries up; no rule of the protocol is broken at either in the end."""
    async with (
        Registry() as source,
        Registry() as target,
        world(
            source.address,
            target.address,
            target_registries=frozenset({target.address}),
        ) as here,
    ):
        yield Bench(source, target, here)
        assert (source.violations, target.violations) == ([], [])


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A mirror that blocks the event loop is broken."""
    with blockbuster_ctx("copycat") as found:
        yield found
