"""Clouds on loopback: metadata services, registries under their own names over TLS, and an engine that finds them all."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import anyio
import anyio.to_thread
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from copycat.app.wiring import Engine, open_engine
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.metrics import Metrics
from copycat.oci.digest import Digest
from copycat.registry.repository import Repository
from copycat.sandbox.registry import Registry

GAR, GAR_US = "europe-docker.pkg.dev", "us-docker.pkg.dev"
ACR = "team.azurecr.io"
HOUR = 3600.0


def jwt(end: float, number: int) -> str:
    """A token that says when it ends."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": end, "jti": number}).encode())
    return f"eyJhbGciOiJub25l.{claims.decode().rstrip('=')}.signature{number:08d}"


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Names(AbstractResolver):
    """The only names that there are, and on which port of this machine each really is."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host not in self.ports:
            raise OSError(f"nobody knows {host}")
        return [
            ResolveResult(
                hostname=host,
                host="127.0.0.1",
                port=self.ports[host],
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing to close."""


class Acr(Registry):
    """A registry that gives its own refresh tokens for Entra's access tokens."""

    def __init__(self, clouds: Clouds, context: ssl.SSLContext) -> None:
        super().__init__(
            profile="acr",
            auth="token",
            ssl_context=context,
            redirect_blobs=False,
            clock=clouds.clock,
        )
        self._clouds = clouds

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/oauth2/exchange":
            return await super().answer(request)
        form = dict(parse_qsl(await request.text()))
        self._clouds.exchanges.append(form)
        if form["access_token"] not in self._clouds.secrets or self._clouds.refuse_exchange:
            return web.Response(status=401)
        token = self._clouds.secret(jwt(self._clouds.clock() + 3 * HOUR, len(self._clouds.secrets)))
        self.authority.identity_tokens = {token: "pod"}  # an older one is over
        return web.json_response({"refresh_token": token})


@dataclass(slots=True)
class Clouds:
    """Google's and Azure's services on one port, and registries that believe what they handed out last."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    names: Names = field(default_factory=Names)
    authority: trustme.CA = field(default_factory=trustme.CA)
    asked: list[str] = field(default_factory=list)
    exchanges: list[dict[str, str]] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)
    registries: list[Registry] = field(default_factory=list)
    """Where Google's tokens are good."""
    status: int = 200
    """Of the metadata services."""
    refuse_exchange: bool = False
    url: str = ""

    def secret(self, text: str) -> str:
        """Remember what may appear nowhere."""
        self.secrets.add(text)
        return text

    async def answer(self, request: web.Request) -> web.Response:
        """A token service."""
        self.asked.append(request.path)
        if self.status != 200:
            return web.Response(status=self.status, text="metadata says canary-of-the-body")
        number = len(self.asked)
        token = self.secret(f"ya29.canary-{number:04d}-of-the-cloud")
        if request.path.startswith("/computeMetadata/"):
            assert request.headers["Metadata-Flavor"] == "Google"
            for registry in self.registries:
                registry.authority.set_password("oauth2accesstoken", token)
            return web.json_response({"access_token": token, "expires_in": 3600})
        if request.path == "/metadata/identity/oauth2/token":
            assert request.headers["Metadata"] == "true"
            assert request.query["resource"] == "https://containerregistry.azure.net"
            return web.json_response({"access_token": token, "expires_in": "86400"})
        assert request.path == "/tenant/oauth2/v2.0/token"
        assert (await request.post())["scope"] == "https://containerregistry.azure.net/.default"
        return web.json_response({"access_token": token, "expires_in": 3600})

    @property
    def environ(self) -> dict[str, str]:
        """What a Pod finds in its environment."""
        return {
            "GCE_METADATA_HOST": self.url.removeprefix("http://"),
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": self.url,
            # metadata services are asked directly all the same
            "HTTP_PROXY": "http://127.0.0.1:9",
        }

    def federated(self) -> dict[str, str]:
        """The same with Azure's workload identity."""
        file = self.folder / "federated"
        file.write_text(self.secret("eyJhbGciOi.federated-canary.signature"))
        return self.environ | {
            "HTTP_PROXY": "",
            "AZURE_AUTHORITY_HOST": self.url,
            "AZURE_CLIENT_ID": "client",
            "AZURE_TENANT_ID": "tenant",
            "AZURE_FEDERATED_TOKEN_FILE": str(file),
        }

    def context(self, *hosts: str) -> ssl.SSLContext:
        """The certificate of a server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*hosts).configure_cert(context)
        return context

    def trust(self) -> ssl.SSLContext:
        """Of clients: everything here is genuine."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    @asynccontextmanager
    async def google(self, *hosts: str) -> AsyncIterator[Registry]:
        """A registry of Google, under its names."""
        registry = Registry(
            profile="gar",
            auth="token",
            ssl_context=self.context(*hosts),
            redirect_blobs=False,
            clock=self.clock,
        )
        async with self._serving(registry, *hosts):
            self.registries.append(registry)
            yield registry

    @asynccontextmanager
    async def azure(self) -> AsyncIterator[Acr]:
        """A registry of Azure."""
        registry = Acr(self, self.context(ACR))
        async with self._serving(registry, ACR):
            yield registry

    @asynccontextmanager
    async def any(self, host: str, **options: Any) -> AsyncIterator[Registry]:
        """Any registry under a name."""
        registry = Registry(ssl_context=self.context(host), clock=self.clock, **options)
        async with self._serving(registry, host):
            yield registry

    @asynccontextmanager
    async def _serving(self, registry: Registry, *hosts: str) -> AsyncIterator[None]:
        async with registry:
            self.names.ports |= dict.fromkeys(hosts, registry.port)
            yield

    async def settings(self, text: str, **environ: str) -> Settings:
        """Of a file with this text."""
        file = anyio.Path(self.folder / "config.yaml")
        await file.write_text(text)
        return await anyio.to_thread.run_sync(lambda: load(path=str(file), environ=environ))

    @asynccontextmanager
    async def engine(
        self,
        text: str,
        environ: Mapping[str, str] | None = None,
        *,
        settings: Settings | None = None,
    ) -> AsyncIterator[Engine]:
        """What the program builds of a configuration, in this world."""
        async with open_engine(
            settings or await self.settings(text + "\nregistryRetryAttempts: 1\n"),
            metrics=Metrics(version="test"),
            resolver=self.names,
            ssl_context=self.trust(),
            environ=self.environ if environ is None else environ,
            clock=self.clock,
            wall=self.clock,
        ) as engine:
            yield engine


async def pull(engine: Engine, registry: str, name: str = "team/app", tag: str = "1") -> Digest:
    """Ask a source for a tag's manifest, as a copy would."""
    document = await Repository(engine.transport, registry, name).get_manifest(tag)
    return document.digest


@asynccontextmanager
async def open_clouds(folder: Path) -> AsyncIterator[Clouds]:
    """The metadata services, running."""
    clouds = Clouds(folder)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", clouds.answer)
    runner = web.AppRunner(app, access_log=None)
    async with AsyncExitStack() as stack:
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        clouds.url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield clouds
