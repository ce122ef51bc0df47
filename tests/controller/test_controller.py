"""The controller with a real queue, ledger and inventory, a clock that stands, and a mirror that says what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from structlog.testing import capture_logs

from copycat.controller.controller import HOLD, ORPHAN_LIFE, Controller, Intervals
from copycat.controller.inventory import Cause, Inventory
from copycat.controller.passes import Pass
from copycat.errors import CopycatError, Denied, NotFound, Unavailable
from copycat.kube.selection import Selection
from copycat.kube.workload import ContainerImage, Workload
from copycat.metrics import Metrics
from copycat.mirror.ledger import Ledger
from copycat.mirror.mirror import Mirror
from copycat.mirror.naming import Naming
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.oci.digest import Digest
from copycat.oci.reference import Reference
from copycat.workqueue import Priority

APP, OTHER = "quay.io/team/app:1", "quay.io/team/other:1"
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
Answer = MirrorResult | Exception | anyio.Event


def good(*anchored: Digest, **fields: Any) -> MirrorResult:
    """A copy was made."""
    told = MirrorResult(
        state="protected",
        target=Reference.parse("mirror.example/x:1"),
        digest=ONE,
        anchored=frozenset(anchored or (ONE,)),
        protected=True,
        source_checked=True,
        pulled=True,
        pushed=True,
    )
    return replace(told, **fields)


def bad(error: CopycatError) -> MirrorResult:
    """No copy was made."""
    target = Reference.parse("mirror.example/x:1")
    return MirrorResult(state="failed", target=target, reason=error.reason, error=error)


@dataclass
class Registry:
    """The target, as far as the controller knows it."""

    registry: str = "mirror.example"
    maintained: int = 0

    async def maintain(self) -> None:
        """Counts."""
        self.maintained += 1


@dataclass
class Script:
    """A mirror that answers in the order of its script, then well."""

    answers: list[Answer] = field(default_factory=list)
    needs: list[tuple[MirrorRequest, Need]] = field(default_factory=list)
    target: Registry = field(default_factory=Registry)

    async def run(
        self, request: MirrorRequest, need: Need, *, progress: Callable[..., None]
    ) -> MirrorResult:
        """The next answer; an event is waited for first."""
        self.needs.append((request, need))
        progress("pull", 1)
        answer = self.answers.pop(0) if self.answers else good()
        if isinstance(answer, anyio.Event):
            await answer.wait()
            answer = good(state="conflict" if need.rivals else "protected")
        if isinstance(answer, Exception):
            raise answer
        return answer


class World:
    """Everything around one controller."""

    def __init__(
        self, *answers: Answer, intervals: Intervals | None = None, **options: Any
    ) -> None:
        self.now = 1000.0
        self.mirror = Script(list(answers))
        self.metrics = Metrics(version="0")
        self.may_write = True
        clock = lambda: self.now  # noqa: E731 - three objects share it
        self.ledger = Ledger(clock=clock, jitter=lambda: 0.5)
        self.controller = Controller(
            inventory=Inventory(
                selection=Selection(exclude_registries=("ghcr.io",)),
                naming=Naming(),
                target_registry="mirror.example",
                clock=clock,
            ),
            mirror=cast("Mirror", self.mirror),
            ledger=self.ledger,
            metrics=self.metrics,
            workers=options.pop("workers", 1),
            intervals=intervals or Intervals(),
            may_write=lambda: self.may_write,
            clock=clock,
            jitter=lambda: 0.5,
            **{"sleep": _for_ever, **options},
        )

    @property
    def tried(self) -> int:
        """How many attempts there were."""
        return len(self.mirror.needs)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Controller]:
        """The controller, open and at work."""
        async with anyio.create_task_group() as group:
            self.controller.open()
            group.start_soon(self.controller.run)
            await wait_all_tasks_blocked()
            yield self.controller
            self.controller.queue.close()

    async def see(self, new: Workload, old: Workload | None = None) -> None:
        """A workload came or changed."""
        self.controller.observe(old, new)
        await wait_all_tasks_blocked()

    async def later(self, seconds: float) -> None:
        """Time goes by; the queue is woken to see it."""
        self.now += seconds
        self.controller.queue.depth()
        for _ in range(len(self.controller.queue) + 1):
            self.controller.queue._wake()
        await wait_all_tasks_blocked()

    def sample(self, name: str, image: str = "quay.io/team/app") -> float | None:
        """A counter's value."""
        return self.metrics.registry.get_sample_value(
            f"k8s_copycat_registry_{name}_total", {"image": image}
        )


