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

import anyio
import anyio.abc
import structlog
from aiohttp.abc import AbstractResolver

import copycat
from copycat.admin.actions import Standing
from copycat.admin.server import AdminServer
from copycat.app.coverage import uncovered
from copycat.app.facade import Facade
from copycat.app.probes import Probes
from copycat.app.term import Term, Times
from copycat.app.wiring import Engine, open_engine, selection_of
from copycat.config.settings import Settings
from copycat.errors import one_error
from copycat.kube.client import KubeClient, open_api
from copycat.kube.lease import Lease
from copycat.metrics import Metrics

__all__ = ["Program", "run"]

_log = structlog.get_logger(__name__)

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
            environ=environ,
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
        self._times = Times(clock=clock, wall=wall, sleep=sleep)
        self._stop = anyio.Event()
        name = environ.get("POD_NAME") or environ.get("HOSTNAME") or "copycat"
        self._identity = f"{name}_{uuid.uuid4().hex[:8]}"
        self._lease = self._make_lease()
        self._probes = Probes(
            client=client, lease=self._lease, metrics=engine.metrics, times=self._times
        )
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
            health=self._probes,
            actions=self.facade,
            api=self.facade,
            standing=self._standing,
            auth_mode=settings.admin_auth,
            token_file=settings.admin_token_file,
            refresh=self.facade.refresh,
        )

    def _make_lease(self) -> Lease | None:
        wanted = self._settings.leader_elect
        if wanted is None:
            wanted = self._client.in_cluster
        if not wanted:
            return None
        return Lease(
            self._client,
            namespace=self._client.namespace,
            name=self._settings.lease_name,
            identity=self._identity,
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
                tasks.start_soon(self._probes.measure_lag)
                tasks.start_soon(self._probes.watch_the_watches)
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
        term = Term(
            self._settings,
            engine=self._engine,
            client=self._client,
            may_write=self._may_write,
            times=self._times,
            identity=self._identity,
        )
        self.facade.controller = term.controller
        self.facade.leading = True
        self._probes.term = term
        try:
            await term.run(until=self._stop.wait)
        finally:
            self._probes.term = None
            self.facade.controller = None
            self.facade.leading = self._lease is None

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
        return uncovered(self._settings, self._probes.term.denied() if self._probes.term else ())
