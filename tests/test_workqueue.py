from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from copycat.metrics import Metrics
from copycat.workqueue import Priority, QueueClosed, WorkQueue

AGEING = 8.0


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def group_of(key: str) -> str:
    """`a1` and `a2` belong together."""
    return key[0]


@pytest.fixture
def clock() -> Clock:
    """The queue's clock."""
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    """A queue with a clock of its own."""
    return WorkQueue(clock=clock, ageing=AGEING, fair=group_of)


async def take(queue: WorkQueue[str]) -> str | None:
    """The key that is ready now; `None` (after a cancelled `get`) if there is none."""
    with anyio.move_on_after(0.001 if not sum(queue.depth().values()) else math.inf):
        return await queue.get()

    return None


async def drain(queue: WorkQueue[str]) -> list[str]:
    """All keys that are ready, each done at once."""
    taken = []
    while (key := await take(queue)) is not None:
        queue.done(key)
        taken.append(key)

    return taken


async def test_many_adds_are_one_run(queue: WorkQueue[str]) -> None:
    """A key waits once, however often it is added."""
    for _ in range(5):
        queue.add("a1")

    assert len(queue) == 1
    assert await drain(queue) == ["a1"]


async def test_priority_then_order_of_adding(queue: WorkQueue[str]) -> None:
    """Higher priorities first; within one, first in, first out."""
    for key, priority in [
        ("a1", Priority.CHECK),
        ("a2", Priority.INITIAL),
        ("a3", Priority.LIVE),
        ("a4", Priority.LIVE),
        ("a5", Priority.URGENT),
    ]:
        queue.add(key, priority)

    assert queue.depth() == {
        Priority.CHECK: 1,
        Priority.INITIAL: 1,
        Priority.LIVE: 2,
        Priority.URGENT: 1,
    }
    assert await drain(queue) == ["a5", "a3", "a4", "a2", "a1"]


async def test_a_higher_priority_moves_a_key_to_the_end_of_that_level(
    queue: WorkQueue[str],
) -> None:
    """And a lower one changes nothing."""
    queue.add("a1", Priority.CHECK)
    queue.add("a2", Priority.LIVE)
    queue.add("a1", Priority.LIVE)
    queue.add("a2", Priority.CHECK)

    assert await drain(queue) == ["a2", "a1"]


async def test_groups_take_turns(queue: WorkQueue[str]) -> None:
    """A group with many keys does not delay another's single one."""
    for n in range(5):
        queue.add(f"a{n}")

    queue.add("b0")
    queue.add("c0")
    queue.add("c1")

    assert await drain(queue) == ["a0", "b0", "c0", "a1", "c1", "a2", "a3", "a4"]


async def test_without_groups_keys_are_first_in_first_out(clock: Clock) -> None:
    """`fair` is optional."""
    queue: WorkQueue[str] = WorkQueue(clock=clock)
    for key in ("a0", "a1", "b0"):
        queue.add(key)

    assert await drain(queue) == ["a0", "a1", "b0"]


async def test_delays(queue: WorkQueue[str], clock: Clock) -> None:
    """A delayed key waits for its time; the earliest wish wins, and equal times keep their order."""
    queue.add("a1", delay=5)
    queue.add("a2", delay=3)
    queue.add("a3", delay=9)
    queue.add("a3", delay=3)
    queue.add("a2", delay=60)

    assert len(queue) == 3
    assert await drain(queue) == []
    clock.now += 3
    assert await drain(queue) == ["a2", "a3"]
    clock.now += 2
    assert await drain(queue) == ["a1"]


async def test_a_delayed_key_can_become_ready_at_once(queue: WorkQueue[str]) -> None:
    """Adding it without a delay is the earlier wish, and its higher priority is kept."""
    queue.add("a1", Priority.URGENT, delay=5)
    queue.add("a2", Priority.LIVE)
    queue.add("a1", Priority.CHECK)

    assert await drain(queue) == ["a1", "a2"]


