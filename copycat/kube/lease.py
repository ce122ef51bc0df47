"""Who works and who stands by: leader election over a Lease, after client-go's algorithm.

A candidate never compares the times that others wrote: it notes by its own monotonic clock when the
record last *changed*, and takes it for abandoned when that is longer ago than the lease lasts. So
wall clocks may differ and jump. A leader believes in itself only until `renew` seconds after it
*sent* the last renewal that succeeded, however long the answer took; that is earlier than anybody else
can take over (`duration` > `renew`), and the work is cancelled then. There is no fencing: whoever
writes asks `is_leader` before each write.

Source: client-go `tools/leaderelection/leaderelection.go`, `resourcelock/leaselock.go`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias, cast

import anyio
import msgspec

from copycat.errors import KubeConflict, KubeDenied, KubeError, KubeNotFound, KubeUnavailable
from copycat.kube.client import KubeClient
from copycat.logs import get_logger
from copycat.metrics import Metrics

__all__ = ["Lease"]

_Object: TypeAlias = dict[str, Any]

#: How long the release may take, in seconds: the process is about to end.
_RELEASE_TIMEOUT = 3.0
#: A candidate waits 1 to 2.2 times `retry` (client-go's JitterFactor).
_JITTER_FACTOR = 1.2

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What a Lease says; any difference proves that its holder lives."""

    holder: str
    duration: float
    acquired: str
    renewed: str
    transitions: int

    @classmethod
    def of(cls, item: _Object) -> _Record:
        spec = item.get("spec") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            duration=float(spec.get("leaseDurationSeconds") or 0),
            acquired=spec.get("acquireTime") or "",
            renewed=spec.get("renewTime") or "",
            transitions=int(spec.get("leaseTransitions") or 0),
        )


