"""Logins for Amazon ECR, as source and as target, and for ECR Public.

One token opens every private registry of a region that its owner may use, so there is one per
region and identity, fetched when the first registry needs it. It lasts twelve hours; `renewable` says
when it is renewed.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from copycat.errors import RegistryError, Side, Unavailable
from copycat.registry.ecr.aws import Aws
from copycat.registry.ecr.hosts import PUBLIC, parse_host
from copycat.registry.keychain import Access, Credentials
from copycat.registry.once import Once
from copycat.registry.renewable import Asker, Issued, Renewable, usable

__all__ = ["EcrKeychain", "NamedHost"]

#: What AWS promises, in seconds; taken when `expiresAt` cannot be right by our clock.
FULL_LIFE = 12 * 3600.0

#: How long a source without a login is tried anonymously before AWS is asked again, in seconds.
PATIENCE = 300.0
#: The same for a login that one cannot do without.
NEEDED_PATIENCE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedHost:
    """A registry that the configuration gives the login of AWS (`auth: ecr`)."""

    asker: Asker
    region: str = ""
    """Of the registry, where its name does not say it."""


class EcrKeychain:
    """Resolves the hosts of ECR; for all others it has nothing.

    The login of the target and of hosts that the configuration names must work: its errors are raised. For
    other registries of ECR it is an offer: without AWS credentials the registry is tried anonymously, or with
    whatever else the configuration has for it.
    """

    def __init__(
        self,
        *,
        target: Aws | None = None,
        target_registry: str = "",
        sources: Aws | None = None,
        hosts: Mapping[str, NamedHost] | None = None,
        named_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args: `named_only`: of the sources, only `hosts` get a login; the clock tells Unix time."""
        self._target = target
        self.target_registry = target_registry
        self._sources = sources
        self._hosts = dict(hosts or {})
        self._named_only = named_only
        self._clock = clock
        self._once = Once("ecr")
        self._regions: dict[tuple[Side, str, bool], _RegionLogin] = {}
        self._public = (
            Renewable(
                _PublicLogin(sources, clock).fetch, patience=self._patience("source"), clock=clock
            )
            if sources is not None
            else None
        )

    async def resolve(
        self, registry: str, repository: str, access: Access
    ) -> Sequence[Credentials]:
        """At most one candidate. Raises: RegistryError, for the target and for hosts that are named."""
        del repository, access  # a token opens all repositories that its owner may use
        login = self._login(registry)
        if login is None:
            return ()

        if registry != self.target_registry and (named := self._hosts.get(registry)) is not None:
            return (await named.asker.login(login, registry),)

        try:
            credentials = await login.get()
        except RegistryError as error:
            if registry == self.target_registry:
                raise

            self._once.warn(registry, "no_aws_login", registry=registry, error=str(error))
            return ()

        self._once.over(registry)
        return (credentials,)

    def expired(self, registry: str, credentials: Credentials) -> None:
        """The registry says that these credentials have expired: fetch others before the next request."""
        login = self._login(registry)
        if login is not None:
            login.expired(credentials)

    async def discover(self, account: str) -> str:
        """The host of the target account's registry by AWS's own answer. Raises: RegistryError."""
        if self._target is None:
            raise ValueError("no target to discover")

        region = self._region("target", self._target, self._target.region, fips=False)
        await region.login.get()
        mine = parse_host(region.endpoint)
        # The answer names the registry of the caller's account, which need not be the target's.
        return region.endpoint.replace(mine.account, account, 1) if mine else region.endpoint

    def _login(self, registry: str) -> Renewable | None:
        if self._target is not None and registry == self.target_registry:
            return self._region("target", self._target, self._target.region, fips=False).login

        named = self._hosts.get(registry)
        if self._sources is None or (named is None and self._named_only):
            return None

        if registry == PUBLIC:
            return self._public

        side: Side = named.asker.side if named is not None else "source"
        if (host := parse_host(registry)) is not None:
            return self._region(side, self._sources, host.region, fips=host.fips).login

        if named is not None:
            return self._region(side, self._sources, named.region, fips=False).login

        return None

    def _patience(self, side: Side) -> float:
        """How long a failure is remembered: long where one can do without a login."""
        return PATIENCE if side == "source" and not self._hosts else NEEDED_PATIENCE

    def _region(self, side: Side, aws: Aws, region: str, *, fips: bool) -> _RegionLogin:
        key = (side, region, fips)
        if key not in self._regions:
            self._regions[key] = _RegionLogin(
                aws, side, region, fips=fips, patience=self._patience(side), clock=self._clock
            )

        return self._regions[key]


class _PublicLogin:
    """The token of ECR Public."""

    def __init__(self, aws: Aws, clock: Callable[[], float]) -> None:
        self._aws = aws
        self._clock = clock

    async def fetch(self) -> Issued:
        token, end = await self._aws.public_token()
        return Issued(credentials=_basic(token, PUBLIC), life=_life(end, self._clock()))


class _RegionLogin:
    """The token of one region, and the registry that AWS named with it."""

    def __init__(
        self,
        aws: Aws,
        side: Side,
        region: str,
        *,
        fips: bool,
        patience: float,
        clock: Callable[[], float],
    ) -> None:
        self._aws = aws
        self._side = side
        self._region = region
        self._fips = fips
        self._clock = clock
        self.endpoint = ""
        self.login = Renewable(self._fetch, patience=patience, clock=clock)

    async def _fetch(self) -> Issued:
        about = f"the registries of {self._region}"
        answer = await self._aws.ask(
            "ecr:GetAuthorizationToken",
            lambda ecr: ecr.get_authorization_token(),
            region=self._region,
            fips=self._fips,
            about=about,
            side=self._side,
        )
        data = answer["authorizationData"][0]
        self.endpoint = urlsplit(data["proxyEndpoint"]).netloc
        return Issued(
            credentials=_basic(data["authorizationToken"], self._region),
            life=_life(data["expiresAt"], self._clock()),
        )


def _life(end: datetime, now: float) -> float:
    """How long to use a token that ends then: shorter than twelve hours if it was made with a role's session that ends."""
    left = end.timestamp() - now
    if not 0 < left < FULL_LIFE + 3600:
        left = FULL_LIFE
    return usable(left)


def _basic(token: str, where: str) -> Credentials:
    """Raises: Unavailable: the token is not what the API promises."""
    try:
        username, colon, password = base64.b64decode(token, validate=True).decode().partition(":")
    except ValueError:
        username = colon = password = ""

    if not (username and colon and password):
        raise Unavailable(f"AWS sent an authorization token for {where} that cannot be read")

    return Credentials(username=username, password=password, source=f"AWS credentials ({where})")
