"""Docker's `config.json` and its older form `.dockercfg`: logins by registry, as people and pull secrets hold them.

Pure: bytes in, credentials out. A key names a host, a host and port, a host with `*` in its labels, or
any of them with a path; what it matches is what a kubelet matches (kubernetes
pkg/credentialprovider/keyring.go), but that a path ends at a segment: `ghcr.io/team` is not
`ghcr.io/team-b`. Nothing here says a secret's value, not even in errors.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import msgspec

from copycat.decoding import UNREADABLE
from copycat.errors import printable
from copycat.oci.reference import normalise_registry
from copycat.registry.credentials import Credentials
from copycat.registry.globs import go_match

__all__ = [
    "DockerAuth",
    "DockerConfig",
    "DockerHelper",
    "covers",
    "matching",
    "parse_docker_config",
]

#: Paths of keys that mean the registry's API, so the whole host: `https://index.docker.io/v1/`.
_API_PATHS = frozenset({"v1", "v2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerAuth:
    """One entry: a login, and what it is for."""

    host: str
    """Normalised (`docker.io`), with its port; its labels may be patterns of `go_match`."""
    path: str = ""
    """Only repositories below it; empty means all."""
    credentials: Credentials

    @property
    def is_pattern(self) -> bool:
        """Whether the host may stand for several."""
        return any(c in self.host for c in "*?[")

    def matches(self, registry: str, repository: str) -> bool:
        """Whether the login is for this repository of this (normalised) registry."""
        if not covers(self.path, repository):
            return False
        if self.host == registry:
            return True
        host, port = _port(self.host)
        other, other_port = _port(registry)
        labels, others = host.split("."), other.split(".")
        if port != other_port or len(labels) != len(others):
            return False
        return all(go_match(p, name) for p, name in zip(labels, others, strict=True))


def covers(path: str, repository: str) -> bool:
    """Whether a repository is at or below a path, which ends at a segment; an empty path covers all."""
    return not path or f"{repository}/".startswith(f"{path}/")


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerHelper:
    """One entry whose login a program keeps, `docker-credential-<helper>`. Its host is no pattern."""

    host: str
    path: str = ""
    server: str
    """The key as written: what the program is asked for."""
    helper: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerConfig:
    """What a file or Secret holds."""

    auths: tuple[DockerAuth, ...] = ()
    helpers: tuple[DockerHelper, ...] = ()
    """`credHelpers`. Whoever did not write the file is not let choose a program: not for pull secrets."""
    store: str = ""
    """`credsStore`: the helper for all other registries."""
    stored: tuple[DockerHelper, ...] = ()
    """Entries without a login: the store's."""
    problems: tuple[str, ...] = ()
    """Entries that cannot be used, in words."""


class _File(msgspec.Struct, gc=False):
    auths: dict[str, msgspec.Raw] | None = None
    cred_helpers: msgspec.Raw = msgspec.field(name="credHelpers", default=msgspec.Raw(b"{}"))
    creds_store: msgspec.Raw = msgspec.field(name="credsStore", default=msgspec.Raw(b'""'))


class _Entry(msgspec.Struct, gc=False):
    username: str | None = None
    password: str | None = None
    auth: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


_FILE = msgspec.json.Decoder(_File)
_LEGACY = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY = msgspec.json.Decoder(_Entry)
_NAME = msgspec.json.Decoder(str | None)
_NAMES = msgspec.json.Decoder(dict[str, str] | None)
#: What decoding raises; the last one for JSON that is nested too deep.
#: More logins are not looked at: whoever writes a Secret must not keep us busy.
_MOST = 1000
#: What follows `docker-credential-`: never a path.
_HELPER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def parse_docker_config(raw: bytes, *, source: str, legacy: bool = False) -> DockerConfig:
    """The logins of a `config.json`, or with `legacy` of a `.dockercfg`; an entry that is broken costs only itself.

    Args:
        source: where it stands, for messages about its credentials.

    Raises:
        ValueError: it is no JSON object of that form. The message names no content.
    """
    try:
        file = _File(auths=_LEGACY.decode(raw)) if legacy else _FILE.decode(raw)
    except UNREADABLE as error:
        # no field of an entry: the redaction of logs would take it for the login itself
        form = "{HOST: {…}}" if legacy else '{"auths": {HOST: {…}}}'
        raise ValueError(f"it is not JSON of the form {form}") from error
    problems: list[str] = []
    store = _store(file.creds_store, problems)
    auths, stored = _entries(file.auths or {}, source, store, problems)
    return DockerConfig(
        auths=tuple(auths),
        helpers=tuple(_helpers(file.cred_helpers, problems)),
        store=store,
        stored=tuple(stored),
        problems=tuple(problems),
    )


