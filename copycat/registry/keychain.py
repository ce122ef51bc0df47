"""Which credentials belong to which registry, and to whom.

A keychain only answers; it never talks to a registry. Candidates come most specific first, so that
the transport can try the next one when a registry refuses the first (kubelet does the same).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from copycat.errors import RegistryError, Side, Unauthorized
from copycat.oci.reference import normalise_registry
from copycat.registry.credentials import Credentials
from copycat.registry.dockerconfig import DockerAuth, matching
from copycat.registry.globs import go_match
from copycat.registry.once import Once

__all__ = [
    "ANONYMOUS",
    "Access",
    "AccessKeychain",
    "ChainKeychain",
    "CredentialRule",
    "Credentials",
    "Keychain",
    "StaticKeychain",
    "go_match",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """On whose behalf a registry is asked."""

    namespaces: frozenset[str] = frozenset()
    """Namespaces of the workloads that use the image."""
    secrets: tuple[DockerAuth, ...] = ()
    """What the pull secrets of those workloads hold, each bound to the registry that it is for."""
    home: str = ""
    """The one namespace that the copy is for, where namespaces are kept apart: what only its secrets
    could read is given to no other. Empty: the copy is for everybody."""

    @property
    def kept_for(self) -> str:
        """The namespace for which alone content is that was read with this access; empty: for everybody."""
        return self.home if self.secrets else ""


ANONYMOUS = Access()


class Keychain(Protocol):
    """Finds credentials."""

    async def resolve(
        self, registry: str, repository: str, access: Access
    ) -> Sequence[Credentials]:
        """The candidates for a repository, most specific first; empty means: ask anonymously."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRule:
    """One row of `registryCredentials`: `…_env` wins over `…_file`, that over the plain value."""

    registry: str
    """A host, or a host and path prefix (`ghcr.io/team`) that ends at a segment."""
    aliases: tuple[str, ...] = ()
    """More hosts, as patterns of `go_match`."""
    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    username_env: str = ""
    password_env: str = ""
    token_env: str = ""
    username_file: str = ""
    password_file: str = ""
    token_file: str = ""
    namespaces: frozenset[str] = frozenset()
    """Only for workloads in one of these; empty: for all."""
    source: str = ""
    side: Side = "source"
    """What errors about it say."""


def _split(registry: str) -> tuple[str, str]:
    """A rule's registry as host and path. `https://index.docker.io/v1/` is a spelling of Docker Hub's host."""
    text = re.sub(r"^https?://", "", registry.strip())
    host, _, path = text.partition("/")
    path = path.strip("/")
    return normalise_registry(host), "" if path in {"v1", "v2"} else path


class _Files:
    """Small secret files, read again when they change (Kubernetes swaps mounted Secrets in place)."""

    def __init__(self, *, clock: Callable[[], float], every: float) -> None:
        self._clock, self._every = clock, every
        self._read: dict[str, tuple[float, tuple[int, int, int], str]] = {}

    async def text(self, path: str) -> str:
        now = self._clock()
        known = self._read.get(path)
        if known is not None and now - known[0] < self._every:
            return known[2]
        try:
            stamp, text = await anyio.to_thread.run_sync(self._load, path, known)
        except (OSError, UnicodeDecodeError):
            if known is None:
                raise
            # a Secret that is being replaced, or was taken away: what is known may still be right
            stamp, text = known[1:]
        self._read[path] = (now, stamp, text)
        return text

    @staticmethod
    def _load(
        path: str, known: tuple[float, tuple[int, int, int], str] | None
    ) -> tuple[tuple[int, int, int], str]:
        status = Path(path).stat()
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if known is not None and known[1] == stamp:
            return stamp, known[2]
        return stamp, Path(path).read_text(encoding="utf-8").strip()


class _Tries:
    """Several places that may have credentials: one that fails is no reason not to use the others."""

    def __init__(self) -> None:
        self._once = Once("credentials")

    async def collect(
        self, places: Iterable[Callable[[], Awaitable[Sequence[Credentials]]]]
    ) -> list[Credentials]:
        """What all of them have, each secret once. Raises the first error if that is nothing."""
        found: dict[str, Credentials] = {}
        errors: list[RegistryError] = []
        for place in places:
            try:
                for credentials in await place():
                    found.setdefault(credentials.key, credentials)
            except RegistryError as error:
                errors.append(error)
        if errors and not found:
            raise errors[0]
        for unused in errors:
            self._once.warn(str(unused), "other credentials are used", error=str(unused))
        return list(found.values())


