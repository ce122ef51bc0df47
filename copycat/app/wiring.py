"""From settings to objects: the only place that knows both.

Lower layers get plain values; whoever wants to know what a key does follows it from here.
"""

from __future__ import annotations

import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
from aiohttp.abc import AbstractResolver

from copycat.app.keychains import Surroundings, amazon_hosts, open_keychains
from copycat.config.settings import Settings
from copycat.controller.inventory import Platforms
from copycat.controller.pulls import Pulls
from copycat.errors import ConfigError, CopycatError
from copycat.kube.secrets import Coverage, PullSecrets
from copycat.kube.selection import Selection
from copycat.logs import get_logger
from copycat.metrics import Metrics
from copycat.mirror.blobs import Blobs
from copycat.mirror.copy import Copier
from copycat.mirror.mirror import Mirror
from copycat.mirror.naming import Naming, PathRule
from copycat.mirror.policy import Policy
from copycat.mirror.signatures import Signatures
from copycat.oci.platform import Platform
from copycat.oci.reference import normalise_registry
from copycat.registry.answers import SLOW_RATE
from copycat.registry.bandwidth import Bandwidth
from copycat.registry.hosts import HostConfig, HostPolicy, Proxies, TlsContexts
from copycat.registry.keychain import AccessKeychain, ChainKeychain, Keychain
from copycat.registry.limits import RetryPolicy
from copycat.registry.target import Target
from copycat.registry.transport import Transport

if TYPE_CHECKING:  # kr8s costs a tenth of a second, and `copycat mirror` has no cluster
    from copycat.kube.client import KubeClient

__all__ = ["Engine", "coverage_of", "make_pulls", "open_engine", "platforms_of", "selection_of"]

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Everything that copying needs, without a cluster."""

    transport: Transport
    target: Target
    naming: Naming
    mirror: Mirror
    metrics: Metrics


@asynccontextmanager
async def open_engine(
    settings: Settings,
    *,
    metrics: Metrics,
    resolver: AbstractResolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
    environ: Mapping[str, str] = os.environ,
    workstation: bool = False,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    jitter: Callable[[], float] = random.random,
) -> AsyncIterator[Engine]:
    """The engine of a configuration; everything in it is closed at the end.

    Args:
        resolver, ssl_context: where host names lead and whom to trust, for tests.
        environ: where credentials, identities and proxies are found, besides what the settings hold.
        workstation: whether `docker login` counts without DOCKER_CONFIG too.
        clock, wall: seconds that only grow, and Unix time, by which the logins of clouds end.
        sleep, jitter: waiting, and which part of a delay is waited (0 to 1).

    Raises:
        ConfigError: the configuration cannot be used after all.
    """
    around = Surroundings(
        tls=TlsContexts(ca_file=settings.registry_ca_file, default=ssl_context),
        environ=environ,
        resolver=resolver,
        workstation=workstation,
        clock=clock,
        wall=wall,
    )
    async with AsyncExitStack() as stack:
        if settings.target_kind == "ecr":
            builder: _Docker | _Ecr = await stack.enter_async_context(
                _Ecr.open(settings, clock=clock, wall=wall, sleep=sleep)
            )
        else:
            builder = _Docker(settings)
        keychains = await stack.enter_async_context(open_keychains(settings, around))
        transport = await stack.enter_async_context(
            Transport(
                keychain=ChainKeychain(*builder.keychains, AccessKeychain(), *keychains),
                metrics=metrics,
                policy=HostPolicy(
                    named=settings.named_hosts | {builder.registry},
                    deny_private=settings.deny_private_networks,
                    cluster=environ.get("KUBERNETES_SERVICE_HOST", ""),
                ),
                hosts=_hosts(settings),
                target_registries=frozenset({builder.registry}),
                ca_file=settings.registry_ca_file,
                request_timeout=settings.request_timeout,
                slow_rate=_slow_rate(settings),
                retry=RetryPolicy(
                    attempts=settings.registry_retry_attempts,
                    backoff=settings.registry_retry_backoff,
                ),
                concurrency=settings.registry_concurrency,
                pull_quota_reserve=settings.pull_quota_reserve,
                resolver=resolver,
                ssl_context=ssl_context,
                proxies=Proxies(environ),
                clock=clock,
                sleep=sleep,
                jitter=jitter,
            )
        )
        target = builder.target(transport)
        yield _assemble(settings, transport=transport, target=target, metrics=metrics, sleep=sleep)


def _slow_rate(settings: Settings) -> float:
    """Bytes a second below which an upload hardly moves: well under what `maxBandwidth` leaves to each of them."""
    if not settings.max_bandwidth:
        return SLOW_RATE
    return min(SLOW_RATE, settings.max_bandwidth / settings.max_transfers / 4)


def _assemble(
    settings: Settings,
    *,
    transport: Transport,
    target: Target,
    metrics: Metrics,
    sleep: Callable[[float], Awaitable[None]],
) -> Engine:
    naming = Naming(
        prefix=settings.repo_prefix,
        rules=[
            PathRule(source=r.source, target=r.target, pattern=r.pattern) for r in settings.path_map
        ],
        max_length=target.max_repository,
    )
    copier = Copier(
        Blobs(
            transport=transport,
            target=target,
            metrics=metrics,
            max_transfers=settings.max_transfers,
            bandwidth=Bandwidth(settings.max_bandwidth) if settings.max_bandwidth else None,
        )
    )
    policy = _policy(settings)
    signatures = None
    if settings.signatures != "none":
        signatures = Signatures(copier=copier, kind=settings.signatures, policy=policy)
    mirror = Mirror(
        transport=transport,
        target=target,
        naming=naming,
        copier=copier,
        policy=policy,
        signatures=signatures,
        sleep=sleep,
    )
    return Engine(transport=transport, target=target, naming=naming, mirror=mirror, metrics=metrics)


class _Docker:
    """A target without a control plane."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.registry = normalise_registry(settings.docker.registry)
        self.keychains: list[Keychain] = []

    def target(self, transport: Transport) -> Target:
        return Target(transport, self.registry)


