"""The state behind the sandbox's Kubernetes API: objects, one counter of versions, and the history that watches read.

Objects are kept as encoded bytes, because listing 100,000 Pods must cost a join and not an encoding;
`Stored` knows the few fields that selectors ask for. Every kind has its own history, which a
compaction cuts: a watch that starts before the cut is told 410, as by etcd.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import anyio
import msgspec

__all__ = ["RESOURCES", "Change", "Collection", "Key", "Object", "Resource", "Store", "Stored"]

#: A Kubernetes object as JSON has it.
Object: TypeAlias = dict[str, Any]
ChangeType: TypeAlias = Literal["ADDED", "MODIFIED", "DELETED"]


class Key(NamedTuple):
    """Where an object stands in its collection; cluster-scoped kinds have the namespace ""."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind that the sandbox serves."""

    plural: str
    kind: str
    group: str = ""
    namespaced: bool = True

    @property
    def version(self) -> str:
        """`v1` or `apps/v1`, as objects write it."""
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def type_prefix(self) -> bytes:
        """How the JSON of each object begins; the items of a list do without it, as the real ones."""
        return f'{{"kind":"{self.kind}","apiVersion":"{self.version}",'.encode()


_KINDS = (
    Resource(plural="namespaces", kind="Namespace", namespaced=False),
    Resource(plural="nodes", kind="Node", namespaced=False),
    Resource(plural="pods", kind="Pod"),
    Resource(plural="secrets", kind="Secret"),
    Resource(plural="configmaps", kind="ConfigMap"),
    Resource(plural="serviceaccounts", kind="ServiceAccount"),
    Resource(plural="events", kind="Event"),
    Resource(plural="deployments", kind="Deployment", group="apps"),
    Resource(plural="statefulsets", kind="StatefulSet", group="apps"),
    Resource(plural="daemonsets", kind="DaemonSet", group="apps"),
    Resource(plural="replicasets", kind="ReplicaSet", group="apps"),
    Resource(plural="jobs", kind="Job", group="batch"),
    Resource(plural="cronjobs", kind="CronJob", group="batch"),
    Resource(plural="leases", kind="Lease", group="coordination.k8s.io"),
)

#: Every kind by its plural name.
RESOURCES: Mapping[str, Resource] = {r.plural: r for r in _KINDS}


class Stored:
    """One version of one object. `data` is its JSON."""

    __slots__ = ("_data", "name", "namespace", "node", "phase", "version")

    def __init__(
        self,
        *,
        namespace: str,
        name: str,
        version: int,
        data: bytes | Callable[[Stored], bytes],
        phase: str = "",
        node: str = "",
    ) -> None:
        """Args: `data` may be a function of this object, so that generated ones take no memory."""
        self.namespace = namespace
        self.name = name
        self.version = version
        self.phase = phase
        self.node = node
        self._data = data

    @property
    def data(self) -> bytes:
        """The object's JSON, on one line."""
        return self._data if isinstance(self._data, bytes) else self._data(self)

    @property
    def key(self) -> Key:
        """Its place in the collection."""
        return Key(self.namespace, self.name)

    def decode(self) -> Object:
        """A copy of the object that the caller may change."""
        return cast("Object", msgspec.json.decode(self.data))

    @classmethod
    def of(cls, item: Object, version: int) -> Stored:
        """Encode an object at a version; `item` gets the version too."""
        metadata = item["metadata"]
        metadata["resourceVersion"] = str(version)
        return cls(
            namespace=metadata.get("namespace", ""),
            name=metadata["name"],
            version=version,
            data=msgspec.json.encode(item),
            phase=(item.get("status") or {}).get("phase", ""),
            node=(item.get("spec") or {}).get("nodeName", ""),
        )


class Change(NamedTuple):
    """One step of a collection's history: what stood there and what stands there now."""

    version: int
    before: Stored | None
    after: Stored | None


