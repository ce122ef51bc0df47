"""What the tests of the registry client share: a transport that hurries, and servers that follow a script."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Unpack

from aiohttp import web
from aiohttp.test_utils import unused_port
from typing_extensions import TypedDict

from copycat.metrics import Metrics
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor
from copycat.registry.hosts import HostConfig, HostPolicy, Proxies
from copycat.registry.keychain import Access, Credentials, Keychain
from copycat.registry.limits import RetryPolicy
from copycat.registry.repository import Repository
from copycat.registry.transport import Transport
from copycat.sandbox.images import Blob

__all__ = [
    "Keys",
    "Script",
    "Seen",
    "World",
    "blob",
    "closed_port",
    "descriptor",
    "scripted",
    "sent",
    "world",
]

#: Retries without waiting; enough of them.
HURRY = RetryPolicy(attempts=4, backoff=0.0)


class Keys:
    """A keychain with one list for everybody; counts nothing, knows what was called expired."""

    def __init__(self, *credentials: Credentials) -> None:
        """The candidates."""
        self.credentials = list(credentials)

    async def resolve(self, registry: str, repository: str, access: Access) -> list[Credentials]:
        """All of them."""
        return list(self.credentials)


class Options(TypedDict, total=False):
    """The arguments of a Transport that tests set."""

    hosts: Mapping[str, HostConfig]
    policy: HostPolicy
    target_registries: frozenset[str]
    ca_file: str
    request_timeout: float
    watchdog: float
    slow_rate: float
    retry: RetryPolicy
    concurrency: int
    pull_quota_reserve: float | None
    ssl_context: ssl.SSLContext
    proxies: Proxies
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    jitter: Callable[[], float]


@dataclass(slots=True)
class World:
    """An open transport and a short way to repositories."""

    transport: Transport
    metrics: Metrics
    keys: Keychain

    def source(
        self, registry: str, name: str = "team/app", *, access: Access | None = None
    ) -> Repository:
        """A repository to read from."""
        return Repository(self.transport, registry, name, access=access or Access())

    def target(self, registry: str, name: str = "copy/app") -> Repository:
        """A repository to write to."""
        return Repository(self.transport, registry, name, push=True)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 if nothing was counted yet."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def world(
    *registries: str, keys: Keychain | None = None, **options: Unpack[Options]
) -> AsyncIterator[World]:
    """A transport for loopback: the machine is named, and every registry given may be plain HTTP."""
    metrics, keys = Metrics(version="test"), keys or Keys()
    insecure = {name: HostConfig(host=name, insecure=True) for name in registries}
    settings: Options = {
        "retry": HURRY,
        "policy": HostPolicy(named=frozenset({"127.0.0.1"})),
        "proxies": Proxies({}),
        **options,
        "hosts": {**insecure, **options.get("hosts", {})},
    }
    async with Transport(keychain=keys, metrics=metrics, **settings) as transport:
        yield World(transport, metrics, keys)


def descriptor(part: Blob) -> Descriptor:
    """A sandbox's blob as its parent describes it."""
    return Descriptor(media_type=part.media_type, digest=Digest.parse(part.digest), size=part.size)


def blob(data: bytes, algorithm: str = "sha256") -> Descriptor:
    """The descriptor of some bytes."""
    return Descriptor(
        media_type="application/octet-stream", digest=Digest.of(data, algorithm), size=len(data)
    )


def sent(data: bytes, *, piece: int = 65536) -> Callable[[], AsyncIterator[bytes]]:
    """An `open_body` for some bytes."""

    async def body() -> AsyncIterator[bytes]:
        for at in range(0, len(data), piece):
            yield data[at : at + piece]

    return body


@dataclass(slots=True)
class Seen:
    """A request that a scripted server got."""

    method: str
    target: str
    """As sent: path and query, byte for byte."""
    headers: Mapping[str, str]
    body: bytes = b""


#: Gives the answer to a request.
Handler = Callable[[Seen], web.StreamResponse | Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Script:
    """A server whose answers a test writes down: by `METHOD /path`, by `METHOD`, or a function for all."""

    handler: Handler
    address: str = ""
    scheme: str = "http"
    seen: list[Seen] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its origin."""
        return f"{self.scheme}://{self.address}"

    def targets(self, *, pings: bool = False) -> list[str]:
        """`METHOD target` of every request, pings left out."""
        rows = [f"{s.method} {s.target}" for s in self.seen]
        return [row for row in rows if pings or not row.endswith(" /v2/")]


@asynccontextmanager
async def scripted(
    handler: Handler, *, tls: ssl.SSLContext | None = None, pings: bool = False
) -> AsyncIterator[Script]:
    """Serve a script. The handler sees pings only if it wants to; they are answered 200 otherwise."""
    script = Script(handler, scheme="https" if tls else "http")

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen = Seen(request.method, request.raw_path, dict(request.headers), await request.read())
        script.seen.append(seen)
        if seen.target == "/v2/" and not pings:
            return web.Response()
        reply = script.handler(seen)
        return reply if isinstance(reply, web.StreamResponse) else await reply

    server = web.Server(answer, access_log=None, auto_decompress=False)
    runner = web.ServerRunner(server, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    script.address = "{}:{}".format(*runner.addresses[0][:2])
    try:
        yield script
    finally:
        await runner.cleanup()


def closed_port() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{unused_port()}"
