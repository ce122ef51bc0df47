"""Who needs what: for every request the workloads that use it, kept current by the informers.

Everything that an attempt has to know about the cluster (running digests, platforms, on whose behalf,
who else wants the tag) is worked out here, at the moment when the attempt starts. Synchronous and
without I/O: informers call it in the middle of their streams.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping

from copycat.controller.entries import Cause, Entry, Invalid, WorkloadKey, running_digest
from copycat.controller.platforms import Platforms, Wanted
from copycat.controller.requests import EXTRA, Requests
from copycat.errors import InvalidReference
from copycat.kube.owners import Owner
from copycat.kube.selection import Selection
from copycat.kube.workload import ContainerImage, Workload, resolve_owner
from copycat.mirror.naming import Naming
from copycat.mirror.request import MirrorRequest, Need, RunningDigest
from copycat.oci.digest import Digest
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference
from copycat.registry.keychain import Access

__all__ = ["EXTRA", "Cause", "Entry", "Invalid", "Inventory", "Platforms", "running_digest"]


class Inventory:
    """All entries. `observe` is the informers' callback; the rest answers questions."""

    def __init__(
        self,
        *,
        selection: Selection,
        naming: Naming,
        target_registry: str,
        platforms: Platforms | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: `target_registry` is the host of the copies: what names it is used in place."""
        self._selection = selection
        self._named = Requests(naming=naming, target_registry=target_registry)
        self._target_registry = target_registry
        self._wanted = Wanted(platforms or Platforms())
        self._clock = clock
        self.entries: dict[MirrorRequest, Entry] = {}
        self.invalid: dict[str, Invalid] = {}
        self._held: dict[WorkloadKey, tuple[Workload, tuple[MirrorRequest, ...]]] = {}
        self._claims: dict[tuple[str, str], set[MirrorRequest]] = {}
        self._job_owners: dict[tuple[str, str], Owner] = {}
        self._job_pods: dict[tuple[str, str], dict[str, Workload]] = {}

    # What the informers say

    def observe(self, old: Workload | None, new: Workload | None) -> dict[MirrorRequest, Cause]:
        """Take up a change. Returns the requests that it concerns, and why."""
        causes: dict[MirrorRequest, Cause] = {}
        workload = new or old
        if workload is None:
            return causes
        if workload.kind == "Job":
            self._learn_job(workload, new is not None, causes)
        elif workload.kind == "Pod" and workload.owners and workload.owners[0][0] == "Job":
            self._learn_job_pod(workload, new)
        self._replace(workload, new, causes)
        return causes

    @property
    def nodes(self) -> Mapping[str, Platform]:
        """The platforms of the nodes that are known."""
        return self._wanted.nodes

    def node(self, name: str, platform: Platform | None) -> None:
        """A node came, changed or went."""
        if platform is None:
            self._wanted.nodes.pop(name, None)
        else:
            self._wanted.nodes[name] = platform

    def _learn_job_pod(self, pod: Workload, new: Workload | None) -> None:
        key = (pod.namespace, pod.owners[0][1])
        pods = self._job_pods.setdefault(key, {})
        if new is None:
            pods.pop(pod.name, None)
        else:
            pods[pod.name] = new
        if not pods:
            del self._job_pods[key]

    def _learn_job(self, job: Workload, exists: bool, causes: dict[MirrorRequest, Cause]) -> None:
        """The watched Job knows its CronJob better than its name does: the Job's Pods are named by it."""
        key = (job.namespace, job.name)
        before = self._job_owners.get(key)
        if exists:
            self._job_owners[key] = (job.owner_kind, job.owner_name)
        else:
            self._job_owners.pop(key, None)
            return
        if before != self._job_owners[key]:
            for pod in list(self._job_pods.get(key, {}).values()):
                self._replace(pod, pod, causes)

    def _replace(
        self, identity: Workload, new: Workload | None, causes: dict[MirrorRequest, Cause]
    ) -> None:
        key = (identity.kind, identity.namespace, identity.name)
        old, had = self._held.get(key, (None, ()))
        has: tuple[MirrorRequest, ...] = ()
        if new is not None:
            new = resolve_owner(new, self._job_owners)
            if self._selection.admits(new):
                has = self._requests(key, new)
            else:
                new = None
        self._drop_invalid(key, old, new)
        for request in had:
            if request not in has:
                self._unuse(request, key)
        if new is None:
            self._held.pop(key, None)
            return
        self._held[key] = (new, has)
        for request in has:
            self.entries[request].users[key] = new
            cause = self._cause(request, old if request in had else None, new)
            if cause:
                causes[request] = causes.get(request, Cause(0)) | cause

    def _cause(self, request: MirrorRequest, old: Workload | None, new: Workload) -> Cause:
        if old is None:
            cause = Cause.NEW
        elif old.fingerprint != new.fingerprint:
            cause = Cause.DIGEST if new.kind == "Pod" else Cause.CHANGED
        else:
            cause = Cause(0)
        if new.kind != "Pod":
            return cause
        if old is None:
            cause |= Cause.DIGEST
        images = list(self._images(request, new))
        before = {i.container: i for i in self._images(request, old)} if old else {}
        if any(i.running and not _was(before.get(i.container), "running") for i in images):
            cause |= Cause.RUNNING
        if any(
            i.failing_to_pull and not _was(before.get(i.container), "failing_to_pull")
            for i in images
        ):
            cause |= Cause.FAILING
        return cause

    # Requests

    def _requests(self, key: WorkloadKey, workload: Workload) -> tuple[MirrorRequest, ...]:
        found: dict[MirrorRequest, None] = {}
        for image in workload.images:
            try:
                request = self._named.request(image.image, workload, image.container)
            except InvalidReference as error:
                self.invalid.setdefault(image.image, Invalid(image.image, str(error))).users[
                    key
                ] = workload
                continue
            found[self._enter(request)] = None
        return tuple(found)

    def _enter(self, request: MirrorRequest) -> MirrorRequest:
        entry = self.entries.get(request)
        if entry is not None:
            entry.orphaned_at = entry.last_user = None
            entry.let_go = False
            return entry.request
        entry = Entry(request, self._clock(), self._verdict(request.source))
        self.entries[request] = entry
        # who runs the copy itself does not contest its tag
        in_place = request.source.registry == self._target_registry
        if request.source.tag and not entry.verdict and not in_place:
            self._claims.setdefault((request.repository, request.source.tag), set()).add(request)
        return request

    def _verdict(self, source: Reference) -> str:
        if self._selection.excluded(source):
            return "excluded"
        return "" if self._selection.allowed(source) else "denied"

    def _unuse(self, request: MirrorRequest, key: WorkloadKey) -> None:
        entry = self.entries.get(request)
        if entry is None:
            return
        user = entry.users.pop(key, None)
        if not entry.users:
            entry.orphaned_at = self._clock()
            entry.last_user = user or entry.last_user

    def _drop_invalid(self, key: WorkloadKey, old: Workload | None, new: Workload | None) -> None:
        kept = {i.image for i in new.images} if new else set()
        for image in old.images if old else ():
            bad = self.invalid.get(image.image)
            if bad is not None and image.image not in kept:
                bad.users.pop(key, None)
                if not bad.users:
                    del self.invalid[image.image]

    def orphans(self) -> Iterator[Entry]:
        """Entries that nothing uses any more."""
        return (e for e in list(self.entries.values()) if e.orphaned_at is not None)

    def forget(self, request: MirrorRequest) -> None:
        """Drop an entry that nothing uses."""
        self.entries.pop(request, None)
        tag = request.source.tag
        claimants = self._claims.get((request.repository, tag)) if tag else None
        if claimants is not None and tag is not None:
            claimants.discard(request)
            if not claimants:
                del self._claims[request.repository, tag]

    # Questions

    def workloads(self) -> int:
        """How many selected workloads of the cluster are known."""
        return sum(kind != EXTRA for kind, _, _ in self._held)

    def group(self, request: MirrorRequest) -> str:
        """A namespace that uses the request: those take turns in the queue."""
        entry = self.entries.get(request)
        return next(iter(entry.users), ("", "", ""))[1] if entry else ""

    def failing(self, request: MirrorRequest) -> bool:
        """Whether a kubelet cannot pull it now."""
        return any(
            i.failing_to_pull for w in self._users(request) for i in self._images(request, w)
        )

    def running(self, request: MirrorRequest) -> tuple[RunningDigest, ...]:
        """The digests that kubelets report, newest container first (ties by hex), each once."""
        found: dict[Digest, RunningDigest] = {}
        for workload in self._users(request):
            for image in self._images(request, workload):
                reported = running_digest(request.source, image)
                if reported is None:
                    continue
                known = found.get(reported.digest)
                if known is None or (reported.certain, reported.started) > (
                    known.certain,
                    known.started,
                ):
                    found[reported.digest] = reported
        return tuple(sorted(found.values(), key=lambda r: (-r.started, r.digest.hex)))

    def need(self, request: MirrorRequest, *, absent: Collection[Digest] = ()) -> Need:
        """What is wanted of the request now, as far as the cluster knows."""
        platforms, required = self._wanted.of(request, self._users(request))
        return Need(
            running=tuple(r for r in self.running(request) if r.digest not in absent),
            platforms=platforms,
            required=required,
            access=Access(namespaces=frozenset(w.namespace for w in self.askers(request))),
            rivals=tuple(dict.fromkeys(r.source for r in self.rivals(request))),
        )

    def rivals(self, request: MirrorRequest) -> tuple[MirrorRequest, ...]:
        """Requests of other sources that want the same tag in the same repository.

        What nothing uses any more, and is still to be copied, has no claim against what is in use.
        """
        claimants = self._claims.get((request.repository, request.source.tag or ""), set())
        others = (c for c in claimants if c.source.name != request.source.name)
        if self._users(request):
            others = (c for c in others if self._users(c))
        return tuple(sorted(others))

    def askers(self, request: MirrorRequest) -> Collection[Workload]:
        """On whose behalf it is asked for: who uses it, or if nobody does any more, who did last."""
        entry = self.entries.get(request)
        if entry is not None and not entry.users and entry.last_user is not None:
            return (entry.last_user,)
        return self._users(request)

    def _users(self, request: MirrorRequest) -> Collection[Workload]:
        entry = self.entries.get(request)
        return entry.users.values() if entry else ()

    def _images(self, request: MirrorRequest, workload: Workload) -> Iterator[ContainerImage]:
        """The workload's containers that mean this request."""
        for image in workload.images:
            try:
                if self._named.request(image.image, workload, image.container) == request:
                    yield image
            except InvalidReference:
                continue

    def states(self) -> dict[str, int]:
        """How many entries the configuration itself decides, by state."""
        counts: dict[str, int] = {"failed": len(self.invalid)}
        for entry in self.entries.values():
            if entry.verdict:
                counts[entry.verdict] = counts.get(entry.verdict, 0) + 1
        return counts


def _was(image: ContainerImage | None, attribute: str) -> bool:
    return image is not None and bool(getattr(image, attribute))
