"""One attempt at one request: what to ask, what to copy, what to name it.

The target is asked first: what stands there needs no source. A tag is resolved once and everything is
then fetched by digest, so a tag that moves meanwhile cannot mix two images. Content goes first, under
its digest and its anchor; the tag goes last, and only if it is ours to move.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

import structlog

from copycat.errors import (
    CopycatError,
    DigestMismatch,
    HostNotAllowed,
    NotFound,
    PlatformMissing,
    RegistryError,
    Unavailable,
    UploadRejected,
)
from copycat.mirror.copy import Copier, Copy, Progress, served_elsewhere
from copycat.mirror.naming import ARCH, Naming, subset_tag
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.oci.digest import Digest
from copycat.oci.manifest import Document, Index, Manifest
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference
from copycat.registry.quota import REASON as QUOTA
from copycat.registry.repository import Repository
from copycat.registry.target import Target

__all__ = ["Attempt", "Policy"]

_log = structlog.get_logger(__name__)

#: How often a target is asked for what was just written, a second apart (registries that are eventually consistent).
_VISIBLE_TRIES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the owner's configuration says about digests, tags and dry modes."""

    digest_pull: bool = False
    digest_pull_ignored_tags: frozenset[str] = frozenset()
    allow_different_digest_repush: bool = True
    overwrite_foreign_tags: bool = True
    ignore_missing_platforms: frozenset[Platform] = frozenset()
    dry_run: bool = False
    dry_pull: bool = False


