"""Hosts and URLs of registries, as people write them in a configuration."""

from __future__ import annotations

import re
from ipaddress import IPv6Address

from copycat.oci.reference import DOCKER_HUB, normalise_registry

__all__ = ["endpoint", "host_of", "registry_host", "registry_prefix"]

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?P<v6>[0-9a-f:.]+)\])(?::(?P<port>\d{{1,5}}))?")
_PATH = re.compile(r"[a-z0-9._-]+(?:/[a-z0-9._-]+)*")
_EXPECTED = 'expected the host of a registry ("ghcr.io", "registry.local:5000")'


def registry_host(value: object) -> str:
    """The canonical name of a registry's host.

    `https://` and Docker's own `https://index.docker.io/v1/` are understood.

    Raises:
        ValueError: it is no host, or more than one.
    """
    given = _text(value).lower()
    if given.startswith("http://"):
        raise ValueError(
            f"{_EXPECTED}, without http://; plain HTTP is allowed by insecureRegistries"
        )
    host, _, path = given.removeprefix("https://").partition("/")
    canonical = normalise_registry(host)
    if path.strip("/") and (canonical, path.strip("/")) != (DOCKER_HUB, "v1"):
        raise ValueError(f"{_EXPECTED}, without a path")
    _check(canonical)
    return canonical


def registry_prefix(value: object) -> str:
    """A registry, or a part of one: `host` or `host/path`."""
    given = _text(value).lower().removeprefix("https://").strip("/")
    if "*" in given:
        raise ValueError("expected host or host/path; wildcards are not known here")
    host, _, path = given.partition("/")
    _check(host)
    if path and not _PATH.fullmatch(path):
        raise ValueError("expected host or host/path")
    return given


def endpoint(value: object) -> str:
    """Where a registry is reached in place of its own host: `host`, `host/path` or a URL with scheme."""
    given = _text(value).rstrip("/")
    scheme, separator, rest = given.partition("://")
    if "@" in given:
        raise ValueError("expected an endpoint without user and password; use registryCredentials")
    if separator and scheme not in {"http", "https"}:
        raise ValueError("expected an endpoint with http:// or https://")
    _check((rest if separator else given).partition("/")[0].lower())
    return given


def host_of(text: str) -> str:
    """The canonical host in a checked prefix or endpoint; a path without a host is on Docker Hub."""
    host = text.rpartition("://")[2].partition("/")[0].lower()
    named = "://" in text or host == "localhost" or "." in host or ":" in host
    return normalise_registry(host) if named else DOCKER_HUB


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(_EXPECTED)  # noqa: TRY004 - pydantic collects ValueError alone
    return value.strip()


def _check(host: str) -> None:
    match = _HOST.fullmatch(host)
    if match is None or (match["port"] and not 0 < int(match["port"]) <= 65535):
        raise ValueError(_EXPECTED)
    if match["v6"]:
        try:
            IPv6Address(match["v6"])
        except ValueError:
            raise ValueError(_EXPECTED) from None