class StaticKeychain:
    """The rows of `registryCredentials`."""

    def __init__(
        self,
        rules: Iterable[CredentialRule],
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        reread: float = 10.0,
    ) -> None:
        """Args: files are looked at again after `reread` seconds. Raises ValueError for a malformed alias."""
        self._rules = [(rule, *_split(rule.registry)) for rule in rules]
        for rule, _, _ in self._rules:
            for alias in rule.aliases:
                go_match(alias.lower(), "")
        self._environ = environ
        self._files = _Files(clock=clock, every=reread)
        self._tries = _Tries()

    async def resolve(
        self, registry: str, repository: str, access: Access
    ) -> Sequence[Credentials]:
        """Rules with the longest path first, exact hosts before aliases, then in the order of the rows.

        Raises Unauthorized if a rule's file cannot be read and no other rule has anything.
        """
        found: list[tuple[int, int, CredentialRule]] = []
        for rule, host, path in self._rules:
            rank = self._rank(rule, host, path, registry, repository)
            if rank is not None and (not rule.namespaces or rule.namespaces & access.namespaces):
                found.append((*rank, rule))
        found.sort(key=lambda row: row[:2])
        return await self._tries.collect([partial(self._credentials, rule) for *_, rule in found])

    @staticmethod
    def _rank(
        rule: CredentialRule, host: str, path: str, registry: str, repository: str
    ) -> tuple[int, int] | None:
        if path and not f"{repository}/".startswith(f"{path}/"):
            return None
        if host == registry:
            return -len(path), 0
        # An alias may use any spelling of Docker Hub.
        names = {registry}
        if registry == "docker.io":
            names |= {"index.docker.io", "registry-1.docker.io"}
        if any(go_match(alias.lower(), name) for alias in rule.aliases for name in names):
            return -len(path), 1
        return None

    async def _credentials(self, rule: CredentialRule) -> Sequence[Credentials]:
        username = await self._value(rule, "username")
        password = await self._value(rule, "password")
        token = await self._value(rule, "token")
        if not (username or password or token):
            return ()
        source = rule.source or f"registryCredentials for {rule.registry}"
        return (Credentials(username=username, password=password, token=token, source=source),)

    async def _value(self, rule: CredentialRule, name: str) -> str:
        env: str = getattr(rule, f"{name}_env")
        if env and self._environ.get(env):
            return self._environ[env].strip()
        file: str = getattr(rule, f"{name}_file")
        if not file:
            plain: str = getattr(rule, name)
            return plain
        try:
            return await self._files.text(file)
        except (OSError, UnicodeDecodeError) as error:
            problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise Unauthorized(
                f"The {name} file {file} of {rule.source or rule.registry} cannot be read: {problem}. "
                "Check the path and the mounted Secret.",
                side=rule.side,
                registry=rule.registry,
                reason="credentials_unreadable",
            ) from error


class AccessKeychain:
    """The pull secrets of whoever asks."""

    async def resolve(
        self, registry: str, repository: str, access: Access
    ) -> Sequence[Credentials]:
        """Those of the secrets that are for this repository; nothing else ever leaves a pull secret."""
        return matching(access.secrets, registry, repository)


class ChainKeychain:
    """Several keychains, one after the other."""

    def __init__(self, *keychains: Keychain) -> None:
        """The candidates of the first come first."""
        self._keychains = keychains
        self._tries = _Tries()

    async def resolve(
        self, registry: str, repository: str, access: Access
    ) -> Sequence[Credentials]:
        """Every keychain's candidates, each secret once. Raises a keychain's error if no other has any."""
        return await self._tries.collect(
            [
                partial(keychain.resolve, registry, repository, access)
                for keychain in self._keychains
            ]
        )

    def expired(self, registry: str, credentials: Credentials) -> None:
        """Tell those that can make credentials anew that these have expired."""
        for keychain in self._keychains:
            told = getattr(keychain, "expired", None)
            if told is not None:
                told(registry, credentials)
