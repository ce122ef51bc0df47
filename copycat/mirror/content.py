"""The content of one attempt: roots that are fetched, copied whole, and kept by their anchors.

An anchor is written last and only for a root that is complete, so it is the mark of one: after a restart
a root whose anchor stands is believed, and a root that stands without one is walked again. What lacks
foreign layers gets another mark, so that clean-ups of untagged images spare it and nobody takes it for
a copy that can be restored by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from copycat.errors import DigestMismatch, NotFound, Unavailable
from copycat.logs import get_logger
from copycat.mirror.copy import Copier
from copycat.mirror.job import Copy, Progress
from copycat.mirror.naming import incomplete_tag
from copycat.mirror.request import Need, Transferred
from copycat.mirror.signatures import Look, Signatures
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor, Document, Manifest
from copycat.oci.reference import Reference
from copycat.registry.repository import Repository
from copycat.registry.target import Target

__all__ = ["Content"]

_log = get_logger(__name__)

#: How often a target is asked for what was just written, a second apart (registries that are eventually consistent).
_VISIBLE_TRIES = 6


@dataclass(slots=True, kw_only=True)
class Content:
    """What one attempt knows of the two repositories, and what it does there."""

    reference: Reference
    need: Need
    source: Repository
    target: Repository
    target_registry: Target
    copier: Copier
    progress: Progress
    signatures: Signatures | None
    """None: they are left alone."""
    sleep: Callable[[float], Awaitable[None]]
    anchored: set[Digest] = field(init=False)
    """Roots whose anchor is known to stand."""
    absent: set[Digest] = field(default_factory=set)
    """Reported digests that the source's repository does not have."""
    missing: list[Descriptor] = field(default_factory=list)
    """Foreign layers that the source does not serve."""
    moved: Transferred = field(default_factory=Transferred)
    roots: dict[Digest, Digest] = field(default_factory=dict)
    """What stands and is to be looked at for signatures → the source's root that it is, or is a part of."""
    part_of: dict[Digest, Digest] = field(default_factory=dict)
    """Narrowed roots → the source's."""
    look: Look | None = None
    """For signatures, once there was one."""
    pulled: bool = False
    pushed: bool = False
    documents: dict[Digest, Document] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What the caller saw need not be asked for again."""
        self.anchored = set(self.need.anchored)

    async def head(self, reference: str) -> Digest | None:
        """What a tag of the target stands for."""
        found = await self.target.head_manifest(reference)
        return found.digest if found else None

    async def fetch(self, digest: Digest) -> Document:
        """A document of the source, once."""
        document = self.documents.get(digest)
        if document is None:
            document = self.documents[digest] = await self.source.get_manifest(digest)
        return document

    async def ensure(self, digest: Digest) -> None:
        """Have this root at the target, whole and anchored. Raises the errors of both sides."""
        if digest in self.anchored:
            return
        document = self.documents.get(digest)
        # an image's few blobs are as soon asked for as its anchor; an index may stand for hundreds
        asks = not isinstance(document, Manifest)
        if asks and await self.head(digest.anchor) == digest:
            self.anchored.add(digest)
            if self.need.check_signatures:
                self.look_at(digest)
            return
        stands = document is None and await self.target.head_manifest(digest) is not None
        if document is None:
            document = await (self.target.get_manifest(digest) if stands else self.fetch(digest))
        lacking = len(self.missing)
        await self._copy(document, inspect=stands)
        self.pushed = True
        if len(self.missing) > lacking:
            return
        self.pulled = True
        self.anchored.add(digest)
        self.look_at(digest)

    def look_at(self, digest: Digest) -> None:
        """This root is safe: now for what was signed."""
        self.roots[digest] = self.part_of.get(digest, digest)

    async def follow_signatures(self) -> None:
        """What belongs to the roots that are safe now; never a reason for the image to fail."""
        if self.signatures is None or not self.roots:
            return
        self.look = Look(
            source=self.source,
            target=self.target,
            image=str(self.reference),
            progress=self.progress,
            moved=self.moved,
            anew=self.need.check_signatures,
            distrust=self.need.known,
        )
        await self.signatures.follow(self.look, self.roots, self.documents)

    @property
    def signatures_due(self) -> bool | None:
        """Whether another look is needed; None if there was no reason for one."""
        if self.signatures is None or not self.roots:
            return None
        return self.look is None or self.look.failed

    async def _copy(self, document: Document, *, inspect: bool) -> None:
        # what an earlier root of this attempt lacks stays on the list; what a try found out about this one does not
        before, digest = tuple(self.missing), document.digest

        def mark() -> str:
            return incomplete_tag(digest) if len(self.missing) > len(before) else digest.anchor

        async def anew() -> None:
            self.missing = list(before)
            job = Copy(
                source=self.source,
                target=self.target,
                image=str(self.reference),
                progress=self.progress,
                distrust=self.need.known,
                inspect=inspect,
                moved=self.moved,
                missing=self.missing,
            )
            try:
                await self.copier.copy(job, document, name=mark)
            finally:
                self.pulled |= job.read and len(self.missing) == len(before)

        await self.target_registry.provisioned(self.target.name, anew)

    async def keep_running(self) -> None:
        """What runs is what counts: every digest that a kubelet reported is kept, whatever the tag says now."""
        for running in self.need.running:
            try:
                await self.ensure(running.digest)
            except NotFound as error:
                if error.side != "source" or running.certain:
                    raise
                # looked for once; the ledger remembers
                self.absent.add(running.digest)
                _log.info("reported digest is not in the repository", digest=str(running.digest))

    async def put(self, document: Document, tag: str) -> None:
        """Write a tag, in a repository that is made if it is missing."""
        target = self.target

        async def put() -> None:
            await target.put_manifest(document, tag)

        await self.target_registry.provisioned(target.name, put)
        self.pushed = True

    async def put_known(self, digest: Digest, tag: str) -> None:
        """Write a tag for a root that stands at the target."""
        document = self.documents.get(digest) or await self.target.get_manifest(digest)
        await self.put(document, tag)

    async def see(self, tag: str, digest: Digest) -> None:
        """Read back what was written, as a restore would: an answer of 201 is a promise, this is the proof."""
        stands: Digest | None = None
        for attempt in range(_VISIBLE_TRIES):
            if attempt:
                await self.sleep(1.0)
            stands = await self.head(tag)
            if stands == digest:
                return
        reference = f"{self.target.registry}/{self.target.name}:{tag}"
        if stands is None:
            raise Unavailable(
                f"{self.target.registry} took {self.target.name}:{tag} and does not show it",
                side="target",
                reference=reference,
                registry=self.target.registry,
                reason="not_visible",
            )
        raise DigestMismatch(
            f"{self.target.registry} shows {stands} under {self.target.name}:{tag}, where {digest} was written",
            side="target",
            reference=reference,
        )
