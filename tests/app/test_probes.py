"""/healthz and /readyz: what makes them fail, and what must not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from copycat.app.probes import OVERDUE, RECOVERY, STALE_WATCH, WATCH_LOOK, Probes
from copycat.app.process import Program
from copycat.app.term import Times
from copycat.app.wiring import open_engine
from copycat.kube.client import open_api
from copycat.kube.lease import Lease
from copycat.metrics import Metrics
from tests.app.support import World, fetch, protected, until


class Looks:
    """A clock that jumps, and the sleep between looks at the watches, which returns when told; all others last."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._waits = 0
        self._go = anyio.Event()

    def clock(self) -> float:
        """Seconds that only grow."""
        return anyio.current_time() + self.ahead

    async def sleep(self, seconds: float) -> None:
        """Wait to be told."""
        if seconds != WATCH_LOOK:
            await anyio.sleep_forever()
        self._waits += 1
        await self._go.wait()
        self._go = anyio.Event()

    async def look(self, *, later: float = 0.0) -> None:
        """Let a look be taken, after so many seconds, and wait for its end."""
        self.ahead += later
        waits = self._waits
        self._go.set()
        await until(lambda: self._waits > waits)


@asynccontextmanager
async def looked_at(world: World) -> AsyncIterator[tuple[Program, Looks]]:
    """A program that works, whose looks at the watches the test takes."""
    looks = Looks()
    metrics = Metrics(version="test")
    async with (
        open_engine(world.settings(), metrics=metrics) as engine,
        open_api(world.kubeconfig, environ={}) as client,
        anyio.create_task_group() as tasks,
    ):
        program = Program(
            world.settings(),
            engine=engine,
            client=client,
            environ={},
            clock=looks.clock,
            sleep=looks.sleep,
        )
        tasks.start_soon(program.run)
        await until(lambda: program.facade.status().ready)
        yield program, looks
        program.stop()


async def healthz(program: Program) -> tuple[int, str]:
    """Status and text, with the checks."""
    return await fetch(program, "health", "/healthz?verbose")


async def test_silent_watches_make_it_unhealthy(world: World) -> None:
    """Watches that are silent while the API answers end in a 500 that names them."""
    async with looked_at(world) as (program, looks):
        await looks.look()
        assert (await healthz(program))[0] == 200
        await looks.look(later=2 * STALE_WATCH)
        status, text = await healthz(program)
        assert status == 500
        assert "no contact" in text
        assert "deployments" in text


async def test_an_api_that_is_down_is_no_reason_to_restart(world: World) -> None:
    """No outage of the API makes it unhealthy, however long; nor does its end, before the watches could begin again."""
    async with looked_at(world) as (program, looks):
        await world.api.stop()
        await looks.look(later=2 * STALE_WATCH)
        assert (await healthz(program))[0] == 200
        # the informers' own back-off lets them be late, but their clock is not the one that jumped
        await world.api.start()
        await looks.look()
        assert (await healthz(program))[0] == 200
        await looks.look(later=2 * RECOVERY)
        assert (await healthz(program))[0] == 500


async def test_an_outage_takes_the_verdict_back(world: World) -> None:
    """If the API goes down after watches were found silent, a restart would not help any more: 200 again."""
    async with looked_at(world) as (program, looks):
        await looks.look(later=2 * STALE_WATCH)
        assert (await healthz(program))[0] == 500
        await world.api.stop()
        await looks.look()
        assert (await healthz(program))[0] == 200


async def test_denied_kinds_are_not_silent(world: World) -> None:
    """A kind that may not be watched says nothing for ever, which no restart cures."""
    for resource in ("deployments", "statefulsets", "daemonsets", "jobs", "cronjobs", "pods"):
        world.api.forbid(resource)
    async with looked_at(world) as (program, looks):
        await looks.look(later=2 * STALE_WATCH)
        assert (await healthz(program))[0] == 200
        assert (await fetch(program, "health", "/readyz"))[0] == 200


@pytest.mark.parametrize("trouble", ["source", "target", "api", "image"])
async def test_trouble_that_a_restart_does_not_cure(world: World, trouble: str) -> None:
    """Registries or an API that are gone, and images that cannot be had, fail neither probe of a program that works."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    async with world.running() as program:
        await protected(program, 1)
        await {"source": world.source.stop, "target": world.target.stop, "api": world.api.stop}.get(
            trouble, anyio.lowlevel.checkpoint
        )()
        if trouble != "api":
            world.deployment("b", world.image("nowhere:1"))
            await until(lambda: any(row.state == "failed" for row in program.facade.images()))
        assert (await healthz(program))[0] == 200
        assert (await fetch(program, "health", "/readyz"))[0] == 200


async def test_a_standby_must_have_met_the_api(world: World) -> None:
    """With leader election, who never reached the API is not ready; who stands by is, also when the API goes later."""
    world.api.hang()
    async with world.running(leader_elect=True) as program:
        status, text = await fetch(program, "health", "/readyz?verbose")
        assert status == 500
        assert "has not said yet who leads" in text
        assert (await healthz(program))[0] == 200
        world.api.resume()
        await until(lambda: program.facade.status().ready)
        async with world.running(leader_elect=True) as standby:
            await until(lambda: bool(standby.facade.holder()))
            assert (await fetch(standby, "health", "/readyz"))[0] == 200
            await world.api.stop()
            assert (await fetch(standby, "health", "/readyz"))[0] == 200


class Overdue(Lease):
    """A Lease whose end somebody did not notice."""

    seconds = 0.0

    @property
    def overdue(self) -> float:
        """As the test says."""
        return self.seconds


async def test_work_without_the_lease(world: World) -> None:
    """A leader whose work goes on long after its Lease ended is unhealthy: it may write beside its successor."""
    metrics = Metrics(version="test")
    async with open_api(world.kubeconfig, environ={}) as client:
        lease = Overdue(client, namespace="demo", name="x", identity="me", metrics=metrics)
        probes = Probes(client=client, lease=lease, metrics=metrics, times=Times())
        assert not any(check.error for check in probes.live())
        lease.seconds = OVERDUE + 1
        assert [c.name for c in probes.live() if c.error] == ["lease"]
