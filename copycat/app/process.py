"""`copycat run`: the whole program, its lifetimes and the order in which it ends.

What ends first is what brings new work: the informers. Then the queue closes, the workers finish what
they hold within the grace period, what is left is cut, the Lease is released, the listeners close, and
last the clients. Tags are written last, so whatever is cut leaves nothing that looks whole.

A changed configuration is such an end too, but for the listeners and the Lease: a new term begins.
"""

from __future__ import annotations

import os
import signal
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.abc
from aiohttp.abc import AbstractResolver

import copycat
from copycat import logs
from copycat.admin.actions import Standing
from copycat.admin.server import AdminServer
from copycat.app.coverage import uncovered
from copycat.app.facade import Facade
from copycat.app.permissions import needed_permissions
from copycat.app.probes import Probes
from copycat.app.reload import Reload, Reloader
from copycat.app.summary import tell_summaries
from copycat.app.term import Term, Times
from copycat.app.wiring import Engine, open_engine, selection_of
from copycat.config.settings import Settings
from copycat.errors import one_error
from copycat.kube.access import check_access
from copycat.kube.client import KubeClient, open_api
from copycat.kube.lease import Lease
from copycat.logs import get_logger
from copycat.metrics import Metrics
from copycat.registry.dockerlogins import docker_config_file

__all__ = ["Program", "run"]

