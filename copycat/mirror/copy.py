"""Copying one image's graph into a repository of the target: leaves first, everything once.

Blobs are the work, and images share them. So what is known about blobs belongs to the process, not to
an image: a blob is uploaded by one task while every other image that needs it waits, then finds it in
the same repository or mounts it from the one that has it. Nothing here writes a tag: after a crash at
any point there are only objects that no tag names, and the next run finds them by HEAD.

The order of writes is that of the distribution specification: blobs, the manifests that need them,
indexes, the root.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import anyio

from copycat.errors import InvalidManifest, NotFound, UploadRejected, one_error
from copycat.metrics import Metrics
from copycat.mirror.request import Transferred
from copycat.oci.digest import Digest
from copycat.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Document,
    Index,
    Manifest,
    is_foreign,
    parse_document,
)
from copycat.registry.repository import Repository
from copycat.registry.target import Target
from copycat.registry.transport import Transport

__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "Copier",
    "Copy",
    "Direction",
    "Progress",
    "Transfer",
    "served_elsewhere",
]

#: An index in an index in an index … (registry.md 1.3).
MAX_DEPTH = 8
#: Manifests and indexes of one image.
MAX_NODES = 10_000
#: Blobs up to this size are read whole, verified, and sent as bytes.
SMALL = 256 * 1024
#: Leaf manifests of one image that are worked on at a time; each holds its document.
_LEAVES = 16
#: Digests of which the process remembers where they are.
_REMEMBERED = 200_000
#: Codes by which a registry says that something the manifest needs is missing.
_MISSING = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"})

#: Called with bytes read from the source, or sent to the target, as they move.
Direction = Literal["pull", "push"]
Progress = Callable[[Direction, int], None]


def _no_progress(direction: Direction, count: int) -> None:
    """Nobody looks."""


@dataclass(slots=True)
class Transfer:
    """A blob on its way, for the status page."""

    image: str
    digest: Digest
    size: int
    started: float
    pulled: int = 0
    pushed: int = 0


@dataclass(slots=True)
class Copy:
    """One image being copied: where from, where to, what it moved, and what could not be had."""

    source: Repository
    target: Repository
    image: str
    progress: Progress = _no_progress
    distrust: bool = False
    """Something that was believed to stand at the target is gone: believe nothing about its blobs."""
    moved: Transferred = field(default_factory=Transferred)
    missing: list[Descriptor] = field(default_factory=list)
    """Foreign layers that the source does not serve."""
    _nodes: dict[Digest, anyio.Event] = field(default_factory=dict)
    _leaves: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_LEAVES))

    def enter(self, digest: Digest) -> anyio.Event | None:
        """None for the first that comes to this node, who must set the event; the event for all others."""
        if digest in self._nodes:
            return self._nodes[digest]
        if len(self._nodes) >= MAX_NODES:
            raise InvalidManifest(
                f"{self.image} has more than {MAX_NODES} manifests; it is not copied",
                side="source",
                reason="too_large",
            )
        self._nodes[digest] = anyio.Event()
        return None

    def leave(self, digest: Digest) -> None:
        """The node stands at the target."""
        self._nodes[digest].set()

    @property
    def leaves(self) -> anyio.CapacityLimiter:
        """Bounds the leaf manifests in memory."""
        return self._leaves


class Copier:
    """Copies graphs into one target; holds what the process knows about that target's blobs."""

    def __init__(
        self,
        *,
        transport: Transport,
        target: Target,
        metrics: Metrics,
        max_transfers: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: `max_transfers` blobs are in flight at most, over all images."""
        self._transport = transport
        self._target = target
        self._metrics = metrics
        self._limiter = anyio.CapacityLimiter(max_transfers)
        self._clock = clock
        self._places: OrderedDict[Digest, dict[str, None]] = OrderedDict()
        self._flights: dict[tuple[str, Digest] | Digest, anyio.Event] = {}
        self._unmountable: set[str] = set()
        self.transfers: dict[int, Transfer] = {}

    async def copy(self, job: Copy, root: Document) -> None:
        """Bring the root and everything below it to the target, by digest; no tag is written.

        Raises:
            RegistryError: a side failed; `side` says which.
            InvalidManifest: the graph is over a limit, or part of it cannot be read.
        """
        job.enter(root.digest)
        await self._node(job, root, depth=0)

    # Manifests

    async def _node(self, job: Copy, document: Document, *, depth: int) -> None:
        if isinstance(document, Index):
            await self._children(job, document, depth=depth)
        else:
            await self._blobs(job, document)
        await self._put(job, document, depth=depth)
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

    async def _child(self, job: Copy, child: Descriptor, depth: int, trust: bool) -> None:
        other = job.enter(child.digest) if trust else None
        if other is not None:
            await other.wait()
            return
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
                await self._blob(job, child)
                job.leave(child.digest)

    async def _subtree(self, job: Copy, child: Descriptor, *, depth: int, trust: bool) -> None:
        if trust and await job.target.head_manifest(child.digest) is not None:
            job.leave(child.digest)
            return
        if child.data is not None:
            document = parse_document(
                child.data, content_type=child.media_type, digest=child.digest
            )
        else:
            document = await job.source.get_manifest(child.digest, size=child.size)
        await self._node(job, document, depth=depth)

    async def _put(self, job: Copy, document: Document, *, depth: int) -> None:
        """PUT by digest. A target that misses something is told the truth: what was believed is checked again."""
        for attempt in (1, 2, 3):
            try:
                await job.target.put_manifest(document, document.digest)
            except (UploadRejected, NotFound) as error:
                if attempt == 3 or error.code not in _MISSING:
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
            self._forget(job.target.name, blob.digest)
            if blob in job.missing:
                continue
            if certain or not await job.target.has_blob(blob.digest):
                await self._upload(job, blob)
            self._learn(job.target.name, blob.digest)

    # Blobs

    async def _blobs(self, job: Copy, manifest: Manifest) -> None:
        name = job.target.name
        blobs = []
        for blob in manifest.successors():
            if job.distrust:
                self._forget(name, blob.digest)
            if self._knows(name, blob.digest):
                self._count(job, "exists")
            else:
                blobs.append(blob)
        for digest in await self._target.known_blobs(name, [b.digest for b in blobs]) or ():
            self._learn(name, digest)
        with one_error():
            async with anyio.create_task_group() as tasks:
                # the largest first: the small ones fill the gaps at the end
                for blob in sorted(blobs, key=lambda b: -b.size):
                    tasks.start_soon(self._blob, job, blob)

    async def _blob(self, job: Copy, blob: Descriptor) -> None:
        key = (job.target.name, blob.digest)
        while not self._knows(*key):
            flight = self._flights.get(key)
            if flight is not None:
                await flight.wait()
                continue
            with self._flight(key):
                if await self._bring(job, blob):
                    self._learn(*key)
            return
        self._count(job, "exists")

    async def _bring(self, job: Copy, blob: Descriptor) -> bool:
        """Make the blob stand in the job's repository; False if it is a foreign layer that nobody serves."""
        while True:
            elsewhere = self._elsewhere(job.target.name, blob.digest)
            if elsewhere is not None:
                if await job.target.mount_blob(blob, elsewhere):
                    self._count(job, "mounted", blob.size)
                    return True
                self._unmountable.add(elsewhere)
            elif await job.target.has_blob(blob.digest):
                self._count(job, "exists")
                return True
            flight = self._flights.get(blob.digest) if self._target.mounts else None
            if flight is None:
                break
            await flight.wait()
        with self._flight(blob.digest):
            try:
                await self._upload(job, blob)
            except NotFound as error:
                if error.side != "source" or not is_foreign(blob.media_type):
                    raise
                job.missing.append(blob)
                return False
            self._learn(job.target.name, blob.digest)
            return True

    async def _upload(self, job: Copy, blob: Descriptor) -> None:
        async with (
            self._limiter,
            self._transport.streams(job.source.registry, job.target.registry),
        ):
            transfer = Transfer(job.image, blob.digest, blob.size, self._clock())
            self.transfers[id(transfer)] = transfer
            self._metrics.transfers.inc()
            try:
                await self._stream(job, blob, transfer)
            finally:
                self._metrics.transfers.dec()
                del self.transfers[id(transfer)]
        self._count(job, "copied")

    async def _stream(self, job: Copy, blob: Descriptor, transfer: Transfer) -> None:
        def pulled(count: int) -> None:
            transfer.pulled += count
            job.moved.bytes_pulled += count
            job.progress("pull", count)

        def pushed(count: int) -> None:
            transfer.pushed += count
            job.moved.bytes_pushed += count
            job.progress("push", count)

        data = blob.data
        if data is None and blob.size <= SMALL:
            data = await job.source.get_blob(blob)
            pulled(len(data))

        def body() -> AsyncIterator[bytes]:
            if data is not None:
                return _whole(data)
            return job.source.read_blob(blob, on_bytes=pulled)

        try:
            await job.target.upload_blob(blob, body, on_bytes=pushed)
        finally:
            label = self._metrics.registry_label
            self._metrics.bytes.labels("pull", label(job.source.registry)).inc(transfer.pulled)
            self._metrics.bytes.labels("push", label(job.target.registry)).inc(transfer.pushed)

    def _count(self, job: Copy, result: str, size: int = 0) -> None:
        self._metrics.blobs.labels(result).inc()
        match result:
            case "copied":
                job.moved.copied += 1
            case "mounted":
                job.moved.mounted += 1
                job.moved.bytes_mounted += size
            case _:
                job.moved.existing += 1

    # What the process knows

    def _knows(self, repository: str, digest: Digest) -> bool:
        return repository in self._places.get(digest, ())

    def _learn(self, repository: str, digest: Digest) -> None:
        self._places.setdefault(digest, {})[repository] = None
        self._places.move_to_end(digest)
        if len(self._places) > _REMEMBERED:
            self._places.popitem(last=False)

    def _forget(self, repository: str, digest: Digest) -> None:
        self._places.get(digest, {}).pop(repository, None)

    def _elsewhere(self, repository: str, digest: Digest) -> str | None:
        if not self._target.mounts:
            return None
        for place in self._places.get(digest, ()):
            if place != repository and place not in self._unmountable:
                return place
        return None

    @contextmanager
    def _flight(self, key: tuple[str, Digest] | Digest) -> Iterator[None]:
        """Be the one who works on it. Without mounting, two repositories may upload one digest side by side."""
        event = anyio.Event()
        mine = self._flights.setdefault(key, event) is event
        try:
            yield
        finally:
            if mine:
                del self._flights[key]
                event.set()


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


def served_elsewhere(blobs: list[Descriptor]) -> str:
    """The hosts that foreign layers name, for a message."""
    hosts = sorted({url.split("/")[2] for b in blobs for url in b.urls if url.count("/") >= 2})
    return ", ".join(hosts) or "an unnamed host"
