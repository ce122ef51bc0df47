"""What is asked of the mirror, and what it answers.

A request is the unit of work and the queue's key: 500 Pods of one image are one request. What is
wanted of it (platforms, running digests, who may read the source) changes all the time and is looked
up when the work starts, so it is not part of the key.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from copycat.errors import CopycatError
from copycat.oci.digest import Digest
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference
from copycat.registry.keychain import ANONYMOUS, Access

__all__ = ["MirrorRequest", "MirrorResult", "Need", "RunningDigest", "Transferred"]


@dataclass(frozen=True, slots=True, order=True)
class MirrorRequest:
    """One image on its way to one repository at the target."""

    source: Reference
    repository: str
    """The repository at the target, complete but for `$arch`."""

    def __str__(self) -> str:
        return f"{self.source} → {self.repository}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningDigest:
    """A digest that a kubelet reported for the image."""

    digest: Digest
    certain: bool = True
    """False if the report may mean something else (a config digest, another repository, a loaded
    image): then the digest is looked for in the reference's own repository and let go if it is not there."""
    started: float = 0.0
    """When the newest container with it started, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What is wanted of a request at the moment when the work starts."""

    running: tuple[RunningDigest, ...] = ()
    """Newest first."""
    platforms: frozenset[Platform] | None = None
    """None: the whole image. Only tag references are ever narrowed."""
    required: frozenset[Platform] = frozenset()
    """Those of `platforms` that must be there (a node runs them); the others are only asked for."""
    access: Access = ANONYMOUS
    rivals: tuple[Reference, ...] = ()
    """Other sources that want the same tag in the same repository."""
    owned: Digest | None = None
    """What this source was last seen to mean by its tag, where the target's tag stood for that."""
    whole: bool = False
    """Whether that was the source's root itself, though only some platforms are wanted: they are all that it has."""
    check_source: bool = True
    """Whether the source may be asked what its tag means now."""
    check_anchors: bool = False
    """Whether to look for the anchors too where a tag alone would prove the copy (forced passes, checks)."""
    check_signatures: bool = False
    """Whether to look for signatures of what stands already (forced passes, and after a look that failed)."""
    anchored: frozenset[Digest] = frozenset()
    """Digests whose anchors were seen and need not be looked for again in this attempt."""
    known: bool = False
    """Whether a copy was seen at the target before: if it is gone now, nothing there can be relied on."""


@dataclass(slots=True)
class Transferred:
    """What an attempt moved. Bytes are those of blobs."""

    bytes_pulled: int = 0
    bytes_pushed: int = 0
    bytes_mounted: int = 0
    copied: int = 0
    mounted: int = 0
    existing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorResult:
    """What became of a request."""

    state: str
    """One of `copycat.metrics.STATES`."""
    target: Reference
    digest: Digest | None = None
    """The root that the reference stands for at the target."""
    anchored: frozenset[Digest] = frozenset()
    """Every root whose anchor is known to stand at the target."""
    absent: frozenset[Digest] = frozenset()
    """Reported digests that are not in the source's repository (config digests, loaded images)."""
    protected: bool = False
    """Whether a copy stands at the target, whatever became of this attempt."""
    source_checked: bool = False
    """Whether the source said what the reference means now."""
    reason: str = ""
    message: str = ""
    error: CopycatError | None = None
    pulled: bool = False
    """The root was fetched and every blob that it needs was read, mounted or found."""
    pushed: bool = False
    """A tag or an anchor was written."""
    tag_written: bool = False
    signatures_due: bool | None = None
    """Whether another look for signatures is needed; None if there was no reason for one."""
    dry: bool = False
    """Nothing was to be copied, in one of the dry modes."""
    moved: Transferred = field(default_factory=Transferred)
