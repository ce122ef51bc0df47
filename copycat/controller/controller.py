"""The controller: what changes becomes a key, a worker takes the key, one place decides what follows.

Informers call `observe`; nothing is worked on until `open`, because only then every claimant of a tag
is known. A key whose copy stands and is fresh costs no request, however often its Pods change.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial

import anyio

from copycat.controller.due import Agenda, Intervals
from copycat.controller.holds import HOLD, Hold, Holds
from copycat.controller.inventory import Cause, Inventory
from copycat.controller.observer import Nobody, Observer
from copycat.controller.passes import Pass, Passes
from copycat.controller.pulls import Pulls
from copycat.controller.report import Reporter, state_of
from copycat.errors import CopycatError
from copycat.kube.workload import Workload
from copycat.logs import bound, get_logger
from copycat.metrics import Metrics
from copycat.mirror.ledger import Ledger, Record
from copycat.mirror.mirror import Mirror
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.workqueue import Priority, QueueClosed, WorkQueue

__all__ = [
    "HOLD",
    "ORPHAN_LIFE",
    "Controller",
    "Hold",
    "Intervals",
    "Nobody",
    "Observer",
    "state_of",
]

_log = get_logger(__name__)

#: What nothing uses any more is kept this long if it was never copied (seconds).
ORPHAN_LIFE = 24 * 3600.0
_SWEEP = 30.0


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
        pulls: Pulls | None = None,
        hold_target: bool = True,
        may_write: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is worked on yet.

        Args:
            pulls: how pull secrets are used; without it they are not.
            hold_target: a target that refuses is left alone for a while.
            may_write: false once leadership is lost.
        """
        self.inventory = inventory
        self.mirror = mirror
        self.ledger = ledger
        self.queue: WorkQueue[MirrorRequest] = WorkQueue(
            clock=clock, fair=inventory.group, metrics=metrics
        )
        self.opened = False
        self.holds = Holds(queue=self.queue, ledger=ledger, enabled=hold_target, clock=clock)
        self._metrics = metrics
        self._workers = workers
        self._intervals = intervals
        self._agenda = Agenda(
            inventory=inventory,
            ledger=ledger,
            intervals=intervals,
            digest_pull=digest_pull,
            clock=clock,
            jitter=jitter,
        )
        self._reporter = Reporter(metrics=metrics, clock=clock)
        self._observer = observer or Nobody()
        self._may_write = may_write
        self._pulls = pulls
        if pulls is not None:
            pulls.retry = self._retry
        self._clock = clock
        self._sleep = sleep
        self._passes = Passes(self._force_all)
        self._sweep_now = anyio.Event()

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
            self._metrics.know_image(entry.request.source.name)
            failing = self.inventory.failing(entry.request)
            self.queue.add(entry.request, Priority.URGENT if failing else Priority.INITIAL)

    def _enqueue(self, request: MirrorRequest, cause: Cause) -> None:
        entry = self.inventory.entries.get(request)
        if entry is None or entry.verdict:
            return
        self._metrics.know_image(request.source.name)
        # a kubelet that reports another digest is a change of its Pod; one more Pod is none
        reported = cause & Cause.DIGEST and not cause & Cause.NEW
        if reported or cause & (Cause.CHANGED | Cause.RUNNING):
            self.ledger.warm(request)
        if cause & Cause.CHANGED:
            self.ledger.stale(request)
        priority = Priority.LIVE
        if cause & Cause.FAILING:
            priority = Priority.URGENT
        if self._agenda.need(entry) is not None:
            self.queue.add(request, priority)

    # Work

    async def run(self) -> None:
        """Work until cancelled, or until the queue is closed and drained."""
        try:
            async with anyio.create_task_group() as timers:
                timers.start_soon(self._sweeper)
                timers.start_soon(self._maintain)
                if self._pulls is not None:
                    timers.start_soon(self._pulls.watch)
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
        need = self._agenda.need(entry)
        if need is None:
            self._passes.tried(request, failed=False)
            self._schedule(request, self.ledger[request])
            return
        if self.holds.holds(request):
            self._passes.tried(request, failed=True)
            return
        if not self._may_write():
            raise QueueClosed("leadership is lost")
        entry.forced = False
        started = self._clock()
        with bound(
            reconcile_id=uuid.uuid4().hex[:12],
            image=str(request.source),
            namespace=self.inventory.group(request),
        ):
            self._observer.started(request)
            result = await self._mirror(request, need)
            self._decide(request, need, result, self._clock() - started)

    async def _mirror(self, request: MirrorRequest, need: Need) -> MirrorResult:
        """An attempt never raises: a bug costs one image its copy, not the others theirs."""
        attempt = partial(self.mirror.run, request, progress=partial(self._observer.moved, request))
        try:
            if self._pulls is None:
                return await attempt(need)
            return await self._pulls.run(request, need, self.inventory.askers(request), attempt)
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

    # The one decision

    def _decide(
        self, request: MirrorRequest, need: Need, result: MirrorResult, seconds: float
    ) -> None:
        """Done, later, or not before something changes. The only place that counts, logs and records."""
        hold = self.holds.judge(request, result)
        record = self.ledger.finished(request, result, held_until=hold.until if hold else 0.0)
        record.running = tuple(r.digest for r in need.running)
        record.platforms = need.platforms
        self._reporter.count(request, result, seconds)
        self._reporter.tell(request, result, seconds, record)
        self._schedule(request, record)
        rivals = self.inventory.rivals(request)
        if result.tag_written:
            self._look_again(rivals)
        elif any(self._wrote_since(rival, self._clock() - seconds) for rival in rivals):
            self._look_again([request])
        elif set(need.rivals) > {rival.source for rival in rivals}:
            # one of them let go while this went on
            self._look_again([request])
        self._observer.finished(request, result)
        entry = self.inventory.entries.get(request)
        # forced while this attempt ran: the pass means the next one
        if entry is None or not entry.forced:
            self._passes.tried(request, failed=result.state == "failed")
        if entry is None or not entry.users:
            self._sweep_now.set()

    def _look_again(self, rivals: Iterable[MirrorRequest]) -> None:
        """A tag was written, or nobody of that source wants it any more: it may be no conflict now."""
        for request in rivals:
            record = self.ledger.get(request)
            if record is not None and state_of(record) == "conflict":
                self.ledger.stale(request)
                self.queue.add(request, Priority.LIVE)

    def _wrote_since(self, request: MirrorRequest, moment: float) -> bool:
        """Whether its tag was written after that moment."""
        record = self.ledger.get(request)
        if record is None or record.result is None or record.target_checked is None:
            return False
        return record.result.tag_written and record.target_checked >= moment

    def _schedule(self, request: MirrorRequest, record: Record) -> None:
        look = self._agenda.next_look(request, record)
        if look is not None:
            priority, delay = look
            self.queue.add(request, priority, delay=delay, rerun=True)

    def _retry(self, request: MirrorRequest) -> None:
        """Something changed that may mend this failure: no cool-down any more, and at once."""
        self.ledger.warm(request)
        self.queue.add(request, Priority.URGENT)

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
        self.holds.release_all()
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
            if not entry.let_go:
                # the tag is for those that still run
                entry.let_go = True
                self._look_again(self.inventory.rivals(entry.request))
            settled = bool(entry.verdict) or (record is not None and record.protected)
            if not settled and now - (entry.orphaned_at or now) < ORPHAN_LIFE:
                continue
            if entry.request in self.queue.processing:
                continue
            self._passes.tried(entry.request, failed=False)
            self.inventory.forget(entry.request)
            self.ledger.forget(entry.request)
            if self._pulls is not None:
                self._pulls.forget(entry.request)
            self.queue.discard(entry.request)
        self._metrics.forget_images_but({r.source.name for r in self.inventory.entries})

    def update_gauges(self) -> None:
        """Bring the gauges of images to what is known now."""
        longest = self.queue.longest_running()
        self._reporter.update_gauges(self.inventory, self.ledger, longest=longest)
