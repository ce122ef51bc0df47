"""The way to every registry: one session, and around each request its gate, login, redirects, retries.

`fetch` reads an answer whole, `open` streams one. Both retry what can be sent again unchanged; a
body that streams cannot, so uploads are tried again one level up, where the body can be rebuilt.
"""

from __future__ import annotations

import io
import random
import ssl
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

import aiohttp
import anyio
from aiohttp.abc import AbstractResolver
from yarl import URL

import copycat
from copycat.errors import (
    HostNotAllowed,
    NotFound,
    RegistryError,
    Side,
    Throttled,
    TooLarge,
    Unavailable,
    printable,
)
from copycat.metrics import Metrics
from copycat.oci.reference import DOCKER_HUB, normalise_registry
from copycat.registry.answers import (
    ERROR_LIMIT,
    NETWORK_ERRORS,
    TRANSIENT,
    Place,
    Reply,
    network_error,
    read_body,
    status_error,
)
from copycat.registry.auth import MARGIN, Authenticator, Exchange, Login
from copycat.registry.challenge import parse_challenges
from copycat.registry.endpoint import Endpoint, endpoint
from copycat.registry.hosts import (
    FilteringResolver,
    HostConfig,
    HostPolicy,
    Proxies,
    TlsContexts,
    netloc,
    same_origin,
)
from copycat.registry.keychain import Keychain
from copycat.registry.limits import GATE_PATIENCE, HostLimits, RetryPolicy, parse_retry_after
from copycat.registry.singleflight import SingleFlight

__all__ = ["BodySpent", "Call", "HostConfig", "HostPolicy", "Quota", "Transport"]

T = TypeVar("T")

MAX_HOPS = 10
#: Silence on a body is never allowed for longer, even with requestTimeout 0 (seconds).
WATCHDOG = 120.0
DOCKER_HUB_STREAMS = 4
READ_BUFFER = 256 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REPLAYED = frozenset({307, 308})
_HINTS = frozenset({400, 401, 403})


class BodySpent(Unavailable):
    """A streaming body met a refusal that a new login cures: begin the upload again."""

    default_reason = "login_renewed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a registry said about its pull quota (Docker Hub's ratelimit headers)."""

    remaining: int
    limit: int | None
    window: float | None
    """Seconds."""
    at: float
    """When it said so (the transport's clock)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as the protocol means it."""

    method: str
    repository: str = ""
    path: str = ""
    """Below `/v2/<repository>/`."""
    url: URL | None = None
    """In place of repository and path: a Location."""
    place: Place
    login: Login | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    stream: AsyncIterable[bytes] | None = None
    """A body that can be sent once; `headers` must have its Content-Length."""
    accept: frozenset[int] = frozenset()
    """Statuses besides 2xx that the caller handles."""
    limit: int = ERROR_LIMIT
    """Bytes of the answer that are read at most."""
    follow: bool = True
    retry: bool = True
    silence: float | None = None
    """Longest wait for the answer (seconds); None: the transport's."""
    margin: float = MARGIN
    """How long a token must still last."""
    small: bool = True
    """Takes a place in the host's lane for small requests."""


