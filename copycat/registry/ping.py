"""The first request to every registry: which scheme it speaks, and how it wants to be logged in to."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import aiohttp
from yarl import URL

from copycat.errors import TooLarge, Unavailable, Unsupported
from copycat.registry.answers import TRANSIENT, Place
from copycat.registry.calls import Answer, Call
from copycat.registry.challenge import parse_challenges
from copycat.registry.endpoint import Endpoint
from copycat.registry.singleflight import SingleFlight
from copycat.registry.wire import Wire

__all__ = ["Pings"]

#: What servers answer to plain HTTP where they speak TLS, if they do not redirect to it.
_NOT_PLAIN = frozenset({400, 426})


class Pings:
    """`GET /v2/`, once per endpoint."""

    def __init__(self, wire: Wire) -> None:
        """Nothing under way."""
        self._wire = wire
        self.flights: SingleFlight[tuple[str, str], None] = SingleFlight()

    async def ready(self, endpoint: Endpoint, place: Place) -> None:
        """Know the scheme and the challenge: one ping, however many ask at once."""
        if endpoint.challenges is None or not endpoint.scheme:
            key = (endpoint.registry, endpoint.host)
            await self.flights.do(key, lambda: self.send(endpoint, place))

    async def send(self, endpoint: Endpoint, place: Place) -> None:
        """Ping it, whatever is known. Raises the registry errors."""
        what = "the registry's API (/v2/)"
        ping = Call(method="GET", place=replace(place, what=what), follow=False)
        if endpoint.scheme:
            await self._with(endpoint, ping, endpoint.scheme)
            return
        try:
            await self._with(endpoint, ping, "https")
        except Unavailable as error:
            if error.status or error.reason == "dns":
                raise
            # It does not speak TLS (some wait for the end of a line that never comes), and the configuration
            # allows it not to.
            await self._with(endpoint, ping, "http", tls=error)

    async def _with(
        self, endpoint: Endpoint, ping: Call, scheme: str, *, tls: Unavailable | None = None
    ) -> None:
        """Args: `tls`: why it did not work with TLS; raised where plain HTTP is not what the host wants."""
        url = URL(f"{scheme}://{endpoint.host}/v2/", encoded=True)
        response = await self._wire.send(endpoint, ping, url, None)
        if tls is not None and _wants_tls(response):
            response.close()
            raise tls  # a start that went wrong must not decide for as long as the process lives
        with suppress(TooLarge, Unsupported):  # a page for people
            reply = await self._wire.read(endpoint, ping, Answer(response=response, foreign=False))
            if reply.status in TRANSIENT:
                raise self._wire.error(endpoint, ping, reply)
        endpoint.scheme = scheme
        endpoint.limits.breaker.success()  # a try at TLS before is no failure
        # Any other answer is as good as "no challenge yet": a 401 later brings its own.
        endpoint.challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))


def _wants_tls(response: aiohttp.ClientResponse) -> bool:
    """Whether this is what a host says in plain HTTP that speaks TLS here, or elsewhere."""
    return response.status in _NOT_PLAIN or (
        300 <= response.status < 400
        and response.headers.get("Location", "").lower().startswith("https:")
    )
