"""Events on workloads, where people look first: `kubectl describe deployment`.

One failure of one workload is one Event, whose `count` grows: it has a name of its own that every process finds
again, and is written once an hour at the most (kopf's issue 117 shows what unbounded Events do to etcd). A
workload that fails in many ways is spared by a token bucket as client-go's (`tools/record/events_cache.go`),
the API by a pace. Who is not allowed to write is told so once, and does not try again.

They are Events of the group "" and not of events.k8s.io, because those count in one patch.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import anyio
import msgspec

from copycat.errors import KubeConflict, KubeDenied, KubeError, KubeNotFound, printable
from copycat.kube.client import MERGE_PATCH, KubeClient
from copycat.kube.kinds import KINDS, Kind
from copycat.logs import get_logger

__all__ = ["COMPONENT", "EVENT_HOUR", "EventWriter", "Notice", "ObjectKey"]

_log = get_logger(__name__)

#: What Events name as their source.
COMPONENT = "k8s-copycat"
#: One failure of one workload is written once in this time (seconds).
EVENT_HOUR = 3600.0
#: Seconds between two Events.
_PACE = 1.0
#: Of one object: that many different Events at once, then one in so many seconds (client-go's spam filter).
_BURST, _REFILL = 25, 300.0
#: What is remembered, and what may wait.
_SERIES, _WAITING = 4096, 1000
#: Characters of a message (the API's own limit is 1024).
_MESSAGE = 600

#: (kind, namespace, name).
ObjectKey = tuple[str, str, str]

_KINDS: Mapping[str, Kind] = {row.kind: row for row in KINDS.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that went wrong with a workload."""

    owner: ObjectKey
    """Whom people call responsible; it need not be an object that exists, or is watched."""
    candidates: tuple[ObjectKey, ...]
    """Objects that the Event may be put on, the best first; the first that exists gets it."""
    reason: str
    """A fixed word in CamelCase."""
    subject: str
    """What it is about: the image. Owner, reason and subject together are one failure."""
    message: str
    """For people; made of our own words, never of a server's."""


@dataclass(slots=True)
class _Series:
    """One failure of one workload, as it goes on."""

    notice: Notice
    first: datetime
    last: datetime
    count: int = 0
    written_at: float | None = None
    exists: bool = False
    waiting: bool = False


class _Meta(msgspec.Struct):
    uid: str = ""


class _Item(msgspec.Struct):
    metadata: _Meta


class _Found(msgspec.Struct):
    items: list[_Item] | None = None


class _Written(msgspec.Struct):
    count: int | None = None


_FOUND = msgspec.json.Decoder(_Found)
_WRITTEN = msgspec.json.Decoder(_Written)
_Key = tuple[ObjectKey, str, str]