@dataclass(slots=True, kw_only=True)
class _Host:
    """A registry: what it is called and where it is reached."""

    endpoints: Sequence[Endpoint]
    streams: anyio.Semaphore


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The head of an answer; the body too, if it had to be read to understand a refusal."""

    response: aiohttp.ClientResponse
    foreign: bool
    body: bytes | None = None


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
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 -- frozen
        concurrency: int = 16,
        resolver: AbstractResolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        proxies: Proxies | None = None,
        user_agent: str = f"k8s-copycat/{copycat.__version__}",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Args: see the `registries` table and `requestTimeout` (seconds, 0 disables) in docs/configuration.md."""
        self.metrics, self.retry, self.request_timeout = metrics, retry, request_timeout
        self.clock, self.sleep, self.jitter = clock, sleep, jitter
        self._configs = {normalise_registry(name): config for name, config in hosts.items()}
        self._targets, self._concurrency = target_registries, concurrency
        self._proxies = proxies or Proxies()
        endpoints = {
            endpoint_host(text) for config in self._configs.values() for text in config.endpoints
        }
        self.policy = replace(
            policy, named=policy.named | endpoints | self._configs.keys() | self._proxies.hosts
        )
        self._tls = TlsContexts(ca_file=ca_file, default=ssl_context)
        self._resolver, self._user_agent = resolver, user_agent
        self._auth = Authenticator(
            keychain=keychain, send=self._send_token, policy=self.policy, clock=clock
        )
        self._hosts: dict[str, _Host] = {}
        self._limits: dict[str, HostLimits] = {}
        self._pings: SingleFlight[tuple[str, str], None] = SingleFlight()
        self._timeouts: dict[float | None, aiohttp.ClientTimeout] = {}
        self._quotas: dict[str, Quota] = {}
        self._stack = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session."""
        context = await self._tls.get(None)
        resolver = self._resolver or aiohttp.ThreadedResolver()
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=0,
            keepalive_timeout=30,
            ttl_dns_cache=60,
            ssl=context,
            resolver=FilteringResolver(resolver, self.policy),
        )
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout(self.request_timeout or None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # see Proxies
                read_bufsize=READ_BUFFER,
                max_field_size=32768,
                max_line_size=32768,
                requote_redirect_url=False,
                headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
                raise_for_status=False,
            )
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection."""
        self._session = None
        await self._stack.aclose()

    # What others ask

    def side(self, registry: str) -> Side:
        """`target` for the registries that are written to, else `source`."""
        return "target" if registry in self._targets else "source"

    def endpoint(self, registry: str) -> Endpoint:
        """Where a registry is written to: its first endpoint."""
        return self._host(registry).endpoints[0]

    def quota(self, registry: str) -> Quota | None:
        """The newest word of a registry about its pull quota."""
        return self._quotas.get(registry)

    @asynccontextmanager
    async def streams(self, *registries: str) -> AsyncIterator[None]:
        """Permits for one blob stream at each of the registries.

        Taken in sorted order, one per host, so that copies from A to B and from B to A cannot wait
        for each other in a circle.
        """
        async with AsyncExitStack() as stack:
            for registry in sorted(set(registries)):
                await stack.enter_async_context(self._host(registry).streams)
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
                ):
                    raise
                self.metrics.retries.labels(endpoint.label, error.reason).inc()
                # A Retry-After has shut the gate, which is where the next turn waits.
                pause = 0.0 if error.retry_after else self.retry.delay(failures, self.jitter)
            await self.sleep(pause)

    async def _admit(self, endpoint: Endpoint, call: Call) -> None:
        """Wait at a gate that opens soon. Raises Throttled or Unavailable rather than hold a worker."""
        limits = endpoint.limits
        if limits.breaker.is_open:
            await self._probe(endpoint, call)
        while (wait := limits.gate.remaining()) > 0:
            if wait > GATE_PATIENCE:
                raise Throttled(
                    f"{call.place.who} asked to be left alone for another {wait:.0f} s.",
                    side=call.place.side,
                    reference=call.place.reference,
                    registry=endpoint.registry,
                    retry_after=wait,
                )
            await self.sleep(wait)

    async def _probe(self, endpoint: Endpoint, call: Call) -> None:
        """The breaker is open: one request finds out whether the host is back, the others leave."""
        breaker = endpoint.limits.breaker
        if breaker.probing or (wait := breaker.remaining()) > 0:
            wait = max(breaker.remaining(), 1.0)
            raise Unavailable(
                f"{call.place.who} did not answer several times in a row; it is asked again in {wait:.0f} s.",
                side=call.place.side,
                reference=call.place.reference,
                registry=endpoint.registry,
                reason="breaker_open",
                retry_after=wait,
            )
        breaker.probing = True
        try:
            await self._ping(endpoint, call.place)
        finally:
            breaker.probing = False

    # Ping

    async def _ready(self, endpoint: Endpoint, place: Place) -> None:
        """Know the scheme and the challenge: one ping per endpoint, however many ask at once."""
        if endpoint.challenges is None or not endpoint.scheme:
            await self._pings.do(
                (endpoint.registry, endpoint.host), lambda: self._ping(endpoint, place)
            )

    async def _ping(self, endpoint: Endpoint, place: Place) -> None:
        ping = Call(
            method="GET", place=replace(place, what="the registry's API (/v2/)"), follow=False
        )
        if endpoint.scheme:
            await self._ping_with(endpoint, ping, endpoint.scheme)
            return
        try:
            await self._ping_with(endpoint, ping, "https")
        except Unavailable as error:
            if error.status or error.reason in {"dns", "timeout"}:
                raise
            # It does not speak TLS, and the configuration allows it not to.
            await self._ping_with(endpoint, ping, "http")

    async def _ping_with(self, endpoint: Endpoint, ping: Call, scheme: str) -> None:
        url = URL(f"{scheme}://{endpoint.host}/v2/", encoded=True)
        response = await self._send(endpoint, ping, url, None)
        with suppress(TooLarge):  # a page for people
            reply = await self._reply(endpoint, ping, _Answer(response=response, foreign=False))
            if reply.status in TRANSIENT:
                raise self._error(endpoint, ping, reply)
        endpoint.scheme = scheme
        endpoint.limits.breaker.success()  # a try at TLS before is no failure
        # Any other answer is as good as "no challenge yet": a 401 later brings its own.
        endpoint.challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))

    # One request

    async def _fetch(self, endpoint: Endpoint, call: Call) -> Reply:
        await self._ready(endpoint, call.place)
        if call.small:
            async with endpoint.limits.small:
                reply = await self._reply(endpoint, call, await self._authorised(endpoint, call))
        else:
            reply = await self._reply(endpoint, call, await self._authorised(endpoint, call))
        if reply.status < 300 or reply.status in call.accept:
            return reply
        raise self._error(endpoint, call, reply)

    async def _open(self, endpoint: Endpoint, call: Call) -> aiohttp.ClientResponse:
        await self._ready(endpoint, call.place)
        answer = await self._authorised(endpoint, call)
        status = answer.response.status
        if answer.body is None and (status < 300 or status in call.accept):
            return answer.response
        raise self._error(endpoint, call, await self._reply(endpoint, call, answer))

    async def _reply(self, endpoint: Endpoint, call: Call, answer: _Answer) -> Reply:
        response = answer.response
        limit = call.limit if response.status < 300 else ERROR_LIMIT
        try:
            body = answer.body
            if body is None:
                body = await read_body(response, call.place, limit)
        except NETWORK_ERRORS as error:
            raise network_error(call.place, error, host=netloc(response.url)) from error
        finally:
            response.release()
        return Reply(
            status=response.status,
            headers=response.headers,
            body=body,
            url=response.url,
            foreign=answer.foreign,
        )

    async def _authorised(self, endpoint: Endpoint, call: Call) -> _Answer:
        """Send with the login's header; after a refusal that it can answer, send again."""
        if call.login is None:
            return await self._follow(endpoint, call, None)
        exchange = await self._auth.exchange(endpoint, call.login, margin=call.margin)
        while True:
            answer = await self._follow(endpoint, call, await exchange.header())
            status = answer.response.status
            if answer.foreign or status not in _HINTS or status in call.accept - {401}:
                if status < 400 and not answer.foreign:
                    exchange.accepted()
                return answer
            reply = await self._reply(endpoint, call, answer)
            if not await self._try_again(exchange, call, reply):
                if status != 400:
                    self.metrics.auth_failures.labels(endpoint.label).inc()
                return replace(answer, body=reply.body)

    @staticmethod
    async def _try_again(exchange: Exchange, call: Call, reply: Reply) -> bool:
        if not await exchange.refused(reply.status, reply.headers, reply.body):
            return False
        if call.stream is None:
            return True
        raise BodySpent(
            f"{call.place.who}: the login for {call.place.what} had run out and was renewed.",
            side=call.place.side,
            reference=call.place.reference,
            registry=call.place.registry,
            status=reply.status,
        )

    async def _follow(self, endpoint: Endpoint, call: Call, authorization: str | None) -> _Answer:
        """Send, and follow redirects by hand: the query stays byte for byte, the header stays at home."""
        url = call.url or endpoint.url(call.repository, call.path)
        for _ in range(MAX_HOPS + 1):
            foreign = not same_origin(url, endpoint.base)
            response = await self._send(endpoint, call, url, None if foreign else authorization)
            target = self._redirect(call, url, response)
            if target is None:
                return _Answer(response=response, foreign=foreign)
            response.release()
            if url.scheme == "https" and target.scheme != "https":
                raise HostNotAllowed(
                    f"{call.place.who}: {call.place.what} redirects from TLS to {target.scheme}, which is not followed.",
                    side=call.place.side,
                    reference=call.place.reference,
                    registry=endpoint.registry,
                    reason="downgrade",
                )
            url = target
        raise Unavailable(
            f"{call.place.who}: {call.place.what} redirects more than {MAX_HOPS} times.",
            side=call.place.side,
            reference=call.place.reference,
            registry=endpoint.registry,
            reason="redirect_loop",
            temporary=False,
        )

    @staticmethod
    def _redirect(call: Call, url: URL, response: aiohttp.ClientResponse) -> URL | None:
        if response.status not in _REDIRECTS or not call.follow or response.status in call.accept:
            return None
        if call.stream is not None:
            return None
        if call.method not in {"GET", "HEAD"} and response.status not in _REPLAYED:
            return None
        location = response.headers.get("Location")
        if not location:
            return None
        try:
            target = url.join(URL(location, encoded=True))
        except ValueError:
            return None
        return target if target.scheme in {"http", "https"} and target.host else None

    async def _send(
        self, endpoint: Endpoint, call: Call, url: URL, authorization: str | None
    ) -> aiohttp.ClientResponse:
        """One request on the wire. Raises HostNotAllowed before, Unavailable if no head of an answer came."""
        self.policy.check(url, side=call.place.side)
        headers = (
            {**call.headers, "Authorization": authorization} if authorization else call.headers
        )
        label, session = endpoint.label, self._session
        if session is None:
            raise RuntimeError("the transport is not open")
        context = await self._context(endpoint, url)
        begun = self.clock()
        try:
            response = await session.request(
                call.method,
                url,
                headers=headers,
                data=_payload(call),
                allow_redirects=False,
                ssl=context,
                proxy=self._proxies.get(url),
                timeout=self._timeout(self._silence(call)),
            )
        except NETWORK_ERRORS as error:
            self.metrics.requests.labels(label, call.method, "0").inc()
            failure = network_error(call.place, error, host=netloc(url))
            if call.stream is None and same_origin(url, endpoint.base):
                endpoint.limits.breaker.failure()
            raise failure from error
        self.metrics.requests.labels(label, call.method, str(response.status)).inc()
        self.metrics.request_duration.labels(label, call.method).observe(self.clock() - begun)
        if same_origin(url, endpoint.base):
            self._observe(endpoint, call, response)
        return response

    def _silence(self, call: Call) -> float | None:
        return self.request_timeout or None if call.silence is None else call.silence

    def _timeout(self, silence: float | None) -> aiohttp.ClientTimeout:
        if (timeout := self._timeouts.get(silence)) is None:
            connect = min(15.0, self.request_timeout or 15.0)
            timeout = aiohttp.ClientTimeout(
                total=None, connect=2 * connect, sock_connect=connect, sock_read=silence
            )
            if len(self._timeouts) < 64:
                self._timeouts[silence] = timeout
        return timeout

    async def _context(self, endpoint: Endpoint, url: URL) -> ssl.SSLContext | bool:
        if url.scheme != "https":
            return True
        if url.host == endpoint.base.host and url.port == endpoint.base.port:
            return await self._tls.get(endpoint.config)
        return await self._tls.get(self._configs.get(netloc(url)))

    def _observe(self, endpoint: Endpoint, call: Call, response: aiohttp.ClientResponse) -> None:
        """Keep what the head of an answer says about the host."""
        status, headers = response.status, response.headers
        breaker = endpoint.limits.breaker
        if status in TRANSIENT and status >= 500:
            breaker.failure("" if breaker.probing else call.path)
        elif status != 429:
            breaker.success()
        if (remaining := headers.get("ratelimit-remaining")) is not None:
            self._note_quota(endpoint, remaining, headers.get("ratelimit-limit", ""))

    def _note_quota(self, endpoint: Endpoint, remaining: str, limit: str) -> None:
        """`ratelimit-remaining: 76;w=21600` (registry notes 4, Docker Hub)."""
        count, _, window = remaining.partition(";w=")
        if not count.strip().isdecimal():
            return
        most = limit.partition(";")[0].strip()
        self._quotas[endpoint.registry] = Quota(
            remaining=int(count),
            limit=int(most) if most.isdecimal() else None,
            window=float(window) if window.isdecimal() else None,
            at=self.clock(),
        )
        self.metrics.quota.labels(endpoint.label).set(int(count))

    def _error(self, endpoint: Endpoint, call: Call, reply: Reply) -> RegistryError:
        """The error for a reply; a Retry-After (or a 429 without one) shuts the host's gate."""
        retry_after = None
        if reply.status in TRANSIENT and not reply.foreign:
            value = reply.headers.get("Retry-After")
            retry_after = parse_retry_after(value) if value else None
            shut = retry_after
            if shut is None and reply.status == 429:
                shut = self.retry.delay(1, self.jitter)
            if shut:
                self.metrics.throttled.labels(endpoint.label).inc(endpoint.limits.gate.shut(shut))
        return status_error(call.place, reply, retry_after=retry_after)

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
        response = await self._send(endpoint, call, url, None)
        return await self._reply(endpoint, call, _Answer(response=response, foreign=True))


def _payload(call: Call) -> bytes | io.BytesIO | AsyncIterable[bytes] | None:
    if call.stream is not None:
        return call.stream
    # aiohttp writes large bytes in one piece, and warns about it.
    large = call.body is not None and len(call.body) > READ_BUFFER
    return io.BytesIO(call.body or b"") if large else call.body


def endpoint_host(text: str) -> str:
    """The `host[:port]` of an endpoint's text, as `registries` would name it."""
    host = text.partition("://")[2] or text
    return normalise_registry(host.partition("/")[0])
