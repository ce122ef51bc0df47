"""The identity that a cloud gives the Pod, as a login for that cloud's registries: Google and Azure.

A keychain of this module answers for the hosts that the configuration names (`auth: gcp`,
`auth: azure`) and for no other. Amazon's is in `copycat.registry.ecr`.

Metadata services are asked directly, whatever the proxy variables say: they answer nobody else's
requests. Everything else goes through the proxy, if there is one.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import aiohttp
import anyio.to_thread
import msgspec
from aiohttp.abc import AbstractResolver
from yarl import URL

from copycat.decoding import UNREADABLE
from copycat.errors import Unauthorized, Unavailable, printable
from copycat.registry.answers import NETWORK_ERRORS
from copycat.registry.hosts import Proxies, TlsContexts
from copycat.registry.keychain import Access, Credentials
from copycat.registry.renewable import MARGIN, Asker, Issued, Renewable, usable

__all__ = ["AzureKeychain", "GoogleKeychain", "open_session"]

#: No answer of a metadata or token service is longer.
MAX_ANSWER = 64 * 1024

#: Azure's refresh tokens for a registry live three hours, should one not say.
ACR_LIFE = 3 * 3600.0

#: What an access token for Azure's registries is good for, in every one of its clouds: for registries alone,
#: where one for the resource manager would open the subscription (azure-sdk-for-net issue 34785).
ACR_RESOURCE = "https://containerregistry.azure.net"

#: The user that goes with such a token where it serves as a password.
ACR_USER = "00000000-0000-0000-0000-000000000000"

_TIMEOUT = aiohttp.ClientTimeout(total=15, sock_connect=5)


class _Answer(msgspec.Struct):
    """What token services say; each leaves some of it out. Azure's metadata service writes numbers as text."""

    access_token: str = ""
    refresh_token: str = ""
    expires_in: float | str | None = None

    @property
    def life(self) -> float:
        """In seconds; 0 if it does not say."""
        try:
            return float(self.expires_in or 0)
        except ValueError:
            return 0.0


@asynccontextmanager
async def open_session(
    tls: TlsContexts, *, resolver: AbstractResolver | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """The connections to the clouds' services. They are few, so that none is kept open.

    Raises:
        Unavailable: registryCAFile cannot be used.
    """
    connector = aiohttp.TCPConnector(
        ssl=await tls.get(None), resolver=resolver, force_close=True, limit=8
    )
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
    ) as session:
        yield session


class GoogleKeychain:
    """GKE and Compute Engine: the access token of the service account, from the metadata server."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        hosts: Mapping[str, Asker],
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args: `session` belongs to the caller; `hosts` are the registries that get a login; the clock tells Unix time."""
        self._session = session
        self._hosts = dict(hosts)
        host = environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
        self._url = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token"
        self._login = Renewable(self._fetch, clock=clock)

    async def resolve(
        self, registry: str, repository: str, access: Access
    ) -> Sequence[Credentials]:
        """The login for one of our hosts. Raises: Unauthorized, Unavailable."""
        del repository, access
        asker = self._hosts.get(registry)
        return (await asker.login(self._login, registry),) if asker is not None else ()

    def expired(self, registry: str, credentials: Credentials) -> None:
        """The registry says that these are too old."""
        if registry in self._hosts:
            self._login.expired(credentials)

    async def _fetch(self) -> Issued:
        answer = await _ask(
            self._session,
            "GET",
            self._url,
            who="Google's metadata server",
            remedy="give the Pod's service account a Google identity (Workload Identity)",
            headers={"Metadata-Flavor": "Google"},
        )
        if not answer.access_token:
            _nothing("Google's metadata server")

        credentials = Credentials(
            username="oauth2accesstoken",
            password=answer.access_token,
            source="Google service account",
        )
        # The metadata server hands out the same token until five minutes before its end.
        return Issued(credentials=credentials, life=_usable(answer.life))


