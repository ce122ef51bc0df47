"""What is known about one place that a registry is reached at: its address, its challenge, its habits.

A registry has one endpoint, its own host, unless the `registries` table names others in its place.
Everything here is learnt from answers and lives as long as the process.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from urllib.parse import quote

from yarl import URL

from copycat.oci.reference import DOCKER_HUB
from copycat.registry.challenge import Challenge
from copycat.registry.hosts import HostConfig
from copycat.registry.limits import HostLimits

__all__ = ["DEFAULT_CHUNK", "Endpoint", "Form", "endpoint"]

#: Docker Hub's name is not the host of its API.
_API_HOST = {DOCKER_HUB: "registry-1.docker.io"}
#: Bytes of a PATCH in form D: over ECR's least part (5 MiB), under its documented 10 MiB.
DEFAULT_CHUNK = 8 * 1024 * 1024


class Form(enum.Enum):
    """How a blob is uploaded (registry notes 2.1)."""

    WHOLE = "POST, PUT with the body"
    PATCHED = "POST, one PATCH with the body, PUT"
    CHUNKED = "POST, PATCH for each piece, PUT"


@dataclass(slots=True, kw_only=True)
class Endpoint:
    """One origin (scheme, host, port), and what it taught us."""

    registry: str
    """The registry whose content is asked for here; its credentials are used."""
    host: str
    """`host[:port]`."""
    prefix: str = ""
    """Goes before every repository's name (a proxy project of Harbor, for example)."""
    scheme: str = ""
    """Empty until it is known whether an insecure host speaks TLS."""
    config: HostConfig | None = None
    """How to verify it."""
    label: str = ""
    """Its name in metrics."""
    limits: HostLimits
    challenges: tuple[Challenge, ...] | None = None
    """What the ping said; None before it."""
    form: Form = Form.WHOLE
    chunk: int = DEFAULT_CHUNK
    no_mount: set[str] = field(default_factory=set)
    """Repositories that it refused to mount from."""
    mounts: bool = False
    """It has taken a blob from another of its repositories."""
    silent_on_names: bool = False
    """It does not tell by a list of tags whether it has a repository."""
    no_cancel: bool = False
    """It lets us cancel no upload."""
    head_useless: bool = False
    """HEAD of a manifest is not supported or tells no digest."""
    no_referrers_until: float = 0.0
    """It has no referrers API: not asked before then (the transport's clock)."""
    lists_referrers: bool = False
    """Its referrers API has answered."""
    _base: URL | None = None

    @property
    def base(self) -> URL:
        """The origin as a URL; https until the scheme is known."""
        if self._base is None or self._base.scheme != (self.scheme or "https"):
            self._base = URL(f"{self.scheme or 'https'}://{self.host}/", encoded=True)
        return self._base

    def repository(self, name: str) -> str:
        """The name that a repository has here."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def url(self, repository: str, path: str) -> URL:
        """`/v2/<repository>/<path>` here. Nothing is quoted: names and references have safe characters only."""
        if not repository:
            return URL(f"{self.base}v2/{path}", encoded=True)
        return URL(f"{self.base}v2/{self.repository(repository)}/{path}", encoded=True)


def endpoint(
    text: str, *, registry: str, config: HostConfig | None, label: str, limits: HostLimits
) -> Endpoint:
    """The endpoint that `[http[s]://]host[:port][/prefix]` describes; `text` may be a registry's name."""
    scheme, host, path = _split(text)
    if not scheme:
        scheme = "" if config is not None and config.insecure else "https"
    return Endpoint(
        registry=registry,
        host=host,
        prefix=quote(path, safe="/"),
        scheme=scheme,
        config=config,
        label=label,
        limits=limits,
    )


def _split(text: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(?:(https?)://)?([^/]*[^/:])(?:/+(.*?))?/*", text)
    if match is None:
        raise ValueError(f"{text!r} is no endpoint: write host[:port][/prefix]")
    host = match[2].lower()
    return match[1] or "", _API_HOST.get(host, host), re.sub(r"^v2(/|$)", "", match[3] or "")
