"""The HTTP listeners: metrics, admin and health, from the first bind to the last answer."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import anyio
import anyio.to_thread
from aiohttp import web
from anyio.abc import TaskStatus

from copycat.admin.actions import ActionRunner, Actions, Standing
from copycat.admin.address import Address
from copycat.admin.api import Api
from copycat.admin.auth import AuthMode, Guard
from copycat.admin.health import Health, health_application
from copycat.admin.routes import Routes
from copycat.logs import get_logger
from copycat.metrics import Metrics

__all__ = ["AdminServer"]

_log = get_logger(__name__)

#: Seconds that answers on their way get when the program ends; a forced pass is not waited for.
_GRACE: Final = 1.0


def _always() -> Standing:
    return Standing()


def _nothing() -> None:
    """Nothing to refresh."""


class AdminServer:
    """Serves until it is cancelled."""

    def __init__(
        self,
        *,
        metrics_address: str,
        admin_address: str,
        health_address: str,
        metrics: Metrics,
        health: Health,
        actions: Actions,
        api: Api,
        standing: Callable[[], Standing] = _always,
        auth_mode: AuthMode = "auto",
        token_file: str = "",
        refresh: Callable[[], None] = _nothing,
    ) -> None:
        """Raises ConfigError for an address that is none.

        Args: addresses are Go style, `0` is off; `refresh` brings gauges up to date before they are rendered.
        """
        self._addresses: Mapping[str, Address | None] = {
            "metrics": Address.parse(metrics_address, setting="metricsAddr (METRICS_ADDR)"),
            "admin": Address.parse(admin_address, setting="adminAddr (ADMIN_ADDR)"),
            "health": Address.parse(health_address, setting="--health-probe-bind-address"),
        }
        self._metrics = metrics
        self._health = health
        self._actions = actions
        self._api = api
        self._standing = standing
        self._auth_mode: AuthMode = auth_mode
        self._token_file = token_file
        self._refresh = refresh
        self._sockets: dict[str, socket.socket] = {}

    @property
    def addresses(self) -> Mapping[str, str]:
        """`host:port` of the listeners that are bound: `metrics`, `admin`, `health`."""
        return {name: _name(sock) for name, sock in self._sockets.items()}

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve. Started once everything listens; raises ConfigError naming the setting if it cannot."""
        async with AsyncExitStack() as stack:
            for name, address in self._addresses.items():
                if address is not None:
                    sock = await anyio.to_thread.run_sync(address.listen)
                    self._sockets[name] = stack.enter_context(sock)
            async with anyio.create_task_group() as group:
                runner = ActionRunner(self._actions, self._standing, group)
                async with self._serve(runner):
                    _log.info("listening", **self.addresses)
                    task_status.started()
                    await anyio.sleep_forever()

    @asynccontextmanager
    async def _serve(self, runner: ActionRunner) -> AsyncIterator[None]:
        runners: list[web.AppRunner] = []
        try:
            for name, sock in self._sockets.items():
                app = self._application(name, runner)
                app_runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE)
                runners.append(app_runner)
                await app_runner.setup()
                await web.SockSite(app_runner, sock).start()
            yield
        finally:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as group:
                    for app_runner in runners:
                        group.start_soon(app_runner.cleanup)

    def _application(self, name: str, runner: ActionRunner) -> web.Application:
        if name == "health":
            return health_application(self._health)
        address = self._addresses[name]
        guard = Guard(
            loopback=address is not None and address.loopback,
            mode=self._auth_mode,
            token_file=self._token_file,
        )
        return Routes(
            guard=guard,
            runner=runner,
            api=self._api,
            metrics=self._metrics,
            refresh=self._refresh,
        ).application()


def _name(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