async def test_waiting_raises_the_level(queue: WorkQueue[str], clock: Clock) -> None:
    """A key rises one level for each `ageing` seconds, to the end of that level and no higher than the top."""
    queue.add("a1", Priority.CHECK)
    clock.now += AGEING
    queue.add("a2", Priority.INITIAL)
    queue.add("a3", Priority.LIVE)

    assert queue.depth()[Priority.INITIAL] == 2
    clock.now += 10 * AGEING
    assert queue.depth()[Priority.URGENT] == 3
    assert await drain(queue) == ["a3", "a1", "a2"]


async def test_no_ageing(clock: Clock) -> None:
    """With an infinite `ageing` a level is for ever."""
    queue: WorkQueue[str] = WorkQueue(clock=clock, ageing=math.inf)
    queue.add("a1", Priority.CHECK)
    clock.now += 1e9

    assert queue.depth()[Priority.CHECK] == 1


async def test_one_worker_per_key(queue: WorkQueue[str]) -> None:
    """A key that is being processed is not handed out, but it is not forgotten either."""
    queue.add("a1")
    assert await take(queue) == "a1"
    queue.add("a1")

    assert queue.processing == {"a1"}
    assert await take(queue) is None
    queue.done("a1")
    assert await take(queue) == "a1"
    queue.done("a1")
    assert await take(queue) is None


async def test_rerun_can_be_declined(queue: WorkQueue[str]) -> None:
    """What is already being done is not done again for a mere repetition."""
    queue.add("a1")
    assert await take(queue) == "a1"
    queue.add("a1", rerun=False)
    queue.done("a1")

    assert len(queue) == 0


async def test_a_rerun_keeps_priority_and_time(queue: WorkQueue[str], clock: Clock) -> None:
    """The highest priority and the earliest time that were asked for meanwhile."""
    queue.add("a1", Priority.URGENT)
    assert await take(queue) == "a1"
    queue.add("a1", Priority.CHECK, delay=4)
    queue.add("a1", Priority.INITIAL, delay=9)
    queue.done("a1")

    assert len(queue) == 1
    assert await take(queue) is None
    clock.now += 4
    assert queue.depth()[Priority.INITIAL] == 1


async def test_discarding(queue: WorkQueue[str], clock: Clock) -> None:
    """Ready, delayed and repeated keys are forgotten; one in work is left to its worker."""
    queue.add("b1")
    assert await take(queue) == "b1"
    queue.add("b1")
    queue.add("a1")
    queue.add("a2")
    queue.add("a3", delay=1)
    for key in ("a1", "a3", "b1", "unknown"):
        queue.discard(key)

    assert queue.processing == {"b1"}
    queue.done("b1")
    clock.now += 5
    assert await drain(queue) == ["a2"]


async def test_done_without_get_is_a_bug(queue: WorkQueue[str]) -> None:
    """It does not pass silently."""
    with pytest.raises(KeyError):
        queue.done("a1")


async def test_longest_running(queue: WorkQueue[str], clock: Clock) -> None:
    """The age of the oldest key in work, 0 without any."""
    assert queue.longest_running() == 0
    queue.add("a1")
    await queue.get()
    clock.now += 7
    queue.add("a2")
    await queue.get()

    assert queue.longest_running() == 7
    queue.done("a1")
    assert queue.longest_running() == 0


async def test_closing_ends_every_get(queue: WorkQueue[str]) -> None:
    """Waiting ones and later ones; keys that still wait are not handed out, running ones may end."""
    closed = []

    async def worker() -> None:
        with pytest.raises(QueueClosed):
            await queue.get()

        closed.append(True)

    queue.add("a1")
    await queue.get()
    queue.add("a1")
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(worker)

        await wait_all_tasks_blocked()
        queue.close()

    queue.add("a2")
    queue.done("a1")

    assert closed == [True] * 3
    assert len(queue) == 0
    with pytest.raises(QueueClosed):
        await queue.get()


async def test_a_waiting_worker_is_woken(queue: WorkQueue[str]) -> None:
    """Each key goes to one of those that wait."""
    taken: list[str] = []

    async def worker() -> None:
        taken.append(await queue.get())

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(worker)

        await wait_all_tasks_blocked()
        for key in ("a1", "b1", "c1"):
            queue.add(key)

    assert sorted(taken) == ["a1", "b1", "c1"]


