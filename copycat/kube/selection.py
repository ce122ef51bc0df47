"""Which workloads and images are mirrored: one place for every list of the configuration that says so.

Lists of names know `*` (any text) and `?` (any character) and nothing else. Lists of registries name a
host or a host and a path, and match whole path segments: `quay.io/team` is not `quay.io/team-b`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from copycat.kube.workload import KINDS, Workload
from copycat.oci.reference import DOCKER_HUB, Reference, normalise_registry

__all__ = ["Selection"]

_RESOURCES = {row.kind: row.resource for row in KINDS.values()}
_NONE = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the configuration selects. Namespaces that appear later are judged by the same lists."""

    include_namespaces: tuple[str, ...] = ("*",)
    """Names and wildcards; empty means all."""
    skip_namespaces: tuple[str, ...] = ()
    """Names and wildcards; they win over `include_namespaces`."""
    skip_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Resource (`deployments`, any case) → entries `name`, `namespace/name` or `*`."""
    exclude_registries: tuple[str, ...] = ()
    allowed_registries: tuple[str, ...] = ()
    """Empty means all."""

    _included: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _skipped: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _skipped_names: Mapping[str, re.Pattern[str]] = field(init=False, repr=False, compare=False)
    _excluded: tuple[_Prefix, ...] = field(init=False, repr=False, compare=False)
    _allowed: tuple[_Prefix, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compiles the lists once: `admits` runs for every event of the cluster."""
        names = {
            resource.lower(): _any_of(e if "/" in e else f"*/{e.strip()}" for e in entries)
            for resource, entries in self.skip_names.items()
        }
        derived = {
            "_included": _any_of(self.include_namespaces or ("*",)),
            "_skipped": _any_of(self.skip_namespaces),
            "_skipped_names": names,
            "_excluded": tuple(_Prefix.parse(entry) for entry in self.exclude_registries),
            "_allowed": tuple(_Prefix.parse(entry) for entry in self.allowed_registries),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def admits(self, workload: Workload) -> bool:
        """Whether the workload's images are wanted; not if it or any of its owners is skipped."""
        if not self.admits_namespace(workload.namespace):
            return False
        named = ((workload.kind, workload.name), *workload.owners)
        return not any(self._skips(kind, workload.namespace, name) for kind, name in named)

    def admits_namespace(self, namespace: str) -> bool:
        """Whether anything in the namespace can be wanted."""
        if self._skipped.fullmatch(namespace):
            return False
        return self._included.fullmatch(namespace) is not None

    def excluded(self, reference: Reference) -> bool:
        """Whether the image comes from a registry that the owner does not want mirrored."""
        return any(prefix.matches(reference) for prefix in self._excluded)

    def allowed(self, reference: Reference) -> bool:
        """Whether the image's registry may be contacted."""
        if not self._allowed:
            return True
        return any(prefix.matches(reference) for prefix in self._allowed)

    def literal_namespaces(self) -> tuple[str, ...] | None:
        """The namespaces to watch one by one, sorted; None if the lists need the whole cluster."""
        included = self.include_namespaces
        if not included or any("*" in name or "?" in name for name in included):
            return None
        return tuple(sorted({name for name in included if self.admits_namespace(name)}))

    def _skips(self, kind: str, namespace: str, name: str) -> bool:
        pattern = self._skipped_names.get(_RESOURCES.get(kind, ""), _NONE)
        return pattern.fullmatch(f"{namespace}/{name}") is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prefix:
    """A registry, or a part of one."""

    registry: str
    path: str

    @classmethod
    def parse(cls, entry: str) -> _Prefix:
        """Reads `host` or `host/path`; what starts with no host is on Docker Hub, as in an image's name."""
        text = entry.strip().removeprefix("https://").removeprefix("http://").strip("/").lower()
        host, _, path = text.partition("/")
        if host != "localhost" and not set(host) & {".", ":"}:
            host, path = DOCKER_HUB, text
        return cls(registry=normalise_registry(host), path=path)

    def matches(self, reference: Reference) -> bool:
        """Whether the reference lies under the prefix, at a boundary of path segments."""
        if self.registry != reference.registry:
            return False
        if not self.path or f"{reference.repository}/".startswith(f"{self.path}/"):
            return True
        # docker.io/alpine is a spelling of docker.io/library/alpine.
        return self.registry == DOCKER_HUB and reference.repository == f"library/{self.path}"


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """One expression for all of the wildcards; it matches nothing if there are none."""
    parts = [
        re.escape(p.strip()).replace(r"\*", ".*").replace(r"\?", ".") for p in patterns if p.strip()
    ]
    return re.compile("|".join(parts)) if parts else _NONE
