"""Images that wait for a pull quota: the controller and the mirror at work between real registries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
from structlog.testing import capture_logs

from copycat.controller.controller import Controller, Intervals
from copycat.controller.inventory import Inventory
from copycat.controller.report import state_of
from copycat.kube.selection import Selection
from copycat.kube.workload import ContainerImage, Workload
from copycat.mirror.blobs import Blobs
from copycat.mirror.copy import Copier
from copycat.mirror.ledger import Ledger, Record
from copycat.mirror.mirror import Mirror
from copycat.mirror.naming import Naming
from copycat.mirror.policy import Policy
from copycat.registry.target import Target
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.registry.support import world

LIMIT, IMAGES = 8, 7
#: A pull of eight comes back in three quarters of an hour, and the wait is an hour at most.
WAIT = 3600.0


class Bench:
    """A registry with a small quota, one without, and the controller that copies from both."""

    def __init__(self, hub: Registry, other: Registry, target: Registry) -> None:
        self.hub, self.other, self.target = hub, other, target
        self.now = 1000.0
        self.controller: Controller
        self.ledger = Ledger(clock=self.clock)

    def clock(self) -> float:
        """Stands unless it is moved."""
        return self.now

    def records(self, registry: Registry) -> list[Record]:
        """What is known about the images of a registry."""
        return [r for q, r in self.ledger if q.source.registry == registry.address]

    def states(self, registry: Registry) -> list[str]:
        """The states of a registry's images, sorted."""
        return sorted(map(state_of, self.records(registry)))

    async def later(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds
        self.controller.queue._wake()


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    with anyio.fail_after(10):
        while True:  # states have no event of their own
            if condition():
                return
            await anyio.sleep(0.005)


def deployment(name: str, image: str) -> Workload:
    """With one container."""
    return Workload(
        kind="Deployment",
        namespace="team",
        name=name,
        owner_kind="Deployment",
        owner_name=name,
        fingerprint=1,
        images=(ContainerImage(container="c", image=image),),
    )


@asynccontextmanager
async def working() -> AsyncIterator[Bench]:
    """The controller at work on seven images of the one and two of the other registry."""
    async with (
        Registry(profile=replace(PROFILES["hub"], rate_limit=LIMIT, auth="none")) as hub,
        Registry() as other,
        Registry() as target,
    ):
        bench = Bench(hub, other, target)
        async with world(
            hub.address,
            other.address,
            target.address,
            target_registries=frozenset({target.address}),
            clock=bench.clock,
        ) as here:
            plain = Target(here.transport, target.address)
            copier = Copier(Blobs(transport=here.transport, target=plain, metrics=here.metrics))
            bench.controller = Controller(
                inventory=Inventory(
                    selection=Selection(),
                    naming=Naming(),
                    target_registry=target.address,
                    clock=bench.clock,
                ),
                mirror=Mirror(
                    transport=here.transport,
                    target=plain,
                    naming=Naming(),
                    copier=copier,
                    policy=Policy(),
                ),
                ledger=bench.ledger,
                metrics=here.metrics,
                workers=1,
                intervals=Intervals(),
                clock=bench.clock,
            )
            for number in range(IMAGES):
                hub.add_image(f"team/app{number}", "1", seed=number)
                image = f"{hub.address}/team/app{number}:1"
                bench.controller.observe(None, deployment(f"app{number}", image))
            async with anyio.create_task_group() as tasks:
                bench.controller.open()
                tasks.start_soon(bench.controller.run)
                yield bench
                bench.controller.queue.close()


async def test_waiting() -> None:
    """Half of the quota stays with the nodes; what waits has not failed, has a next try, and holds no worker."""
    with capture_logs() as logs:
        async with working() as bench:
            await until(lambda: bench.states(bench.hub).count("waiting_quota") == IMAGES - 4)
            assert bench.states(bench.hub) == ["protected"] * 4 + ["waiting_quota"] * 3
            assert bench.hub.core.pulls == LIMIT // 2
            for record in bench.records(bench.hub):
                if state_of(record) == "waiting_quota":
                    assert (record.failures, record.tries, record.cooling_until) == (0, 0, 0.0)
                    assert record.next_try == bench.now + WAIT
            assert bench.controller.reset() == 0

            # another registry is not concerned
            for number in range(2):
                bench.other.add_image(f"team/free{number}", "1", seed=f"free{number}")
                image = f"{bench.other.address}/team/free{number}:1"
                bench.controller.observe(None, deployment(f"free{number}", image))
            await until(lambda: bench.states(bench.other) == ["protected"] * 2)
    assert [e["log_level"] for e in logs if e["event"] == "image waits for the pull quota"] == [
        "info",
        "info",
        "info",
    ]


async def test_going_on() -> None:
    """When pulls came back the images that waited are copied, after one free question for all of them."""
    async with working() as bench:
        await until(lambda: bench.states(bench.hub).count("waiting_quota") == IMAGES - 4)
        bench.hub.ledger.clear()
        await bench.later(600)
        assert bench.hub.requests == []
        bench.hub.core.pulls = 0
        await bench.later(WAIT - 590)
        await until(lambda: bench.states(bench.hub) == ["protected"] * IMAGES)
        assert bench.hub.ledger.count(Phase.HEAD_MANIFEST) == 1
        assert bench.hub.core.pulls == 3


async def test_a_forced_pass() -> None:
    """A forced pass tries them and takes nothing from the nodes; to wait is not to fail."""
    async with working() as bench:
        await until(lambda: bench.states(bench.hub).count("waiting_quota") == IMAGES - 4)
        bench.hub.ledger.clear()
        done = await bench.controller.force()
        assert done.failed == set()
        assert bench.states(bench.hub).count("waiting_quota") == 3
        assert bench.hub.ledger.count(Phase.GET_MANIFEST) == 0