async def test_a_waiting_worker_sleeps_no_longer_than_the_earliest_delay() -> None:
    """Also if the earlier one comes later, and with the real clock."""
    queue: WorkQueue[str] = WorkQueue()
    taken: list[str] = []
    finished = anyio.Event()

    async def worker() -> None:
        while True:
            key = await queue.get()
            taken.append(key)
            queue.done(key)
            if len(taken) == 3:
                finished.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker)
        tasks.start_soon(worker)
        queue.add("never", delay=3600)
        await wait_all_tasks_blocked()
        queue.add("late", delay=0.02)
        queue.add("early", delay=0.01)
        queue.add("latest", delay=0.03)
        await finished.wait()
        tasks.cancel_scope.cancel()

    assert taken == ["early", "late", "latest"]
    assert len(queue) == 1


@pytest.mark.parametrize("order", ["cancel first", "wake first"])
async def test_a_cancelled_get_hands_its_wake_up_on(queue: WorkQueue[str], order: str) -> None:
    """A worker that is woken for a key and cancelled in the same moment has the key, or another one gets it."""
    taken: list[tuple[str, str]] = []
    first = anyio.CancelScope()
    got = anyio.Event()

    async def worker(name: str) -> None:
        taken.append((name, await queue.get()))
        got.set()

    async def unlucky() -> None:
        with first:
            await worker("unlucky")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(unlucky)
        await wait_all_tasks_blocked()
        tasks.start_soon(worker, "lucky")
        await wait_all_tasks_blocked()
        if order == "cancel first":
            first.cancel()
            queue.add("a1")
        else:
            queue.add("a1")
            first.cancel()

        await got.wait()
        tasks.cancel_scope.cancel()

    assert taken == [("lucky" if first.cancelled_caught else "unlucky", "a1")]
    assert first.cancelled_caught or order == "wake first"


async def test_a_cancelled_get_takes_nothing(queue: WorkQueue[str]) -> None:
    """A key that is ready stays if the one who asks is already cancelled."""
    queue.add("a1")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await queue.get()

    assert scope.cancelled_caught
    assert queue.processing == frozenset()
    assert await take(queue) == "a1"


async def test_a_burst_does_not_hold_the_event_loop(clock: Clock) -> None:
    """Of very many keys that come due together one call works off a part; all come, none twice."""
    queue: WorkQueue[int] = WorkQueue(clock=clock, ageing=AGEING)
    for n in range(5000):
        queue.add(n, delay=1)

    clock.now += 1
    assert sum(queue.depth().values()) == 1000
    taken = []
    for _ in range(5000):
        key = await queue.get()
        queue.done(key)
        taken.append(key)

    assert taken == list(range(5000))


async def test_rescheduling_does_not_grow_the_memory(queue: WorkQueue[str], clock: Clock) -> None:
    """Timers that no longer count are cleared away."""
    queue.add("b1", delay=50)
    for n in range(20_000):
        queue.add(f"a{n % 10}", delay=100)
        queue.discard(f"a{n % 10}")

    queue.add("a1", delay=1)
    assert len(queue._timers) < 1000
    clock.now += 1
    assert await drain(queue) == ["a1"]


