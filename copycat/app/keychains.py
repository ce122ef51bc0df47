"""Who the program is to each registry: every key of the configuration that gives a login, made into keychains.

What a registry is shown, in this order: the target's own user, an identity that the cloud gives the
Pod for exactly this host, the rows of `registryCredentials`, Docker's `config.json`. A refusal by the registry
leads to the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

import anyio.to_thread
from aiohttp.abc import AbstractResolver

from copycat.config.settings import Settings
from copycat.oci.reference import normalise_registry
from copycat.registry.dockerlogins import DockerKeychain, docker_config_file
from copycat.registry.hosts import TlsContexts
from copycat.registry.keychain import CredentialRule, Keychain, StaticKeychain
from copycat.registry.renewable import Asker

if TYPE_CHECKING:
    from copycat.registry.ecr.keychain import NamedHost

__all__ = ["Surroundings", "amazon_hosts", "open_keychains"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the keychains need of the world outside of the configuration; tests have their own."""

    tls: TlsContexts
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    resolver: AbstractResolver | None = None
    workstation: bool = False
    """Somebody sits here: `docker login` counts without DOCKER_CONFIG too."""
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    """Unix time, by which the logins of clouds end."""


@asynccontextmanager
async def open_keychains(settings: Settings, around: Surroundings) -> AsyncIterator[list[Keychain]]:
    """All of them but an ECR target's, most trusted first; what they hold open is closed at the end."""
    found: list[Keychain] = []
    if (rule := _target_rule(settings)) is not None:
        found.append(StaticKeychain([rule], environ=around.environ, clock=around.clock))
    async with AsyncExitStack() as stack:
        found += await stack.enter_async_context(_identities(settings, around))
        found.append(StaticKeychain(_rules(settings), environ=around.environ, clock=around.clock))
        found += _docker_logins(around)
        yield found


def _docker_logins(around: Surroundings) -> list[Keychain]:
    file = docker_config_file(around.environ, workstation=around.workstation)
    if file is None:
        return []
    required = bool(around.environ.get("DOCKER_CONFIG"))
    return [DockerKeychain(file, required=required, environ=around.environ, clock=around.clock)]


async def amazon_hosts(settings: Settings) -> dict[str, NamedHost]:
    """The hosts with `auth: ecr`. Imports AWS's modules if there are any: half a second, in a thread."""
    if not (found := _askers(settings, "ecr")):
        return {}

    await anyio.to_thread.run_sync(import_module, "copycat.registry.ecr.keychain")
    from copycat.registry.ecr.keychain import NamedHost

    region = settings.ecr.region
    return {host: NamedHost(asker=asker, region=region) for host, asker in found.items()}


def _askers(settings: Settings, auth: str) -> dict[str, Asker]:
    """The hosts that get an identity of one kind (`gcp`, `azure`, `ecr`), and by which key."""
    found = {
        entry.host: Asker(key=f"registries[{index}].auth is {auth}")
        for index, entry in enumerate(settings.registries)
        if entry.auth == auth
    }
    if settings.target_kind == "docker" and settings.docker.auth == auth:
        target = normalise_registry(settings.docker.registry)
        found[target] = Asker(key=f"docker.auth is {auth}", side="target")
    return found


@asynccontextmanager
async def _identities(settings: Settings, around: Surroundings) -> AsyncIterator[list[Keychain]]:
    """The clouds' keychains. Their modules are imported only if they are asked for."""
    google, azure = _askers(settings, "gcp"), _askers(settings, "azure")
    # an ECR target brings a keychain for all of ECR
    amazon = await amazon_hosts(settings) if settings.target_kind != "ecr" else {}
    found: list[Keychain] = []
    async with AsyncExitStack() as stack:
        if google or azure:
            from copycat.registry.cloud import AzureKeychain, GoogleKeychain, open_session

            environ, clock = around.environ, around.wall
            session = await stack.enter_async_context(
                open_session(around.tls, resolver=around.resolver)
            )
            found.append(GoogleKeychain(session, hosts=google, environ=environ, clock=clock))
            found.append(AzureKeychain(session, hosts=azure, environ=environ, clock=clock))
        if amazon:
            found.append(await stack.enter_async_context(_amazon(settings, amazon, around.wall)))
        yield found


@asynccontextmanager
async def _amazon(
    settings: Settings, hosts: Mapping[str, NamedHost], clock: Callable[[], float]
) -> AsyncIterator[Keychain]:
    from copycat.registry.ecr.aws import Aws
    from copycat.registry.ecr.hosts import PUBLIC_REGION
    from copycat.registry.ecr.keychain import EcrKeychain

    async with Aws(region=settings.ecr.region or PUBLIC_REGION) as aws:
        yield EcrKeychain(sources=aws, hosts=hosts, named_only=True, clock=clock)


def _target_rule(settings: Settings) -> CredentialRule | None:
    """The user of a target that is logged in to by name and password."""
    docker = settings.docker
    if settings.target_kind != "docker" or docker.auth != "basic" or not docker.username:
        return None
    return CredentialRule(
        registry=docker.registry,
        username=docker.username,
        password=docker.password.get_secret_value(),
        # TARGET_PASSWORD wins over the file
        password_file="" if docker.password.get_secret_value() else docker.password_file,
        source="the target's credentials (docker.username)",
        side="target",
    )


def _rules(settings: Settings) -> list[CredentialRule]:
    target = settings.docker.registry if settings.target_kind == "docker" else ""
    return [
        CredentialRule(
            registry=entry.registry,
            aliases=entry.registry_aliases,
            username=entry.username,
            password=entry.password.get_secret_value(),
            token=entry.token.get_secret_value(),
            username_env=entry.username_env,
            password_env=entry.password_env,
            token_env=entry.token_env,
            username_file=entry.username_file,
            password_file=entry.password_file,
            token_file=entry.token_file,
            namespaces=frozenset(entry.namespaces),
            source=f"registryCredentials[{index}]",
            side="target" if entry.registry == target else "source",
        )
        for index, entry in enumerate(settings.registry_credentials)
    ]
