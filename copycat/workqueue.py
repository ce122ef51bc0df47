"""The queue between what changes and what is done about it.

It holds keys, not events: a key is there once, however often it is added, and whoever takes it looks
at the world anew. The model is client-go's `util/workqueue` (dirty and processing sets: one worker
per key, no change lost) with controller-runtime's priorities (`pkg/controller/priorityqueue`):
adding a waiting key again gives it the higher priority and the earlier time.

Two things are added, because whoever may create Pods decides what comes in. Within a priority the
groups (`fair`) take turns, so that ten thousand keys of one group do not delay another's single one;
and a key that has waited rises a level every `ageing` seconds, so that nothing starves.

Every change happens synchronously. `get` takes its key after its last await, therefore a cancelled
`get` cannot lose one.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

from copycat.errors import CopycatError
from copycat.metrics import Metrics

__all__ = ["Priority", "QueueClosed", "WorkQueue"]

K = TypeVar("K", bound=Hashable)

#: Timers that one call works off at most: fifty thousand keys that rise together must not stop the event loop.
_TIMERS_PER_CALL = 1000

#: Below this many stale timers the heap is not worth rebuilding.
_STALE_TIMERS = 256


class Priority(IntEnum):
    """Levels, the higher the sooner. Their lower-case names are label values."""

    CHECK = 0
    """Periodic verification of what is there."""
    INITIAL = 1
    """What the first list showed."""
    LIVE = 2
    """What just changed."""
    URGENT = 3
    """Forced, or a Pod cannot start without it."""


class QueueClosed(CopycatError):
    """The queue hands out nothing any more: the program ends."""

    default_reason = "closed"


class _Item(Generic[K]):
    """A waiting key. `timer` is the number of its one valid entry in the heap (0: none)."""

    __slots__ = ("group", "key", "level", "ready", "ready_at", "timer")

    def __init__(self, key: K, group: str, level: int, ready_at: float) -> None:
        self.key = key
        self.group = group
        self.level = level
        self.ready_at = ready_at
        self.ready = False
        self.timer = 0


@dataclass(slots=True)
class _Run:
    """A key in a worker's hands, and how it is to be queued again if it was added meanwhile."""

    started: float
    dirty: bool = False
    priority: Priority = Priority.CHECK
    ready_at: float = math.inf


class _Level(Generic[K]):
    """The ready keys of one priority: first in, first out, the groups in turn."""

    __slots__ = ("_groups", "count")

    def __init__(self) -> None:
        # Ordered dictionaries have O(1) removal in the middle and at the front; a plain one has not.
        self._groups: OrderedDict[str, OrderedDict[K, _Item[K]]] = OrderedDict()
        self.count = 0

    def push(self, item: _Item[K]) -> None:
        keys = self._groups.get(item.group)
        if keys is None:
            keys = self._groups[item.group] = OrderedDict()

        keys[item.key] = item
        self.count += 1

    def pop(self) -> _Item[K]:
        group, keys = next(iter(self._groups.items()))
        _, item = keys.popitem(last=False)
        self.count -= 1
        if keys:
            self._groups.move_to_end(group)
        else:
            del self._groups[group]

        return item

    def remove(self, item: _Item[K]) -> None:
        keys = self._groups[item.group]
        del keys[item.key]
        self.count -= 1
        if not keys:
            del self._groups[item.group]