class AzureKeychain:
    """AKS: the Pod's federated token, or the managed identity of the node, exchanged at each registry for its own token."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        hosts: Mapping[str, Asker],
        environ: Mapping[str, str] = os.environ,
        proxies: Proxies | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args: `session` belongs to the caller; `hosts` are the registries that get a login; the clock tells Unix time."""
        self._session = session
        self._hosts = dict(hosts)
        self._environ = environ
        # the name that Azure's own SDKs read
        metadata = environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST") or "http://169.254.169.254"
        self._metadata = metadata.rstrip("/")
        self._proxies = proxies or Proxies(environ)
        self._clock = clock
        self._logins = {host: Renewable(partial(self._fetch, host), clock=clock) for host in hosts}

    async def resolve(
        self, registry: str, repository: str, access: Access
    ) -> Sequence[Credentials]:
        """The login for one of our hosts. Raises: Unauthorized, Unavailable."""
        del repository, access
        asker = self._hosts.get(registry)
        if asker is None:
            return ()

        return (await asker.login(self._logins[registry], registry),)

    def expired(self, registry: str, credentials: Credentials) -> None:
        """The registry says that these are too old."""
        if (login := self._logins.get(registry)) is not None:
            login.expired(credentials)

    async def _fetch(self, registry: str) -> Issued:
        form = {
            "grant_type": "access_token",
            "service": registry,
            "access_token": await self._access_token(),
        }
        if tenant := self._environ.get("AZURE_TENANT_ID"):
            form["tenant"] = tenant

        answer = await _ask(
            self._session,
            "POST",
            f"https://{registry}/oauth2/exchange",
            who=registry,
            remedy="give the identity the role AcrPull, for a target AcrPush, on the registry",
            data=form,
            proxies=self._proxies,
        )
        if not answer.refresh_token:
            _nothing(registry)

        credentials = Credentials(
            username=ACR_USER,
            identity_token=answer.refresh_token,
            source="Azure identity of the Pod",
        )
        life = _jwt_end(answer.refresh_token, default=self._clock() + ACR_LIFE) - self._clock()
        return Issued(credentials=credentials, life=_usable(life))

    async def _access_token(self) -> str:
        """An access token of Microsoft Entra ID for container registries."""
        file = self._environ.get("AZURE_FEDERATED_TOKEN_FILE", "")
        if file:
            answer = await self._federated(file)
        else:
            params = {"api-version": "2018-02-01", "resource": ACR_RESOURCE}
            if client := self._environ.get("AZURE_CLIENT_ID"):
                params["client_id"] = client

            answer = await _ask(
                self._session,
                "GET",
                f"{self._metadata}/metadata/identity/oauth2/token",
                who="Azure's metadata service",
                remedy="give the Pod a workload identity, or the node a managed identity",
                headers={"Metadata": "true"},
                params=params,
            )

        if not answer.access_token:
            _nothing("Azure")

        return answer.access_token

    async def _federated(self, file: str) -> _Answer:
        authority = (
            self._environ.get("AZURE_AUTHORITY_HOST") or "https://login.microsoftonline.com/"
        )
        tenant = self._environ.get("AZURE_TENANT_ID", "")
        try:
            assertion = await anyio.to_thread.run_sync(Path(file).read_text, "utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Unauthorized(
                f"AZURE_FEDERATED_TOKEN_FILE {file} cannot be read: {printable(str(error))}. Check the "
                "label azure.workload.identity/use of the Pod.",
                reason="no_credentials",
            ) from error

        return await _ask(
            self._session,
            "POST",
            f"{authority.rstrip('/')}/{tenant}/oauth2/v2.0/token",
            who="Microsoft Entra ID",
            remedy="check the federated credential of the identity (issuer, subject, audience)",
            data={
                "grant_type": "client_credentials",
                "client_id": self._environ.get("AZURE_CLIENT_ID", ""),
                "scope": f"{ACR_RESOURCE}/.default",
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                "client_assertion": assertion.strip(),
            },
            proxies=self._proxies,
        )


async def _ask(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    who: str,
    remedy: str,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
    proxies: Proxies | None = None,
) -> _Answer:
    """The answer of a token service. Raises: Unauthorized if it refuses, Unavailable if it is in trouble."""
    try:
        async with session.request(
            method,
            url,
            headers=headers,
            params=params,
            data=data,
            proxy=proxies.get(URL(url)) if proxies is not None else None,
            allow_redirects=False,
            timeout=_TIMEOUT,
        ) as response:
            status = response.status
            body = await _bounded(response)
    except (*NETWORK_ERRORS, ValueError) as error:  # the last: a host that is no name at all
        text = printable(str(error) or type(error).__name__)
        raise Unavailable(f"{who} does not answer: {text}; {remedy} if this lasts.") from error

    if status == 429 or status >= 500:
        raise Unavailable(f"{who} answers {status}.", status=status)

    if status != 200:
        raise Unauthorized(
            f"{who} refuses an identity ({status}): {remedy}.",
            reason="no_credentials",
            status=status,
        )

    try:
        return msgspec.json.decode(body, type=_Answer)
    except UNREADABLE:
        _nothing(who)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            return b""

    return body


def _nothing(who: str) -> NoReturn:
    # The answer itself is not shown: it may hold what we did not find.
    raise Unavailable(f"{who} sent an answer without a token.")


def _usable(life: float) -> float:
    """One that does not say, or by our clock is over already, is good for a minute, as token services of registries have it."""
    return usable(life) if life > 0 else MARGIN


def _jwt_end(token: str, *, default: float) -> float:
    """When a token ends, by its own words (Unix time). They are not verified: nothing but our own patience depends on them."""

    class Claims(msgspec.Struct):
        exp: float

    payload = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        text = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        return msgspec.json.decode(text, type=Claims).exp
    except (*UNREADABLE, ValueError):
        return default
