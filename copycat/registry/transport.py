"""The way to every registry: one session, and around each request its gate, login, redirects, retries.

`fetch` reads an answer whole, `open` streams one. Both retry what can be sent again unchanged; a
body that streams cannot, so uploads are tried again one level up, where the body can be rebuilt.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

import aiohttp
import anyio
from aiohttp.abc import AbstractResolver
from yarl import URL

import copycat
from copycat.errors import (
    CopycatError,
    NotFound,
    Side,
    Throttled,
    Unavailable,
    printable,
)
from copycat.metrics import Metrics
from copycat.oci.reference import DOCKER_HUB, normalise_registry
from copycat.registry.answers import SLOW_RATE, Place, Reply
from copycat.registry.auth import Authenticator
from copycat.registry.calls import WATCHDOG, Answer, Call
from copycat.registry.endpoint import Endpoint, endpoint
from copycat.registry.hosts import HostConfig, HostPolicy, Proxies, TlsContexts
from copycat.registry.keychain import Keychain
from copycat.registry.limits import GATE_PATIENCE, HostLimits, RetryPolicy, together
from copycat.registry.ping import Pings
from copycat.registry.quota import PullQuotas, Quota
from copycat.registry.sender import Sender
from copycat.registry.wire import Wire

__all__ = ["HostConfig", "HostPolicy", "Transport"]

T = TypeVar("T")

DOCKER_HUB_STREAMS = 4


@dataclass(slots=True, kw_only=True)
class _Host:
    """A registry: what it is called and where it is reached."""

    endpoints: Sequence[Endpoint]
    streams: anyio.Semaphore


class Transport:
    """An async context manager that owns the one session; every registry is reached through it."""

    def __init__(
        self,
        *,
        keychain: Keychain,
        metrics: Metrics,
        policy: HostPolicy,
        hosts: Mapping[str, HostConfig] = MappingProxyType({}),
        target_registries: frozenset[str] = frozenset(),
        ca_file: str = "",
        request_timeout: float = 120.0,
        watchdog: float = WATCHDOG,
        slow_rate: float = SLOW_RATE,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 -- frozen
        concurrency: int = 16,
        pull_quota_reserve: float | None = None,
        resolver: AbstractResolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        proxies: Proxies | None = None,
        user_agent: str = f"k8s-copycat/{copycat.__version__}",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Args: see the `registries` table, `pullQuotaReserve` (a share; None: its default) and `requestTimeout`
        (seconds, 0 disables) in docs/configuration.md; `watchdog` is the longest silence of a transfer (seconds)
        where there is no `requestTimeout`; an upload that moves less than `slow_rate` (bytes a second) is cut off.
        """
        self.metrics, self.retry, self.request_timeout = metrics, retry, request_timeout
        self.silence, self.slow_rate = request_timeout or watchdog, slow_rate
        self.clock, self.sleep, self.jitter = clock, sleep, jitter
        self._configs = {normalise_registry(name): config for name, config in hosts.items()}
        self._targets, self._concurrency = target_registries, concurrency
        proxies = proxies or Proxies()
        self.policy = self._policy(policy)
        self._wire = Wire(
            metrics=metrics,
            policy=self.policy,
            hosts=self._configs,
            tls=TlsContexts(ca_file=ca_file, default=ssl_context),
            proxies=proxies,
            request_timeout=request_timeout,
            retry=retry,
            resolver=resolver,
            user_agent=user_agent,
            clock=clock,
            jitter=jitter,
        )
        self._quotas = PullQuotas(metrics=metrics, reserve=pull_quota_reserve, clock=clock)
        self._sender = Sender(
            wire=self._wire,
            auth=Authenticator(
                keychain=keychain, send=self._send_token, policy=self.policy, clock=clock
            ),
            quotas=self._quotas,
            metrics=metrics,
            request_timeout=request_timeout,
        )
        self._hosts: dict[str, _Host] = {}
        self._limits: dict[str, HostLimits] = {}
        self._pings = Pings(self._wire)

    async def __aenter__(self) -> Self:
        """Open the session."""
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self._wire.__aexit__(kind, error, traceback)

    def _policy(self, policy: HostPolicy) -> HostPolicy:
        """The policy with what the `registries` table names."""
        endpoints = {endpoint_host(e) for c in self._configs.values() for e in c.endpoints}
        named = policy.named | endpoints | self._configs.keys()
        return replace(policy, named=frozenset(named))

    # What others ask

    def side(self, registry: str) -> Side:
        """`target` for the registries that are written to, else `source`."""
        return "target" if registry in self._targets else "source"

    def endpoint(self, registry: str) -> Endpoint:
        """Where a registry is written to: its first endpoint."""
        return self._host(registry).endpoints[0]

    def quota(self, registry: str) -> Quota | None:
        """The newest word of a registry about its pull quota."""
        return self._quotas.newest(registry)

    @asynccontextmanager
    async def streams(self, *registries: str) -> AsyncIterator[None]:
        """Permits for one blob stream at each of the registries, one per host, all of them or none.

        So copies from A to B and from B to A cannot wait for each other in a circle, and what waits for
        a slow registry holds no place at the other one.
        """
        async with together([self._host(name).streams for name in sorted(set(registries))]):
            yield

    async def fetch(self, registry: str, call: Call) -> Reply:
        """Send a request and read its answer whole.

        Raises the registry errors; returns 2xx and what `call.accept` lists.
        """
        return await self._over(registry, call, self._fetch)

    @asynccontextmanager
    async def open(self, registry: str, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and stream its answer: the response, head read. Errors as with `fetch`."""
        response = await self._over(registry, call, self._open)
        try:
            yield response
        finally:
            # Unread bytes close the connection; a body that was read to its end keeps it.
            response.release()

    async def rest(self, registry: str, error: CopycatError, failures: int) -> None:
        """Wait before another try that is made one level up. Args: `failures` in a row."""
        pause = error.retry_after or self.retry.delay(failures, self.jitter)
        if error.retry_after and self.endpoint(registry).limits.gate.remaining():
            return  # the gate is where the next turn waits
        await self.sleep(pause)

    # Endpoints, retries

    def _host(self, registry: str) -> _Host:
        if (host := self._hosts.get(registry)) is None:
            host = self._hosts[registry] = self._make_host(registry)
        return host

    def _make_host(self, registry: str) -> _Host:
        config = self._configs.get(registry)
        label = self.metrics.registry_label(registry)
        texts = (config.endpoints if config else ()) or (registry,)
        return _Host(
            endpoints=[
                endpoint(
                    text,
                    registry=registry,
                    config=self._configs.get(endpoint_host(text), config),
                    label=label,
                    limits=self._limits_of(endpoint_host(text)),
                )
                for text in texts
            ],
            streams=anyio.Semaphore(self._streams_of(registry, config)),
        )

    def _limits_of(self, host: str) -> HostLimits:
        if (limits := self._limits.get(host)) is None:
            limits = self._limits[host] = HostLimits(clock=self.clock)
        return limits

    def _streams_of(self, registry: str, config: HostConfig | None) -> int:
        if config is not None and config.concurrency:
            return config.concurrency
        return (
            min(self._concurrency, DOCKER_HUB_STREAMS)
            if registry == DOCKER_HUB
            else self._concurrency
        )

    async def _over(
        self, registry: str, call: Call, once: Callable[[Endpoint, Call], Awaitable[T]]
    ) -> T:
        """The first endpoint that has an answer. Writes go to the first endpoint alone."""
        endpoints = self._host(registry).endpoints
        if call.place.writing:
            endpoints = endpoints[:1]
        for spare in endpoints[:-1]:
            # Another one can answer: do not be patient here, and take no "not found" for the last word.
            impatient = replace(call, accept=call.accept - {404})
            try:
                return await self._retrying(
                    spare, impatient, once, attempts=min(2, self.retry.attempts)
                )
            except (NotFound, Throttled, Unavailable):
                continue
        return await self._retrying(endpoints[-1], call, once, attempts=self.retry.attempts)

    async def _retrying(
        self,
        endpoint: Endpoint,
        call: Call,
        once: Callable[[Endpoint, Call], Awaitable[T]],
        *,
        attempts: int,
    ) -> T:
        failures = 0
        while True:
            try:
                await self._admit(endpoint, call)
                return await once(endpoint, call)
            except (Throttled, Unavailable) as error:
                failures += 1
                last = not call.retry or not error.temporary or failures >= attempts
                if (
                    last
                    or (error.retry_after or 0) > GATE_PATIENCE
                    or endpoint.limits.breaker.is_open
                    or error.reason == "breaker_open"
                ):
                    raise
                self.metrics.retries.labels(endpoint.label, error.reason).inc()
                pause = error.retry_after or self.retry.delay(failures, self.jitter)
                if error.retry_after and endpoint.limits.gate.remaining():
                    pause = 0.0  # the gate is where the next turn waits
            await self.sleep(pause)

    async def _admit(self, endpoint: Endpoint, call: Call) -> None:
        """Wait at a gate that opens soon. Raises Throttled or Unavailable rather than hold a worker."""
        limits = endpoint.limits
        while (wait := limits.gate.remaining()) > 0:
            if wait > GATE_PATIENCE:
                raise call.place.error(
                    Throttled,
                    f"{call.place.who} asked to be left alone for another {wait:.0f} s.",
                    retry_after=wait,
                )
            await self.sleep(wait)
        if limits.breaker.is_open:  # behind the gate: a probe is a request, too
            await self._probe(endpoint, call)

    async def _probe(self, endpoint: Endpoint, call: Call) -> None:
        """The breaker is open: one request finds out whether the host is back, the others leave."""
        breaker = endpoint.limits.breaker
        if (wait := breaker.wait()) > 0:
            raise call.place.error(
                Unavailable,
                f"{call.place.who} failed several times in a row ({breaker.why}); it is asked again in {wait:.0f} s.",
                reason="breaker_open",
                retry_after=wait,
            )
        with breaker.probe():
            await self._pings.send(endpoint, call.place)

    # One request

    async def _fetch(self, endpoint: Endpoint, call: Call) -> Reply:
        await self._pings.ready(endpoint, call.place)
        if call.small:
            async with endpoint.limits.small:
                await self._admit(endpoint, call)  # the host may have shut while this one waited
                reply = await self._wire.read(
                    endpoint, call, await self._sender.send(endpoint, call)
                )
        else:
            reply = await self._wire.read(endpoint, call, await self._sender.send(endpoint, call))
        if reply.status < 300 or reply.status in call.accept:
            return reply
        raise self._wire.error(endpoint, call, reply)

    async def _open(self, endpoint: Endpoint, call: Call) -> aiohttp.ClientResponse:
        await self._pings.ready(endpoint, call.place)
        answer = await self._sender.send(endpoint, call)
        status = answer.response.status
        if answer.body is None and (status < 300 or status in call.accept):
            return answer.response
        raise self._wire.error(endpoint, call, await self._wire.read(endpoint, call, answer))

    async def _send_token(
        self,
        endpoint: Endpoint,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> Reply:
        """One request to a token service: never redirected, so that credentials stay where they were sent."""
        place = Place(
            registry=endpoint.registry,
            what=f"a token from {printable(url.host or '', 80)}",
            side=self.side(endpoint.registry),
        )
        call = Call(method=method, url=url, place=place, headers=headers, body=body, follow=False)
        response = await self._wire.send(endpoint, call, url, None)
        reply = await self._wire.read(endpoint, call, Answer(response=response, foreign=True))
        # Without a token nothing can be asked of the registry either.
        self._wire.heed(endpoint, reply)
        return reply


def endpoint_host(text: str) -> str:
    """The `host[:port]` of an endpoint's text, as `registries` would name it."""
    host = text.partition("://")[2] or text
    return normalise_registry(host.partition("/")[0])