_log = get_logger(__name__)

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
    load: Callable[[], Settings] | None = None,
    started: Callable[[Program], None] = lambda program: None,
) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        kubeconfig, context: instead of the Pod's service account.
        resolver, ssl_context: for tests.
        clock, wall, sleep: the time of everything that is counted in minutes and hours.
        load: reads the configuration again, as it was read for `settings`; without it changes are not looked for.
        started: is told once the listeners listen.

    Raises:
        ConfigError: something in the configuration turns out to be unusable.
        KubeDenied: Leases may not be used.
    """
    resources = [*settings.watch_resources, *(["nodes"] if settings.check_node_platform else [])]
    metrics = Metrics(version=copycat.__version__, resources=resources)
    engines = partial(
        open_engine,
        metrics=metrics,
        resolver=resolver,
        ssl_context=ssl_context,
        environ=environ,
        clock=clock,
        wall=wall,
        sleep=sleep,
    )
    async with (
        engines(settings) as engine,
        open_api(kubeconfig, context, environ=environ) as client,
    ):
        program = Program(
            settings,
            engine=engine,
            client=client,
            reload=_reload(load, engines, environ) if load is not None else None,
            environ=environ,
            clock=clock,
            wall=wall,
            sleep=sleep,
        )
        await program.run(started=started)


def _reload(
    load: Callable[[], Settings],
    engines: Callable[[Settings], AbstractAsyncContextManager[Engine]],
    environ: Mapping[str, str],
) -> Reload:
    docker = docker_config_file(environ, workstation=False)
    logins = (str(docker),) if docker is not None else ()
    return Reload(load=load, engines=engines, logins=logins)


@dataclass(slots=True, eq=False)
class _Setup:
    """A configuration, and the engine that was made of it."""

    settings: Settings
    engine: Engine
    ended: anyio.Event = field(default_factory=anyio.Event)
    """Set when its term has to end: another is in use, or the program stops."""
    retired: anyio.Event = field(default_factory=anyio.Event)
    """Set when nobody uses the engine any more."""
    busy: bool = False

    @property
    def target(self) -> str:
        """Registry and prefix."""
        prefix = f"/{self.settings.repo_prefix}" if self.settings.repo_prefix else ""
        return f"{self.engine.target.registry}{prefix}"


class Program:
    """The running program. `stop` ends it in good order."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Engine,
        client: KubeClient,
        reload: Reload | None = None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Args: the first engine and the client stay the caller's; `clock`, `wall` and `sleep` are the controller's too."""
        self._setup = _Setup(settings, engine)
        self._metrics = engine.metrics
        self._client = client
        self._reload = reload
        self._times = Times(clock=clock, wall=wall, sleep=sleep)
        self._stop = anyio.Event()
        name = environ.get("POD_NAME") or environ.get("HOSTNAME") or "copycat"
        self._identity = f"{name}_{uuid.uuid4().hex[:8]}"
        self._lease = self._make_lease()
        self._probes = Probes(
            client=client, lease=self._lease, metrics=engine.metrics, times=self._times
        )
        self.facade = Facade(settings, target=self._setup.target, clock=clock, wall=wall)
        self.facade.leading = self._lease is None
        self.facade.uncovered = self._uncovered
        if self._lease is not None:
            self.facade.holder = lambda: self._lease.holder if self._lease else ""
        self.server = AdminServer(
            metrics_address=settings.metrics_addr,
            admin_address=settings.admin_addr,
            health_address=settings.health_addr,
            metrics=engine.metrics,
            health=self._probes,
            actions=self.facade,
            api=self.facade,
            standing=self._standing,
            auth_mode=settings.admin_auth,
            token_file=settings.admin_token_file,
            refresh=self.facade.refresh,
        )

    def _make_lease(self) -> Lease | None:
        settings = self._setup.settings
        wanted = settings.leader_elect
        if wanted is None:
            wanted = self._client.in_cluster
        if not wanted:
            return None
        return Lease(
            self._client,
            namespace=self._client.namespace,
            name=settings.lease_name,
            identity=self._identity,
            metrics=self._metrics,
        )

    def stop(self) -> None:
        """Begin the shutdown; `run` returns when it is over."""
        self._stop.set()
        self._setup.ended.set()

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
            async with anyio.create_task_group() as engines:
                try:
                    await self._serve(engines, started)
                finally:
                    self._setup.retired.set()
        _log.info("stopped")

    async def _serve(
        self, engines: anyio.abc.TaskGroup, started: Callable[[Program], None]
    ) -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.server.run)
            tasks.start_soon(self._signals)
            tasks.start_soon(self._probes.measure_lag)
            tasks.start_soon(self._probes.watch_the_watches)
            tasks.start_soon(partial(tell_summaries, self.facade, sleep=self._times.sleep))
            if self._reload is not None:
                tasks.start_soon(self._reloader(self._reload, engines).run)
            self._announce("started")
            tasks.start_soon(self._check_access)
            started(self)
            if self._lease is None:
                self._metrics.leader.set(1)
                await self._lead()
            else:
                await self._terms(self._lease)
            tasks.cancel_scope.cancel()

    async def _check_access(self) -> None:
        """Once for each configuration, beside the work."""
        namespace = self._client.namespace if self._lease is not None else ""
        while not self.stopping:
            setup = self._setup
            needed = needed_permissions(setup.settings, lease_namespace=namespace)
            await check_access(self._client, needed)
            await setup.ended.wait()

    async def _signals(self) -> None:
        with anyio.open_signal_receiver(*_SIGNALS) as signals:
            async for number in signals:
                grace = self._setup.settings.shutdown_grace_seconds
                _log.info("stopping", signal=number.name, grace_s=grace)
                self.stop()

    def _announce(self, event: str) -> None:
        settings = self._setup.settings
        namespaces = selection_of(settings).literal_namespaces()
        _log.info(
            event,
            version=copycat.__version__,
            target=self.facade.status().target,
            watching=list(settings.watch_resources),
            namespaces=list(namespaces)
            if namespaces is not None
            else list(settings.include_namespaces),
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
            await lease.hold(self._lead)
            tasks.cancel_scope.cancel()

    async def _lead(self) -> None:
        """One term after the other, until the program stops; the Lease is kept in between."""
        self.facade.leading = True
        try:
            while not self.stopping:
                await self._term(self._setup)
        finally:
            self._metrics.forget_work()
            self.facade.leading = self._lease is None

    async def _term(self, setup: _Setup) -> None:
        """From the first list to the last copy, under one configuration."""
        term = Term(
            setup.settings,
            engine=setup.engine,
            client=self._client,
            may_write=self._may_write,
            times=self._times,
            identity=self._identity,
        )
        setup.busy = True
        self.facade.controller = term.controller
        self._probes.follow(term)
        try:
            await term.run(until=setup.ended.wait)
        finally:
            setup.busy = False
            self._probes.follow(None)
            self.facade.controller = None
            if setup is not self._setup:
                setup.retired.set()

    def _may_write(self) -> bool:
        return self._lease is None or self._lease.is_leader

    # Configurations

    def _reloader(self, reload: Reload, engines: anyio.abc.TaskGroup) -> Reloader:
        return Reloader(
            self._setup.settings,
            load=reload.load,
            adopt=partial(self._adopt, reload, engines),
            set_level=logs.set_level,
            retry=self._retry,
            logins=reload.logins,
            metrics=self._metrics,
            sleep=self._times.sleep,
            wall=self._times.wall,
        )

    async def _adopt(
        self, reload: Reload, engines: anyio.abc.TaskGroup, settings: Settings
    ) -> None:
        """Go on with other settings: the term ends in good order, and one under these begins.

        Raises:
            CopycatError: no engine can be made of them; nothing has changed.
        """
        fresh: _Setup = await engines.start(self._host, reload, settings)
        stale, self._setup = self._setup, fresh
        self.facade.configure(settings, target=fresh.target)
        if self.stopping:
            fresh.ended.set()
        stale.ended.set()
        if not stale.busy:
            stale.retired.set()
        self._announce("goes on with another configuration")

    async def _host(
        self, reload: Reload, settings: Settings, *, task_status: anyio.abc.TaskStatus[_Setup]
    ) -> None:
        """Keep an engine open as long as it is used."""
        with anyio.CancelScope() as scope:
            async with reload.engines(settings) as engine:
                setup = _Setup(settings, engine)
                # closed when nobody copies any more, whatever ends the program
                scope.shield = True
                task_status.started(setup)
                await setup.retired.wait()

    def _retry(self) -> None:
        controller = self.facade.controller
        if controller is not None:
            _log.info("failures are tried again", images=controller.reset())

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
        term = self._probes.term
        return uncovered(self._setup.settings, term.denied() if term else ())
