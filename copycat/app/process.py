"""`copycat run`: the whole program, its lifetimes and the order in which it ends.

What ends first is what brings new work: the informers. Then the queue closes, the workers finish what
they hold within the grace period, what is left is cut, the Lease is released, the listeners close, and
last the clients. Tags are written last, so whatever is cut leaves nothing that looks whole.

A term of leadership has a controller of its own: what an earlier term knew may be wrong by now.
"""

from __future__ import annotations

import os
import signal
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import structlog
from aiohttp.abc import AbstractResolver

import copycat
from copycat.admin.actions import Standing
from copycat.admin.health import Check
from copycat.admin.server import AdminServer
from copycat.app.facade import Facade
from copycat.app.informers import node_informers, workload_informers
from copycat.app.oneshot import workload_of
from copycat.app.wiring import Engine, open_engine, platforms_of, selection_of
from copycat.config.settings import Settings
from copycat.controller.controller import Controller, Intervals
from copycat.controller.inventory import Inventory
from copycat.errors import KubeError, one_error
from copycat.kube.client import KubeClient, open_api
from copycat.kube.informer import Informer
from copycat.kube.kinds import KINDS
from copycat.kube.lease import Lease
from copycat.kube.nodes import Node
from copycat.kube.workload import Workload
from copycat.metrics import Metrics
from copycat.mirror.ledger import Ledger

__all__ = ["Program", "run"]

_log = structlog.get_logger(__name__)

