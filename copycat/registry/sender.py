"""A request with its login: headers that are refused are renewed, and pulls that a quota forbids are not made."""

from __future__ import annotations

from dataclasses import replace

import anyio

from copycat.metrics import Metrics
from copycat.registry.answers import Reply
from copycat.registry.auth import Authenticator, Exchange
from copycat.registry.calls import Answer, BodySpent, Call
from copycat.registry.credentials import Credentials
from copycat.registry.endpoint import Endpoint
from copycat.registry.quota import PullQuotas
from copycat.registry.singleflight import SingleFlight
from copycat.registry.wire import Wire

__all__ = ["Sender"]

#: A host that is slow to answer its first pull does not hold the others for longer (seconds).
PATIENCE = 10.0
_HINTS = frozenset({400, 401, 403})


class Sender:
    """Between the transport, which decides when and how often, and the wire."""

    def __init__(
        self,
        *,
        wire: Wire,
        auth: Authenticator,
        quotas: PullQuotas,
        metrics: Metrics,
        request_timeout: float,
    ) -> None:
        """The four that a request needs. Args: `request_timeout` in seconds, 0 for none."""
        self._wire, self._auth, self._quotas, self._metrics = wire, auth, quotas, metrics
        self._patience = min(PATIENCE, request_timeout / 4 or PATIENCE)
        self._firsts: dict[tuple[str, str], anyio.Lock] = {}
        self._heads: SingleFlight[tuple[str, str], None] = SingleFlight()

    async def send(self, endpoint: Endpoint, call: Call) -> Answer:
        """The head of the answer. Raises Throttled (reason `pull_quota`) before a pull that the nodes need."""
        if call.login is None:
            return await self._follow(endpoint, call, None, None)
        exchange = await self._auth.exchange(endpoint, call.login, margin=call.margin)
        if not call.counted:
            return await self._exchanged(endpoint, call, exchange)
        key = (endpoint.host, exchange.credentials.key if exchange.credentials else "")
        if not self._quotas.heard(endpoint, exchange.credentials):
            answer = await self._first(key, endpoint, call, exchange)
            if answer is not None:
                return answer
        if self._quotas.outdated(endpoint, exchange.credentials):
            await self._heads.do(key, lambda: self._ask(endpoint, call, exchange))
        return await self._exchanged(endpoint, call, exchange)

    async def _first(
        self, key: tuple[str, str], endpoint: Endpoint, call: Call, exchange: Exchange
    ) -> Answer | None:
        """One pull finds out whether there is a quota while the others wait (None), though not for long."""
        lock = self._firsts.setdefault(key, anyio.Lock())
        mine = False
        with anyio.move_on_after(self._patience):
            await lock.acquire()
            mine = True
        try:
            if self._quotas.heard(endpoint, exchange.credentials):
                return None
            return await self._exchanged(endpoint, call, exchange)
        finally:
            if mine:
                lock.release()
            if not lock.locked():
                self._firsts.pop(key, None)

    async def _ask(self, endpoint: Endpoint, call: Call, exchange: Exchange) -> None:
        """What is left of the quota now: HEAD of the same thing, which is free."""
        answer = await self._exchanged(
            endpoint, replace(call, method="HEAD", counted=False), exchange
        )
        answer.response.release()
        if self._quotas.outdated(endpoint, exchange.credentials):
            self._quotas.forget(endpoint, exchange.credentials)

    async def _exchanged(self, endpoint: Endpoint, call: Call, exchange: Exchange) -> Answer:
        """Send with the login's header; after a refusal that it can answer, send again."""
        while True:
            header = await exchange.header()
            answer = await self._guarded(endpoint, call, header, exchange.credentials)
            status = answer.response.status
            if answer.foreign or status not in _HINTS or status in call.accept - {401}:
                if status < 400 or answer.foreign:  # who sends us on to a store has let us in
                    exchange.accepted()
                return answer
            reply = await self._wire.read(endpoint, call, answer)
            if not await self._try_again(exchange, call, reply):
                if status != 400:
                    self._metrics.auth_failures.labels(endpoint.label).inc()
                return replace(answer, body=reply.body)

    async def _guarded(
        self, endpoint: Endpoint, call: Call, header: str | None, credentials: Credentials | None
    ) -> Answer:
        """Each login has a quota of its own: after a refusal the next one's is asked."""
        if not call.counted:
            return await self._follow(endpoint, call, header, credentials)
        with self._quotas.pull(endpoint, credentials, call.place):
            return await self._follow(endpoint, call, header, credentials)

    async def _follow(
        self, endpoint: Endpoint, call: Call, header: str | None, credentials: Credentials | None
    ) -> Answer:
        sent = self._quotas.now()
        answer = await self._wire.follow(endpoint, call, header)
        if not answer.foreign:
            self._quotas.note(endpoint, credentials, answer.response.headers, sent=sent)
        return answer

    @staticmethod
    async def _try_again(exchange: Exchange, call: Call, reply: Reply) -> bool:
        if not call.renew or not await exchange.refused(reply.status, reply.headers, reply.body):
            return False
        if call.stream is None:
            return True
        raise call.place.error(
            BodySpent,
            f"{call.place.who}: the login for {call.place.what} had run out and was renewed.",
            status=reply.status,
        )
