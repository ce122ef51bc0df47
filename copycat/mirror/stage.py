"""A target on which nothing is real but what stands there: what a rehearsal writes to.

Reads go to the registry, writes are noted and are seen by later reads of the same rehearsal, so that
what decides upon what stands at the target decides as it would after real writes. No method of these
classes sends anything but GET and HEAD, whatever the code that is rehearsed comes to call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum

from copycat.errors import NotFound
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor, Document
from copycat.registry.repository import Repository
from copycat.registry.singleflight import SingleFlight
from copycat.registry.target import Target, names_missing_project
from copycat.registry.transport import Transport
from copycat.registry.upload import OpenBody

__all__ = ["Notes", "Presence", "Stage", "StagedRepository", "StagedTarget", "TagWrite"]


class Presence(Enum):
    """What is known about a repository at the target."""

    THERE = "there"
    ABSENT = "absent"
    """The registry says that there is no such repository."""
    UNKNOWN = "unknown"
    """Nothing that was asked for is in it; whether it exists was not told."""
    NO_PROJECT = "no_project"
    """The registry says that the project which it would belong to does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagWrite:
    """A tag that would be written."""

    tag: str
    digest: Digest
    before: Digest | None
    """What it stands for now; None if it is not there."""


@dataclass(slots=True)
class Notes:
    """What one attempt would do."""

    home: str = ""
    """The namespace that the copy is for, where they are kept apart; see `copycat.mirror.blobs`."""
    kept_for: str = ""
    """The namespace for which alone the blobs that it sends may be mounted."""
    blobs: dict[Digest, int] = field(default_factory=dict)
    """Blobs that the repository lacks, with their sizes in bytes."""
    manifests: int = 0
    """Manifests that would be written and do not stand yet."""
    tags: list[TagWrite] = field(default_factory=list)
    """In the order in which they would be written, anchors and markers included."""
    reads: int = 0
    """Manifests that were read at the source; these requests are what pull quotas count."""


class Stage:
    """What a rehearsal knows of the target, over all of its attempts."""

    def __init__(self, target: Target) -> None:
        """Args: `target` is the real one."""
        self.target = target
        self.documents: dict[tuple[str, str], Document] = {}
        """(repository, tag or digest) → what would stand there by now."""
        self.blobs: dict[tuple[str, Digest], bool] = {}
        """Whether a blob really stands in a repository, as far as it was asked."""
        self.homes: dict[Digest, set[str]] = {}
        """Of a blob that stands at the target: the namespaces for which it may be mounted; empty: for all."""
        self.presence: dict[str, Presence] = {}
        """Of each repository that was asked for something."""
        self.refusals: dict[str, NotFound] = {}
        self.flights: SingleFlight[str, Presence] = SingleFlight()

    def found(self, repository: str, digest: Digest, home: str) -> None:
        """A blob really stands in a repository; nobody knows who was allowed to read it when it came there."""
        self.blobs[repository, digest] = True
        self.presence[repository] = Presence.THERE
        self.homes.setdefault(digest, set()).add(home)


