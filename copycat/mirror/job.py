"""One image on its way: what is copied, what moved, and which parts of its graph are taken care of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import anyio

from copycat.errors import CopycatError, InvalidManifest
from copycat.mirror.request import Transferred
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor
from copycat.registry.repository import Repository

__all__ = [
    "MAX_NODES",
    "Copy",
    "Direction",
    "Progress",
    "Transfer",
    "no_progress",
    "served_elsewhere",
]

#: Manifests and indexes of one image.
MAX_NODES = 10_000
#: Leaf manifests of one image that are worked on at a time; each holds its document.
_LEAVES = 16

#: Called with bytes read from the source, or sent to the target, as they move.
Direction = Literal["pull", "push"]
Progress = Callable[[Direction, int], None]


def no_progress(direction: Direction, count: int) -> None:
    """Nobody looks."""


@dataclass(slots=True)
class Transfer:
    """A blob on its way, for the status page."""

    image: str
    digest: Digest
    size: int
    started: float
    pulled: int = 0
    pushed: int = 0


@dataclass(slots=True)
class Copy:
    """One image being copied: where from, where to, what it moved, and what could not be had."""

    source: Repository
    target: Repository
    image: str
    progress: Progress = no_progress
    distrust: bool = False
    """Something that was believed to stand at the target is gone: believe nothing about its blobs."""
    inspect: bool = False
    """What stands at the target is looked into: it has no anchor that says that it is complete."""
    moved: Transferred = field(default_factory=Transferred)
    read: bool = False
    """Everything below the root was read, mounted or found; what failed after that is the target's word about manifests."""
    missing: list[Descriptor] = field(default_factory=list)
    """Foreign layers that the source does not serve."""
    held: CopycatError | None = None
    """The source's pull quota is kept for others: the rest of the image comes later."""
    listed: set[Digest] = field(default_factory=set)
    """Manifests with a subject that the target says it lists as its referrers."""
    _nodes: dict[Digest, anyio.Event] = field(default_factory=dict)
    _leaves: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_LEAVES))

    def enter(self, digest: Digest) -> anyio.Event | None:
        """None for the first that comes to this node, who must set the event; the event for all others."""
        if digest in self._nodes:
            return self._nodes[digest]
        if len(self._nodes) >= MAX_NODES:
            raise InvalidManifest(
                f"{self.image} has more than {MAX_NODES} manifests; it is not copied",
                side="source",
                reason="too_large",
            )
        self._nodes[digest] = anyio.Event()
        return None

    def leave(self, digest: Digest) -> None:
        """The node stands at the target."""
        self._nodes[digest].set()

    @property
    def leaves(self) -> anyio.CapacityLimiter:
        """Bounds the leaf manifests in memory."""
        return self._leaves


def served_elsewhere(blobs: list[Descriptor]) -> str:
    """The hosts that foreign layers name, for a message."""
    hosts = sorted({url.split("/")[2] for b in blobs for url in b.urls if url.count("/") >= 2})
    return ", ".join(hosts) or "an unnamed host"