async def test_metrics(clock: Clock) -> None:
    """Depth by level, adds, waiting and working times, and the oldest key in work."""
    metrics = Metrics(version="0")
    queue: WorkQueue[str] = WorkQueue(clock=clock, ageing=AGEING, metrics=metrics)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"k8s_copycat_workqueue_{name}", labels)

    queue.add("a1", Priority.CHECK)
    queue.add("a2")
    queue.add("a2", Priority.URGENT)
    queue.add("a3", delay=3)
    assert value("adds_total") == 4
    assert value("depth", priority="check") == 1
    assert value("depth", priority="live") == 0
    assert value("depth", priority="urgent") == 1

    clock.now += 2
    assert await queue.get() == "a2"
    clock.now += 1
    assert value("depth", priority="urgent") == 0
    assert value("queue_duration_seconds_sum") == 2
    assert value("longest_running_seconds") == 1
    queue.done("a2")
    assert value("work_duration_seconds_sum") == 1
    queue.discard("a1")
    assert value("depth", priority="check") == 0

    # A new queue on the same metrics begins at zero.
    queue.depth()
    assert value("depth", priority="live") == 1
    WorkQueue[str](metrics=metrics)
    assert value("depth", priority="live") == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "delay", "hire", "fire", "step"]), st.integers(0, 8)),
        max_size=30,
    )
)
@settings(max_examples=50)
async def test_no_key_is_lost_among_workers_that_come_and_go(script: list[tuple[str, int]]) -> None:
    """With workers cancelled at any moment, every key is worked on after its last add, by one worker at a time."""
    queue: WorkQueue[str] = WorkQueue(fair=group_of)
    keys = [f"{group}{n}" for group in "abc" for n in range(3)]
    pending: set[str] = set()
    active: set[str] = set()
    settled: list[anyio.Event] = []

    async def worker(steps: int) -> None:
        while True:
            key = await queue.get()
            assert key not in active
            active.add(key)
            pending.discard(key)
            try:
                for _ in range(steps):
                    await checkpoint()
            except BaseException:
                pending.add(key)
                queue.add(key)
                raise
            finally:
                active.discard(key)
                queue.done(key)

            if settled and not pending and not active:
                settled[0].set()

    async with anyio.create_task_group() as tasks:
        scopes: list[anyio.CancelScope] = []

        async def scoped(scope: anyio.CancelScope, steps: int) -> None:
            with scope:
                await worker(steps)

        for action, number in script:
            if action in {"add", "delay"}:
                pending.add(keys[number])
                queue.add(keys[number], delay=0.001 if action == "delay" else 0)
            elif action == "hire":
                scopes.append(anyio.CancelScope())
                tasks.start_soon(scoped, scopes[-1], number % 4)
            elif action == "fire" and scopes:
                scopes.pop(number % len(scopes)).cancel()
            elif action == "step":
                await checkpoint()

        tasks.start_soon(worker, 1)
        if pending or active:
            settled.append(anyio.Event())
            await settled[0].wait()

        tasks.cancel_scope.cancel()

    assert len(queue) == 0


@dataclass
class Waiting:
    """A waiting key in the model."""

    key: str
    level: int
    ready_at: float
    due: float
    """When its next timer fires; infinite if none will."""
    number: int
    """The order of its timer among those of one time."""
    ready: bool = False
    entered: int = 0
    """The order of its entry into its level."""


@dataclass
class Model:
    """The queue in the plainest form: lists that are searched."""

    waiting: list[Waiting] = field(default_factory=list)
    running: dict[str, float] = field(default_factory=dict)
    dirty: dict[str, tuple[int, float]] = field(default_factory=dict)
    turns: dict[int, list[str]] = field(default_factory=lambda: {p: [] for p in Priority})
    count: int = 0

    def find(self, key: str) -> Waiting | None:
        return next((w for w in self.waiting if w.key == key), None)

    def next_number(self) -> int:
        self.count += 1
        return self.count

    def enter(self, item: Waiting, level: int) -> None:
        self.leave(item)
        item.level, item.ready, item.entered = level, True, self.next_number()
        if group_of(item.key) not in self.turns[level]:
            self.turns[level].append(group_of(item.key))

    def leave(self, item: Waiting) -> None:
        if not item.ready:
            return

        item.ready = False
        group = group_of(item.key)
        if not any(group == group_of(w.key) for w in self.at(item.level)):
            self.turns[item.level].remove(group)

    def at(self, level: int) -> list[Waiting]:
        return [w for w in self.waiting if w.ready and w.level == level]

    def fire(self, item: Waiting) -> None:
        """Become ready, or rise; then wait for the next rise unless at the top."""
        if not item.ready:
            self.enter(item, item.level)
        elif item.level < Priority.URGENT:
            self.enter(item, item.level + 1)

        item.due = item.due + AGEING if item.level < Priority.URGENT else math.inf
        item.number = self.next_number()

    def advance(self, now: float) -> None:
        while due := [w for w in self.waiting if w.due <= now]:
            self.fire(min(due, key=lambda w: (w.due, w.number)))

    def want(self, key: str, level: int, ready_at: float, now: float) -> None:
        item = self.find(key)
        if item is None:
            item = Waiting(key, level, ready_at, ready_at, self.next_number())
            self.waiting.append(item)
        elif item.ready:
            if level > item.level:
                self.enter(item, level)

            return
        else:
            item.level = max(item.level, level)
            if ready_at < item.ready_at:
                item.ready_at = item.due = ready_at
                item.number = self.next_number()

        if item.ready_at <= now:
            self.fire(item)

    def add(self, key: str, level: int, ready_at: float, now: float, rerun: bool) -> None:
        if key not in self.running:
            self.want(key, level, ready_at, now)
        elif rerun:
            before = self.dirty.get(key, (level, ready_at))
            self.dirty[key] = (max(level, before[0]), min(ready_at, before[1]))

    def take(self, now: float) -> str | None:
        for level in sorted(Priority, reverse=True):
            if not self.turns[level]:
                continue

            group = self.turns[level][0]
            item = min(
                (w for w in self.at(level) if group_of(w.key) == group), key=lambda w: w.entered
            )
            self.leave(item)
            self.waiting.remove(item)
            self.running[item.key] = now
            if group in self.turns[level]:
                self.turns[level].remove(group)
                self.turns[level].append(group)

            return item.key

        return None

    def discard(self, key: str) -> None:
        self.dirty.pop(key, None)
        item = self.find(key)
        if item is not None:
            self.leave(item)
            self.waiting.remove(item)

    def done(self, key: str, now: float) -> None:
        del self.running[key]
        if key in self.dirty:
            level, ready_at = self.dirty.pop(key)
            self.want(key, level, ready_at, now)