#: A watch that has said nothing for this long (seconds), while the API answers, is broken beyond repair.
STALE_WATCH = 900.0
#: A leader that has not renewed for this long after its Lease ended (seconds) has lost its loop.
_LAG_SAMPLE = 0.5
#: Seconds between looks at the watches.
WATCH_LOOK = 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def run(
    settings: Settings,
    *,
    kubeconfig: str | None = None,
    context: str | None = None,
    environ: Mapping[str, str] = os.environ,
    resolver: AbstractResolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    started: Callable[[Program], None] = lambda program: None,
) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        kubeconfig, context: instead of the Pod's service account.
        resolver, ssl_context: for tests.
        clock, wall, sleep: the time of everything that is counted in minutes and hours.
        started: is told once the listeners listen.

    Raises:
        ConfigError: something in the configuration turns out to be unusable.
        KubeDenied: Leases may not be used.
    """
    resources = [*settings.watch_resources, *(["nodes"] if settings.check_node_platform else [])]
    metrics = Metrics(version=copycat.__version__, resources=resources)
    async with (
        open_engine(
            settings,
            metrics=metrics,
            resolver=resolver,
            ssl_context=ssl_context,
            clock=clock,
            wall=wall,
            sleep=sleep,
        ) as engine,
        open_api(kubeconfig, context, environ=environ) as client,
    ):
        program = Program(
            settings,
            engine=engine,
            client=client,
            environ=environ,
            clock=clock,
            wall=wall,
            sleep=sleep,
        )
        await program.run(started=started)


class Program:
    """The running program. `stop` ends it in good order."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Engine,
        client: KubeClient,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Args: the engine and the client stay the caller's; `clock`, `wall` and `sleep` are the controller's too."""
        self._settings = settings
        self._engine = engine
        self._client = client
        self._clock = clock
        self._sleep = sleep
        self._stop = anyio.Event()
        self._informers: list[Informer[Workload] | Informer[Node]] = []
        self._settled_once = False
        self._stale = ""
        self._lease = self._make_lease(environ)
        prefix = f"/{settings.repo_prefix}" if settings.repo_prefix else ""
        self.facade = Facade(
            settings, target=f"{engine.target.registry}{prefix}", clock=clock, wall=wall
        )
        self.facade.leading = self._lease is None
        self.facade.uncovered = self._uncovered
        if self._lease is not None:
            self.facade.holder = lambda: self._lease.holder if self._lease else ""
        self.server = AdminServer(
            metrics_address=settings.metrics_addr,
            admin_address=settings.admin_addr,
            health_address=settings.health_addr,
            metrics=engine.metrics,
            health=self,
            actions=self.facade,
            api=self.facade,
            standing=self._standing,
            auth_mode=settings.admin_auth,
            token_file=settings.admin_token_file,
            refresh=self.facade.refresh,
        )

    def _make_lease(self, environ: Mapping[str, str]) -> Lease | None:
        wanted = self._settings.leader_elect
        if wanted is None:
            wanted = self._client.in_cluster
        if not wanted:
            return None
        name = environ.get("POD_NAME") or environ.get("HOSTNAME") or "copycat"
        return Lease(
            self._client,
            namespace=self._client.namespace,
            name=self._settings.lease_name,
            identity=f"{name}_{uuid.uuid4().hex[:8]}",
            metrics=self._engine.metrics,
        )

    def stop(self) -> None:
        """Begin the shutdown; `run` returns when it is over."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the shutdown has begun."""
        return self._stop.is_set()

    async def wait_stopping(self) -> None:
        """Wait until the shutdown begins."""
        await self._stop.wait()

    async def run(self, *, started: Callable[[Program], None] = lambda program: None) -> None:
        """Serve and work until `stop`, SIGTERM or SIGINT."""
        with one_error():
            async with anyio.create_task_group() as tasks:
                await tasks.start(self.server.run)
                tasks.start_soon(self._signals)
                tasks.start_soon(self._measure_lag)
                tasks.start_soon(self._watch_the_watches)
                self._announce()
                started(self)
                if self._lease is None:
                    self._engine.metrics.leader.set(1)
                    await self._term()
                else:
                    await self._terms(self._lease)
                tasks.cancel_scope.cancel()
        _log.info("stopped")

    async def _signals(self) -> None:
        with anyio.open_signal_receiver(*_SIGNALS) as signals:
            async for number in signals:
                _log.info(
                    "stopping", signal=number.name, grace_s=self._settings.shutdown_grace_seconds
                )
                self.stop()

    def _announce(self) -> None:
        namespaces = selection_of(self._settings).literal_namespaces()
        _log.info(
            "started",
            version=copycat.__version__,
            target=self.facade.status().target,
            watching=list(self._settings.watch_resources),
            namespaces=list(namespaces)
            if namespaces is not None
            else list(self._settings.include_namespaces),
            not_covered=self._uncovered(),
            mode=self.facade.status().mode or "mirror",
        )

    # Terms of leadership

    async def _terms(self, lease: Lease) -> None:
        """Work whenever the Lease is ours. A standby that is told to stop has nothing to finish."""
        async with anyio.create_task_group() as tasks:

            async def give_up() -> None:
                await self._stop.wait()
                if not self.facade.leading:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(give_up)
            await lease.hold(self._term)
            tasks.cancel_scope.cancel()

    async def _term(self) -> None:
        """From the first list to the last copy."""
        controller = self._controller()
        self.facade.controller = controller
        self.facade.leading = True
        try:
            async with anyio.create_task_group() as workers:
                workers.start_soon(controller.run)
                async with self._sources(controller):
                    await self._stop.wait()
                controller.queue.close()
                workers.cancel_scope.deadline = (
                    anyio.current_time() + self._settings.shutdown_grace_seconds
                )
        finally:
            self.facade.controller = None
            self.facade.leading = self._lease is None

    @asynccontextmanager
    async def _sources(self, controller: Controller) -> AsyncIterator[None]:
        """The informers, for as long as the body runs."""
        parts = (self._settings, self._client, self._engine.metrics)
        self._informers = [
            *workload_informers(*parts, controller.observe),
            *node_informers(*parts, controller.inventory.node),
        ]
        try:
            with one_error():
                async with anyio.create_task_group() as sources:
                    for informer in self._informers:
                        sources.start_soon(informer.run)
                    sources.start_soon(self._open, controller)
                    yield
                    sources.cancel_scope.cancel()
        finally:
            # a standby has no watches that could be silent
            self._informers = []

    async def _open(self, controller: Controller) -> None:
        """Begin to work once every informer has told what it knows, or may not."""
        for informer in self._informers:
            await informer.wait_settled()
        for reference in self._settings.extra_images:
            controller.observe(None, workload_of(reference))
        denied = sorted({i.resource for i in self._informers if i.denied or i.missing})
        controller.open()
        self._settled_once = True
        _log.info(
            "synced",
            workloads=controller.inventory.workloads(),
            images=len(controller.inventory.entries),
            denied=denied,
        )

    def _controller(self) -> Controller:
        settings = self._settings
        return Controller(
            inventory=Inventory(
                selection=selection_of(settings),
                naming=self._engine.naming,
                target_registry=self._engine.target.registry,
                platforms=platforms_of(settings),
                clock=self._clock,
            ),
            mirror=self._engine.mirror,
            ledger=Ledger(cooldown_minutes=settings.failure_cooldown_minutes, clock=self._clock),
            metrics=self._engine.metrics,
            workers=settings.max_concurrent_reconciles * len(settings.watch_resources),
            intervals=Intervals(
                target_check=settings.target_check_minutes * 60.0,
                tag_refresh=settings.tag_refresh_minutes * 60.0,
                force=settings.force_reconcile_minutes * 60.0,
            ),
            digest_pull=settings.digest_pull,
            may_write=self._may_write,
            clock=self._clock,
            sleep=self._sleep,
        )

    def _may_write(self) -> bool:
        return self._lease is None or self._lease.is_leader

    # What others see

    def _standing(self) -> Standing:
        controller = self.facade.controller
        return Standing(
            leading=self.facade.leading,
            holder=self.facade.holder(),
            ready=controller is not None and controller.opened,
        )

    def _uncovered(self) -> Sequence[str]:
        """What the configuration or the API leaves out, in words."""
        selection = selection_of(self._settings)
        namespaces = selection.literal_namespaces()
        words = []
        if namespaces is not None:
            words.append(f"namespaces other than {', '.join(namespaces) or 'none'}")
        elif self._settings.include_namespaces != ("*",):
            words.append(
                f"namespaces that do not match {', '.join(self._settings.include_namespaces)}"
            )
        if self._settings.skip_namespaces:
            words.append(f"namespaces that match {', '.join(self._settings.skip_namespaces)}")
        words += [
            f"{r} (not in watchResources)" for r in KINDS if r not in self._settings.watch_resources
        ]
        words += sorted(
            {f"{i.resource} (no permission to list and watch)" for i in self._informers if i.denied}
        )
        return words

    def live(self) -> Sequence[Check]:
        """Only what a restart cures."""
        return [Check(name="event-loop"), Check(name="watches", error=self._stale)]

    def ready(self) -> Sequence[Check]:
        """Ready is who works, or stands by to; registries do not matter."""
        checks = [Check(name="configuration")]
        if self._lease is not None and not self.facade.leading:
            return [*checks, Check(name="standby")]
        for informer in self._informers:
            waiting = "" if informer.settled else "its first list is not complete"
            checks.append(Check(name=f"informer-{informer.resource}", error=waiting))
        controller = self.facade.controller
        begun = controller is not None and (controller.opened or self._settled_once)
        checks.append(Check(name="controller", error="" if begun else "it has not begun to work"))
        return checks

    async def _watch_the_watches(self) -> None:
        """A watch may hang in a way that no time-out sees; an API that is down is not that."""
        while True:
            await self._sleep(WATCH_LOOK)
            silent = [
                i.resource
                for i in self._informers
                if not i.denied and not i.missing and self._clock() - i.last_contact > STALE_WATCH
            ]
            if silent:
                try:
                    await self._client.request("GET", "/version", timeout=10)
                except KubeError:
                    continue
            self._stale = (
                f"no contact for {STALE_WATCH:.0f} s while the API answers: {', '.join(silent)}"
                if silent
                else ""
            )

    async def _measure_lag(self) -> None:
        """How late the loop runs a timer."""
        while True:
            before = self._clock()
            await anyio.sleep(_LAG_SAMPLE)
            self._engine.metrics.loop_lag.observe(max(0.0, self._clock() - before - _LAG_SAMPLE))