class Lease:
    """One candidate for one Lease."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        metrics: Metrics,
        duration: float = 15.0,
        renew: float = 10.0,
        retry: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is sent before `hold`.

        Args:
            identity: unique among all processes that ever stood for this Lease: Pod name and a UUID.
            duration: seconds without a change after which others may take the Lease over.
            renew: seconds without a renewal after which this process ceases to lead.
            retry: seconds between attempts.
            now: the wall clock, which only people and other programs read.
            jitter: numbers from 0 to 1.

        Raises:
            ValueError: unless duration > renew > 1.2 x retry > 0.
        """
        if not duration > renew > _JITTER_FACTOR * retry > 0:
            message = (
                f"a lease needs duration > renew > 1.2 x retry, not {duration}, {renew}, {retry}"
            )
            raise ValueError(message)
        self.identity = identity
        self._client = client
        self._metrics = metrics
        self._namespace = namespace
        self._name = name
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._duration = duration
        self._renew = renew
        self._retry = retry
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._jitter = jitter
        self._item: _Object = {}
        self._record: _Record | None = None
        self._changed_at = 0.0
        self._renewed_at = 0.0
        self._won = False
        self._leading = False

    @property
    def holder(self) -> str:
        """The identity of the leader as far as is known; "" for none."""
        return self._record.holder if self._record else ""

    @property
    def is_leader(self) -> bool:
        """Whether this process may write now. Ask again before each write."""
        return self.holder == self.identity and self._clock() < self._renewed_at + self._renew

    @property
    def overdue(self) -> float:
        """Since when the Lease could be taken over though the work goes on, in seconds; 0 if all is well.

        Work that is cancelled in time never gets here (controller-runtime's HealthzAdaptor asks the same).
        """
        if not self._leading:
            return 0.0
        return max(0.0, self._clock() - self._renewed_at - self._duration)

    async def hold(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Stand by, lead when the Lease is ours, stand by again when it is lost; until cancelled.

        Each time the Lease is won `lead` is run; when it is lost `lead` is cancelled, and waited for.
        If `lead` ends by itself or fails, so does this. The Lease is released when its work has stopped.

        Raises:
            KubeDenied: at the start, if Leases may not be used.
        """
        try:
            ended = False
            while not ended:
                await self._acquire()
                ended = await self._lead(lead)
        finally:
            await self._release()

    async def _acquire(self) -> None:
        while True:
            with anyio.move_on_after(self._request_timeout):
                try:
                    if await self._try():
                        return
                except KubeDenied as error:
                    if error.status == 403 and not self._won:
                        raise self._forbidden(error) from error
                    _log.warning("lease cannot be read", lease=self._name, error=str(error))
                except KubeError as error:
                    _log.warning("lease cannot be acquired", lease=self._name, error=str(error))
            await self._sleep(self._retry * (1 + _JITTER_FACTOR * self._jitter()))

    async def _lead(self, lead: Callable[[], Awaitable[None]]) -> bool:
        """Lead as long as the Lease is ours; whether `lead` ended by itself."""
        self._won = self._leading = True
        self._metrics.leader.set(1)
        self._metrics.leader_transitions.inc()
        _log.info("leading", lease=self._name, identity=self.identity)
        ended = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep, tasks.cancel_scope)
                await lead()
                ended = not tasks.cancel_scope.cancel_called
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:  # the group is ours, its one content is the work's
                raise group.exceptions[0] from None
            raise
        finally:
            self._leading = False
            self._metrics.leader.set(0)
            self._metrics.leader_transitions.inc()
            _log.info("leading no more", lease=self._name, identity=self.identity)
        return ended

    async def _keep(self, work: anyio.CancelScope) -> None:
        """Renew until that fails for too long, then cancel the work."""
        while self.is_leader:
            until = self._renewed_at + self._renew
            await self._sleep(min(self._retry, max(0.0, until - self._clock())))
            with anyio.move_on_after(min(self._request_timeout, max(0.0, until - self._clock()))):
                try:
                    await self._try()
                except KubeError as error:
                    _log.warning("lease could not be renewed", lease=self._name, error=str(error))
        _log.warning("lease was lost", lease=self._name, holder=self.holder)
        work.cancel()

    @property
    def _request_timeout(self) -> float:
        return min(5.0, 2 * self._retry)

    # The protocol

    async def _try(self) -> bool:
        """Acquire or renew once; whether the Lease is ours now. Raises KubeError if that is not known."""
        if self.holder == self.identity:
            try:
                # As nobody else should have written, the version that is known saves the reading.
                await self._write(taken_over=False)
            except (KubeConflict, KubeNotFound):
                pass
            else:
                return True
        sent = self._clock()
        try:
            item = await self._request("GET", f"{self._collection}/{self._name}")
        except KubeNotFound:
            return await self._create()
        self._observe(item, sent)
        record = self._record
        if record is None:  # pragma: no cover - `_observe` has just set it
            return False
        abandoned = self._clock() >= self._changed_at + (record.duration or self._duration)
        if record.holder not in {"", self.identity} and not abandoned:
            return False
        try:
            await self._write(taken_over=record.holder != self.identity)
        except KubeConflict:
            return False  # somebody else was quicker
        return True

    async def _create(self) -> bool:
        sent = self._clock()
        item = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec(acquired=self._micro_time(), transitions=0),
        }
        try:
            created = await self._request("POST", self._collection, item)
        except KubeConflict:
            return False
        self._observe(created, sent)
        self._renewed_at = sent
        return True

    async def _write(self, *, taken_over: bool) -> None:
        record = self._record or _Record.of({})
        spec = self._spec(
            acquired=self._micro_time() if taken_over else record.acquired,
            transitions=record.transitions + taken_over,
        )
        sent = self._clock()  # what is won lasts from here on, not from the answer
        self._observe(await self._put(spec), sent)
        self._renewed_at = sent

    async def _release(self) -> None:
        """Give the Lease back, so that a standby need not wait for its end."""
        with anyio.move_on_after(_RELEASE_TIMEOUT, shield=True):
            while self.holder == self.identity and self._record is not None:
                spec = self._spec(acquired=self._micro_time(), transitions=self._record.transitions)
                spec |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                try:
                    try:
                        item = await self._put(spec)
                    except KubeConflict:
                        item = await self._request("GET", f"{self._collection}/{self._name}")
                    self._observe(item, self._clock())
                except KubeError as error:
                    _log.warning("lease was not released", lease=self._name, error=str(error))
                    return

    def _observe(self, item: _Object, at: float) -> None:
        record = _Record.of(item)
        if record != self._record:
            if record.holder != self.holder:
                _log.info("lease has a new holder", lease=self._name, holder=record.holder)
            self._record, self._changed_at = record, at
        self._item = item

    def _spec(self, *, acquired: str, transitions: int) -> _Object:
        return {
            **(self._item.get("spec") or {}),
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, math.ceil(self._duration)),
            "acquireTime": acquired or self._micro_time(),
            "renewTime": self._micro_time(),
            "leaseTransitions": transitions,
        }

    async def _put(self, spec: _Object) -> _Object:
        item = {**self._item, "spec": spec}
        return await self._request("PUT", f"{self._collection}/{self._name}", item)

    async def _request(self, method: str, path: str, body: _Object | None = None) -> _Object:
        answer = await self._client.request(method, path, body=body, timeout=self._request_timeout)
        try:
            item = msgspec.json.decode(answer)
        except msgspec.DecodeError as error:
            message = f"The Kubernetes API sent what is no Lease for {path}: {error}"
            raise KubeUnavailable(message, reason="decode") from error
        return cast("_Object", item)

    def _micro_time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _forbidden(self, error: KubeDenied) -> KubeDenied:
        message = (
            f"The Lease {self._namespace}/{self._name} may not be used, so no leader can be chosen:"
            f" {error} Bind this service account to a Role in the namespace {self._namespace} that"
            " allows get, create and update of leases (coordination.k8s.io), or, with a single"
            " replica, run with --leader-elect=false."
        )
        return KubeDenied(message, status=error.status, reason=error.reason)
