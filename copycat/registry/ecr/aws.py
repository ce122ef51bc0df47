"""The AWS side: one session, its credentials, and one long-lived client per region.

Credentials come from AWS's own chain (environment, profile, web identity of IRSA, EKS Pod Identity,
instance role); a role to assume comes on top of them. Everything in there that reads files, starts
programs or parses megabytes of service descriptions is done in a worker thread: before a client is
made in the event loop, one is made and thrown away in a thread, so that the loop finds it all in the
session's caches; and credentials are renewed in a thread before a request would do it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioCredentials,
    AioDeferredRefreshableCredentials,
    AioRefreshableCredentials,
)
from aiobotocore.session import AioSession, get_session
from botocore.credentials import CredentialProvider
from botocore.exceptions import NoCredentialsError

from copycat.errors import Side
from copycat.registry.ecr.hosts import PUBLIC, PUBLIC_REGION
from copycat.registry.ecr.refusals import AWS_ERRORS, translated

if TYPE_CHECKING:
    from types_aiobotocore_ecr import ECRClient

__all__ = ["Aws"]

T = TypeVar("T")
P = TypeVarTuple("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class _ClientKey:
    service: str
    region: str
    fips: bool


class Aws:
    """Access to the ECR API with one set of credentials. An async context manager.

    Entering it does nothing: a process that never calls AWS never looks for credentials.
    """

    def __init__(
        self,
        *,
        region: str,
        role_arn: str = "",
        attempts: int = 5,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
    ) -> None:
        """Args: `region` of STS and of requests that name none; `attempts` of each request, the first included; times in seconds."""
        self.region = region
        self.role_arn = role_arn
        self._config = AioConfig(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )
        self._session: AioSession | None = None
        self._credentials: object = None
        self._clients: dict[_ClientKey, Any] = {}
        self._lock = anyio.Lock()
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._clients.clear()
        await self._exits.aclose()

    async def ask(
        self,
        action: str,
        call: Callable[[ECRClient], Awaitable[T]],
        *,
        region: str = "",
        fips: bool = False,
        about: str = "",
        registry: str = "",
        side: Side = "target",
    ) -> T:
        """What `call` gets from the ECR API.

        Args:
            action: the IAM action that the call needs, for messages.
            about: what the call is about, for messages.
            registry: the host of the registry, for errors.

        Raises:
            RegistryError: see `refusals.translated`.
        """
        key = _ClientKey(service="ecr", region=region or self.region, fips=fips)
        try:
            return await call(await self._client(key))
        except AWS_ERRORS as error:
            raise translated(
                error, action=action, about=about, registry=registry, side=side
            ) from error

    async def public_token(self) -> tuple[str, datetime]:
        """The authorization token of ECR Public, and its end. Raises: as `ask`."""
        key = _ClientKey(service="ecr-public", region=PUBLIC_REGION, fips=False)
        try:
            client = await self._client(key)
            answer = await client.get_authorization_token()
        except AWS_ERRORS as error:
            raise translated(
                error,
                action="ecr-public:GetAuthorizationToken",
                about=PUBLIC,
                registry=PUBLIC,
                side="source",
            ) from error

        data = answer["authorizationData"]
        return data["authorizationToken"], data["expiresAt"]

    async def _client(self, key: _ClientKey) -> Any:
        async with self._lock:
            client = self._clients.get(key)
            if client is None:
                client = self._clients[key] = await self._made(key)

            await self._renew_credentials()
            return client

    async def _made(self, key: _ClientKey) -> Any:
        config = self._config.merge(AioConfig(use_fips_endpoint=True)) if key.fips else self._config
        session, self._credentials = await anyio.to_thread.run_sync(
            _off_loop, self._rehearse, key, config, abandon_on_cancel=True
        )
        self._session = session
        client = session.create_client(key.service, region_name=key.region, config=config)
        return await self._exits.enter_async_context(client)

    async def _rehearse(
        self, key: _ClientKey, config: AioConfig
    ) -> tuple[AioSession, AioCredentials]:
        """Make a client and throw it away, in a worker thread: what it read stays in the session."""
        session = self._session
        if session is None:
            session = get_session()
            # Of the environment botocore reads AWS_DEFAULT_REGION alone; STS must be asked here too.
            session.set_config_variable("region", self.region)
            if self.role_arn:
                _assume(session, self.role_arn, self.region, self._config)

        credentials = await session.get_credentials()
        if credentials is None:
            raise NoCredentialsError

        await credentials.get_frozen_credentials()
        async with session.create_client(key.service, region_name=key.region, config=config):
            pass

        return session, credentials

    async def _renew_credentials(self) -> None:
        credentials = self._credentials
        if isinstance(credentials, AioRefreshableCredentials) and credentials.refresh_needed():
            await anyio.to_thread.run_sync(
                _off_loop, credentials.get_frozen_credentials, abandon_on_cancel=True
            )


def _off_loop(function: Callable[[Unpack[P]], Awaitable[T]], *args: *P) -> T:
    """Run a coroutine function of the AWS client to its end, in a worker thread: it may block there."""
    return anyio.run(function, *args)


class _RoleProvider(CredentialProvider):
    """Puts a role on top of what the rest of the chain finds."""

    METHOD = CANONICAL_NAME = "copycat-role"

    def __init__(self, role_arn: str, region: str, config: AioConfig) -> None:
        super().__init__()
        self._role_arn = role_arn
        self._region = region
        self._config = config
        self._base = get_session()
        self._base.set_config_variable("region", region)

    async def load(self) -> AioDeferredRefreshableCredentials:
        base = await self._base.get_credentials()
        if base is None:
            raise NoCredentialsError

        fetcher = AioAssumeRoleCredentialFetcher(
            self._create_client,
            base,
            self._role_arn,
            extra_args={"RoleSessionName": "k8s-copycat"},
        )
        return AioDeferredRefreshableCredentials(
            refresh_using=fetcher.fetch_credentials, method=self.METHOD
        )

    def _create_client(
        self,
        service: str,
        *,
        aws_access_key_id: str,
        aws_secret_access_key: str,
        aws_session_token: str | None,
    ) -> Any:
        return self._base.create_client(
            service,
            region_name=self._region,
            config=self._config,
            aws_access_key_id=aws_access_key_id,
            aws_secret_access_key=aws_secret_access_key,
            aws_session_token=aws_session_token,
        )


def _assume(session: AioSession, role_arn: str, region: str, config: AioConfig) -> None:
    chain = session.get_component("credential_provider")
    chain.insert_before(chain.providers[0].METHOD, _RoleProvider(role_arn, region, config))
