"""What the inventory is made of: entries, who uses them, and what a change means for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Flag, auto

from copycat.errors import InvalidReference
from copycat.kube.workload import ContainerImage, Workload
from copycat.mirror.request import MirrorRequest, RunningDigest
from copycat.oci.digest import Digest
from copycat.oci.reference import Reference

__all__ = ["Cause", "Entry", "Invalid", "WorkloadKey", "running_digest"]

#: (kind, namespace, name)
WorkloadKey = tuple[str, str, str]


class Cause(Flag):
    """What an event means for one request."""

    NEW = auto()
    """Something uses it that did not before."""
    CHANGED = auto()
    """The pod template of something that uses it has other bytes now."""
    DIGEST = auto()
    """A kubelet reported a digest."""
    RUNNING = auto()
    """A container of it turned Running."""
    FAILING = auto()
    """A kubelet cannot pull it."""


@dataclass(slots=True)
class Entry:
    """One request and who uses it."""

    request: MirrorRequest
    wanted_since: float
    verdict: str = ""
    """`excluded` or `denied`: then nobody is asked for it. Empty: it is the mirror's business."""
    users: dict[WorkloadKey, Workload] = field(default_factory=dict)
    orphaned_at: float | None = None
    last_user: Workload | None = None
    """Who used it last, once nobody does: it is still wanted for a while, and on whose behalf matters."""
    let_go: bool = False
    """Nobody uses it any more, and those that want the same tag were told."""
    forced: bool = False
    """Look at source and target anew at the next attempt."""


@dataclass(slots=True)
class Invalid:
    """A text that names no image, and who has it."""

    image: str
    message: str
    users: dict[WorkloadKey, Workload] = field(default_factory=dict)


def running_digest(reference: Reference, image: ContainerImage) -> RunningDigest | None:
    """What a kubelet's `imageID` says, if it says anything (product: section 4).

    `docker-pullable://name@sha256:…` and `name@sha256:…` are certain if the name is the reference's; a bare
    digest (`sha256:…`, `docker://sha256:…`) may be a config's, and another name another repository's.
    """
    text = image.image_id.partition("://")[2] or image.image_id
    digest = Digest.find(text) if text else None
    if digest is None:
        return None
    name = text.partition("@")[0] if "@" in text else ""
    try:
        certain = bool(name) and Reference.parse(name).name == reference.name
    except InvalidReference:
        certain = False
    return RunningDigest(digest=digest, certain=certain, started=image.started)
