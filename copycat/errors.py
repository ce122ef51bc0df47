"""Every error that the program raises on purpose, in one tree, so that one place can decide what follows.

CopycatError
├── ConfigError              a configuration that cannot be used (all its problems at once)
├── InvalidReference         a text that names no image
├── InvalidManifest          bytes that are no image manifest or index
├── DigestMismatch           bytes that do not hash to the digest, or have another size
├── RegistryError            a registry's answer, or none
│   ├── NotFound             404, and what registries say instead of it
│   ├── Unauthorized         401 after the one refresh
│   ├── Denied               403; at the target also quota and missing project
│   ├── Throttled            429, or the host's gate is shut for longer than a worker should wait
│   ├── Unavailable          no connection, no answer in time, 5xx: worth another try
│   ├── Unsupported          the registry cannot do this (405, schema 1, zero-byte blob on ECR)
│   ├── TooLarge             413, or over a limit of ours
│   ├── UploadRejected       the target refused a blob or a manifest for its content
│   └── HostNotAllowed       policy or the address filter forbids the connection
├── MirrorError              decided by the mirror itself
│   └── PlatformMissing      an index lacks a platform that is wanted
└── KubeError                the Kubernetes API's answer, or none
    ├── KubeDenied           401 or 403
    ├── KubeNotFound         404
    ├── KubeConflict         409
    ├── KubeExpired          410: the version or the continue token is too old
    └── KubeUnavailable      no connection, no answer in time, 429, 5xx

An error says what failed, on which side, for which reference, whether it is temporary, when to try
again, and carries a fixed `reason` word for metrics and Events. Text that came from a server is cut
and made printable before it gets in here; secrets never do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = [
    "ConfigError",
    "CopycatError",
    "Denied",
    "DigestMismatch",
    "HostNotAllowed",
    "InvalidManifest",
    "InvalidReference",
    "KubeConflict",
    "KubeDenied",
    "KubeError",
    "KubeExpired",
    "KubeNotFound",
    "KubeUnavailable",
    "MirrorError",
    "NotFound",
    "PlatformMissing",
    "Problem",
    "RegistryError",
    "Side",
    "Throttled",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Unsupported",
    "UploadRejected",
    "one_error",
    "printable",
]

Side = Literal["source", "target", "cluster", "config", ""]

#: What may never leave in a message: query strings of signed URLs (also of those that are not whole), bearer and basic
#: values, userinfo, tokens that are known by their looks.
_SECRETS = [
    (re.compile(r"(https?://)[^/@\s]+@"), r"\1***@"),
    # a slash in the password, unless what looks like one is a port
    (re.compile(r"(https?://)[^/:@\s]+:(?!\d+/)[^@\s]*@"), r"\1***@"),
    (re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']*"), r"\1?…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}"), r"\1 ***"),
    (
        re.compile(
            r"(?i)([\"']?(?:access_|refresh_|identity)?(?:token|password|secret|auth|signature|\bsig|credential)[\"']?\s*[:=]\s*[\"']?)[^\s\"',}&]{4,}"
        ),
        r"\1***",
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"), "***"),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|dckr_(?:pat|oat)_)[\w-]+"), "***"),
]


def printable(text: str, limit: int = 300) -> str:
    """Text from a server, fit for logs and pages: one line, no control characters, no secrets, at most `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: limit * 4]).split())
    for pattern, replacement in _SECRETS:
        line = pattern.sub(replacement, line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


class CopycatError(Exception):
    """The root of the tree. `str(error)` is a whole sentence for people."""

    #: A fixed word for metrics, Events and the API; subclasses set it, callers may refine it.
    default_reason: ClassVar[str] = "internal"
    #: Whether the same request may succeed later without anybody changing anything.
    default_temporary: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        side: Side = "",
        reference: str = "",
        reason: str = "",
        temporary: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Args: see the attributes; `retry_after` is in seconds from now."""
        super().__init__(message)
        self.message = message
        self.side: Side = side
        self.reference = reference
        self.reason = reason or self.default_reason
        self.temporary = self.default_temporary if temporary is None else temporary
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a configuration."""

    path: str
    """The key, as written: `docker.registry`, `registryCredentials[1].token`."""
    message: str
    """What was expected and what to do; never a secret's value."""
    origin: str = ""
    """Where the value came from: a file's path, `environment TARGET_KIND`, `--dry-run`."""

    def __str__(self) -> str:
        where = f" (from {self.origin})" if self.origin else ""
        return f"{self.path}: {self.message}{where}" if self.path else f"{self.message}{where}"


class ConfigError(CopycatError):
    """The configuration cannot be used; `problems` has every reason."""

    default_reason = "config"

    def __init__(self, *problems: Problem) -> None:
        """At least one problem."""
        self.problems = problems
        super().__init__(
            "The configuration cannot be used:\n" + "\n".join(f"  - {p}" for p in problems),
            side="config",
        )


class InvalidReference(CopycatError):
    """The text names no image."""

    default_reason = "invalid_reference"


class InvalidManifest(CopycatError):
    """The bytes are no manifest that can be copied."""

    default_reason = "invalid_manifest"


class DigestMismatch(CopycatError):
    """The bytes are not what their digest promises."""

    default_reason = "digest_mismatch"


class RegistryError(CopycatError):
    """A registry's refusal. `status` is the HTTP status (0 if there was no answer), `code` the registry's error code."""

    default_reason = "registry"

    def __init__(
        self,
        message: str,
        *,
        side: Side = "",
        reference: str = "",
        reason: str = "",
        temporary: bool | None = None,
        retry_after: float | None = None,
        registry: str = "",
        status: int = 0,
        code: str = "",
    ) -> None:
        """Args: `registry` is the host that answered."""
        super().__init__(
            message,
            side=side,
            reference=reference,
            reason=reason,
            temporary=temporary,
            retry_after=retry_after,
        )
        self.registry = registry
        self.status = status
        self.code = code


class NotFound(RegistryError):
    """The repository, tag, manifest or blob is missing, or we may not see it."""

    default_reason = "not_found"


class Unauthorized(RegistryError):
    """The registry does not accept the credentials (or wants some)."""

    default_reason = "unauthorized"


class Denied(RegistryError):
    """The registry knows who asks and refuses."""

    default_reason = "denied"


class Throttled(RegistryError):
    """The registry asks for patience; `retry_after` says how long."""

    default_reason = "throttled"
    default_temporary = True


class Unavailable(RegistryError):
    """No answer, or one that says that the trouble is the server's."""

    default_reason = "unavailable"
    default_temporary = True


class Unsupported(RegistryError):
    """This registry cannot do what the copy needs."""

    default_reason = "unsupported"


class TooLarge(RegistryError):
    """Over a size limit."""

    default_reason = "too_large"


class UploadRejected(RegistryError):
    """The target refused content that is right."""

    default_reason = "upload_rejected"


class HostNotAllowed(RegistryError):
    """The policy or the address filter forbids the connection; no byte was sent."""

    default_reason = "host_not_allowed"


class MirrorError(CopycatError):
    """A decision of the mirror itself."""

    default_reason = "mirror"


class PlatformMissing(MirrorError):
    """The index has no entry for a platform that is wanted."""

    default_reason = "platform_missing"


class KubeError(CopycatError):
    """The Kubernetes API's refusal. `status` is the HTTP status (0 if there was no answer)."""

    default_reason = "kubernetes"

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        temporary: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Args: `reason` may be the API's own word (`Forbidden`, `Expired`)."""
        super().__init__(
            message, side="cluster", reason=reason, temporary=temporary, retry_after=retry_after
        )
        self.status = status


class KubeDenied(KubeError):
    """401 or 403: a permission or a token is missing."""

    default_reason = "forbidden"


class KubeNotFound(KubeError):
    """404."""

    default_reason = "not_found"


class KubeConflict(KubeError):
    """409: the object changed, or exists."""

    default_reason = "conflict"


class KubeExpired(KubeError):
    """410: list again."""

    default_reason = "expired"
    default_temporary = True


class KubeUnavailable(KubeError):
    """No answer, 429 or 5xx."""

    default_reason = "unavailable"
    default_temporary = True


@contextmanager
def one_error() -> Iterator[None]:
    """Leave a task group with one error: wrap the group's `async with` in it.

    Of several errors the terminal one counts (waiting does not mend it), and a bug before both. The
    group stays attached as the cause.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        raise min(_leaves(group), key=_weight) from group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _weight(error: BaseException) -> int:
    if not isinstance(error, CopycatError):
        return 0
    return 2 if error.temporary else 1