async def _for_ever(_: float) -> None:
    await anyio.sleep_forever()


def template(*images: str, name: str = "app", fingerprint: int = 1) -> Workload:
    """A Deployment."""
    return _workload("Deployment", name, fingerprint, [ContainerImage(container=f"c{n}", image=i) for n, i in enumerate(images or (APP,))])  # fmt: skip


def pod(digest: Digest | None = ONE, *, running: bool = True, failing: bool = False, name: str = "p") -> Workload:  # fmt: skip
    """A Pod."""
    image_id = f"quay.io/team/app@{digest}" if digest else ""
    image = ContainerImage(container="c", image=APP, image_id=image_id, running=running, failing_to_pull=failing)  # fmt: skip
    return _workload("Pod", name, hash((image_id,)), [image])


def _workload(kind: str, name: str, fingerprint: int, images: list[ContainerImage]) -> Workload:
    return Workload(kind=kind, namespace="shop", name=name, owner_kind=kind, owner_name=name,
                    images=tuple(images), fingerprint=fingerprint)  # fmt: skip


TERMINAL = NotFound("gone", side="source")
PASSING = Unavailable("away", side="source")
REFUSED = Denied("no", side="target", status=403)


async def test_nothing_is_due_for_a_fresh_copy() -> None:
    """Pods that change nothing cost no attempt; a new running digest costs one, and only one."""
    world = World(good(), good(ONE, TWO))
    async with world.working():
        await world.see(pod())
        await world.see(pod(), pod())
        await world.see(pod(name="q"))
        assert world.tried == 1
        await world.see(pod(TWO), pod())
        await world.see(pod(TWO, name="r"))
        assert world.tried == 2
        assert world.mirror.needs[1][1].known
        assert world.controller.protected() == 1


async def test_a_changed_template_asks_the_source() -> None:
    """Other bytes of a template make source and anchors be looked at again."""
    world = World()
    async with world.working():
        await world.see(template())
        await world.see(template(fingerprint=2), template())
        assert world.tried == 2
        need = world.mirror.needs[1][1]
        assert need.check_source
        assert need.check_anchors


@pytest.mark.parametrize("how", ["change", "running", "reset", "time"])
async def test_a_terminal_failure_cools_down(how: str) -> None:
    """It is not tried again until a change, a Running container, a reset or the end of the cool-down."""
    world = World(bad(TERMINAL))
    waiting = pod(None, running=False)
    async with world.working() as controller:
        await world.see(template())
        await world.see(waiting)
        assert world.tried == 1
        (request,) = controller.inventory.entries
        assert world.ledger.cooling(request)
        if how == "change":
            await world.see(template(fingerprint=2), template())
        elif how == "running":
            await world.see(pod(), waiting)
        elif how == "reset":
            assert controller.reset() == 1
            await wait_all_tasks_blocked()
        else:
            await world.later(61)
        assert world.tried == 2
        assert not world.ledger.cooling(request)


async def test_a_temporary_failure_is_retried_and_never_cools() -> None:
    """It is retried after a delay that grows."""
    world = World(bad(PASSING), bad(PASSING))
    async with world.working() as controller:
        await world.see(template())
        (request,) = controller.inventory.entries
        await world.later(4)
        assert world.tried == 1
        assert not world.ledger.cooling(request)
        await world.later(2)
        assert world.tried == 2
        await world.later(9)
        assert world.tried == 2
        await world.later(2)
        assert world.tried == 3
        assert world.ledger[request].error is None


async def test_a_refusing_target_is_probed_by_one() -> None:
    """All wait while the target refuses; one asks now and then, and its success lets the others go."""
    world = World(bad(REFUSED), bad(REFUSED))
    async with world.working() as controller:
        await world.see(template(APP))
        await world.see(template(OTHER, name="other"))
        assert world.tried == 1
        controller.update_gauges()
        failed = world.metrics.registry.get_sample_value("k8s_copycat_images", {"state": "failed"})
        assert failed == 2
        await world.later(HOLD + 1)
        assert world.tried == 2
        await world.later(HOLD + 1)
        assert world.tried == 4
        assert not controller.holds
        assert controller.protected() == 2


