"""The proof of identity that goes with each request, kept fresh.

A Pod's token is a file that the kubelet rewrites before it expires: it is read again every minute
and when the API says 401 (client-go `transport/token_source.go`), and the old one is kept if that
fails. An exec plugin runs again at its expiry and at a 401. A 401 also reads the kubeconfig again:
somebody may have logged in anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from copycat.errors import ConfigError, KubeDenied, KubeError, printable
from copycat.kube.kubeconfig import Access, Connection, ExecPlugin

__all__ = ["Credentials", "Grant"]

#: How long the content of a token file is trusted, in seconds.
TOKEN_PERIOD = 60.0
#: A plugin's credentials are renewed that long before they end; refused ones at most that often.
PLUGIN_LEEWAY = 10.0
PLUGIN_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one request is sent with."""

    connection: Connection
    token: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The request's headers that prove who asks."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


class _ExecStatus(msgspec.Struct, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _ExecCredential(msgspec.Struct):
    status: _ExecStatus


_EXEC_DECODER = msgspec.json.Decoder(_ExecCredential)


class Credentials:
    """The current `Grant`, renewed by whoever asks first; the others wait for it."""

    def __init__(
        self,
        load: Callable[[], Access],
        access: Access,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Args: `load` reads everything again, in a thread; `access` is what it gave first; `now` judges a plugin's expiry."""
        self._load = load
        self._access = access
        self._environ = environ
        self._clock = clock
        self._now = now
        self._grant: Grant | None = None
        self._renewed = 0.0
        self._expires: datetime | None = None
        self._lock = anyio.Lock()

    async def current(self) -> Grant:
        """What to send now. Raises KubeDenied if there is no way to get any."""
        if self._grant is not None and not self._is_due():
            return self._grant
        async with self._lock:
            if self._grant is not None and not self._is_due():
                return self._grant
            return await self._renew()

    async def refused(self, grant: Grant) -> bool:
        """The API answered 401 to this grant: look for another. Whether there is one to try."""
        async with self._lock:
            if self._grant is not grant:
                return True
            if self._access.plugin and self._clock() - self._renewed < PLUGIN_LEEWAY:
                return False
            with suppress(ConfigError):  # it may be half written: what was read before stays
                self._access = await anyio.to_thread.run_sync(self._load)
            return await self._renew() != grant

    def _is_due(self) -> bool:
        if self._access.plugin:
            return self._expires is not None and self._now() >= self._expires
        if self._access.token_file:
            return self._clock() - self._renewed >= TOKEN_PERIOD
        return False

    async def _renew(self) -> Grant:
        old = self._grant
        self._renewed = self._clock()
        try:
            new = await self._obtain()
        except KubeError:
            if old is None:
                raise
            self._expires = None
            new = old
        # The same grant stays the same object, so that `refused` knows it again.
        self._grant = old if old == new and old is not None else new
        return self._grant

    async def _obtain(self) -> Grant:
        access = self._access
        if access.plugin:
            return await self._run(access.plugin)
        if access.token_file:
            token = await anyio.to_thread.run_sync(_read_token, access.token_file)
            return Grant(connection=access.connection, token=token)
        return Grant(connection=access.connection, token=access.token)

    async def _run(self, plugin: ExecPlugin) -> Grant:
        output = await _run_plugin(plugin, self._environ)
        try:
            status = _EXEC_DECODER.decode(output).status
        except msgspec.DecodeError as error:
            raise _plugin_error(plugin, "it printed no ExecCredential") from error
        if not status.token and not (status.client_certificate_data and status.client_key_data):
            raise _plugin_error(plugin, "it printed neither a token nor a certificate with its key")
        self._expires = status.expiration_timestamp
        connection = self._access.connection
        if status.client_certificate_data:
            connection = replace(
                connection,
                certificate=status.client_certificate_data.encode(),
                key=status.client_key_data.encode(),
            )
        return Grant(connection=connection, token=status.token)


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        message = f"The token file {path} cannot be read: {error.strerror}"
        raise KubeDenied(message, reason="token") from error
    if not token:
        raise KubeDenied(f"The token file {path} is empty", reason="token")
    return token


async def _run_plugin(plugin: ExecPlugin, environ: Mapping[str, str]) -> bytes:
    spec: dict[str, Any] = {"interactive": False}
    if plugin.cluster:
        spec["cluster"] = json.loads(plugin.cluster)
    info = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    environment = {**environ, **dict(plugin.environment), "KUBERNETES_EXEC_INFO": json.dumps(info)}
    try:
        with anyio.fail_after(PLUGIN_TIMEOUT):
            done = await anyio.run_process(
                [plugin.command, *plugin.arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                check=False,
            )
    except (OSError, TimeoutError) as error:
        raise _plugin_error(plugin, str(error) or "it did not end in time") from error
    if done.returncode:
        detail = printable(done.stderr.decode(errors="replace"))
        raise _plugin_error(plugin, f"it ended with {done.returncode}: {detail}")
    return done.stdout


def _plugin_error(plugin: ExecPlugin, detail: str) -> KubeDenied:
    hint = f" ({printable(plugin.install_hint)})" if plugin.install_hint else ""
    message = f"The kubeconfig's exec plugin {plugin.command!r} gave no credentials: {detail}{hint}"
    return KubeDenied(message, reason="plugin")
