"""Requests on the wire: the one session, redirects by hand, and what every answer's head teaches.

A redirect, a Location or a realm is a registry's wish. Each hop is checked against the policy, each
is made with the certificates of its own host, and the login stays at the registry's origin.
"""

from __future__ import annotations

import math
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import aiohttp
import anyio
from aiohttp.abc import AbstractResolver
from yarl import URL

from copycat.errors import HostNotAllowed, RegistryError, Unavailable, printable
from copycat.logs import get_logger
from copycat.metrics import Metrics
from copycat.registry.answers import (
    ERROR_LIMIT,
    NETWORK_ERRORS,
    TRANSIENT,
    Reply,
    network_error,
    read_body,
    status_error,
)
from copycat.registry.calls import READ_BUFFER, WATCHDOG, Answer, Call, payload
from copycat.registry.echoes import without_echo
from copycat.registry.endpoint import Endpoint
from copycat.registry.hosts import (
    FilteringResolver,
    HostConfig,
    HostPolicy,
    Proxies,
    TlsContexts,
    netloc,
    same_origin,
    web_url,
)
from copycat.registry.limits import RetryPolicy, parse_retry_after
from copycat.registry.strangers import Strangers

__all__ = ["Wire"]

_log = get_logger(__name__)

MAX_HOPS = 10
CONNECT_TIMEOUT = 15.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REPLAYED = frozenset({307, 308})