async def test_a_probe_that_writes_nothing_passes_on() -> None:
    """A check of a copy that stands proves nothing about writes, so whoever waits is tried right after it."""
    world = World(good(), bad(REFUSED), good(pushed=False))
    async with world.working() as controller:
        await world.see(template(APP))
        await world.see(template(OTHER, name="other"))
        app, other = controller.inventory.entries
        world.ledger.stale(app)
        controller.queue.add(app, Priority.URGENT, delay=HOLD + 1)
        world.ledger[other].next_try += 1
        controller.queue.add(other, Priority.LIVE)
        await world.later(HOLD + 2)
        assert [r for r, _ in world.mirror.needs] == [app, other, app, other]
        assert not controller.holds
        assert controller.protected() == 2


async def test_a_forced_pass_ends_what_is_held() -> None:
    """A target that takes again is noticed by a forced pass, whichever image comes first."""
    world = World(good(), bad(REFUSED), good(pushed=False))
    async with world.working() as controller:
        await world.see(template(APP))
        await world.see(template(OTHER, name="other"))
        ended = await controller.force()
        assert not ended.failed
        assert world.tried == 4
        assert controller.protected() == 2


async def test_a_rival_that_lets_go_during_the_attempt() -> None:
    """What it was a rival for is looked at again at once: the conflict may be none any more."""
    gate = anyio.Event()
    rival = template("docker.io/team/app:1", name="other")
    world = World(bad(TERMINAL), gate)
    async with world.working() as controller:
        await world.see(rival)
        await world.see(template(APP))
        controller.observe(rival, None)
        await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
        assert [len(need.rivals) for _, need in world.mirror.needs] == [0, 1, 0]


@pytest.mark.parametrize("state", ["tag_held", "conflict"])
async def test_a_check_of_what_is_kept_without_its_tag(state: str) -> None:
    """The target's tag does not tell what is kept besides it: the source says what to look for."""
    world = World(good(), good(state=state), intervals=Intervals(target_check=100))
    async with world.working() as controller:
        await world.see(template(APP))
        await controller.force()
        await world.later(100)
        checks = [(n.check_source, n.check_anchors) for _, n in world.mirror.needs]
        assert checks == [(True, False), (True, True), (True, True)]
        await world.later(100)
        assert not world.mirror.needs[-1][1].check_source


async def test_a_forced_pass_looks_at_everything() -> None:
    """A pass ends when each image was looked at anew, also one whose attempt was under way; late comers join."""
    gate = anyio.Event()
    world = World(gate, good(), bad(REFUSED))
    ended: list[Pass] = []

    async def ask() -> None:
        ended.append(await world.controller.force())

    async with world.working() as controller, anyio.create_task_group() as group:
        await world.see(template(APP, OTHER, "ghcr.io/a/b:1"))
        group.start_soon(ask)
        group.start_soon(ask)
        await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
        assert len(ended) == 2
        assert ended[0] is ended[1]
        assert world.tried == 3
        assert [n.check_anchors for _, n in world.mirror.needs] == [False, True, True]
        assert len(ended[0].failed) == 1
        # the target refuses: the one probe is refused too, so both are failures
        world.mirror.answers[:] = [bad(REFUSED)]
        again = await controller.force()
        assert len(again.failed) == 2


@pytest.mark.parametrize("kept", [True, False], ids=["copied", "never copied"])
async def test_orphans_are_forgotten(kept: bool) -> None:
    """A protected one at once, one that was never to be had after a day; its series go too."""
    world = World(good() if kept else bad(TERMINAL))
    async with world.working() as controller:
        await world.see(template())
        assert world.sample("pull_success" if kept else "pull_error") == 1
        controller.observe(template(), None)
        await wait_all_tasks_blocked()
        assert bool(controller.inventory.entries) is not kept
        world.now += ORPHAN_LIFE
        controller._sweep()
        assert not controller.inventory.entries
        assert not list(world.ledger)
        assert len(controller.queue) == 0
        assert world.sample("pull_success") is world.sample("pull_error") is None


async def test_an_orphan_at_work_is_forgotten_afterwards() -> None:
    """Nothing is taken away under a running attempt."""
    gate = anyio.Event()
    world = World(gate)
    async with world.working() as controller:
        await world.see(template())
        controller.ledger[next(iter(controller.inventory.entries))].protected = True
        controller.observe(template(), None)
        await wait_all_tasks_blocked()
        assert controller.inventory.entries
        gate.set()
        await wait_all_tasks_blocked()
        assert not controller.inventory.entries
        assert not list(world.ledger)


async def test_verdicts_are_never_attempted() -> None:
    """An excluded image is counted, and nobody is asked for it, not even by hand."""
    world = World()
    async with world.working() as controller:
        await world.see(template("ghcr.io/a/b:1"))
        controller.queue.add(next(iter(controller.inventory.entries)))
        await wait_all_tasks_blocked()
        controller.update_gauges()
        assert world.tried == 0
        got = world.metrics.registry.get_sample_value("k8s_copycat_images", {"state": "excluded"})
        assert got == 1