def _entries(
    entries: Mapping[str, msgspec.Raw], source: str, store: str, problems: list[str]
) -> tuple[list[DockerAuth], list[DockerHelper]]:
    """The logins, and the entries without one."""
    auths: list[DockerAuth] = []
    stored: list[DockerHelper] = []
    if len(entries) > _MOST:
        problems.append(f"of {len(entries)} entries the first {_MOST} are used")
    for key, entry in islice(entries.items(), _MOST):
        try:
            credentials = _credentials(bytes(entry), source)
            host, path = _split(key) if credentials is not None or store else ("", "")
        except ValueError as error:
            problems.append(f"the entry {printable(key, 100)!r} {error}")
            continue
        if credentials is not None:
            auths.append(DockerAuth(host=host, path=path, credentials=credentials))
        elif store:
            stored.append(DockerHelper(host=host, path=path, server=key, helper=store))
    return auths, stored


def _store(raw: msgspec.Raw, problems: list[str]) -> str:
    try:
        name = _NAME.decode(raw) or ""
    except UNREADABLE:
        name = "/"
    if name and not _HELPER.fullmatch(name):
        problems.append("credsStore is not the name of a credential helper")
        return ""
    return name


def _helpers(raw: msgspec.Raw, problems: list[str]) -> list[DockerHelper]:
    try:
        rows = _NAMES.decode(raw) or {}
    except UNREADABLE:
        problems.append("credHelpers is not an object of strings")
        return []
    found = []
    for key, name in rows.items():
        try:
            found.append(_helper(key, name))
        except ValueError as error:
            problems.append(f"the entry {printable(key, 100)!r} of credHelpers {error}")
    return found


def _helper(key: str, name: str) -> DockerHelper:
    host, path = _split(key)
    if not _HELPER.fullmatch(name):
        raise ValueError("does not name a credential helper")
    return DockerHelper(host=host, path=path, server=key, helper=name)


def matching(auths: Iterable[DockerAuth], registry: str, repository: str) -> list[Credentials]:
    """The credentials for a repository, each once: longest path first, hosts before patterns, then as they came."""
    found = [a for a in auths if a.matches(registry, repository)]
    found.sort(key=lambda a: (-len(a.path), a.is_pattern))
    unique: dict[str, Credentials] = {}
    for auth in found:
        unique.setdefault(auth.credentials.key, auth.credentials)
    return list(unique.values())


def _split(key: str) -> tuple[str, str]:
    """A key as host and path. Raises ValueError for what names no host."""
    text = key.strip()
    if "://" in text:
        scheme, _, text = text.partition("://")
        if scheme.lower() not in {"http", "https"}:
            raise ValueError("names no registry")
    host, _, path = text.partition("/")
    host = host.rpartition("@")[2].lower()
    if not host:
        raise ValueError("names no registry")
    try:
        for label in _port(host)[0].split("."):
            go_match(label, "")
    except ValueError:
        raise ValueError("has a malformed pattern") from None
    path = path.partition("?")[0].strip("/")
    first, _, rest = path.partition("/")
    return normalise_registry(host), rest if first in _API_PATHS else path


def _credentials(raw: bytes, source: str) -> Credentials | None:
    """An entry's login; None for one that is empty (a credential helper keeps it). Raises ValueError."""
    try:
        entry = _ENTRY.decode(raw)
    except UNREADABLE:
        raise ValueError("is not an object of strings") from None
    username, password = entry.username or "", entry.password or ""
    if entry.auth:
        username, password = _basic(entry.auth)
    credentials = Credentials(
        username=username,
        password=password,
        token=entry.registrytoken or "",
        identity_token=entry.identitytoken or "",
        source=source,
    )
    usable = username or credentials.token or credentials.identity_token
    return credentials if usable else None


def _basic(auth: str) -> tuple[str, str]:
    """User name and password from the base64 text of both; its padding may be missing, and it may be broken into lines."""
    text = "".join(auth.split())  # `base64` breaks long ones, and Docker and kubelets read them so
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        raise ValueError("has an auth that is not base64 text") from None
    username, colon, password = decoded.partition(":")
    if not colon:
        raise ValueError("has an auth without a colon between user name and password")
    return username, password.strip("\0")


def _port(host: str) -> tuple[str, str]:
    """Host and port; a bracket belongs to an IPv6 address or to a pattern, so only digits make a port."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdecimal() else (host, "")
