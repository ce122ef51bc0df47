"""Proving to a registry who asks: Basic, Bearer tokens and their cache, and what follows a refusal.

An `Exchange` accompanies one request: it gives the Authorization header, and when the answer is a
refusal it says whether there is another header to try: a fresh token once, then the next candidate
of the keychain (registry notes 1.2 and its table of quirks).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from multidict import CIMultiDictProxy
from yarl import URL

from copycat.errors import (
    HostNotAllowed,
    Side,
    Unauthorized,
    Unsupported,
    printable,
)
from copycat.registry.challenge import Challenge, covers, find, parse_challenges
from copycat.registry.endpoint import Endpoint
from copycat.registry.hosts import HostPolicy, web_url
from copycat.registry.keychain import Access, Credentials, Keychain
from copycat.registry.singleflight import SingleFlight
from copycat.registry.tokens import Token, TokenRequest, TokenSender, basic

__all__ = ["Authenticator", "Exchange", "Login", "Renewing"]

#: A token is not used in its last seconds.
MARGIN = 5.0
#: The cache is swept when it holds more than this.
CACHE_SIZE = 2048

#: ECR says 403, ECR Public 400 when a token has run out (registry notes 1.2).
_EXPIRED = re.compile(
    rb"(?i)authorization token (?:has expired|is invalid)|token (?:has |is )?expired|reauthenticate"
)


@runtime_checkable
class Renewing(Protocol):
    """A keychain that can make its credentials anew (ECR, cloud identities)."""

    def expired(self, registry: str, credentials: Credentials) -> None:
        """A registry said that these are too old; the next `resolve` should give others."""
        ...


@dataclass(slots=True, kw_only=True)
class Login:
    """For what the requests of one repository ask, and what was learnt about its credentials."""

    repository: str
    actions: str = "pull"
    """`pull`, or `pull,push`."""
    access: Access
    side: Side = ""
    also: tuple[str, ...] = ()
    """Repositories that are read besides: the source of a mount."""
    challenge: Challenge | None = None
    """The registry's own challenge for this repository, where it differs from the ping's."""
    start: dict[tuple[str, ...], int] = field(default_factory=dict)
    """Candidates (by their keys) → the one that was accepted."""
    exchanged: set[str] = field(default_factory=set)
    """Static tokens that the registry wants exchanged."""
    fresh: str = ""
    """A renewed header that was not accepted yet: if it is refused, another fresh one is no better."""

    def scopes(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Our own scope first: some registries honour only the first."""
        own = f"repository:{endpoint.repository(self.repository)}:{self.actions}"
        return (own, *(f"repository:{endpoint.repository(name)}:pull" for name in self.also))


class TokenKey(NamedTuple):
    """What a token is good for."""

    host: str
    realm: str
    service: str
    scopes: tuple[str, ...]
    credentials: str


