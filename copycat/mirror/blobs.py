"""Blobs on their way to the target: each once, however many images share it.

What is known about blobs belongs to the process, not to an image: a blob is uploaded by one task while
every other image that needs it waits, then finds it in the same repository or mounts it from the one
that has it.

But for one thing: where namespaces are kept apart, a blob that only a namespace's pull secret could read
is never mounted for another namespace, which might name its digest without being allowed to read it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import anyio

from copycat.errors import NotFound, one_error
from copycat.metrics import Metrics
from copycat.mirror.job import Copy, Transfer
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor, Manifest, is_foreign
from copycat.registry.bandwidth import Bandwidth
from copycat.registry.session import SMALL
from copycat.registry.target import Target
from copycat.registry.transport import Transport

__all__ = ["Blobs"]

#: So many blobs to look for are worth asking first whether there is a repository at all.
_MANY = 3
#: Digests of which the process remembers where they are.
_REMEMBERED = 200_000


class Blobs:
    """Brings blobs to one target; holds what the process knows about the blobs there."""

    def __init__(
        self,
        *,
        transport: Transport,
        target: Target,
        metrics: Metrics,
        max_transfers: int = 16,
        bandwidth: Bandwidth | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: `max_transfers` blobs are in flight at most, over all images; without `bandwidth` nothing slows them."""
        self._transport = transport
        self._target = target
        self._metrics = metrics
        self._bandwidth = bandwidth
        self._limiter = anyio.CapacityLimiter(max_transfers)
        self._clock = clock
        # repository → the namespace for which alone it may be used; empty: for all
        self._places: OrderedDict[Digest, dict[str, str]] = OrderedDict()
        self._flights: dict[tuple[str, str, Digest], anyio.Event] = {}
        self._unmountable: set[str] = set()
        self.transfers: dict[int, Transfer] = {}

    async def bring(self, job: Copy, manifest: Manifest) -> None:
        """Make everything that a manifest needs stand in the job's repository. Raises the registry errors."""
        name = job.target.name
        blobs = []
        for blob in manifest.successors():
            if job.distrust:
                self._forget(name, blob.digest)
            if self._knows(name, blob.digest):
                self._count(job, "exists")
            else:
                blobs.append(blob)
        known = await self._target.known_blobs(name, [b.digest for b in blobs])
        if known is None and self._target.mounts and len(blobs) >= _MANY:
            await job.target.ask_if_new()
        for digest in known or ():
            self._learn(name, digest, job.source.access.home)
        with one_error():
            async with anyio.create_task_group() as tasks:
                # the largest first: the small ones fill the gaps at the end
                for blob in sorted(blobs, key=lambda b: -b.size):
                    tasks.start_soon(self.bring_one, job, blob)

    async def bring_one(self, job: Copy, blob: Descriptor) -> None:
        """Make one blob stand there. Raises the registry errors."""
        name = job.target.name
        key = ("into", name, blob.digest)
        while not self._knows(name, blob.digest):
            flight = self._flights.get(key)
            if flight is not None:
                await flight.wait()
                continue
            with self._flight(key):
                home = await self._found(job, blob)
                if home is not None:
                    self._learn(name, blob.digest, home)
            return
        self._count(job, "exists")

    async def again(self, job: Copy, blob: Descriptor, *, certain: bool) -> None:
        """The target says that it lacks a blob that was believed to be there. Args: `certain`: ask no more, send it."""
        self._forget(job.target.name, blob.digest)
        if certain or not await job.target.has_blob(blob.digest):
            await self._upload(job, blob)
        self._learn(job.target.name, blob.digest, job.source.access.home)

    async def _found(self, job: Copy, blob: Descriptor) -> str | None:
        """Make the blob stand in the job's repository; None if it is a foreign layer that nobody serves.

        Returns the namespace for which alone it may be mounted from there; empty: for all.
        """
        access = job.source.access
        key = ("from", access.kept_for, blob.digest)
        while True:
            elsewhere = self._elsewhere(job.target.name, blob.digest, access.home)
            if elsewhere is not None:
                if await job.target.mount_blob(blob, elsewhere):
                    self._count(job, "mounted", blob.size)
                    return self._places.get(blob.digest, {}).get(elsewhere, access.home)
                self._unmountable.add(elsewhere)
                continue
            flight = self._flights.get(key) if self._target.mounts else None
            if flight is None:
                with self._flight(key):
                    return await self._settle(job, blob)
            if not job.target.new and await job.target.has_blob(blob.digest):
                self._count(job, "exists")
                return access.home
            await flight.wait()

    async def _settle(self, job: Copy, blob: Descriptor) -> str | None:
        """Find it in the job's own repository, or upload it: no other task is at it. Returns as `_found`."""
        access = job.source.access
        if await job.target.claim_blob(blob):
            # nobody knows who was allowed to read it when it came there
            self._count(job, "exists")
            self._learn(job.target.name, blob.digest, access.home)
            return access.home
        try:
            await self._upload(job, blob)
        except NotFound as error:
            if error.side != "source" or not is_foreign(blob.media_type):
                raise
            job.missing.append(blob)
            return None
        self._learn(job.target.name, blob.digest, access.kept_for)
        return access.kept_for

    async def _upload(self, job: Copy, blob: Descriptor) -> None:
        # the general permit last: what waits for a slow registry must not take it from the others
        async with (
            self._transport.streams(job.source.registry, job.target.registry),
            self._limiter,
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
            if self._bandwidth is not None:
                await self._bandwidth.spend(blob.size)
            data = await job.source.get_blob(blob)
            pulled(len(data))

        def body() -> AsyncIterator[bytes]:
            if data is not None:
                return _whole(data)
            chunks = job.source.read_blob(blob, on_bytes=pulled)
            return chunks if self._bandwidth is None else self._bandwidth.paced(chunks)

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

    def _learn(self, repository: str, digest: Digest, home: str) -> None:
        self._places.setdefault(digest, {})[repository] = home
        self._places.move_to_end(digest)
        if len(self._places) > _REMEMBERED:
            self._places.popitem(last=False)

    def _forget(self, repository: str, digest: Digest) -> None:
        self._places.get(digest, {}).pop(repository, None)

    def _elsewhere(self, repository: str, digest: Digest, home: str) -> str | None:
        if not self._target.mounts:
            return None
        for place, whose in self._places.get(digest, {}).items():
            if place != repository and place not in self._unmountable and whose in {"", home}:
                return place
        return None

    @contextmanager
    def _flight(self, key: tuple[str, str, Digest]) -> Iterator[None]:
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
