"""A mirror that decides everything and does nothing: what `copycat plan` asks.

Attempts are the same code as in a run, against the real registries; only what they write to is a
stage, and only what moves blobs is exchanged for what counts them. So a plan cannot decide otherwise
than a run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from copycat.errors import Denied, Unauthorized
from copycat.metrics import Metrics
from copycat.mirror.blobs import Blobs
from copycat.mirror.copy import Copier, Copy, Progress
from copycat.mirror.mirror import Mirror
from copycat.mirror.naming import Naming
from copycat.mirror.policy import Policy
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.mirror.signatures import Kind, Signatures
from copycat.mirror.stage import Notes, Stage, StagedTarget
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor, Document, is_foreign
from copycat.registry.keychain import Access
from copycat.registry.repository import Repository
from copycat.registry.target import Target
from copycat.registry.transport import Transport

__all__ = ["Rehearsal"]


class _Source(Repository):
    """A source whose counted requests are noted."""

    def __init__(
        self, transport: Transport, request: MirrorRequest, *, access: Access, notes: Notes
    ) -> None:
        super().__init__(
            transport, request.source.registry, request.source.repository, access=access
        )
        self._notes = notes

    async def get_manifest(self, reference: str | Digest, *, size: int | None = None) -> Document:
        """As any. What is refused for want of a login is no pull."""
        self._notes.reads += 1
        try:
            return await super().get_manifest(reference, size=size)
        except (Denied, Unauthorized):
            self._notes.reads -= 1
            raise


class _Counter(Blobs):
    """Notes the blobs that would be sent."""

    def __init__(self, *, transport: Transport, stage: Stage) -> None:
        # nobody asks for these metrics: what is only rehearsed is not counted among what happened
        target = StagedTarget(transport, stage, Notes())
        super().__init__(transport=transport, target=target, metrics=Metrics(version=""))
        self._stage = stage

    def _learn(self, repository: str, digest: Digest, home: str) -> None:
        self._stage.found(repository, digest, home)
        super()._learn(repository, digest, home)

    async def bring_one(self, job: Copy, blob: Descriptor) -> None:
        """Look whether the target has it, and a foreign layer whether the source has it."""
        if await job.target.has_blob(blob.digest):
            self._count(job, "exists")
        elif is_foreign(blob.media_type) and not await job.source.has_blob(blob.digest):
            job.missing.append(blob)
        else:
            await job.target.upload_blob(blob, partial(job.source.read_blob, blob))


class Rehearsal(Mirror):
    """Answers as a mirror would after the work; `notes` tell what the work would have been."""

    def __init__(
        self,
        *,
        transport: Transport,
        target: Target,
        naming: Naming,
        policy: Policy,
        signatures: Kind = "none",
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Args: as the mirror's that is to be rehearsed."""
        self.stage = Stage(target)
        self.notes: dict[MirrorRequest, Notes] = {}
        copier = Copier(_Counter(transport=transport, stage=self.stage))
        super().__init__(
            transport=transport,
            target=target,
            naming=naming,
            copier=copier,
            policy=policy,
            signatures=None
            if signatures == "none"
            else Signatures(copier=copier, kind=signatures, policy=policy),
            sleep=sleep,
        )

    async def run(
        self, request: MirrorRequest, need: Need, *, progress: Progress | None = None
    ) -> MirrorResult:
        """What an attempt would come to. Attempts upon one repository must not run side by side.

        A second one for the same request adds to its notes.
        """
        del progress
        notes = self.notes.setdefault(request, Notes())
        notes.home, notes.kept_for = need.access.home, need.access.kept_for
        target = StagedTarget(self._transport, self.stage, notes)
        source = _Source(self._transport, request, access=need.access, notes=notes)
        return await self._attempt(request, need, source, target).run()
