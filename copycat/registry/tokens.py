"""Asking a token service for one bearer token, in the ways that token services understand (registry notes 1.2)."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import msgspec
from yarl import URL

from copycat.decoding import UNREADABLE
from copycat.errors import RegistryError, Side, Throttled, Unauthorized, Unavailable, printable
from copycat.oci.reference import DOCKER_HUB
from copycat.registry.answers import TRANSIENT, Reply
from copycat.registry.echoes import without_echo
from copycat.registry.endpoint import Endpoint
from copycat.registry.keychain import Credentials
from copycat.registry.limits import parse_retry_after

__all__ = ["Token", "TokenRequest", "TokenSender", "basic"]

#: The lifetime of a token that tells none, and the least that is believed (seconds; docker's token specification).
MIN_LIFETIME = 60.0
CLIENT_ID = "k8s-copycat"
#: Answers of realms that do not know a way of asking: 404 GCR, 401 Artifactory, 400 ACR, 405 others.
_OTHER_WAY = frozenset({400, 401, 403, 404, 405})


class TokenSender(Protocol):
    """Sends one request to a token service; what the transport gives to the authenticator."""

    async def __call__(
        self,
        endpoint: Endpoint,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> Reply:
        """The answer, whatever its status. Raises Unavailable, Throttled, HostNotAllowed."""
        ...


class Token(NamedTuple):
    """A bearer token and until when it lasts (local monotonic clock)."""

    value: str
    expires: float
    lifetime: float


def basic(username: str, password: str) -> str:
    """The value of a Basic Authorization header."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _without_login(body: bytes, credentials: Credentials | None) -> bytes:
    """A service that answers 200 and has no token may repeat what it was shown."""
    if credentials is None:
        return body
    secret = credentials.refresh_token or credentials.token or credentials.password
    return without_echo(body, authorization=basic(credentials.username, secret))


class TokenRequest:
    """Asks a realm for one token, in the ways that realms understand."""

    def __init__(
        self,
        send: TokenSender,
        *,
        endpoint: Endpoint,
        realm: URL,
        service: str,
        scopes: tuple[str, ...],
        side: Side,
    ) -> None:
        self._send, self._endpoint, self._realm = send, endpoint, realm
        self._service, self._scopes, self._side = service, scopes, side

    async def fetch(self, credentials: Credentials | None, *, clock: Callable[[], float]) -> Token:
        """The token. Raises Unauthorized, Unavailable, Throttled, HostNotAllowed."""
        ways = self._ways(credentials)
        for way in ways[:-1]:
            reply = await way()
            if reply.status not in _OTHER_WAY:
                return self._token(reply, credentials, clock())
        return self._token(await ways[-1](), credentials, clock())

    def _ways(self, credentials: Credentials | None) -> Sequence[Callable[[], Awaitable[Reply]]]:
        if credentials is None:
            return [lambda: self._get(None)]
        if refresh := credentials.refresh_token:
            fallback = basic(credentials.username or "<token>", refresh)
            return [lambda: self._post(refresh), lambda: self._get(fallback)]
        if credentials.token:
            # What kind of token it is, nobody said: a password (GHCR), a bearer or a refresh token.
            return [
                lambda: self._get(basic(credentials.username or CLIENT_ID, credentials.token)),
                lambda: self._get(f"Bearer {credentials.token}"),
                lambda: self._post(credentials.token),
            ]
        return [lambda: self._get(basic(credentials.username, credentials.password))]

    async def _get(self, authorization: str | None) -> Reply:
        pairs = [("service", self._service)] if self._service else []
        pairs += [("scope", scope) for scope in self._scopes]
        query = urlencode(pairs, quote_via=quote, safe=":/,")
        joint = "&" if "?" in str(self._realm) else "?"
        url = URL(f"{self._realm}{joint}{query}", encoded=True)
        headers = {"Authorization": authorization} if authorization else {}
        return await self._send(self._endpoint, "GET", url, headers=headers, body=None)

    async def _post(self, refresh_token: str) -> Reply:
        form = urlencode(
            {
                "grant_type": "refresh_token",
                "refresh_token": refresh_token,
                "service": self._service,
                "client_id": CLIENT_ID,
                "scope": " ".join(self._scopes),
            }
        )
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self._send(
            self._endpoint, "POST", self._realm, headers=headers, body=form.encode()
        )

    def _token(self, reply: Reply, credentials: Credentials | None, now: float) -> Token:
        if reply.status != 200:
            raise self._refusal(reply, credentials)
        try:
            document: Any = msgspec.json.decode(reply.body)
            value = document.get("token") or document.get("access_token")
            lifetime = document.get("expires_in")
        except (*UNREADABLE, AttributeError):
            value = lifetime = None
        if (
            not isinstance(value, str)
            or not value
            or not value.isascii()
            or not value.isprintable()
        ):
            body = _without_login(reply.body[:2000], credentials)
            shown = printable(body[:200].decode("utf-8", "replace"), 200)
            raise Unavailable(
                f"The token service {self._realm.host} of {self._endpoint.registry} answered without a token: {shown}",
                side=self._side,
                registry=self._endpoint.registry,
                reason="token_unreadable",
                status=200,
            )
        if (
            isinstance(lifetime, bool)
            or not isinstance(lifetime, int | float)
            or lifetime < MIN_LIFETIME
        ):
            lifetime = MIN_LIFETIME
        return Token(value, now + lifetime, lifetime)

    def _refusal(self, reply: Reply, credentials: Credentials | None) -> RegistryError:
        host, registry = self._realm.host, self._endpoint.registry
        shown = printable(reply.body[:2000].decode("utf-8", "replace"), 200)
        if reply.status == 429:
            return Throttled(
                f"The token service {host} of {registry} asks for patience.",
                side=self._side,
                registry=registry,
                status=429,
                retry_after=parse_retry_after(reply.headers.get("Retry-After", "")),
            )
        if reply.status >= 500 or reply.status in TRANSIENT:
            return Unavailable(
                f"The token service {host} of {registry} answered HTTP {reply.status}.",
                side=self._side,
                registry=registry,
                status=reply.status,
            )
        what = (
            f"the credentials {credentials.source or 'given'}"
            if credentials
            else "an anonymous request"
        )
        scopes = " ".join(self._scopes)
        hint = (
            "Check them"
            if credentials
            else f"Give credentials for {registry} in registryCredentials"
        )
        if registry == DOCKER_HUB and not credentials:
            hint += ", or check the name"
        return Unauthorized(
            f"The token service {host} of {registry} refused {what} for {scopes} (HTTP {reply.status}: {shown}). {hint}.",
            side=self._side,
            registry=registry,
            status=reply.status,
        )
