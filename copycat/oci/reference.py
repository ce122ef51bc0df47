"""Image names, brought to the one spelling that registries and Docker agree on.

The rules are those of distribution/reference (`normalize.go`, `regexp.go`), with two differences that
a mirror needs: tag *and* digest are kept, and `registry-1.docker.io` is Docker Hub as well.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from functools import total_ordering
from ipaddress import IPv6Address

from copycat.errors import InvalidReference, printable
from copycat.oci.digest import Digest

__all__ = ["DOCKER_HUB", "Reference", "is_repository", "is_tag", "normalise_registry"]

DOCKER_HUB = "docker.io"

_DOCKER_HUB_API = "registry-1.docker.io"
_DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", _DOCKER_HUB_API})

#: distribution/reference, `NameTotalLengthMax` (applied to the path).
_MAX_REPOSITORY = 255
_MAX_HOST = 253

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"({_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::([0-9]{{1,5}}))?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IMAGE_ID = re.compile(r"(sha256:)?[0-9a-fA-F]{64}")


def normalise_registry(host: str) -> str:
    """The canonical name of a registry: lower case, its port kept, every spelling of Docker Hub as `docker.io`.

    The form of Docker's config.json (`https://index.docker.io/v1/`) is understood too.
    """
    name = host.lower().rpartition("://")[2].partition("/")[0]
    return DOCKER_HUB if name in _DOCKER_HUB_NAMES else name


def is_repository(text: str) -> bool:
    """Whether `text` is a repository path (without host) by the grammar of the distribution specification."""
    return len(text) <= _MAX_REPOSITORY and all(map(_COMPONENT.fullmatch, text.split("/")))


def is_tag(text: str) -> bool:
    """Whether `text` is a tag by the grammar of the distribution specification."""
    return _TAG.fullmatch(text) is not None


@total_ordering
@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where an image is: registry, repository, and a tag, a digest, or both."""

    registry: str
    """Canonical: `docker.io`, `ghcr.io`, `localhost:5000`."""
    repository: str
    """The path in the registry: `library/alpine`."""
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The image that `text` names, as Docker and Kubernetes understand it.

        With neither tag nor digest the tag is `latest`.

        Raises:
            InvalidReference: the message names the text, the part that is wrong, and the remedy.
        """
        _refuse_misunderstandings(text)
        name, at, digest_text = text.partition("@")
        digest = _parse_digest(text, digest_text) if at else None
        name, tag = _split_tag(text, name)
        host, path = _split_host(name)
        _check_host(text, host)
        registry = normalise_registry(host)
        if registry == DOCKER_HUB and path and "/" not in path:
            path = f"library/{path}"

        _check_path(text, path)
        if tag is None and digest is None:
            tag = "latest"

        return cls(registry=sys.intern(registry), repository=path, tag=tag, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.name}{tag}{digest}"

    def __lt__(self, other: Reference) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, str, str, str]:
        return self.registry, self.repository, self.tag or "", str(self.digest or "")

    @property
    def name(self) -> str:
        """Registry and repository: `docker.io/library/alpine`."""
        return f"{self.registry}/{self.repository}"

    def with_digest(self, digest: Digest) -> Reference:
        """The same name and tag, at this digest."""
        return replace(self, digest=digest)


def _invalid(text: str, why: str) -> InvalidReference:
    shown = printable(text, 160)
    return InvalidReference(f'"{shown}" does not name an image: {why}', reference=shown)


def _refuse_misunderstandings(text: str) -> None:
    """Texts that the grammar would accept as something else, or refuse with a puzzling message."""
    if not text:
        raise InvalidReference('"" does not name an image: the text is empty')

    if text != text.strip():
        raise _invalid(text, "white space before or after it; remove it")

    if any(map(str.isspace, text)):
        raise _invalid(text, "white space inside; remove it")

    if "://" in text:
        raise _invalid(text, "it begins with a URL scheme; leave that out")

    if _IMAGE_ID.fullmatch(text):
        kind = "an image ID" if ":" in text else "a bare 64-hex string"
        raise _invalid(text, f"{kind} is not a name; write name@sha256:<digest>")


def _parse_digest(text: str, digest: str) -> Digest:
    try:
        return Digest.parse(digest)
    except InvalidReference as error:
        raise _invalid(text, f"after @: {error}") from error


def _split_tag(text: str, name: str) -> tuple[str, str | None]:
    """A colon after the last slash begins the tag; one before it is a port's."""
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    if not colon:
        return name, None

    _check_tag(text, tag)
    return f"{head}{slash}{last}", tag


def _check_tag(text: str, tag: str) -> None:
    if not tag:
        raise _invalid(text, "the tag after the colon is empty; write a tag or leave the colon out")

    if not is_tag(tag):
        raise _invalid(
            text,
            f'the tag "{printable(tag, 140)}" is not 1 to 128 letters, digits, "_", "." or "-" (and not first "." or "-")',
        )


def _split_host(name: str) -> tuple[str, str]:
    """Docker's rule for telling `ghcr.io/x` from `grafana/x`."""
    first, slash, rest = name.partition("/")
    if slash and (_looks_like_host(first) or first != first.lower()):
        return first, rest

    return DOCKER_HUB, name


def _looks_like_host(first: str) -> bool:
    return first.lower() == "localhost" or "." in first or ":" in first


def _check_host(text: str, host: str) -> None:
    match = _HOST.fullmatch(host)
    if match is None or len(host) > _MAX_HOST + len(":65535") or not _is_address(match[1]):
        raise _invalid(text, f'"{printable(host, 80)}" is not a registry host; write host[:port]')

    if match[2] is not None and not 0 < int(match[2]) <= 65535:
        raise _invalid(text, f"the port {match[2]} is not in 1 to 65535")

    # Docker takes MyOrg/app for a host called MyOrg. In lower case the name would mean docker.io/myorg/app.
    if not _looks_like_host(host):
        raise _invalid(
            text,
            f'"{host}" has upper-case letters; repositories are lower case, and a registry host has a dot or a port',
        )


def _is_address(host: str) -> bool:
    """Whether what stands in brackets is an IPv6 address; every other host passes."""
    if not host.startswith("["):
        return True

    try:
        IPv6Address(host[1:-1])
    except ValueError:
        return False

    return True


def _check_path(text: str, path: str) -> None:
    if not path:
        raise _invalid(text, "the repository is missing")

    if len(path) > _MAX_REPOSITORY:
        raise _invalid(
            text, f"the repository has {len(path)} characters, {_MAX_REPOSITORY} are allowed"
        )

    for component in path.split("/"):
        if _COMPONENT.fullmatch(component):
            continue

        if not component:
            raise _invalid(text, "a part of the repository is empty; remove the extra slash")

        if _COMPONENT.fullmatch(component.lower()):
            raise _invalid(
                text, f'"{component}" has upper-case letters; repositories are lower case'
            )

        raise _invalid(
            text,
            f'"{printable(component, 80)}" may only have lower-case letters and digits, with ".", "_", "__" or "-" between them',
        )
