"""kr8s' Api over a session of our own.

`Api.call_api(..., raise_for_status=False)` is all of kr8s that is used. The session is made here and
handed to it, because the one that kr8s makes has a pool of 100 connections in which the 101st watch
hangs for ever, follows the environment's proxies to the API server, sends a token that is never
renewed, and is closed by nobody. As the Api is never awaited, it asks for no `/version` at the start
(the API server may be down) and warns of none.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
from kr8s.asyncio import Api

from copycat.errors import KubeUnavailable
from copycat.kube.kubeconfig import Connection
from copycat.kube.refusal import translated

__all__ = ["Channel", "Channels"]

#: Seconds for a new connection, and for a free place in the pool (which has no limit).
CONNECT_TIMEOUT = 5.0


class Channel:
    """One Api with its session, closed when the last request that uses it has ended."""

    def __init__(self, connection: Connection, tls: ssl.SSLContext, *, user_agent: str) -> None:
        """Args: `tls` is a context for the connection."""
        self.connection = connection
        self._session = httpx.AsyncClient(
            base_url=connection.url,
            verify=tls,
            proxy=connection.proxy or None,
            trust_env=connection.environment_proxies,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=10),
            # Compression would cost the API server more than the network that it saves.
            headers={
                "User-Agent": user_agent,
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
        )
        self.api = Api(url=connection.url, kubeconfig=False, serviceaccount="", bypass_factory=True)
        self.api.auth.tls_server_name = connection.server_name or None
        self.api._session = self._session  # noqa: SLF001 - see the module's docstring; the one private access
        self._users = 0
        self._retired = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Api]:
        """Keep the session open for a request."""
        self._users += 1
        try:
            yield self.api
        finally:
            self._users -= 1
            if self._retired and not self._users:
                await self.close()

    @property
    def is_closed(self) -> bool:
        """Whether there is nothing left to close."""
        return self._session.is_closed

    async def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        self._retired = True
        if not self._users:
            await self.close()

    async def close(self) -> None:
        """Close it now, under whoever uses it."""
        with anyio.CancelScope(shield=True):
            await self._session.aclose()


class Channels:
    """The channel for the connection that is wanted now; the one before is drained."""

    def __init__(self, *, user_agent: str) -> None:
        """Nothing is opened yet."""
        self._user_agent = user_agent
        self._current: Channel | None = None
        self._old: list[Channel] = []
        self._closed = False
        self._lock = anyio.Lock()

    async def get(self, connection: Connection) -> Channel:
        """Raises KubeUnavailable if the connection's certificates cannot be used, or after `close`."""
        async with self._lock:
            if self._closed:
                raise KubeUnavailable("The Kubernetes client is closed", reason="closed")
            current = self._current
            if current is not None and current.connection == connection:
                return current
            with translated(f"the certificates for {connection.url}"):
                tls = await anyio.to_thread.run_sync(_tls_context, connection)
            self._current = Channel(connection, tls, user_agent=self._user_agent)
            if current is not None:
                await current.retire()
                self._old = [c for c in (*self._old, current) if not c.is_closed]
            return self._current

    async def close(self) -> None:
        """Close every session."""
        self._closed = True
        for channel in (*self._old, *([self._current] if self._current else [])):
            await channel.close()


def _tls_context(connection: Connection) -> ssl.SSLContext:
    """Blocks. Not `ssl.create_default_context`: from 3.13 on it refuses the CAs that kubeadm makes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if connection.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif connection.ca:
        context.load_verify_locations(cadata=connection.ca.decode("ascii", errors="ignore"))
    elif connection.url.startswith("https:"):
        context.load_default_certs()
    if connection.certificate:
        with tempfile.TemporaryDirectory() as directory:
            pair = Path(directory) / "pair.pem"
            pair.touch(mode=0o600)
            pair.write_bytes(connection.certificate + b"\n" + connection.key)
            context.load_cert_chain(pair)
    return context