@dataclass(slots=True)
class _Verdict:
    """How the tag came out, where the content stands anyway."""

    state: str
    reason: str = ""
    message: str = ""


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
    architectures: Callable[[Repository, Document], Awaitable[Collection[str]]]
    known_architectures: Callable[[Digest], Collection[str] | None]
    sleep: Callable[[float], Awaitable[None]]
    progress: Progress
    target: Repository = field(init=False)
    job: Copy = field(init=False)
    anchored: set[Digest] = field(init=False)
    standing: Digest | None = None
    """What is known to stand at the target and, as far as anybody knows, is still what is wanted."""
    soft: CopycatError | None = None
    """Why the source could not be asked, where the copy stands all the same."""
    source_checked: bool = False
    digest: Digest | None = None
    pulled: bool = False
    pushed: bool = False
    tag_written: bool = False
    notes: list[str] = field(default_factory=list)
    absent: set[Digest] = field(default_factory=set)
    _documents: dict[Digest, Document] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The repository is settled at once unless the architecture is part of its name."""
        self.anchored = set(self.need.anchored)
        self._aim(self.request.repository)

    def _aim(self, repository: str) -> None:
        self.target = self.target_registry.repository(repository)
        self.job = Copy(
            source=self.source,
            target=self.target,
            image=str(self.request.source),
            progress=self.progress,
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
        return Reference(
            registry=self.target.registry, repository=self.target.name, tag=tag, digest=digest
        )

    # The whole

    async def run(self) -> MirrorResult:
        """Do it. Errors of registries are part of the result, not raised."""
        try:
            if self.reference.registry == self.target_registry.registry:
                return await self._in_place()
            if self.policy.dry_run or self.policy.dry_pull:
                return await self._dry()
            if ARCH in self.request.repository:
                await self._settle_architecture()
            if self.reference.digest is not None:
                verdict = await self._by_digest(self.reference.digest)
            elif self.need.platforms is not None:
                verdict = await self._narrowed(self.need.platforms)
            else:
                verdict = await self._by_tag()
            # the tag's copy does not speak for a digest that runs and is not kept
            self.standing = None
            await self._running()
        except CopycatError as error:
            return self._failed(error)
        return self._finished(verdict)

    def _result(self, state: str, *, protected: bool, reason: str = "", message: str = "",
                error: CopycatError | None = None) -> MirrorResult:  # fmt: skip
        return MirrorResult(
            state=state,
            target=self.target_reference,
            digest=self.digest,
            anchored=frozenset(self.anchored),
            absent=frozenset(self.absent),
            protected=protected,
            source_checked=self.source_checked,
            reason=reason,
            message=message,
            error=error,
            pulled=self.pulled,
            pushed=self.pushed,
            tag_written=self.tag_written,
            dry=self.policy.dry_run or self.policy.dry_pull,
            moved=self.job.moved,
        )

    def _finished(self, verdict: _Verdict) -> MirrorResult:
        notes = "; ".join([verdict.message, *self.notes]).strip("; ")
        if self.job.missing and verdict.state in {"protected", "tag_only"}:
            hosts = served_elsewhere(self.job.missing)
            return self._result(
                "incomplete",
                protected=False,
                reason="foreign_layers",
                message=f"{len(self.job.missing)} foreign layers are not served by the source; a restore needs {hosts}",
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

    async def _by_digest(self, digest: Digest) -> _Verdict:
        """A digest means the same for ever: what stands at the target needs no source."""
        self.digest = digest
        await self._ensure(digest)
        tag = self.reference.tag
        if tag is None or await self.target.head_manifest(tag) is not None:
            return _Verdict("protected")
        if self.need.rivals and min(self.need.rivals) < self.reference:
            return self._conflict(
                f"the tag {tag} goes to {min(self.need.rivals)}, the first of those that want it"
            )
        return await self._write_tag(tag, digest)

    # Tag references, whole

    async def _by_tag(self) -> _Verdict:
        tag = self._tag()
        present = await self._head_target(tag)
        self.standing = present
        wanted = await self._wanted(tag, present)
        self.digest = wanted
        if wanted != present:
            self.standing = None
            await self._ensure(wanted)
            return await self._move_tag(tag, present, wanted)
        if self.need.check_anchors:
            await self._ensure(wanted)
        return _Verdict("protected")

    async def _wanted(self, tag: str, present: Digest | None) -> Digest:
        """Which digest the tag is to have at the target (product: tags and digests)."""
        running = self._running_certain(tag)
        if present is not None and not self.need.check_source and not running:
            return present
        fallback = running[0] if running else present
        says = await self._ask_source(tag, present, fallback)
        if running and says not in running:
            return running[0]
        return says

    def _running_certain(self, tag: str) -> list[Digest]:
        if not self.policy.digest_pull or tag in self.policy.digest_pull_ignored_tags:
            return []
        return [r.digest for r in self.need.running if r.certain]

    async def _ask_source(
        self, tag: str, present: Digest | None, fallback: Digest | None
    ) -> Digest:
        """What the tag means at the source. One HEAD if the target has the tag, else one GET, which is the resolution."""
        try:
            if present is None:
                document = await self.source.get_manifest(tag)
                self._documents[document.digest] = document
                digest = document.digest
            else:
                found = await self.source.head_manifest(tag)
                if found is None:
                    raise self._gone(tag)
                digest = found.digest
        except RegistryError as error:
            if fallback is None:
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

    async def _narrowed(self, platforms: frozenset[Platform]) -> _Verdict:
        """A copy of some of the platforms: its own index, and a marker tag that says what it is made of."""
        tag = self._tag()
        present = await self._head_target(tag)
        self.standing = present
        if present is not None and not self.need.check_source:
            self.digest = present
            return _Verdict("tag_only")
        whole = await self._ask_source(tag, present, present)
        if self.soft is not None:
            self.digest = whole
            return _Verdict("tag_only")
        marker = subset_tag(whole.hex, platforms)
        if present is not None and await self._head_target(marker) == present:
            self.digest = present
            return _Verdict("tag_only")
        document = await self._fetch(whole)
        root = await self._select(document, platforms)
        if root.digest == whole:
            return await self._whole_after_all(tag, present, whole)
        self.digest = root.digest
        if root.digest != present:
            self.standing = None
        self._documents[root.digest] = root
        await self._ensure(root.digest)
        await self._put(root, marker)
        if root.digest == present:
            return _Verdict("tag_only")
        verdict = await self._move_tag(tag, present, root.digest)
        return _Verdict("tag_only") if verdict.state == "protected" else verdict

    async def _whole_after_all(self, tag: str, present: Digest | None, whole: Digest) -> _Verdict:
        self.digest = whole
        if whole != present:
            self.standing = None
            await self._ensure(whole)
            return await self._move_tag(tag, present, whole)
        if self.need.check_anchors:
            await self._ensure(whole)
        return _Verdict("protected")

    async def _select(self, document: Document, platforms: frozenset[Platform]) -> Document:
        if not isinstance(document, Index):
            return document
        selection = document.select(platforms)
        self._judge_missing(selection.missing, document)
        if not selection.children:
            raise PlatformMissing(
                f"{self.reference} has none of the wanted platforms {_names(platforms)}; it has {_names(document.platforms())}",
                side="source",
                reference=str(self.reference),
            )
        if len(selection.children) == 1:
            return await self._fetch(selection.children[0].digest)
        if len(selection.children) + len(selection.attestations) == len(document.manifests):
            return document
        return document.narrowed(selection)

    def _judge_missing(self, missing: Collection[Platform], document: Index) -> None:
        missing = [p for p in missing if p not in self.policy.ignore_missing_platforms]
        needed = [p for p in missing if p in self.need.required]
        if needed:
            raise PlatformMissing(
                f"{self.reference} has no {_names(needed)}, which a node runs; it has {_names(document.platforms())}"
                " (ignoreMissingPlatforms skips a platform)",
                side="source",
                reference=str(self.reference),
            )
        if missing:
            self.notes.append(f"no {_names(missing)} in the source's index")

    # Content

    async def _ensure(self, digest: Digest) -> None:
        """Have this root at the target, whole and anchored."""
        if digest in self.anchored:
            return
        document = self._documents.get(digest)
        if document is None and await self._head_target(digest.anchor) == digest:
            self.anchored.add(digest)
            return
        # an image's few blobs are as soon asked for as its manifest; an index may stand for hundreds
        asks = not isinstance(document, Manifest)
        if not asks or await self.target.head_manifest(digest) is None:
            document = document or await self._fetch(digest)
            await self._copy(document)
        elif document is None:
            document = await self.target.get_manifest(digest)
        if not self.job.missing:
            self.pulled = True
        await self._put(document, digest.anchor)
        self.anchored.add(digest)

    async def _fetch(self, digest: Digest) -> Document:
        document = self._documents.get(digest)
        if document is None:
            document = await self.source.get_manifest(digest)
            self._documents[digest] = document
        return document

    async def _copy(self, document: Document) -> None:
        # what an earlier root of this attempt lacks stays on the list; what a try found out about this one does not
        before = tuple(self.job.missing)

        async def anew() -> None:
            self.job = Copy(
                source=self.source,
                target=self.target,
                image=str(self.reference),
                progress=self.progress,
                distrust=self.need.known,
                moved=self.job.moved,
                missing=list(before),
            )
            await self.copier.copy(self.job, document)

        await self.target_registry.provisioned(self.target.name, anew)

    async def _running(self) -> None:
        """What runs is what counts: every digest that a kubelet reported is kept, whatever the tag says now."""
        for running in self.need.running:
            try:
                await self._ensure(running.digest)
            except NotFound as error:
                if error.side != "source" or running.certain:
                    raise
                # looked for once; the ledger remembers
                self.absent.add(running.digest)
                _log.info("reported digest is not in the repository", digest=str(running.digest))

    # Tags

    async def _move_tag(self, tag: str, present: Digest | None, wanted: Digest) -> _Verdict:
        if self.need.rivals:
            if present is None and min(self.need.rivals) < self.reference:
                return self._conflict(
                    f"the tag {tag} goes to {min(self.need.rivals)}, the first of those that want it"
                )
            if present is not None and present != self.need.owned:
                return self._conflict(
                    f"the tag {tag} at the target stands for other content ({present})"
                )
        if present is not None:
            if tag != "latest" and not self.policy.allow_different_digest_repush:
                return _Verdict(
                    "tag_held",
                    "tag_held",
                    f"the tag {tag} stays at {present}; the source's {wanted} is kept under {wanted.anchor} (allowDifferentDigestRepush)",
                )
            if (
                not self.policy.overwrite_foreign_tags
                and await self._head_target(present.anchor) != present
            ):
                return _Verdict(
                    "conflict",
                    "foreign_tag",
                    f"the tag {tag} at the target stands for {present}, which was not put there by copycat; it stays. "
                    "Remove the tag there, or set overwriteForeignTags",
                )
        return await self._write_tag(tag, wanted)

    def _conflict(self, why: str) -> _Verdict:
        others = ", ".join(map(str, self.need.rivals))
        return _Verdict(
            "conflict",
            "conflict",
            f"{others} want the same tag in {self.target.name}: {why}. This image is kept by digest; "
            "use $registry in the prefix, or a pathMap rule, to keep them apart",
        )

    async def _write_tag(self, tag: str, digest: Digest) -> _Verdict:
        document = self._documents.get(digest) or await self.target.get_manifest(digest)
        try:
            await self._put(document, tag)
        except UploadRejected as error:
            stands = await self._head_target(tag)
            if error.reason != "tag_immutable" or stands is None:
                raise
            if stands != digest:
                return _Verdict(
                    "tag_held",
                    "tag_immutable",
                    f"the tag {tag} is immutable at the target and stands for {stands}; {digest} is kept under {digest.anchor}",
                )
        self.tag_written = True
        await self._see(tag, digest)
        return _Verdict("protected")

    async def _put(self, document: Document, tag: str) -> None:
        target = self.target

        async def put() -> None:
            await target.put_manifest(document, tag)

        await self.target_registry.provisioned(target.name, put)
        self.pushed = True

    async def _see(self, tag: str, digest: Digest) -> None:
        """Read back what was written, as a restore would: an answer of 201 is a promise, this is the proof."""
        stands: Digest | None = None
        for attempt in range(_VISIBLE_TRIES):
            if attempt:
                await self.sleep(1.0)
            stands = await self._head_target(tag)
            if stands == digest:
                return
        if stands is None:
            raise Unavailable(
                f"{self.target.registry} took {self.target.name}:{tag} and does not show it",
                side="target",
                reference=str(self.target_reference),
                registry=self.target.registry,
                reason="not_visible",
            )
        raise DigestMismatch(
            f"{self.target.registry} shows {stands} under {self.target.name}:{tag}, where {digest} was written",
            side="target",
            reference=str(self.target_reference),
        )

    # Asking

    def _tag(self) -> str:
        return self.reference.tag or "latest"

    async def _head_target(self, reference: str) -> Digest | None:
        found = await self.target.head_manifest(reference)
        return found.digest if found else None

    async def _settle_architecture(self) -> None:
        """`$arch` is part of the name, so the image has to be known before the target can be asked."""
        reference = self.reference.digest or self._tag()
        found = await self.source.head_manifest(reference)
        if found is None:
            raise self._gone(str(reference))
        names = self.known_architectures(found.digest)
        if names is None:
            document = await self._fetch(found.digest)
            names = await self.architectures(self.source, document)
        if self.need.platforms is not None and len(names) > 1:
            wanted = {p.architecture for p in self.need.platforms}
            names = [n for n in names if n in wanted] or names
        self._aim(self.naming.finish(self.request.repository, names))

    # Other kinds of attempts

    async def _in_place(self) -> MirrorResult:
        """The cluster runs the copy itself: see that it is there, copy nothing."""
        self.target = self.target_registry.repository(self.reference.repository)
        if self.policy.dry_pull and self.policy.dry_run:
            return self._result("in_place", protected=False, message="not looked at")
        found = await self.target.head_manifest(self.reference.digest or self._tag())
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
        target = self.target_reference
        if self.policy.dry_run and self.policy.dry_pull:
            return self._result(
                "dry_run", protected=False, message=f"would copy to {target}; nobody was asked"
            )
        if ARCH in self.request.repository:
            if self.policy.dry_pull:
                return self._result(
                    "dry_run",
                    protected=False,
                    message="would copy; the target's name needs the source ($arch)",
                )
            await self._settle_architecture()
            target = self.target_reference
        digest = self.reference.digest
        present = await self._head_target(digest.anchor if digest else self._tag())
        if self.policy.dry_pull:
            self.digest = present
            return await self._would(present, f"would be copied to {target}")
        found = await self.source.head_manifest(digest or self._tag())
        if found is None:
            raise self._gone(str(digest or self._tag()))
        self.source_checked = True
        self.digest = found.digest
        what = str(found.digest)
        if self.need.platforms is not None:
            what = f"{_names(self.need.platforms)} of {what}"
            marker = subset_tag(found.digest.hex, self.need.platforms)
            if present is not None and await self._head_target(marker) == present:
                self.digest = present
        if present == self.digest:
            return await self._would(present, "")
        if present is not None:
            return await self._would(None, f"would move {target} from {present} to {what}")
        return await self._would(None, f"would copy {what} to {target}")

    async def _would(self, stands: Digest | None, otherwise: str) -> MirrorResult:
        """What a dry run found, with the digests that run and are not kept yet. Args: `otherwise` is said where nothing stands."""
        message = f"stands at {self.target_reference} as {stands}" if stands else otherwise
        missing = [
            running.digest
            for running in self.need.running
            if running.digest not in {stands, self.digest}
            and await self._head_target(running.digest.anchor) is None
        ]
        if missing:
            message += f"; would keep {', '.join(map(str, missing))}, which runs"
        elif stands:
            asked = self.source_checked or self.reference.digest is not None
            message += "; nothing to do" if asked else "; whether its tag moved was not asked"
        return self._result(
            "dry_run", protected=stands is not None and not missing, message=message
        )


def _names(platforms: Collection[Platform]) -> str:
    return ", ".join(sorted(map(str, platforms))) or "none"
