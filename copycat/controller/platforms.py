"""Which platforms of an index are wanted: those that the configuration names and those that nodes run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from copycat.kube.workload import Workload
from copycat.mirror.request import MirrorRequest
from copycat.oci.platform import Platform

__all__ = ["Platforms", "Wanted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Platforms:
    """Which platforms of an index are wanted (product: digests and platforms)."""

    mirror: frozenset[Platform] = frozenset()
    """mirrorPlatforms; empty means all."""
    check_nodes: bool = False
    """checkNodePlatform."""


class Wanted:
    """Platforms wanted of a request, by who uses it and where."""

    def __init__(self, platforms: Platforms) -> None:
        """`nodes` fills while nodes are watched."""
        self._platforms = platforms
        self.nodes: dict[str, Platform] = {}

    def of(
        self, request: MirrorRequest, users: Collection[Workload]
    ) -> tuple[frozenset[Platform] | None, frozenset[Platform]]:
        """What is wanted (None: the whole image), and what of it must be there."""
        if request.source.digest is not None:
            return None, frozenset()
        wanted = self._platforms.mirror
        if not self._platforms.check_nodes:
            return wanted or None, frozenset()
        on_nodes = self._on_nodes(users)
        if on_nodes is None:
            return wanted or None, frozenset()
        return wanted | on_nodes, on_nodes

    def _on_nodes(self, users: Collection[Workload]) -> frozenset[Platform] | None:
        """The platforms of the nodes that run it; None if a template wants it of which no Pod runs."""
        found: set[Platform] = set()
        owners_that_run: set[tuple[str, str, str]] = set()
        templates: list[Workload] = []
        for workload in users:
            if workload.kind != "Pod":
                templates.append(workload)
            elif workload.node in self.nodes:
                found.add(self.nodes[workload.node])
                owners_that_run.update((k, workload.namespace, n) for k, n in workload.owners)
        idle = any((w.kind, w.namespace, w.name) not in owners_that_run for w in templates)
        return None if idle or not found else frozenset(found)