class Collection:
    """All objects of one kind, with the history since the last compaction."""

    def __init__(self, resource: Resource, *, history: int) -> None:
        """Args: `history` is how many changes are remembered."""
        self.resource = resource
        self.objects: dict[Key, Stored] = {}
        self.floor = 0
        """A watch or list may not start before this version."""
        self.lost = 0
        """The newest change that was forgotten: an open watch that has not seen it is broken."""
        self._limit = history
        self._history: list[Change] = []
        self._versions: list[int] = []
        self._changed = anyio.Event()

    def record(self, change: Change) -> None:
        """Apply a change and wake the watches."""
        stored = change.after or change.before
        if stored is None:  # pragma: no cover - a change has at least one side
            return
        if change.after is None:
            del self.objects[stored.key]
        else:
            self.objects[stored.key] = change.after
        self._history.append(change)
        self._versions.append(change.version)
        if len(self._history) > 2 * self._limit:
            self._cut(len(self._history) - self._limit)
        self.wake()

    def since(self, version: int) -> list[Change]:
        """The changes after a version, at most 1,000 of them; the caller has checked the floor."""
        start = bisect_right(self._versions, version)
        return self._history[start : start + 1000]

    def compact(self, version: int) -> None:
        """Forget the history up to a version, also where this kind did not change."""
        self._cut(bisect_right(self._versions, version))
        self.floor = version

    def rewind(self, version: int) -> None:
        """Undo what changed after a version that the history still reaches, and forget it."""
        start = bisect_right(self._versions, version)
        for change in reversed(self._history[start:]):
            if change.before is not None and change.after is None:
                # the last state has the version of its deletion
                before = Stored.of(change.before.decode(), version)
                self.objects[before.key] = before
            elif change.before is not None:
                self.objects[change.before.key] = change.before
            elif change.after is not None:
                del self.objects[change.after.key]
        del self._history[start:]
        del self._versions[start:]

    def wake(self) -> None:
        """Let every watch look again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def changed(self) -> None:
        """Wait for the next `wake`."""
        await self._changed.wait()

    def sorted(self) -> list[Stored]:
        """All objects in the order of a list."""
        return [self.objects[key] for key in sorted(self.objects)]

    def _cut(self, count: int) -> None:
        if count:
            self.floor = self.lost = self._versions[count - 1]
            del self._history[:count]
            del self._versions[:count]


class Store:
    """All collections and the counter that their versions come from."""

    def __init__(self, *, history: int = 5000) -> None:
        """Args: `history` is how many changes each kind remembers."""
        self.version = 1000
        self._collections = {r.plural: Collection(r, history=history) for r in _KINDS}

    def __getitem__(self, plural: str) -> Collection:
        return self._collections[plural]

    def __iter__(self) -> Iterator[Collection]:
        return iter(self._collections.values())

    def next_version(self) -> int:
        """Count one change."""
        self.version += 1
        return self.version

    def create(self, plural: str, item: Object) -> Stored:
        """Add an object that is not there; the server's part of its metadata is filled in."""
        collection = self[plural]
        item = _complete(collection.resource, item)
        metadata = item["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        after = Stored.of(item, self.next_version())
        collection.record(Change(after.version, None, after))
        return after

    def replace(self, plural: str, before: Stored, item: Object) -> Stored:
        """Write a new version of an object that is there."""
        collection = self[plural]
        item = _complete(collection.resource, item)
        old = before.decode()["metadata"]
        for field in ("uid", "creationTimestamp"):
            if field in old:
                item["metadata"][field] = old[field]
        after = Stored.of(item, self.next_version())
        collection.record(Change(after.version, before, after))
        return after

    def delete(self, plural: str, before: Stored) -> Stored:
        """Remove an object; its last state is kept in the history, at the version of the deletion."""
        last = Stored.of(before.decode(), self.next_version())
        self[plural].record(Change(last.version, last, None))
        return last

    def compact(self) -> None:
        """Forget all history, as etcd and the watch cache do after a compaction and a restart."""
        for collection in self:
            collection.compact(self.version)

    def rewind(self, version: int) -> None:
        """Go back to a version, as an etcd that is restored from a copy of then."""
        for collection in self:
            collection.rewind(version)
        self.version = version


def _complete(resource: Resource, item: Object) -> Object:
    metadata = {**item["metadata"]}
    if resource.namespaced:
        metadata.setdefault("namespace", "default")
    else:
        metadata.pop("namespace", None)
    rest = {field: value for field, value in item.items() if field not in {"kind", "apiVersion"}}
    return {
        "kind": resource.kind,
        "apiVersion": resource.version,
        **rest,
        "metadata": metadata,
    }