class EventWriter:
    """Writes what is reported while `run` runs. Only the leader has one."""

    def __init__(
        self,
        client: KubeClient,
        *,
        instance: str = "",
        cluster_wide: bool = True,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Args:
        instance: which process reports: its Lease's identity or Pod's name.
        cluster_wide: whether one permission holds for all namespaces, so that one refusal speaks for all.
        now: the wall clock, which only people read.
        """
        self._client = client
        self._instance = instance or COMPONENT
        self._cluster_wide = cluster_wide
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._series: OrderedDict[_Key, _Series] = OrderedDict()
        self._buckets: OrderedDict[ObjectKey, tuple[float, float]] = OrderedDict()
        self._waiting: deque[_Series] = deque()
        self._more = anyio.Event()
        self._denied: set[str] = set()

    def report(self, notice: Notice) -> None:
        """Count a failure; an Event follows unless there was one within the hour. Returns at once."""
        key = (notice.owner, notice.reason, notice.subject)
        now = self._now()
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series(notice, first=now, last=now)
            if len(self._series) > _SERIES:
                self._series.popitem(last=False)
        self._series.move_to_end(key)
        series.notice, series.last = notice, now
        series.count += 1
        if self._is_due(series):
            series.waiting = True
            self._waiting.append(series)
            self._more.set()

    def _is_due(self, series: _Series) -> bool:
        owner = series.notice.owner
        if series.waiting or len(self._waiting) >= _WAITING or self._is_denied(owner[1]):
            return False
        now = self._clock()
        if series.written_at is not None and now - series.written_at < EVENT_HOUR:
            return False
        return self._spend(owner, now)

    def _spend(self, owner: ObjectKey, now: float) -> bool:
        """Take a token of the workload's bucket."""
        tokens, since = self._buckets.get(owner, (float(_BURST), now))
        tokens = min(float(_BURST), tokens + (now - since) / _REFILL)
        spent = tokens >= 1
        self._buckets[owner] = (tokens - spent, now)
        self._buckets.move_to_end(owner)
        if len(self._buckets) > _SERIES:
            self._buckets.popitem(last=False)
        return spent

    async def run(self) -> None:
        """Write, until cancelled."""
        while True:
            if not self._waiting:
                self._more = anyio.Event()
                await self._more.wait()
            series = self._waiting.popleft()
            series.waiting = False
            if self._is_denied(series.notice.owner[1]):
                continue
            try:
                await self._write(series)
            except KubeError as error:
                # its next failure counts it
                _log.debug("event was not written", error=str(error))
            await self._sleep(_PACE)

    # Writing

    async def _write(self, series: _Series) -> None:
        involved = await self._involved(series.notice)
        if involved is None:
            return  # the workload is gone
        try:
            await self._put(series, involved)
        except KubeDenied as error:
            self._refused(series.notice.owner[1], error)
        except KubeNotFound:
            return  # so is the namespace
        else:
            series.written_at = self._clock()

    async def _put(self, series: _Series, involved: dict[str, str]) -> None:
        collection = f"/api/v1/namespaces/{involved['namespace']}/events"
        path = f"{collection}/{_name(series.notice)}"
        if series.exists:
            try:
                await self._patch(path, series)
            except KubeNotFound:
                series.exists = False  # Events live for an hour
            else:
                return
        try:
            await self._client.request("POST", collection, body=self._event(series, involved))
        except KubeConflict:
            # an earlier process wrote it: go on counting
            series.count += await self._patch(path, series, count=False)
            await self._patch(path, series)
        series.exists = True

    async def _patch(self, path: str, series: _Series, *, count: bool = True) -> int:
        """Bring an Event up to date; what it counted before, or now."""
        body: dict[str, Any] = {
            "lastTimestamp": _time(series.last),
            "message": printable(series.notice.message, _MESSAGE),
        }
        if count:
            body["count"] = series.count
        answer = await self._client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        try:
            return _WRITTEN.decode(answer).count or 0
        except msgspec.DecodeError:
            return 0

    def _event(self, series: _Series, involved: dict[str, str]) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": _name(series.notice), "namespace": involved["namespace"]},
            "involvedObject": involved,
            "type": "Warning",
            "reason": series.notice.reason,
            "message": printable(series.notice.message, _MESSAGE),
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
            "count": series.count,
            "firstTimestamp": _time(series.first),
            "lastTimestamp": _time(series.last),
        }

    async def _involved(self, notice: Notice) -> dict[str, str] | None:
        """The first candidate that exists, with the uid by which `kubectl describe` finds its Events.

        It is looked up by a list of one, because that is what we are allowed to do.
        """
        for kind, namespace, name in notice.candidates:
            row = _KINDS[kind]
            params = {"fieldSelector": f"metadata.name={name}", "limit": "1"}
            try:
                answer = await self._client.request("GET", row.path(namespace), params=params)
                items = _FOUND.decode(answer).items or ()
            except (KubeDenied, KubeNotFound, msgspec.DecodeError):
                continue  # a kind that we may not see, or that is not served
            for item in items:
                return {
                    "apiVersion": row.group_path.removeprefix("/apis/").removeprefix("/api/"),
                    "kind": kind,
                    "namespace": namespace,
                    "name": name,
                    "uid": item.metadata.uid,
                }
        return None

    # Refusals

    def _is_denied(self, namespace: str) -> bool:
        return ("" if self._cluster_wide else namespace) in self._denied

    def _refused(self, namespace: str, error: KubeDenied) -> None:
        if " cannot " not in str(error):
            return  # a quota, a webhook, a namespace that ends: no word of authorizers, and not for ever
        self._denied.add("" if self._cluster_wide else namespace)
        _log.warning(
            "events may not be written; failures are told in the log and on the status page alone",
            namespace=namespace,
            error=str(error),
            remedy='allow the verbs create and patch on events (apiGroups: [""]), as the chart does',
        )


def _name(notice: Notice) -> str:
    """The same for the same failure, whichever process reports it; a valid name like the workload's own."""
    facts = "\0".join((*notice.owner, notice.reason, notice.subject))
    end = blake2b(facts.encode(), digest_size=8).hexdigest()
    return f"{notice.owner[2][: 252 - len(end)].rstrip('.-')}.{end}"


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