class QueueMachine(RuleBasedStateMachine):
    """The queue does what the model does, whatever happens in whatever order."""

    keys = st.sampled_from([f"{group}{n}" for group in "abc" for n in range(3)])
    #: Whole seconds, so that equal times are common and sums are exact.
    delays = st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, 5.0, 20.0, -1.0])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue: WorkQueue[str] = WorkQueue(clock=self.clock, ageing=AGEING, fair=group_of)
        self.model = Model()
        self.runner = asyncio.Runner()

    def teardown(self) -> None:
        """Whatever was added and not discarded comes out in the end."""
        try:
            for running in list(self.model.running):
                self.finish(running)

            self.clock.now += 1000
            while self.model.waiting or self.take():
                key = self.take()
                if key is not None:
                    self.finish(key)

            assert len(self.queue) == 0
        finally:
            self.runner.close()

    def take(self) -> str | None:
        self.model.advance(self.clock.now)
        expected = self.model.take(self.clock.now)
        actual = self.runner.run(take(self.queue))
        assert actual == expected
        return actual

    def finish(self, key: str) -> None:
        self.model.advance(self.clock.now)
        self.model.done(key, self.clock.now)
        self.queue.done(key)

    @initialize(keys=st.lists(keys, max_size=6))
    def start(self, keys: list[str]) -> None:
        for key in keys:
            self.add(key, Priority.INITIAL, 0.0, rerun=True)

    def add(self, key: str, priority: Priority, delay: float, *, rerun: bool) -> None:
        now = self.clock.now
        self.model.advance(now)
        self.model.add(key, priority, now + max(delay, 0), now, rerun)
        self.queue.add(key, priority, delay=delay, rerun=rerun)

    @rule(key=keys, priority=st.sampled_from(Priority), delay=delays, rerun=st.booleans())
    def add_one(self, key: str, priority: Priority, delay: float, rerun: bool) -> None:
        self.add(key, priority, delay, rerun=rerun)

    @rule()
    def get(self) -> None:
        self.take()

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(sorted(self.model.running))))

    @rule(key=keys)
    def discard(self, key: str) -> None:
        self.model.discard(key)
        self.queue.discard(key)

    @rule(seconds=st.sampled_from([1.0, 2.0, 4.0, 8.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def same(self) -> None:
        self.model.advance(self.clock.now)

        assert {p: len(self.model.at(p)) for p in Priority} == self.queue.depth()
        assert len(self.model.waiting) == len(self.queue)
        assert frozenset(self.model.running) == self.queue.processing
        oldest = min(self.model.running.values(), default=self.clock.now)
        assert self.clock.now - oldest == self.queue.longest_running()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=80, stateful_step_count=40)
