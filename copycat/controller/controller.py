"""The controller: what changes becomes a key, a worker takes the key, one place decides what follows.

Informers call `observe`; nothing is worked on until `open`, because only then every claimant of a tag
is known. A key whose copy stands and is fresh costs no request, however often its Pods change.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import anyio
import structlog

from copycat.controller.inventory import Cause, Entry, Inventory
from copycat.controller.passes import Pass, Passes
from copycat.errors import CopycatError, Unavailable
from copycat.kube.workload import Workload
from copycat.metrics import STATES, Metrics
from copycat.mirror.ledger import Ledger, Record
from copycat.mirror.mirror import Mirror
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.registry.target import target_refusal
from copycat.workqueue import Priority, QueueClosed, WorkQueue

__all__ = ["Controller", "Hold", "Intervals", "Nobody", "Observer", "state_of"]

_log = structlog.get_logger(__name__)

#: A target that refuses is probed this often (seconds).
HOLD = 300.0
#: What nothing uses any more is kept this long if it was never copied (seconds).
ORPHAN_LIFE = 24 * 3600.0
_SWEEP = 30.0


class Observer(Protocol):
    """Hears of every attempt, in the event loop's thread."""

    def started(self, request: MirrorRequest) -> None:
        """An attempt begins."""
        ...

    def moved(self, request: MirrorRequest, direction: Literal["pull", "push"], count: int) -> None:
        """So many bytes went by."""
        ...

    def finished(self, request: MirrorRequest, result: MirrorResult) -> None:
        """An attempt is over."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """How often things are looked at again, in seconds; 0 is never."""

    target_check: float = 86_400.0
    tag_refresh: float = 86_400.0
    force: float = 0.0


@dataclass(slots=True)
class Hold:
    """A part of the target that takes nothing at the moment."""

    until: float
    reason: str
    message: str
    waiting: set[MirrorRequest]


class Nobody:
    """Does not listen."""

    def started(self, request: MirrorRequest) -> None:
        """Nothing."""

    def moved(self, request: MirrorRequest, direction: Literal["pull", "push"], count: int) -> None:
        """Nothing."""

    def finished(self, request: MirrorRequest, result: MirrorResult) -> None:
        """Nothing."""


class Controller:
    """Owns the queue, the workers and the ledger's truth. Make one for each term of leadership."""

    def __init__(
        self,
        *,
        inventory: Inventory,
        mirror: Mirror,
        ledger: Ledger,
        metrics: Metrics,
        workers: int,
        intervals: Intervals,
        digest_pull: bool = False,
        observer: Observer | None = None,
        hold_target: bool = True,
        may_write: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Args: `hold_target`: a target that refuses is left alone for a while; `may_write` is false once leadership is lost."""
        self.inventory = inventory
        self.mirror = mirror
        self.ledger = ledger
        self.queue: WorkQueue[MirrorRequest] = WorkQueue(
            clock=clock, fair=inventory.group, metrics=metrics
        )
        self.opened = False
        self.holds: dict[str, Hold] = {}
        self._metrics = metrics
        self._workers = workers
        self._intervals = intervals
        self._digest_pull = digest_pull
        self._observer = observer or Nobody()
        self._hold_target = hold_target
        self._may_write = may_write
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._passes = Passes(self._force_all)
        self._sweep_now = anyio.Event()
        self._labels: dict[str, int] = {}

    # What comes in

    def observe(self, old: Workload | None, new: Workload | None) -> None:
        """The informers' callback."""
        causes = self.inventory.observe(old, new)
        if new is None:
            self._sweep_now.set()
        if self.opened:
            for request, cause in causes.items():
                self._enqueue(request, cause)

    def open(self) -> None:
        """Every informer has told what it knows, or may not: begin. What runs comes first."""
        self.opened = True
        entries = [e for e in self.inventory.entries.values() if not e.verdict]
        for entry in sorted(entries, key=lambda e: not self.inventory.running(e.request)):
            failing = self.inventory.failing(entry.request)
            self.queue.add(entry.request, Priority.URGENT if failing else Priority.INITIAL)

    def _enqueue(self, request: MirrorRequest, cause: Cause) -> None:
        entry = self.inventory.entries.get(request)
        if entry is None or entry.verdict:
            return
        if cause & (Cause.CHANGED | Cause.RUNNING):
            self.ledger.warm(request)
        if cause & Cause.CHANGED:
            self.ledger.stale(request)
        priority = Priority.LIVE
        if cause & Cause.FAILING:
            priority = Priority.URGENT
        if self._need(entry) is not None:
            self.queue.add(request, priority)

    # Work

    async def run(self) -> None:
        """Work until cancelled, or until the queue is closed and drained."""
        try:
            async with anyio.create_task_group() as timers:
                timers.start_soon(self._sweeper)
                timers.start_soon(self._maintain)
                if self._intervals.force:
                    timers.start_soon(self._force_now_and_then)
                async with anyio.create_task_group() as workers:
                    for _ in range(self._workers):
                        workers.start_soon(self._work)
                timers.cancel_scope.cancel()
        finally:
            self._passes.abandon()

    async def _work(self) -> None:
        idle = self._metrics.workers.labels("idle")
        busy = self._metrics.workers.labels("busy")
        idle.inc()
        try:
            while True:
                request = await self.queue.get()
                idle.dec()
                busy.inc()
                try:
                    await self._attempt(request)
                finally:
                    busy.dec()
                    idle.inc()
                    self.queue.done(request)
        except QueueClosed:
            return
        finally:
            idle.dec()

    async def _attempt(self, request: MirrorRequest) -> None:
        """Take a key: see what is due, do it, decide."""
        entry = self.inventory.entries.get(request)
        if entry is None or entry.verdict:
            self._passes.tried(request, failed=False)
            return
        need = self._need(entry)
        if need is None:
            self._passes.tried(request, failed=False)
            self._schedule(request, self.ledger[request])
            return
        if self._held(request):
            self._passes.tried(request, failed=True)
            return
        if not self._may_write():
            raise QueueClosed("leadership is lost")
        entry.forced = False
        started = self._clock()
        with structlog.contextvars.bound_contextvars(
            reconcile_id=uuid.uuid4().hex[:12], image=str(request.source)
        ):
            self._observer.started(request)
            result = await self._mirror(request, need)
            self._decide(request, need, result, self._clock() - started)

    async def _mirror(self, request: MirrorRequest, need: Need) -> MirrorResult:
        """An attempt never raises: a bug costs one image its copy, not the others theirs."""
        try:
            return await self.mirror.run(
                request, need, progress=partial(self._observer.moved, request)
            )
        except Exception as bug:  # noqa: BLE001 - whatever broke, the other images need this worker
            _log.exception("attempt broke")
            error = bug if isinstance(bug, CopycatError) else CopycatError(f"internal error: {type(bug).__name__}: {bug}")  # fmt: skip
            target = replace(
                request.source, registry=self.mirror.target.registry, repository=request.repository
            )
            return MirrorResult(
                state="failed",
                target=target,
                reason="internal",
                message=str(error),
                error=error,
                # a bug takes nothing from a copy that stands
                protected=need.known,
            )

    def _need(self, entry: Entry) -> Need | None:
        """What an attempt would be for; None if nothing is due."""
        request = entry.request
        record = self.ledger.get(request)
        need = self.inventory.need(request, absent=record.absent if record else ())
        if record is None or record.result is None or entry.forced:
            return replace(need, check_anchors=entry.forced, known=record is not None and record.protected,
                           owned=record.owned if record else None)  # fmt: skip
        now = self._clock()
        if record.next_try > now:
            return None
        digests = tuple(r.digest for r in need.running)
        fresh_digests = any(d not in record.anchored for d in digests)
        moved = self._digest_pull and digests[:1] != record.running[:1]
        source_due = request.source.digest is None and self._due(
            record.source_checked, self._intervals.tag_refresh, now
        )
        target_due = self._due(record.target_checked, self._intervals.target_check, now)
        reshaped = need.platforms != record.platforms
        failed = record.error is not None or not record.protected
        if not (
            fresh_digests
            or moved
            or source_due
            or target_due
            or reshaped
            or (failed and record.next_try)
        ):
            return None
        return replace(
            need,
            check_source=source_due or reshaped or failed,
            check_anchors=target_due,
            anchored=frozenset() if target_due or failed else record.anchored,
            known=record.protected,
            owned=record.owned,
        )

    def _due(self, last: float | None, interval: float, now: float) -> bool:
        # checks are spread over the second half of the interval (`_schedule`)
        return last is None or (interval > 0 and now - last >= interval * 0.5)

    # The one decision

    def _decide(
        self, request: MirrorRequest, need: Need, result: MirrorResult, seconds: float
    ) -> None:
        """Done, later, or not before something changes. The only place that counts, logs and records."""
        hold = self._hold(request, result)
        record = self.ledger.finished(request, result, held_until=hold.until if hold else 0.0)
        record.running = tuple(r.digest for r in need.running)
        record.platforms = need.platforms
        self._count(request, result, seconds)
        self._report(request, result, seconds, record)
        self._schedule(request, record)
        self._observer.finished(request, result)
        entry = self.inventory.entries.get(request)
        # forced while this attempt ran: the pass means the next one
        if entry is None or not entry.forced:
            self._passes.tried(request, failed=result.state == "failed")
        if entry is None or not entry.users:
            self._sweep_now.set()

    def _schedule(self, request: MirrorRequest, record: Record) -> None:
        """When to look at it next."""
        now = self._clock()
        if record.next_try:
            self.queue.add(
                request, Priority.LIVE, delay=max(0.0, record.next_try - now), rerun=True
            )
            return
        checks = [(record.target_checked, self._intervals.target_check)]
        if request.source.digest is None:
            checks.append((record.source_checked, self._intervals.tag_refresh))
        waits = [
            # spread over the interval, so that what started together does not stay together
            max(
                1.0, (now if last is None else last) + interval * (0.5 + 0.5 * self._jitter()) - now
            )
            for last, interval in checks
            if interval
        ]
        if waits:
            self.queue.add(request, Priority.CHECK, delay=min(waits), rerun=True)

    def _hold(self, request: MirrorRequest, result: MirrorResult) -> Hold | None:
        """A target that refuses is asked again by one, now and then; everybody else waits (product: section 5)."""
        part = _part(request)
        refusal = target_refusal(result.error) if result.error and self._hold_target else None
        if refusal is None:
            if result.pushed:
                self._release(part)
            return None
        message = str(result.error)
        known = self.holds.get(part)
        waiting = known.waiting if known else set()
        hold = self.holds[part] = Hold(self._clock() + HOLD, refusal, message, waiting)
        if known is None:
            _log.warning(
                "target refuses", part=part, reason=refusal, error=message, probe_seconds=HOLD
            )
        return hold

    def _release(self, part: str) -> None:
        hold = self.holds.pop(part, None)
        for request in hold.waiting if hold else ():
            self.queue.add(request, Priority.LIVE)

    def _held(self, request: MirrorRequest) -> bool:
        hold = self.holds.get(_part(request))
        if hold is None:
            return False
        now = self._clock()
        if now >= hold.until:
            hold.until = now + HOLD  # this one is the probe
            hold.waiting.discard(request)
            return False
        hold.waiting.add(request)
        record = self.ledger[request]
        record.error = Unavailable(hold.message, side="target", reason=hold.reason)
        self.queue.add(request, Priority.LIVE, delay=hold.until - now)
        return True

    def _count(self, request: MirrorRequest, result: MirrorResult, seconds: float) -> None:
        image = request.source.name
        outcome = "failure" if result.state in {"failed", "denied"} else "success"
        label = self._metrics.registry_label(request.source.registry)
        self._metrics.operations.labels(label, outcome, result.reason or "ok").inc()
        self._metrics.duration.labels(outcome).observe(seconds)
        if result.state == "dry_run":
            return
        self._labels[image] = self._labels.get(image, 0)
        if result.pulled:
            self._metrics.pull_success.labels(image).inc()
        if result.pushed:
            self._metrics.push_success.labels(image).inc()
        if result.error is not None and result.state == "failed":
            side = (
                self._metrics.push_error
                if result.error.side == "target"
                else self._metrics.pull_error
            )
            side.labels(image).inc()

    def _report(
        self, request: MirrorRequest, result: MirrorResult, seconds: float, record: Record
    ) -> None:
        """One line for an attempt that did something; what was found as expected is told at debug."""
        fields: dict[str, object] = {
            "target": str(result.target),
            "state": result.state,
            "duration_s": round(seconds, 3),
        }
        if result.digest:
            fields["digest"] = str(result.digest)
        if result.error is not None:
            wait = max(0.0, record.next_try - self._clock())
            fields |= {
                "reason": result.reason,
                "error": result.message,
                "side": result.error.side,
                "next_try_s": round(wait),
            }
            _log.warning(
                "image not mirrored" if result.state != "protected" else "source cannot be asked",
                **fields,
            )
        elif result.pushed:
            moved = result.moved
            _log.info("image mirrored", bytes_pulled=moved.bytes_pulled, bytes_pushed=moved.bytes_pushed,
                      bytes_mounted=moved.bytes_mounted, blobs=moved.copied, **fields)  # fmt: skip
        elif result.state in {"protected", "in_place"}:
            _log.debug("image stands at the target", **fields)
        else:
            _log.info("image looked at", reason=result.reason, message=result.message, **fields)

    # Actions

    def reset(self) -> int:
        """End every cool-down and try those images at once; how many there were."""
        cleared = self.ledger.reset()
        for request in cleared:
            self.queue.add(request, Priority.URGENT)
        return len(cleared)

    async def force(self) -> Pass:
        """Look at every image anew, source and target; returns when each was tried once."""
        return await self._passes.run()

    def _force_all(self) -> list[MirrorRequest]:
        forced = []
        for hold in self.holds.values():
            hold.until = 0.0
        for request, entry in self.inventory.entries.items():
            if entry.verdict:
                continue
            entry.forced = True
            self.ledger.warm(request)
            self.queue.add(request, Priority.URGENT, rerun=True)
            forced.append(request)
        return forced

    def protected(self) -> int:
        """How many images have a copy that stands."""
        return sum(1 for _, record in self.ledger if record.protected)

    # Timers

    async def _force_now_and_then(self) -> None:
        while True:
            await self._sleep(self._intervals.force)
            await self.force()

    async def _maintain(self) -> None:
        while True:
            await self._sleep(HOLD)
            await self.mirror.target.maintain()

    async def _sweeper(self) -> None:
        while True:
            with anyio.move_on_after(_SWEEP):
                await self._sweep_now.wait()
            self._sweep_now = anyio.Event()
            self._sweep()

    def _sweep(self) -> None:
        """Forget what nothing uses: at once if its copy stands, after a day if it was never to be had."""
        now = self._clock()
        for entry in self.inventory.orphans():
            record = self.ledger.get(entry.request)
            settled = bool(entry.verdict) or (record is not None and record.protected)
            if not settled and now - (entry.orphaned_at or now) < ORPHAN_LIFE:
                continue
            if entry.request in self.queue.processing:
                continue
            self._passes.tried(entry.request, failed=False)
            self.inventory.forget(entry.request)
            self.ledger.forget(entry.request)
            self.queue.discard(entry.request)
        names = {r.source.name for r in self.inventory.entries}
        for image in [i for i in self._labels if i not in names]:
            del self._labels[image]
            self._metrics.forget_image(image)

    def update_gauges(self) -> None:
        """Bring the gauges of images to what is known now."""
        now = self._clock()
        counts = dict.fromkeys(STATES, 0) | self.inventory.states()
        oldest = 0.0
        for request, entry in self.inventory.entries.items():
            if entry.verdict:
                continue
            record = self.ledger.get(request)
            state = state_of(record)
            counts[state] = counts.get(state, 0) + 1
            if record is None or not record.protected:
                oldest = max(oldest, now - entry.wanted_since)
        for state in counts:
            self._metrics.images.labels(state).set(counts[state])
        self._metrics.oldest_unprotected.set(oldest)
        self._metrics.queue_longest.set(self.queue.longest_running())


def state_of(record: Record | None) -> str:
    """An image's state: that of its last attempt, `pending` before the first."""
    if record is None or record.result is None:
        return "failed" if record is not None and record.error is not None else "pending"
    return record.result.state


def _part(request: MirrorRequest) -> str:
    """What a refusal of the target concerns: the first part of the path, which is a project where there are such."""
    return request.repository.partition("/")[0]
