"""A port that a server listens on, and the ways in which a machine leaves the network."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

import anyio
from aiohttp import web

from copycat.sandbox.reply import close

__all__ = ["Handler", "Listener"]

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

#: Before this many seconds have passed, `stop()` cuts handlers that still run.
_GRACE = 0.5


class Listener:
    """One origin. It keeps its port over `stop()` and `switch_off()`, so that `start()` brings it back there."""

    def __init__(
        self,
        handler: Handler,
        *,
        host: str,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is opened yet. Args: `port` 0 is any free one."""
        self.host, self.port = host, port
        self._handler, self._ssl = handler, ssl_context
        self._runner: web.ServerRunner | None = None
        self._server: asyncio.Server | None = None

    @property
    def running(self) -> bool:
        """Listening."""
        return self._server is not None

    @property
    def connections(self) -> int:
        """What clients hold open."""
        server = self._runner.server if self._runner else None
        return len(server.connections) if server else 0

    async def start(self) -> None:
        """Listens."""
        server = web.Server(
            self._answer,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=64 * 1024,
            max_field_size=64 * 1024,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=_GRACE)
        await self._runner.setup()
        sock = socket.create_server((self.host, self.port), backlog=512, reuse_port=False)
        self.port = int(sock.getsockname()[1])
        self._server = await asyncio.get_running_loop().create_server(
            server, sock=sock, ssl=self._ssl, backlog=512
        )

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self.running:  # the connection was accepted as the machine went off
            close(request.transport, reset=True)
            return web.Response()
        return await self._handler(request)

    async def stop(self) -> None:
        """Stops listening and breaks all connections. Does nothing if it does not run."""
        self.switch_off()
        runner, self._runner = self._runner, None
        if runner is None:
            return
        with anyio.CancelScope(shield=True):
            for connection in runner.server.connections if runner.server else []:
                connection.force_close()
            await runner.cleanup()

    def switch_off(self) -> None:
        """As a power cut, at once: connections are reset, new ones refused. `stop()` tidies up afterwards."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        handlers = self._runner.server.connections if self._runner and self._runner.server else []
        for handler in handlers:
            close(handler.transport, reset=True)