class WorkQueue(Generic[K]):
    """Keys that wait, by priority and time; for one event loop. All operations are O(log n)."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        ageing: float = 600.0,
        fair: Callable[[K], str] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Args: `ageing` in seconds (`math.inf`: never); `fair` names a key's group, always the same for a key."""
        self._clock = clock
        self._ageing = ageing
        self._fair = fair
        self._metrics = metrics
        self._items: dict[K, _Item[K]] = {}
        self._levels: tuple[_Level[K], ...] = tuple(_Level[K]() for _ in Priority)
        self._timers: list[tuple[float, int, _Item[K]]] = []
        self._numbers = 0
        self._stale = 0
        self._running: dict[K, _Run] = {}
        self._waiters: deque[anyio.Event] = deque()
        self._closed = False
        self._depths = (
            [metrics.queue_depth.labels(p.name.lower()) for p in Priority] if metrics else []
        )
        if metrics:
            metrics.queue_longest.set_function(self.longest_running)
            # A queue before this one (a leadership that was lost) may have left its numbers.
            for level in Priority:
                self._gauge(level)

    def __len__(self) -> int:
        """Waiting keys, ready or delayed; without those being processed."""
        return len(self._items)

    def add(
        self, key: K, priority: Priority = Priority.LIVE, *, delay: float = 0.0, rerun: bool = True
    ) -> None:
        """Want `key` to be worked on, not before `delay` seconds.

        A waiting key gets the higher priority (it goes to the end of its new level) and the earlier
        time. One that is being processed is queued again when it is done, unless `rerun` is false:
        then what runs now is enough. After `close` nothing happens.
        """
        if self._closed:
            return

        now = self._clock()
        self._advance(now)
        ready_at = now + max(delay, 0.0)
        run = self._running.get(key)
        if run is not None:
            if rerun:
                run.priority = max(run.priority, priority) if run.dirty else priority
                run.ready_at = min(run.ready_at, ready_at)
                run.dirty = True
        else:
            self._want(key, priority, ready_at, now)

        if self._metrics:
            self._metrics.queue_adds.inc()

        self._wake()

    async def get(self) -> K:
        """The next key, once there is one; the caller owes a `done(key)`.

        Raises:
            QueueClosed: `close` was called, whatever still waits.
        """
        await anyio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise QueueClosed("the work queue is closed")

            now = self._clock()
            self._advance(now)
            item = self._take(now)
            if item is not None:
                return item.key

            await self._wait(now)

    def done(self, key: K) -> None:
        """The work on `key` ended, however; if it was added meanwhile it waits again.

        Raises:
            KeyError: nobody works on it.
        """
        run = self._running.pop(key)
        now = self._clock()
        self._advance(now)
        if self._metrics:
            self._metrics.queue_work.observe(now - run.started)

        if run.dirty and not self._closed:
            self._want(key, run.priority, run.ready_at, now)
            self._wake()

    def discard(self, key: K) -> None:
        """Forget that `key` waits, or is to run again. What runs now is left alone."""
        run = self._running.get(key)
        if run is not None:
            run.dirty, run.ready_at = False, math.inf

        item = self._items.pop(key, None)
        if item is None:
            return

        self._unschedule(item)
        if item.ready:
            self._levels[item.level].remove(item)
            self._gauge(item.level)

    def close(self) -> None:
        """Hand out nothing more, and end every `get`. What is being processed may still be `done`."""
        self._closed = True
        for gauge in self._depths:
            gauge.set(0)  # what waits will not be worked on
        while self._waiters:
            self._wake()

    def depth(self) -> dict[Priority, int]:
        """How many keys are ready, by the priority that they have by now."""
        self._advance(self._clock())
        return {priority: self._levels[priority].count for priority in Priority}

    @property
    def processing(self) -> frozenset[K]:
        """The keys in workers' hands."""
        return frozenset(self._running)

    def longest_running(self) -> float:
        """Seconds since the oldest of the keys in workers' hands was taken; 0 if there is none."""
        # The dictionary is in the order of taking.
        oldest = next(iter(self._running.values()), None)
        return self._clock() - oldest.started if oldest else 0.0

    def _want(self, key: K, priority: Priority, ready_at: float, now: float) -> None:
        """Make a key wait, or merge the wish with the one that waits."""
        item = self._items.get(key)
        if item is None:
            group = self._fair(key) if self._fair else ""
            item = self._items[key] = _Item(key, group, priority, ready_at)
            self._place(item, now)
        elif item.ready:
            self._promote(item, priority)
        else:
            item.level = max(item.level, priority)
            if ready_at < item.ready_at:
                item.ready_at = ready_at
                self._place(item, now)

    def _place(self, item: _Item[K], now: float) -> None:
        if item.ready_at <= now:
            self._make_ready(item)
        else:
            self._schedule(item, item.ready_at)

    def _make_ready(self, item: _Item[K]) -> None:
        item.ready = True
        self._levels[item.level].push(item)
        self._gauge(item.level)
        self._schedule(item, item.ready_at + self._ageing)

    def _promote(self, item: _Item[K], level: int) -> None:
        """Move a ready key to the end of a higher level; its waiting time goes on."""
        if level <= item.level:
            return

        self._levels[item.level].remove(item)
        self._gauge(item.level)
        item.level = level
        self._levels[level].push(item)
        self._gauge(level)

    def _take(self, now: float) -> _Item[K] | None:
        for level in reversed(self._levels):
            if level.count:
                item = level.pop()
                break
        else:
            return None

        del self._items[item.key]
        self._unschedule(item)
        self._running[item.key] = _Run(started=now)
        if self._metrics:
            self._gauge(item.level)
            self._metrics.queue_wait.observe(now - item.ready_at)

        return item

    # Timers: one heap for "becomes ready" and "rises a level". An entry that no longer counts stays
    # until it comes up, or until half of the heap is of its kind.

    def _schedule(self, item: _Item[K], due: float) -> None:
        self._unschedule(item)
        if due == math.inf or (item.ready and item.level == Priority.URGENT):
            return

        self._numbers += 1
        item.timer = self._numbers
        heappush(self._timers, (due, item.timer, item))

    def _unschedule(self, item: _Item[K]) -> None:
        if not item.timer:
            return

        item.timer = 0
        self._stale += 1
        if self._stale > _STALE_TIMERS and self._stale * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].timer == entry[1]]
            heapify(self._timers)
            self._stale = 0

    def _advance(self, now: float) -> None:
        """Let what is due become ready or rise, in the order of its times."""
        for _ in range(_TIMERS_PER_CALL):
            due = self._next_due()
            if due > now:
                return

            _, _, item = heappop(self._timers)
            item.timer = 0
            if not item.ready:
                self._make_ready(item)
            else:
                self._promote(item, min(item.level + 1, Priority.URGENT))
                self._schedule(item, due + self._ageing)

    def _next_due(self) -> float:
        """When the next timer that counts is due; `math.inf` if there is none."""
        while self._timers:
            due, number, item = self._timers[0]
            if item.timer == number:
                return due

            heappop(self._timers)
            self._stale -= 1

        return math.inf

    # Waiters: each has an event and waits no longer than to the next timer. Every key that is added
    # wakes one of them, so as many have looked at the newest state as there are keys; one that is
    # cancelled passes its turn on.

    async def _wait(self, now: float) -> None:
        woken = anyio.Event()
        self._waiters.append(woken)
        try:
            with anyio.move_on_after(self._next_due() - now):
                await woken.wait()
        except BaseException:
            self._leave(woken)
            self._wake()
            raise
        self._leave(woken)

    def _leave(self, woken: anyio.Event) -> None:
        if not woken.is_set():
            self._waiters.remove(woken)

    def _wake(self) -> None:
        if self._waiters:
            self._waiters.popleft().set()

    def _gauge(self, level: int) -> None:
        if self._depths:
            self._depths[level].set(self._levels[level].count)
