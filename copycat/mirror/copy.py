"""Copying one image's graph into a repository of the target: leaves first, everything once.

No tag is written before everything that it stands for: after a crash at any point there are only objects that no
tag names, and the next run finds them by HEAD.

The order of writes is that of the distribution specification: blobs, the manifests that need them,
indexes, the root.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from copycat.errors import InvalidManifest, NotFound, Throttled, UploadRejected, one_error
from copycat.mirror.blobs import Blobs
from copycat.mirror.job import MAX_NODES, Copy, Direction, Progress, Transfer, served_elsewhere
from copycat.oci.digest import Digest
from copycat.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Document,
    Index,
    parse_document,
)
from copycat.registry.manifests import MISSING_CONTENT
from copycat.registry.quota import REASON as QUOTA
from copycat.registry.session import SMALL

__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "SMALL",
    "Copier",
    "Copy",
    "Direction",
    "Progress",
    "Transfer",
    "served_elsewhere",
]

#: An index in an index in an index … (registry.md 1.3).
MAX_DEPTH = 8


class Copier:
    """Copies graphs into one target."""

    def __init__(self, blobs: Blobs) -> None:
        """Args: `blobs` brings what the manifests need."""
        self.blobs = blobs

    async def copy(
        self, job: Copy, root: Document, *, name: Callable[[], str] | None = None
    ) -> None:
        """Bring the root and everything below it to the target, by digest.

        Args: `name` says, when everything below the root stands, under which tag the root is written. That one request
            stores it under its digest too (distribution-spec, "Pushing Manifests").

        Raises:
            RegistryError: a side failed; `side` says which.
            InvalidManifest: the graph is over a limit, or part of it cannot be read.
        """
        job.enter(root.digest)
        await self._node(job, root, depth=0, name=name)

    # Manifests

    async def _node(
        self,
        job: Copy,
        document: Document,
        *,
        depth: int,
        stands: bool = False,
        name: Callable[[], str] | None = None,
    ) -> None:
        if isinstance(document, Index):
            await self._children(job, document, depth=depth)
        else:
            await self.blobs.bring(job, document)
        job.read = job.read or depth == 0
        # a tag's PUT stores the bytes under their sha256 digest, and under no other
        if not stands and (name is None or document.digest.algorithm != "sha256"):
            await self._put(job, document, document.digest, depth=depth)
        if name is not None:
            await self._put(job, document, name(), depth=depth)
        job.leave(document.digest)

    async def _children(self, job: Copy, index: Index, *, depth: int, trust: bool = True) -> None:
        if depth >= MAX_DEPTH:
            raise InvalidManifest(
                f"{job.image}: indexes are nested more than {MAX_DEPTH} deep; it is not copied",
                side="source",
                reason="too_large",
            )
        with one_error():
            async with anyio.create_task_group() as tasks:
                for child in index.successors():
                    tasks.start_soon(self._child, job, child, depth + 1, trust)
        if job.held is not None:
            raise job.held

    async def _child(self, job: Copy, child: Descriptor, depth: int, trust: bool) -> None:
        other = job.enter(child.digest) if trust else None
        if other is not None:
            await other.wait()
            return
        try:
            await self._child_alone(job, child, depth, trust)
        except Throttled as error:
            if error.reason != QUOTA:
                raise
            # what was read has been counted: let the others finish, so that the next attempt needs less
            job.held = error
            job.leave(child.digest)

    async def _child_alone(self, job: Copy, child: Descriptor, depth: int, trust: bool) -> None:
        if child.media_type in INDEX_TYPES:
            # holds no place among the leaves: its own children need them
            await self._subtree(job, child, depth=depth, trust=trust)
            return
        async with job.leaves:
            try:
                await self._subtree(job, child, depth=depth, trust=trust)
            except NotFound as error:
                # BuildKit's cache images list layers among the manifests
                if child.media_type in MANIFEST_TYPES or error.side != "source":
                    raise
                await self.blobs.bring_one(job, child)
                job.leave(child.digest)

    async def _subtree(self, job: Copy, child: Descriptor, *, depth: int, trust: bool) -> None:
        stands = trust and await job.target.head_manifest(child.digest) is not None
        if stands and not job.inspect and not _may_lack(child):
            job.leave(child.digest)
            return
        if child.data is not None:
            document = parse_document(
                child.data, content_type=child.media_type, digest=child.digest
            )
        else:
            side = job.target if stands else job.source
            document = await side.get_manifest(child.digest, size=child.size)
        await self._node(job, document, depth=depth, stands=stands)

    async def _put(
        self, job: Copy, document: Document, reference: str | Digest, *, depth: int
    ) -> None:
        """PUT. A target that misses something is told the truth: what was believed is checked again."""
        for attempt in (1, 2, 3):
            try:
                if await job.target.put_manifest(document, reference):
                    job.listed.add(document.digest)
            except (UploadRejected, NotFound) as error:
                if attempt == 3 or error.code not in MISSING_CONTENT:
                    raise
                await self._heal(job, document, depth=depth, certain=attempt == 2)
            else:
                return

    async def _heal(self, job: Copy, document: Document, *, depth: int, certain: bool) -> None:
        """Send again what the target says is missing; HEAD may have lied, so the second time everything goes."""
        if isinstance(document, Index):
            await self._children(job, document, depth=depth, trust=False)
            return
        for blob in document.successors():
            if blob not in job.missing:
                await self.blobs.again(job, blob, certain=certain)


def _may_lack(child: Descriptor) -> bool:
    """Whether a manifest that stands may be without foreign layers: they are Windows' base layers."""
    return child.media_type in MANIFEST_TYPES and (
        child.platform is None or child.platform.os == "windows"
    )