class Authenticator:
    """The keychain, the token cache and the rules between them; one for all hosts."""

    def __init__(
        self,
        *,
        keychain: Keychain,
        send: TokenSender,
        policy: HostPolicy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: `send` reaches token services."""
        self._keychain, self._send, self._policy, self._clock = keychain, send, policy, clock
        self._tokens: dict[TokenKey, Token] = {}
        self._flights: SingleFlight[TokenKey, Token] = SingleFlight()

    async def exchange(
        self, endpoint: Endpoint, login: Login, *, margin: float = MARGIN
    ) -> Exchange:
        """Begin a request. Args: `margin` is how long a token must still last (seconds)."""
        candidates = await self.candidates(endpoint, login)
        return Exchange(self, endpoint, login, candidates, margin=margin)

    async def candidates(self, endpoint: Endpoint, login: Login) -> Sequence[Credentials]:
        """What the keychain has."""
        return await self._keychain.resolve(endpoint.registry, login.repository, login.access)

    def expired(self, endpoint: Endpoint, credentials: Credentials) -> bool:
        """Tell the keychain that credentials are too old; False if it cannot make others."""
        if not isinstance(self._keychain, Renewing):
            return False
        self._keychain.expired(endpoint.registry, credentials)
        return True

    async def token(
        self,
        endpoint: Endpoint,
        challenge: Challenge,
        scopes: tuple[str, ...],
        credentials: Credentials | None,
        *,
        side: Side = "",
        margin: float = MARGIN,
        refused: str = "",
    ) -> str:
        """A token for the scopes, from the cache or the realm; never the `refused` one.

        Raises Unauthorized if the realm does not accept the credentials.
        """
        realm = self._realm(endpoint, challenge, side)
        service = challenge.params.get("service", "")
        key = TokenKey(
            endpoint.host, str(realm), service, scopes, credentials.key if credentials else ""
        )
        known = self._tokens.get(key)
        if (
            known is not None
            and known.value != refused
            and known.expires - self._clock() > min(margin, known.lifetime / 2)
        ):
            return known.value
        request = TokenRequest(
            self._send, endpoint=endpoint, realm=realm, service=service, scopes=scopes, side=side
        )

        async def fetch() -> Token:
            token = await request.fetch(credentials, clock=self._clock)
            self._keep(key, token)
            return token

        return (await self._flights.do(key, fetch)).value

    def _keep(self, key: TokenKey, token: Token) -> None:
        if len(self._tokens) >= CACHE_SIZE:
            now = self._clock()
            self._tokens = {k: t for k, t in self._tokens.items() if t.expires > now}
            while len(self._tokens) >= CACHE_SIZE:
                del self._tokens[next(iter(self._tokens))]
        self._tokens[key] = token

    def _realm(self, endpoint: Endpoint, challenge: Challenge, side: Side) -> URL:
        """The realm's URL. Raises HostNotAllowed or Unsupported if it is none that credentials may go to."""
        text = challenge.params.get("realm", "")
        try:
            realm = web_url(text)
        except ValueError as error:
            raise Unsupported(
                f"{endpoint.registry} asks for a token without saying where (realm {printable(text, 80)!r}).",
                side=side,
                registry=endpoint.registry,
            ) from error
        if realm.scheme != "https" and endpoint.base.scheme == "https":
            raise HostNotAllowed(
                f"{endpoint.registry} sends us to {printable(text, 80)} for a token; credentials are not sent without TLS.",
                side=side,
                registry=endpoint.registry,
            )
        if realm.host != endpoint.base.host:
            self._policy.check(realm, side=side)
        return realm


class Exchange:
    """The Authorization header of one request, through its refusals."""

    def __init__(
        self,
        owner: Authenticator,
        endpoint: Endpoint,
        login: Login,
        candidates: Sequence[Credentials],
        *,
        margin: float,
    ) -> None:
        """Starts with the candidate that was accepted last; those before it come after the rest."""
        self._owner, self._endpoint, self._login, self._margin = owner, endpoint, login, margin
        self._candidates = candidates
        self._keys = tuple(c.key for c in candidates)
        self._index = login.start.get(self._keys, 0)
        self._left = len(candidates) - 1
        self._renewed = False
        self._sent: str | None = None

    @property
    def credentials(self) -> Credentials | None:
        """The candidate in use; None is anonymous."""
        return self._candidates[self._index] if self._candidates else None

    async def header(self) -> str | None:
        """The Authorization header to send now; None for none.

        Raises Unauthorized if a realm refuses every candidate that is left.
        """
        while True:
            try:
                self._sent = await self._header()
            except Unauthorized:
                if not (await self._made_anew() or self._next()):
                    raise
            else:
                return self._sent

    async def _made_anew(self) -> bool:
        """Whether the keychain has other credentials in place of those that a token service refused; asked once."""
        before = self.credentials
        if self._renewed or before is None:
            return False
        self._renewed = True
        return await self._renew_credentials() and self.credentials != before

    async def _header(self, *, refused: str = "") -> str | None:
        credentials, login = self.credentials, self._login
        if credentials is not None and credentials.token and credentials.key not in login.exchanged:
            return f"Bearer {credentials.token}"
        challenges = (login.challenge,) if login.challenge else self._endpoint.challenges or ()
        if (bearer := find(challenges, "bearer")) is not None:
            token = await self._owner.token(
                self._endpoint,
                bearer,
                self._scopes(bearer),
                credentials,
                side=login.side,
                margin=self._margin,
                refused=refused,
            )
            return f"Bearer {token}"
        if (
            credentials is not None
            and credentials.username
            and find(challenges, "basic") is not None
        ):
            return basic(credentials.username, credentials.password)
        return None

    def _scopes(self, bearer: Challenge) -> tuple[str, ...]:
        """Ours, unless the registry's own challenge for this repository wants what ours do not cover."""
        own = self._login.scopes(self._endpoint)
        if self._login.challenge is None or covers(own, bearer.scopes):
            return own
        return bearer.scopes

    async def refused(self, status: int, headers: CIMultiDictProxy[str], body: bytes) -> bool:
        """Whether the request should be sent again, with what `header()` now gives.

        Args: an answer with status 400, 401 or 403 from the registry's own origin.
        """
        if status == 400:
            return bool(self._sent and _EXPIRED.search(body)) and await self._renew()
        if status == 403:
            again = bool(_EXPIRED.search(body)) or self._wants_more(headers)
            return (again and await self._renew()) or self._next()
        self._learn(headers)
        return await self._answer() or self._next()

    def _learn(self, headers: CIMultiDictProxy[str]) -> None:
        """A challenge with the 401 counts; without one, the ping's does (GCR)."""
        fresh = parse_challenges(headers.getall("WWW-Authenticate", ()))
        chosen = find(fresh, "bearer") or find(fresh, "basic")
        if chosen is not None:
            if not self._endpoint.challenges:
                self._endpoint.challenges = fresh
            self._login.challenge = chosen
        elif fresh and not self._endpoint.challenges:
            raise Unsupported(
                f"{self._endpoint.registry} wants the authentication {printable(fresh[0].scheme, 40)}, "
                "which is not supported; Basic and Bearer are.",
                side=self._login.side,
                registry=self._endpoint.registry,
                status=401,
            )

    def _wants_more(self, headers: CIMultiDictProxy[str]) -> bool:
        """Whether a 403 says that the token has too small a scope (RFC 6750, section 3.1), and which one it wants."""
        bearer = find(parse_challenges(headers.getall("WWW-Authenticate", ())), "bearer")
        if bearer is None or bearer.params.get("error") != "insufficient_scope":
            return False
        self._login.challenge = bearer
        return True

    async def _answer(self) -> bool:
        """Whether the present candidate has an answer to the challenge that it has not given yet."""
        credentials, login = self.credentials, self._login
        challenges = (login.challenge,) if login.challenge else self._endpoint.challenges or ()
        bearer = find(challenges, "bearer")
        if credentials is not None and credentials.token and credentials.key not in login.exchanged:
            login.exchanged.add(credentials.key)
            return bearer is not None
        if self._sent is None:
            # Basic needs a user name; an identity token alone has none.
            return bearer is not None or (
                credentials is not None
                and bool(credentials.username)
                and find(challenges, "basic") is not None
            )
        if bearer is not None and not self._sent.startswith("Bearer "):
            return True
        return await self._renew()

    async def _renew(self) -> bool:
        """A fresh token, or fresh credentials from a keychain that makes them; once."""
        if self._renewed or (self._sent and self._sent == self._login.fresh):
            return False
        self._renewed = True
        credentials = self.credentials
        if not await self._renew_credentials():
            return False
        sent = self._sent or ""
        if not sent.startswith("Bearer ") or (
            credentials and sent == f"Bearer {credentials.token}"
        ):
            return self.credentials is not None and self.credentials != credentials
        try:
            self._login.fresh = await self._header(refused=sent.removeprefix("Bearer ")) or ""
        except Unauthorized:
            return False
        return True

    async def _renew_credentials(self) -> bool:
        """Let the keychain make anew what it can make; False if it has not the same candidates any more."""
        credentials = self.credentials
        if credentials is not None and self._owner.expired(self._endpoint, credentials):
            fresh = await self._owner.candidates(self._endpoint, self._login)
            if len(fresh) != len(self._candidates):
                return False
            # The same place in the list: whoever was refused before stays refused.
            self._candidates, self._keys = fresh, tuple(c.key for c in fresh)
        return True

    def _next(self) -> bool:
        """Go to the next candidate; False if each has had its turn."""
        if self._left <= 0:
            return False
        self._left -= 1
        self._index = (self._index + 1) % len(self._candidates)
        self._renewed = False
        return True

    def accepted(self) -> None:
        """The answer was no refusal: start here the next time."""
        self._login.fresh = ""
        if self._index or self._keys in self._login.start:
            self._login.start[self._keys] = self._index