class _Ecr:
    """Amazon ECR. Its modules are imported here alone: the AWS client costs half a second."""

    def __init__(self, settings: Settings, registry: str, keychain: Keychain, make: Callable[[Transport], Target]) -> None:  # fmt: skip
        self._settings = settings
        self.registry = registry
        self.keychains = [keychain]
        self.target = make

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> AsyncIterator[_Ecr]:
        """Asks AWS for the registry's host, unless the configuration says it or nobody may be asked."""
        from copycat.registry.ecr.aws import Aws
        from copycat.registry.ecr.hosts import derived_host
        from copycat.registry.ecr.keychain import EcrKeychain
        from copycat.registry.ecr.lifecycle import lifecycle_warnings
        from copycat.registry.ecr.target import EcrTarget

        ecr = settings.ecr
        wanted = ecr.wanted()
        if problems := wanted.problems():
            raise ConfigError(*problems)
        for warning in lifecycle_warnings(ecr.lifecycle_policy) if ecr.lifecycle_policy else ():
            _log.warning("lifecycle policy", warning=warning)
        async with (
            Aws(region=ecr.region, role_arn=ecr.assume_role_arn) as aws,
            Aws(region=ecr.region) as sources,
        ):
            keychain = EcrKeychain(
                target=aws, sources=sources, hosts=await amazon_hosts(settings), clock=wall
            )
            registry = ecr.endpoint or derived_host(ecr.account_id, ecr.region)
            if not ecr.endpoint and not (settings.dry_run and settings.dry_pull):
                registry = await cls._discover(keychain, ecr.account_id, registry)
            keychain.target_registry = registry
            yield cls(
                settings,
                registry,
                keychain,
                lambda transport: EcrTarget(
                    transport, registry, aws=aws, settings=wanted, clock=clock, sleep=sleep
                ),
            )

    @staticmethod
    async def _discover(keychain: object, account: str, derived: str) -> str:
        try:
            registry: str = await keychain.discover(account)  # type: ignore[attr-defined] # imported on demand
        except CopycatError as error:
            # every image will say it again; what runs must be seen all the same
            _log.error("aws does not tell the registry's host", error=str(error), using=derived)
            return derived
        return registry


def _hosts(settings: Settings) -> dict[str, HostConfig]:
    hosts = {
        entry.host: HostConfig(
            host=entry.host,
            endpoints=entry.endpoints,
            insecure=entry.insecure or entry.host in settings.insecure_hosts,
            ca_file=entry.ca_file,
            client_cert_file=entry.client_cert_file,
            client_key_file=entry.client_key_file,
            concurrency=entry.concurrency,
        )
        for entry in settings.registries
    }
    for host in settings.insecure_hosts:
        hosts.setdefault(host, HostConfig(host=host, insecure=True))
    return hosts


def _policy(settings: Settings) -> Policy:
    return Policy(
        digest_pull=settings.digest_pull,
        digest_pull_ignored_tags=frozenset(settings.digest_pull_ignored_tags),
        allow_different_digest_repush=settings.allow_different_digest_repush,
        overwrite_foreign_tags=settings.overwrite_foreign_tags,
        ignore_missing_platforms=_platforms(settings.ignore_missing_platforms),
        dry_run=settings.dry_run,
        dry_pull=settings.dry_pull,
    )


def _platforms(texts: tuple[str, ...]) -> frozenset[Platform]:
    return frozenset(Platform.parse(text) for text in texts)


def platforms_of(settings: Settings) -> Platforms:
    """Which platforms are wanted."""
    return Platforms(
        mirror=_platforms(settings.mirror_platforms), check_nodes=settings.check_node_platform
    )


def coverage_of(settings: Settings) -> Coverage:
    """Whose pull secrets are read."""
    wanted = settings.pull_secrets
    if wanted == "auto":
        return Coverage(namespaces=frozenset(selection_of(settings).literal_namespaces() or ()))
    if isinstance(wanted, str):
        return Coverage(everywhere=wanted == "all")
    return Coverage(namespaces=frozenset(wanted))


def make_pulls(
    settings: Settings,
    engine: Engine,
    client: KubeClient,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> Pulls:
    """How the pull secrets of a cluster are used."""
    coverage = coverage_of(settings)
    return Pulls(
        secrets=PullSecrets(client, coverage=coverage, clock=clock),
        transport=engine.transport,
        shared=settings.private_images == "shared",
        separates=engine.naming.separates_namespaces and coverage.any,
        sleep=sleep,
    )


def selection_of(settings: Settings) -> Selection:
    """Which workloads and registries are wanted."""
    return Selection(
        include_namespaces=settings.include_namespaces,
        skip_namespaces=settings.skip_namespaces,
        skip_names=settings.skip_names.by_resource(),
        exclude_registries=settings.exclude_registries,
        allowed_registries=settings.allowed_registries,
    )