class StagedRepository(Repository):
    """A repository of the target. Nothing is written."""

    def __init__(
        self, transport: Transport, registry: str, name: str, *, stage: Stage, notes: Notes
    ) -> None:
        """Args: `notes` are told what would be written."""
        super().__init__(transport, registry, name, push=True)
        self._stage = stage
        self._notes = notes

    # Reading

    async def head_manifest(self, reference: str | Digest) -> Descriptor | None:
        """What would stand there by now."""
        staged = self._stage.documents.get((self.name, str(reference)))
        if staged is not None:
            return staged.descriptor
        found = await super().head_manifest(reference)
        if found is not None:
            self._stage.presence[self.name] = Presence.THERE
        return found

    async def get_manifest(self, reference: str | Digest, *, size: int | None = None) -> Document:
        """What would stand there by now."""
        staged = self._stage.documents.get((self.name, str(reference)))
        return staged or await super().get_manifest(reference, size=size)

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the blob really stands in the repository; a repository that is not there is not asked."""
        if await self.presence(digest) in {Presence.ABSENT, Presence.NO_PROJECT}:
            return False
        key = (self.name, digest)
        if key not in self._stage.blobs:
            self._stage.blobs[key] = await super().has_blob(digest)
        if self._stage.blobs[key]:
            self._stage.found(self.name, digest, self._notes.home)
        return self._stage.blobs[key]

    async def ask_if_new(self) -> None:
        """Not asked: `presence` knows, and is told at the latest by the first blob that is looked for."""

    async def presence(self, reference: Digest) -> Presence:
        """Whether the repository exists: by what was found in it, else by the words of a 404.

        HEAD has no words, so a GET is sent for something that is not there, once for each repository.
        """
        known = self._stage.presence.get(self.name)
        if known is None:
            known = await self._stage.flights.do(self.name, lambda: self._probe(reference))
            self._stage.presence.setdefault(self.name, known)
        return self._stage.presence[self.name]

    async def _probe(self, reference: Digest) -> Presence:
        try:
            await super().get_manifest(reference)
        except NotFound as error:
            self._stage.refusals[self.name] = error
            if names_missing_project(error):
                return Presence.NO_PROJECT
            if error.code == "NAME_UNKNOWN":
                return Presence.ABSENT
            # ECR tells the two apart; others say so of manifests in repositories that do not exist
            certain = self._stage.target.kind == "ecr" and error.code == "MANIFEST_UNKNOWN"
            return Presence.THERE if certain else Presence.UNKNOWN
        return Presence.THERE

    # Writing, or rather not

    async def put_manifest(self, document: Document, reference: str | Digest) -> bool:
        """Note it, and take a referrer for listed. Raises what a real one would meet, as far as that is known without writing."""
        self.check_size(document, reference)
        await self._enter(document.digest)
        absent = self._stage.presence[self.name] is Presence.ABSENT
        # what this stage has seen written is not written again, under whatever name
        staged = (self.name, str(document.digest)) in self._stage.documents
        if not staged and (absent or await self.head_manifest(document.digest) is None):
            self._notes.manifests += 1
        if not isinstance(reference, Digest):
            before = await self.head_manifest(reference)
            self._notes.tags.append(
                TagWrite(
                    tag=reference, digest=document.digest, before=before.digest if before else None
                )
            )
        for name in (str(reference), str(document.digest)):
            self._stage.documents[self.name, name] = document
        return document.subject is not None

    async def upload_blob(
        self,
        descriptor: Descriptor,
        open_body: OpenBody,
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """Note it; no body is opened."""
        del open_body, on_bytes
        await self._enter(descriptor.digest)
        self._notes.blobs[descriptor.digest] = descriptor.size

    async def mount_blob(self, descriptor: Descriptor, from_repository: str) -> bool:
        """Nothing is mounted: the blob is noted as one to send, and the plan sees that it stands elsewhere."""
        del descriptor, from_repository
        return False

    async def _enter(self, reference: Digest) -> None:
        """Be about to write. Raises NotFound where there is nothing to write to, and nobody who would make it."""
        presence = await self.presence(reference)
        if presence is Presence.NO_PROJECT:
            told = self._stage.refusals[self.name]
            raise NotFound(
                f"{told.message} Make the project at {self.registry} before anything is pushed to it.",
                side="target",
                reference=told.reference,
                registry=self.registry,
                status=told.status,
                code=told.code,
                reason="missing_project",
            )
        if presence is Presence.ABSENT:
            self._stage.target.makes(self.name)


class StagedTarget(Target):
    """The target of one attempt of a rehearsal."""

    def __init__(self, transport: Transport, stage: Stage, notes: Notes) -> None:
        """Args: `notes` are told what would be written."""
        super().__init__(transport, stage.target.registry)
        self.kind = stage.target.kind
        self._stage = stage
        self._notes = notes

    @property
    def max_repository(self) -> int:
        """As the real one."""
        return self._stage.target.max_repository

    def repository(self, name: str) -> StagedRepository:
        """A repository on the stage."""
        return StagedRepository(
            self._transport, self.registry, name, stage=self._stage, notes=self._notes
        )

    async def known_blobs(
        self, repository: str, digests: Collection[Digest], *, make: bool = True
    ) -> set[Digest] | None:
        """As the real one, which is told only to read."""
        del make
        return await self._stage.target.known_blobs(repository, digests, make=False)
