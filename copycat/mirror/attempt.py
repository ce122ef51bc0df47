"""One attempt at one request: what to ask, what to copy, what to name it.

The target is asked first: what stands there needs no source. A tag is resolved once and everything is
then fetched by digest, so a tag that moves meanwhile cannot mix two images. Content goes first, under
its digest and its anchor; the tag goes last, and only if it is ours to move.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from copycat.errors import CopycatError, HostNotAllowed, NotFound, RegistryError
from copycat.mirror.architecture import USUAL, Architectures
from copycat.mirror.content import Content
from copycat.mirror.copy import Copier
from copycat.mirror.dry import rehearse
from copycat.mirror.job import Progress, served_elsewhere
from copycat.mirror.naming import ARCH, Naming, subset_tag
from copycat.mirror.narrow import Narrowing
from copycat.mirror.policy import Policy, Verdict
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.mirror.signatures import Signatures
from copycat.mirror.tags import Tags
from copycat.oci.digest import Digest
from copycat.oci.manifest import Document
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference
from copycat.registry.quota import REASON as QUOTA
from copycat.registry.repository import Repository
from copycat.registry.target import Target

__all__ = ["Attempt"]


@dataclass(slots=True)
class Attempt:
    """The state of one attempt. Make one, await `run`, throw it away."""

    request: MirrorRequest
    need: Need
    policy: Policy
    naming: Naming
    copier: Copier
    target_registry: Target
    source: Repository
    architectures: Architectures
    sleep: Callable[[float], Awaitable[None]]
    progress: Progress
    signatures: Signatures | None = None
    content: Content = field(init=False)
    tags: Tags = field(init=False)
    narrowing: Narrowing = field(init=False)
    standing: Digest | None = None
    """What is known to stand at the target and, as far as anybody knows, is still what is wanted."""
    soft: CopycatError | None = None
    """Why the source could not be asked, where the copy stands all the same."""
    source_checked: bool = False
    digest: Digest | None = None

    def __post_init__(self) -> None:
        """The repository is settled at once unless the architecture is part of its name."""
        self.content = Content(
            reference=self.reference,
            need=self.need,
            source=self.source,
            target=self.target_registry.repository(self.request.repository),
            target_registry=self.target_registry,
            copier=self.copier,
            progress=self.progress,
            signatures=self.signatures,
            sleep=self.sleep,
        )
        self.tags = Tags(
            reference=self.reference, need=self.need, policy=self.policy, content=self.content
        )
        self.narrowing = Narrowing(
            reference=self.reference, need=self.need, policy=self.policy, content=self.content
        )

    @property
    def reference(self) -> Reference:
        """The source reference."""
        return self.request.source

    @property
    def target_reference(self) -> Reference:
        """The reference under which the copy is found."""
        digest = self.reference.digest
        tag = self.reference.tag or (digest.anchor if digest else None)
        target = self.content.target
        return Reference(registry=target.registry, repository=target.name, tag=tag, digest=digest)

    @property
    def _tag(self) -> str:
        return self.reference.tag or "latest"

    # The whole

    async def run(self) -> MirrorResult:
        """Do it. Errors of registries are part of the result, not raised."""
        try:
            if self.reference.registry == self.target_registry.registry:
                return await self._in_place()
            if self.policy.dry_run or self.policy.dry_pull:
                return await self._dry()
            return self._finished(await self._mirror())
        except CopycatError as error:
            return self._failed(error)

    async def _mirror(self) -> Verdict:
        failure: CopycatError | None = None
        verdict = Verdict("protected")
        if ARCH in self.request.repository:
            await self._settle_architecture()
        try:
            verdict = await self._reference()
            # the tag's copy does not speak for a digest that runs and is not kept
            self.standing = None
        except CopycatError as error:
            if error.side != "source" or not self.need.running:
                raise
            # whatever is wrong with the tag, the digests that run are wanted by themselves
            failure = error
        try:
            await self.content.keep_running()
        except CopycatError as error:
            raise failure or error from error
        if self.soft is None:
            await self.content.follow_signatures()
        if failure is not None:
            raise failure
        return verdict

    async def _reference(self) -> Verdict:
        if self.reference.digest is not None:
            return await self._by_digest(self.reference.digest)
        if self.need.platforms is not None:
            return await self._narrowed(self.need.platforms)
        return await self._by_tag()

    def _result(self, state: str, *, protected: bool, reason: str = "", message: str = "",
                error: CopycatError | None = None) -> MirrorResult:  # fmt: skip
        content = self.content
        return MirrorResult(
            state=state,
            target=self.target_reference,
            digest=self.digest,
            anchored=frozenset(content.anchored),
            absent=frozenset(content.absent),
            protected=protected,
            source_checked=self.source_checked,
            reason=reason,
            message=message,
            error=error,
            pulled=content.pulled,
            pushed=content.pushed,
            tag_written=self.tags.written,
            signatures_due=content.signatures_due,
            dry=self.policy.dry_run or self.policy.dry_pull,
            moved=content.moved,
        )

    def _finished(self, verdict: Verdict) -> MirrorResult:
        signed = self.content.look.notes if self.content.look else []
        notes = "; ".join(filter(None, [verdict.message, *self.narrowing.notes, *signed]))
        missing = self.content.missing
        if missing and verdict.state in {"protected", "tag_only"}:
            return self._result(
                "incomplete",
                protected=False,
                reason="foreign_layers",
                message=f"{len(missing)} foreign layers are not served by the source; a restore needs {served_elsewhere(missing)}",
            )
        return self._result(
            verdict.state,
            protected=verdict.state in {"protected", "tag_only", "tag_held", "conflict"},
            reason=verdict.reason or (self.soft.reason if self.soft else ""),
            message=notes or (str(self.soft) if self.soft else ""),
            error=self.soft,
        )

    def _failed(self, error: CopycatError) -> MirrorResult:
        if self.standing is not None and error.side == "source":
            # the upstream is gone, or out of reach: that is what the copy is for
            self.digest = self.digest or self.standing
            return self._result(
                "protected", protected=True, reason=error.reason, message=str(error), error=error
            )
        state = "denied" if isinstance(error, HostNotAllowed) else "failed"
        if error.reason == QUOTA:
            state = "waiting_quota"
        return self._result(
            state, protected=False, reason=error.reason, message=str(error), error=error
        )

    # Digest references

    async def _by_digest(self, digest: Digest) -> Verdict:
        """A digest means the same for ever: what stands at the target needs no source."""
        self.digest = digest
        await self.content.ensure(digest)
        tag = self.reference.tag
        if tag is None or await self.content.head(tag) is not None:
            return Verdict("protected")
        return self.tags.yields(tag) or await self.tags.write(tag, digest)

    # Tag references, whole

    async def _by_tag(self) -> Verdict:
        tag = self._tag
        present = await self.content.head(tag)
        self.standing = present
        wanted = await self._wanted(tag, present)
        return await self._whole(tag, present, wanted)

    async def _whole(self, tag: str, present: Digest | None, wanted: Digest) -> Verdict:
        self.digest = wanted
        if wanted != present:
            self.standing = None
            await self.content.ensure(wanted)
            return await self.tags.move(tag, present, wanted)
        # an anchor says that this is a copy: of what nobody vouches for, none is made
        vouched = self.soft is None or wanted == self.need.owned
        if self.soft is not None and not vouched and await self.tags.foreign(tag, wanted):
            self.standing = None
            raise self.soft
        if vouched and (self.need.check_anchors or self.need.check_signatures):
            await self.content.ensure(wanted)
        return Verdict("protected")

    async def _wanted(self, tag: str, present: Digest | None) -> Digest:
        """Which digest the tag is to have at the target (product: tags and digests)."""
        running = self._running_certain(tag)
        if self._need_not_ask(present) and not running:
            return present
        return await self._meant(tag, present, running)

    async def _meant(self, tag: str, present: Digest | None, running: Sequence[Digest]) -> Digest:
        """What the source says, unless that runs nowhere and something else does. Args: `running`: newest first."""
        fallback = running[0] if running else present
        says = await self._ask_source(tag, present, fallback)
        if running and says not in running:
            return running[0]
        return says

    def _need_not_ask(self, present: Digest | None) -> TypeGuard[Digest]:
        """The target's tag is enough: it stands for what this source meant by it, and nobody wants to know more.

        What somebody else has put under the tag says nothing about this image, and must not be taken for it.
        """
        return present is not None and not self.need.check_source and present == self.need.owned

    def _running_certain(self, tag: str) -> list[Digest]:
        if not self.policy.digest_pull or tag in self.policy.digest_pull_ignored_tags:
            return []
        return [r.digest for r in self.need.running if r.certain]

    async def _ask_source(
        self, tag: str, present: Digest | None, fallback: Digest | None
    ) -> Digest:
        """What the tag means at the source. One HEAD if the target has the tag and the source still does, else one GET, which is the resolution."""
        try:
            found = None if present is None else await self.source.head_manifest(tag)
            if found is None:
                # nothing is known of it, or HEAD denies it, which only GET is believed about (cc-utils#1752)
                document = await self.source.get_manifest(tag)
                self.content.documents[document.digest] = document
                digest = document.digest
            else:
                digest = found.digest
        except CopycatError as error:
            # out of reach, gone, or a manifest that nobody can read (schema 1)
            if fallback is None or error.side != "source":
                raise
            self.soft = error
            return fallback
        self.source_checked = True
        return digest

    def _gone(self, tag: str) -> NotFound:
        return NotFound(
            f"{self.reference.name}:{tag} is missing at {self.reference.registry}, or there is no access to it",
            side="source",
            reference=str(self.reference),
            registry=self.reference.registry,
            status=404,
        )

    # Tag references, narrowed to platforms

    async def _narrowed(self, platforms: frozenset[Platform]) -> Verdict:
        """A copy of some of the platforms: its own index, and a marker tag that says what it is made of."""
        tag = self._tag
        present = await self.content.head(tag)
        self.standing = present
        running = self._running_certain(tag)
        if self._need_not_ask(present) and not running:
            verdict = await self._kept(present)
            return Verdict("protected") if self.need.whole else verdict
        whole = await self._meant(tag, present, running)
        if self.soft is not None and whole == present:
            self.digest = present
            return Verdict("tag_only")
        marker = subset_tag(whole.hex, platforms)
        if present is not None and await self.content.head(marker) == present:
            self.content.part_of[present] = whole
            if self.need.check_signatures:
                self.content.look_at(present)
            return await self._kept(present)
        if present == whole:
            # it never shrinks: the whole image serves these platforms too
            return await self._whole(tag, present, whole)
        if present is not None and await self.narrowing.is_wider(present, whole, platforms):
            return await self._kept(present)
        root = await self.narrowing.select(await self.content.fetch(whole), platforms)
        if root.digest == whole:
            return await self._whole(tag, present, whole)
        self.content.part_of[root.digest] = whole
        return await self._subset(tag, present, root, marker)

    async def _kept(self, present: Digest) -> Verdict:
        """The narrowed copy stands under its tag; its anchor may have to be looked for."""
        self.digest = present
        if self.need.check_anchors:
            await self.content.ensure(present)
        return Verdict("tag_only")

    async def _subset(
        self, tag: str, present: Digest | None, root: Document, marker: str
    ) -> Verdict:
        self.digest = root.digest
        if root.digest != present:
            self.standing = None
        self.content.documents[root.digest] = root
        await self.content.ensure(root.digest)
        await self.content.put(root, marker)
        if root.digest == present:
            return Verdict("tag_only")
        verdict = await self.tags.move(tag, present, root.digest)
        return Verdict("tag_only") if verdict.state == "protected" else verdict

    # Names that hold the architecture

    async def _settle_architecture(self) -> None:
        """`$arch` is part of the name, so the image has to be known before the target can be asked."""
        reference = self.reference.digest or self._tag
        running = [] if self.reference.digest else self._running_certain(self._tag)
        try:
            found = await self.source.head_manifest(reference)
            if found is None and not running:
                raise self._gone(str(reference))
            digest = found.digest if found else running[0]
            if running and digest not in running:
                # the tag will stand for what runs
                digest = running[0]
            self._aim(await self.architectures.names(digest, self.content, self.need.platforms))
        except RegistryError:
            if not await self._guess_architecture():
                raise

    async def _guess_architecture(self) -> bool:
        """The source is out of reach: whether a copy stands under one of the usual architectures' names."""
        digest = self.reference.digest
        for names in USUAL:
            self._aim(names)
            if await self.content.head(digest.anchor if digest else self._tag) is not None:
                return True
        return False

    def _aim(self, architectures: Collection[str]) -> None:
        repository = self.naming.finish(self.request.repository, architectures)
        self.content.target = self.target_registry.repository(repository)

    # Other kinds of attempts

    async def _in_place(self) -> MirrorResult:
        """The cluster runs the copy itself: see that it is there, copy nothing."""
        target = self.target_registry.repository(self.reference.repository)
        self.content.target = target
        if self.policy.dry_pull and self.policy.dry_run:
            return self._result("in_place", protected=False, message="not looked at")
        found = await target.head_manifest(self.reference.digest or self._tag)
        if found is None:
            return self._result(
                "in_place",
                protected=False,
                reason="not_found",
                message=f"{self.reference} is used and does not stand at the target",
            )
        self.digest = found.digest
        return self._result("in_place", protected=True)

    async def _dry(self) -> MirrorResult:
        """Say what would be done. dryPull: no source is asked; dryRun: nothing is written; both: nobody is asked."""
        if self.policy.dry_run and self.policy.dry_pull:
            message = f"would copy to {self.target_reference}; nobody was asked"
            return self._result("dry_run", protected=False, message=message)
        if ARCH in self.request.repository:
            message = (
                "would copy; the target's name needs the image's manifest ($arch), which no dry mode"
                " fetches: `copycat plan` tells it"
            )
            return self._result("dry_run", protected=False, message=message)
        meant = None
        if not self.policy.dry_pull:
            asked = self.reference.digest or self._tag
            found = await self.source.head_manifest(asked)
            if found is None:
                raise self._gone(str(asked))
            running = [] if self.reference.digest else self._running_certain(self._tag)
            meant = running[0] if running and found.digest not in running else found.digest
        rehearsal = await rehearse(
            self.content, self.tags, tag=self._tag, where=self.target_reference, meant=meant
        )
        self.digest = rehearsal.digest
        self.source_checked = rehearsal.source_checked
        return self._result("dry_run", protected=rehearsal.protected, message=rehearsal.message)
