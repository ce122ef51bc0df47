"""What is signed stays signed: referrers and cosign's tags follow an image, after the image itself is safe.

An image's root is looked at, and the manifests below it only if the root has anything: an image that nobody
signed costs one question about referrers and three about tags. Whatever goes wrong here is a note and another
look later; the image is protected all the same.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import anyio

from copycat.errors import CopycatError, Unavailable, one_error
from copycat.logs import get_logger
from copycat.mirror.copy import Copier
from copycat.mirror.job import Copy, Progress
from copycat.mirror.policy import Policy
from copycat.mirror.request import Transferred
from copycat.oci.digest import Digest
from copycat.oci.manifest import INDEX_TYPES, Descriptor, Document, Index
from copycat.registry.repository import Repository

__all__ = ["Kind", "Look", "Signatures"]

_log = get_logger(__name__)

Kind = Literal["none", "tags", "referrers", "all"]

#: Something to do; whether it found anything.
_Work = Callable[[], Awaitable[bool]]

#: Signatures, attestations, SBOMs of cosign 1 and 2: `sha256-<hex>.sig`.
_SUFFIXES = (".sig", ".att", ".sbom")
#: A signature of an SBOM of a signature …
_MAX_DEPTH = 8
#: Referrers of one image, and manifests below its root that are looked at.
_MAX_FOUND = _MAX_NODES = 1000
#: Manifests of one image that are looked at together; referrers that are copied together, each with its document.
_TOGETHER, _COPIED_TOGETHER = 4, 16
#: Seconds that one question may take, every page and every new try of it included, and that all questions about an
#: image may take together; several are asked at a time.
_PATIENCE, _ALL_PATIENCE = 120.0, 3600.0
#: Temporary failures after which the rest is left for the next look.
_TROUBLE = 8
#: Failures that are told of one image.
_TOLD = 5
#: Roots that are remembered to have nothing, for so many seconds: an image with several tags is looked at once.
_REMEMBERED, _NOTHING_FOR = 10_000, 600.0


@dataclass(slots=True, kw_only=True)
class Look:
    """One look for one image: where, and what came of it."""

    source: Repository
    target: Repository
    image: str
    progress: Progress
    moved: Transferred
    anew: bool = False
    """Ask again where nothing was found before."""
    distrust: bool = False
    """What was believed to stand at the target may be gone."""
    copied: int = 0
    notes: list[str] = field(default_factory=list)
    """For people: what was not copied, and why."""
    failed: bool = False
    """Another look may do better."""
    asking: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_TOGETHER))
    copying: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(_COPIED_TOGETHER)
    )
    _found: set[Digest] = field(default_factory=set)
    _left: float = _ALL_PATIENCE
    _told: set[str] = field(default_factory=set)
    _trouble: int = 0

    def enter(self, digest: Digest) -> bool:
        """Whether this referrer has its turn: once each, and not more of them than anybody needs."""
        if digest in self._found or len(self._found) >= _MAX_FOUND:
            return False
        self._found.add(digest)
        if len(self._found) == _MAX_FOUND:
            self.notes.append(
                f"{self.image} has {_MAX_FOUND} signatures or more; no others are copied"
            )
        return True

    def fail(self, error: CopycatError) -> None:
        """Something could not be had, or not be written."""
        self.failed = True
        self._trouble += error.temporary
        note = f"signatures: {error}"
        if note in self._told or len(self._told) > _TOLD:
            return
        self._told.add(note)
        if len(self._told) > _TOLD:
            note = "signatures: there were other failures, which are not told one by one"
        self.notes.append(note)

    @property
    def hopeless(self) -> bool:
        """So much went wrong for a while that it is better to come back later."""
        return self._trouble >= _TROUBLE

    @contextmanager
    def patience(self, subject: Digest) -> Iterator[None]:
        """For a question to the source, which may take its time but not all of it. Raises Unavailable."""
        begun = anyio.current_time()
        try:
            with anyio.fail_after(max(0.0, min(_PATIENCE, self._left))):
                yield
        except TimeoutError as error:
            raise Unavailable(
                f"source registry {self.source.registry}: it takes too long to say what belongs to {subject}.",
                side="source",
                reference=self.image,
                registry=self.source.registry,
                reason="timeout",
            ) from error
        finally:
            self._left -= anyio.current_time() - begun

    def job(self) -> Copy:
        """A copy of one signature: one that fails takes nothing from the next."""
        return Copy(
            source=self.source,
            target=self.target,
            image=self.image,
            progress=self.progress,
            distrust=self.distrust,
            moved=self.moved,
        )


class Signatures:
    """Looks for what was signed and copies it; one for all images of a target."""

    def __init__(
        self,
        *,
        copier: Copier,
        kind: Kind,
        policy: Policy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: `policy` is the owner's will about tags, which cosign's are too."""
        self._copier = copier
        self._tags = kind in {"tags", "all"}
        self._referring = kind in {"referrers", "all"}
        self._policy = policy
        self._clock = clock
        self._locks: dict[tuple[str, Digest], anyio.Lock] = {}
        self._nothing: OrderedDict[tuple[str, str, Digest], float] = OrderedDict()

    async def follow(
        self, look: Look, roots: Mapping[Digest, Digest], documents: Mapping[Digest, Document]
    ) -> None:
        """Copy what belongs to these roots. Errors of registries are noted in `look`, not raised.

        Args: `roots`: what stands at the target → the source's root that it is, or is a part of; `documents`
        that are known already.
        """
        for root, whole in roots.items():
            await self._try(look, partial(self._root, look, root, whole, documents.get(root)))
        if look.copied:
            _log.info("signatures copied", image=look.image, count=look.copied)
        if look.failed:
            _log.warning("signatures not copied", image=look.image, notes=look.notes)

    @staticmethod
    async def _try(look: Look, work: _Work) -> bool:
        if look.hopeless:
            return False
        try:
            return await work()
        except CopycatError as error:
            look.fail(error)
        except Exception as bug:  # noqa: BLE001 - the image is safe, and a bug here must not say otherwise
            _log.exception("attempt broke", image=look.image)
            look.fail(CopycatError(f"internal error: {type(bug).__name__}: {bug}"))
        return False

    # What to look at

    async def _root(
        self, look: Look, root: Digest, whole: Digest, document: Document | None
    ) -> bool:
        key = (look.source.registry, look.source.name, whole)
        if self._nothing.get(key, 0.0) > self._clock() and not look.anew:
            return False
        # of a part of an image its root's own signatures say nothing
        found = await self._node(look, whole, copy=root == whole)
        if not found:
            self._remember(key, nothing=not look.failed)
            return False
        self._remember(key, nothing=False)
        document = document or await look.target.get_manifest(root)
        nodes = [d async for d in self._below(look, document)]
        if root != whole and not isinstance(document, Index):
            nodes = [root]
        limiter = anyio.CapacityLimiter(_TOGETHER)

        async def node(digest: Digest) -> bool:
            async with limiter:
                return await self._node(look, digest, copy=True)

        await _together(partial(node, digest) for digest in nodes[:_MAX_NODES])
        return True

    async def _below(self, look: Look, document: Document) -> AsyncIterator[Digest]:
        """Every manifest below a root, those of nested indexes too."""
        seen: set[Digest] = set()
        waiting = [document]
        while waiting and len(seen) < _MAX_NODES:
            index = waiting.pop()
            for child in index.successors() if isinstance(index, Index) else ():
                if child.digest in seen:
                    continue
                seen.add(child.digest)
                yield child.digest
                if child.media_type in INDEX_TYPES:
                    waiting.append(await look.target.get_manifest(child.digest))

    def _remember(self, key: tuple[str, str, Digest], *, nothing: bool) -> None:
        self._nothing.pop(key, None)
        if nothing:
            self._nothing[key] = self._clock() + _NOTHING_FOR
            if len(self._nothing) > _REMEMBERED:
                self._nothing.popitem(last=False)

    async def _node(self, look: Look, digest: Digest, *, copy: bool) -> bool:
        """Whether anything belongs to one manifest, and copying it. Args: `copy`: false to ask only."""
        work: list[_Work] = []
        if self._referring:
            work.append(partial(self._referrers, look, digest, copy=copy, depth=1))
        if self._tags and digest.algorithm == "sha256":  # cosign knows no others
            work += [partial(self._tag, look, digest, suffix, copy=copy) for suffix in _SUFFIXES]
        return any(await _together(partial(self._try, look, w) for w in work))

    # Referrers

    async def _referrers(self, look: Look, subject: Digest, *, copy: bool, depth: int) -> bool:
        found, brought = await self._level(look, subject, copy=copy)
        if depth < _MAX_DEPTH:
            deeper = partial(self._referrers, look, copy=True, depth=depth + 1)
            await _together(
                partial(self._try, look, partial(deeper, subject=digest)) for digest in brought
            )
        return found

    async def _level(self, look: Look, subject: Digest, *, copy: bool) -> tuple[bool, list[Digest]]:
        """Whether anything refers to the subject; what of it stands at the target now."""
        async with look.asking:
            with look.patience(subject):
                listing = await look.source.referrers(subject, most=_MAX_FOUND, anew=look.anew)
            found = [d for d in listing.descriptors if d.digest != subject]
            if listing.doubt is not None:
                raise listing.doubt
            if not found or not copy:
                return bool(found), []
            mine = [d for d in found if look.enter(d.digest)]
            return True, await self._bring(look, subject, mine) if mine else []

    async def _bring(self, look: Look, subject: Digest, wanted: list[Descriptor]) -> list[Digest]:
        """Have these at the target, where whoever asks for the subject's referrers finds them; which of them are."""
        async with self._alone(look.target.name, subject):
            there = await look.target.referrers(subject)
            standing = {d.digest for d in there.descriptors}
            brought = [d.digest for d in wanted if d.digest in standing]
            unlisted: list[Descriptor] = []

            async def bring(descriptor: Descriptor) -> bool:
                async with look.copying:
                    if look.hopeless:
                        return False
                    entry, listed = await self._copy(look, descriptor, subject)
                if entry is None:
                    return False
                brought.append(entry.digest)
                # one that has no API and says OCI-Subject lies (sigstore-js#1183)
                if not (listed and there.by_api):
                    unlisted.append(entry)
                return True

            await _together(
                partial(self._try, look, partial(bring, d))
                for d in wanted
                if d.digest not in standing
            )
            if unlisted:
                unlisted.sort(key=lambda d: d.digest)
                await look.target.list_referrers(subject, unlisted)
        return brought

    async def _copy(
        self, look: Look, descriptor: Descriptor, subject: Digest
    ) -> tuple[Descriptor | None, bool]:
        """One referrer: how a list names it (None if it is none), and whether the target lists it by itself."""
        document = await look.source.get_manifest(descriptor.digest, size=descriptor.size)
        if document.subject is None or document.subject.digest != subject:
            return None, False
        job = look.job()
        await self._copier.copy(job, document)
        look.copied += 1
        config = None if isinstance(document, Index) else document.config
        kind = document.artifact_type or (config.media_type if config else "")
        entry = Descriptor(
            media_type=document.media_type,
            digest=document.digest,
            size=len(document.raw),
            artifact_type=kind,
            annotations=document.annotations,
        )
        return entry, document.digest in job.listed

    @asynccontextmanager
    async def _alone(self, repository: str, subject: Digest) -> AsyncIterator[None]:
        """One task at a time reads and writes what is listed for a subject."""
        key = (repository, subject)
        lock = self._locks.setdefault(key, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    # Tags

    async def _tag(self, look: Look, subject: Digest, suffix: str, *, copy: bool) -> bool:
        """One of cosign's tags, which moves when somebody signs again."""
        tag = f"{subject.algorithm}-{subject.hex}{suffix}"
        with look.patience(subject):
            found = await look.source.head_manifest(tag)
        if found is None or not copy:
            return found is not None
        present = await look.target.head_manifest(tag)
        if present is not None and present.digest == found.digest:
            return True
        document = await look.source.get_manifest(found.digest)
        await self._copier.copy(look.job(), document, name=lambda: document.digest.anchor)
        why = await self._stays(look, present.digest) if present is not None else ""
        if why:
            look.notes.append(
                f"the tag {tag} at the target stays; {document.digest} is kept under its anchor ({why})"
            )
            return True
        await look.target.put_manifest(document, tag)
        look.copied += 1
        return True

    async def _stays(self, look: Look, present: Digest) -> str:
        """The setting by which a tag that stands for something else is not moved; "" if it is."""
        if not self._policy.allow_different_digest_repush:
            return "allowDifferentDigestRepush"
        if self._policy.overwrite_foreign_tags:
            return ""
        ours = await look.target.head_manifest(present.anchor)
        return "" if ours is not None and ours.digest == present else "overwriteForeignTags"


async def _together(work: Iterable[_Work]) -> list[bool]:
    """Side by side; what each found."""
    found: list[bool] = []

    async def one(each: _Work) -> None:
        found.append(await each())

    with one_error():
        async with anyio.create_task_group() as tasks:
            for each in work:
                tasks.start_soon(one, each)
    return found