@pytest.mark.parametrize(
    ("answer", "counter"),
    [
        (good(), "push_success"),
        (bad(TERMINAL), "pull_error"),
        (bad(NotFound("x", side="target", reason="repository_missing")), "push_error"),
        (good(state="dry_run", pulled=True, dry=True), None),
        (replace(bad(TERMINAL), dry=True), None),
        (good(error=PASSING, pushed=False, pulled=False), "pull_error"),
        (good(state="tag_held", pushed=False, pulled=False), None),
        (good(state="conflict", error=PASSING, pushed=False, pulled=False), None),
        (replace(bad(TERMINAL), state="denied"), None),
        (replace(bad(PASSING), state="waiting_quota"), None),
    ],
    ids=[
        *("good", "source", "target", "dry run", "dry and failed", "source away"),
        *("held tag", "conflict", "denied", "waits for the quota"),
    ],
)
async def test_counters(answer: MirrorResult, counter: str | None) -> None:
    """Errors count on the side that failed, also where a copy stands; dry runs, conflicts, denials and waiting count nothing.

    All four series are there from the start.
    """
    world = World(answer)
    async with world.working():
        await world.see(template())
    for name in ("push_success", "pull_error", "push_error"):
        assert world.sample(name) == (name == counter)


async def test_a_bug_costs_one_image() -> None:
    """An exception is a failure of its image, takes nothing from a copy that stands, and the worker goes on."""
    world = World(good(), RuntimeError("bug"), TERMINAL)
    # the development renderer of tracebacks reads files in the event loop
    with capture_logs() as logs:
        await _break(world)
    assert [e["event"] for e in logs].count("attempt broke") == 2


async def _break(world: World) -> None:
    async with world.working() as controller:
        await world.see(template())
        await world.see(template(fingerprint=2), template())
        (request,) = controller.inventory.entries
        assert world.ledger[request].error is not None
        assert world.ledger[request].protected
        await world.see(template(OTHER, name="other"))
        assert world.tried == 3


async def test_lost_leadership_ends_the_work() -> None:
    """Without the right to write nothing is attempted, and `run` ends."""
    world = World()
    world.may_write = False
    world.controller.observe(None, template())
    world.controller.open()
    await world.controller.run()
    assert world.tried == 0


async def test_first_what_cannot_start_then_what_runs() -> None:
    """Opening queues what was seen before, what a kubelet misses first; events before it start nothing."""
    world = World()
    await world.see(template(OTHER, name="other"))
    await world.see(pod(None, running=False, failing=True))
    assert len(world.controller.queue) == 0
    world.controller.open()
    assert world.controller.queue.depth()[Priority.URGENT] == 1
    world.controller.update_gauges()
    async with world.working():
        await world.see(pod(None, running=False, failing=True, name="q"))
        assert [r.source.repository for r, _ in world.mirror.needs] == ["team/app", "team/other"]


async def test_timers_force_and_maintain() -> None:
    """Passes come as often as configured, and the target is maintained."""
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        woken.append(seconds)
        if woken.count(seconds) > 1:
            await anyio.sleep_forever()

    world = World(intervals=Intervals(force=60, target_check=0, tag_refresh=0), sleep=sleep)
    world.controller.observe(None, template())
    async with world.working() as controller:
        assert world.mirror.target.maintained == 1
        assert world.tried == 1
        assert world.mirror.needs[0][1].check_anchors
        assert len(controller.queue) == 0


async def test_periodic_checks() -> None:
    """A copy is looked at again within the interval."""
    world = World(intervals=Intervals(target_check=100, tag_refresh=0))
    async with world.working():
        await world.see(template())
        await world.later(70)
        assert world.tried == 1
        await world.later(10)
        assert world.tried == 2


async def test_a_queued_key_that_needs_nothing_or_is_gone_costs_nothing() -> None:
    """A worker looks at the world anew: what is done or forgotten is let go."""
    world = World()
    async with world.working() as controller:
        await world.see(template(f"quay.io/team/app@{ONE}"))
        (request,) = controller.inventory.entries
        controller.queue.add(request)
        await wait_all_tasks_blocked()
        controller.inventory.forget(request)
        controller.queue.add(request)
        controller._enqueue(request, Cause.NEW)
        await wait_all_tasks_blocked()
        assert world.tried == 1