class Wire:
    """An async context manager around the session."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        policy: HostPolicy,
        hosts: Mapping[str, HostConfig],
        tls: TlsContexts,
        proxies: Proxies,
        request_timeout: float,
        retry: RetryPolicy,
        resolver: AbstractResolver | None,
        user_agent: str,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Args: as the transport's; `hosts` has a row for every host with certificates of its own."""
        self._metrics, self._policy, self._configs = metrics, policy, hosts
        self._tls, self._proxies = tls, proxies
        self._request_timeout, self._retry = request_timeout, retry
        self._resolver, self._user_agent = resolver, user_agent
        self._clock, self._jitter = clock, jitter
        self._timeouts: dict[float | None, aiohttp.ClientTimeout] = {}
        self._strangers = Strangers(clock=clock)
        self._warned: deque[tuple[str, str]] = deque(maxlen=256)
        self._stack = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session. Raises Unavailable if registryCAFile cannot be used."""
        await self._tls.check()
        resolver = self._resolver or aiohttp.ThreadedResolver()
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=0,
            keepalive_timeout=30,
            ttl_dns_cache=60,
            resolver=FilteringResolver(resolver, self._policy, proxies=self._proxies.hosts),
        )
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout(self._request_timeout or None),
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

    async def follow(self, endpoint: Endpoint, call: Call, authorization: str | None) -> Answer:
        """Send, and follow redirects by hand: the query stays byte for byte, the header stays at home."""
        url = call.url or endpoint.url(call.repository, call.path)
        self._same_safety(call, endpoint.base, url)
        for _ in range(MAX_HOPS + 1):
            foreign = not same_origin(url, endpoint.base)
            response = await self.send(endpoint, call, url, None if foreign else authorization)
            target = self._redirect(call, url, response)
            if target is None:
                return Answer(response=response, foreign=foreign)
            response.release()
            self._same_safety(call, url, target)
            url = target
        raise call.place.error(
            Unavailable,
            f"{call.place.who}: {call.place.what} redirects more than {MAX_HOPS} times.",
            reason="redirect_loop",
            temporary=False,
        )

    @staticmethod
    def _same_safety(call: Call, before: URL, url: URL) -> None:
        """Raises HostNotAllowed for a way that leads out of TLS: a redirect, or the next page of a list."""
        if before.scheme == "https" and url.scheme != "https":
            raise call.place.error(
                HostNotAllowed,
                f"{call.place.who}: {call.place.what} redirects from TLS to {url.scheme}, which is not followed.",
                reason="downgrade",
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
            return web_url(location, base=url)
        except ValueError:
            return None

    async def send(
        self, endpoint: Endpoint, call: Call, url: URL, authorization: str | None
    ) -> aiohttp.ClientResponse:
        """One request on the wire. Raises HostNotAllowed before, Unavailable if no head of an answer came.

        A host that is not the registry's own may be left alone instead: Throttled, Unavailable.
        """
        if _at_home(endpoint, url):
            return await self._send(endpoint, call, url, authorization)
        with self._strangers.asked(call.place, url):
            return await self._send(endpoint, call, url, authorization)

    async def _send(
        self, endpoint: Endpoint, call: Call, url: URL, authorization: str | None
    ) -> aiohttp.ClientResponse:
        if url.raw_user is not None or url.raw_password is not None:
            url = url.with_user(None)  # who sends us somewhere has no login for us
        self._policy.check(url, side=call.place.side)
        headers = (
            {**call.headers, "Authorization": authorization} if authorization else call.headers
        )
        label, session = endpoint.label, self._session
        if session is None:
            raise RuntimeError("the transport is not open")
        context = await self._context(endpoint, url)
        wait, silence = self._head_wait(call), self._request_timeout or WATCHDOG

        def taken(count: int, left: int) -> None:
            """Bytes that are taken are no silence; with the last of them the wait for the answer begins."""
            pause = silence if left else wait
            patience.deadline = math.inf if pause is None else anyio.current_time() + pause
            if call.on_sent is not None:
                call.on_sent(count)

        begun = self._clock()
        try:
            with anyio.fail_after(wait) as patience:
                response = await session.request(
                    call.method,
                    url,
                    headers=headers,
                    data=payload(call, taken),
                    allow_redirects=False,
                    ssl=context,
                    proxy=self._proxies.get(url),
                    timeout=self._timeout(self._silence(call)),
                )
        except (*NETWORK_ERRORS, ValueError) as error:
            self._metrics.requests.labels(label, call.method, "0").inc()
            failure = network_error(call.place, error, host=netloc(url))
            if call.stream is None:
                known = f"{call.place.who}: {call.place.what}: "
                self._failed(endpoint, url, why=failure.message.removeprefix(known).rstrip("."))
            raise failure from error
        self._metrics.requests.labels(label, call.method, str(response.status)).inc()
        self._metrics.request_duration.labels(label, call.method).observe(self._clock() - begun)
        self._observe(endpoint, call, url, response)
        return response

    def _silence(self, call: Call) -> float | None:
        return self._request_timeout or None if call.silence is None else call.silence

    def _connect_wait(self) -> float:
        return min(CONNECT_TIMEOUT, self._request_timeout or CONNECT_TIMEOUT)

    def _head_wait(self, call: Call) -> float | None:
        """Seconds for the whole head of an answer: one that comes byte by byte is never silent."""
        silence = self._silence(call)
        if silence is None or call.stream is not None:
            return None  # who sends a stream watches it
        return silence + 2 * self._connect_wait()

    def _timeout(self, silence: float | None) -> aiohttp.ClientTimeout:
        if (timeout := self._timeouts.get(silence)) is None:
            connect = self._connect_wait()
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

    def _observe(
        self, endpoint: Endpoint, call: Call, url: URL, response: aiohttp.ClientResponse
    ) -> None:
        """Keep what the head of an answer says about the host."""
        status, own = response.status, same_origin(url, endpoint.base)
        if status in TRANSIENT and status >= 500:
            # the same tag of another repository is another object
            thing = f"{call.repository}/{call.path}" if call.path else ""
            if not thing and not _at_home(endpoint, url):
                thing = url.raw_query_string  # and so is a token for another one
            self._failed(endpoint, url, thing, why=f"HTTP {status}")
        elif status != 429:
            if own:
                endpoint.limits.breaker.success()
            else:
                self._strangers.answered(url)
        if own and "Warning" in response.headers:
            self._warn(endpoint, response)

    def _failed(self, endpoint: Endpoint, url: URL, thing: str = "", *, why: str) -> None:
        breaker = endpoint.limits.breaker
        if same_origin(url, endpoint.base):
            breaker.failure(thing, why=why)
        elif _at_home(endpoint, url):
            breaker.why = why  # without TLS, after a try with it that was counted
        else:
            self._strangers.failed(url, thing, why=why)

    def _warn(self, endpoint: Endpoint, response: aiohttp.ClientResponse) -> None:
        """`Warning: 299 - "…"` is for people (distribution-spec, "Warnings"); each text of a registry once."""
        for warning in response.headers.getall("Warning"):
            said = without_echo(warning.encode("utf-8", "replace"), authorization=_login(response))
            text = printable(said.decode())
            told = (endpoint.registry, text)
            if warning.startswith("299 ") and told not in self._warned:
                self._warned.append(told)
                _log.warning("the registry warns", registry=endpoint.registry, warning=text)

    async def read(self, endpoint: Endpoint, call: Call, answer: Answer) -> Reply:
        response = answer.response
        limit = call.limit if response.status < 300 else ERROR_LIMIT
        try:
            body = answer.body
            if body is None:
                body = await read_body(response, call.place, limit, clock=self._clock)
        except NETWORK_ERRORS as error:
            raise network_error(call.place, error, host=netloc(response.url)) from error
        finally:
            response.release()
        if response.status >= 400 and body:
            body = without_echo(body, authorization=_login(response), form=_form(call))
        return Reply(
            status=response.status,
            headers=response.headers,
            body=body,
            url=response.url,
            foreign=answer.foreign,
        )

    def error(self, endpoint: Endpoint, call: Call, reply: Reply) -> RegistryError:
        """The error for a reply; a Retry-After (or a 429 without one) shuts the host's gate."""
        if reply.foreign:
            # What a store asks for is no reason to leave the registry before it alone.
            if (patience := _patience(reply)) is not None:
                self._strangers.leave_alone(reply.url, patience)
            return status_error(call.place, reply, retry_after=patience)
        return status_error(call.place, reply, retry_after=self.heed(endpoint, reply))

    def heed(self, endpoint: Endpoint, reply: Reply) -> float | None:
        """Shut the host's gate if the reply asks for it; the seconds that it named."""
        named = _patience(reply)
        shut = named
        if shut is None and reply.status == 429:
            shut = self._retry.delay(1, self._jitter)
        if shut:
            self._metrics.throttled.labels(endpoint.label).inc(endpoint.limits.gate.shut(shut))
        return named


def _at_home(endpoint: Endpoint, url: URL) -> bool:
    """Whether it is the registry itself that is asked, in whatever scheme."""
    return same_origin(url, endpoint.base) or netloc(url) == endpoint.host


def _patience(reply: Reply) -> float | None:
    """What Retry-After asks for, in seconds."""
    value = reply.headers.get("Retry-After") if reply.status in TRANSIENT else None
    return parse_retry_after(value) if value else None


def _login(response: aiohttp.ClientResponse) -> str:
    """The Authorization header of the request, empty if it had none."""
    return response.request_info.headers.get("Authorization", "")


def _form(call: Call) -> bytes:
    is_form = "urlencoded" in call.headers.get("Content-Type", "")
    return call.body or b"" if is_form else b""
