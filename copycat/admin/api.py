"""`/api/v1`: what the program knows, read-only, as JSON with camelCase keys; the status page lives on it.

Times are aware and come out as RFC 3339.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from copycat.redact import redact_text

__all__ = [
    "Api",
    "Image",
    "Images",
    "LogLevel",
    "Message",
    "Status",
    "Transfer",
    "Transfers",
    "User",
    "clean",
]


class User(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A workload that uses an image, under its top owner's name."""

    kind: str
    namespace: str
    name: str


class Image(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One image on its way to one place at the target."""

    source: str
    """The canonical reference."""
    target: str
    digest: str = ""
    """The root that the reference stands for at the target."""
    state: str
    """One of `copycat.metrics.STATES`."""
    protected: bool
    """Whether a usable copy stands at the target, whatever the last attempt said."""
    reason: str = ""
    message: str = ""
    """What the last attempt said, without secrets."""
    attempts: int = 0
    """Failed attempts in a row."""
    next_try: datetime | None = None
    checked: datetime | None = None
    """When the copy was last seen at the target."""
    unknown_since: datetime | None = None
    """Since when the source has not said what the tag means; None if it is known, or means the same for ever."""
    wanted_since: datetime | None = None
    users: Sequence[User] = ()
    spellings: Sequence[str] = ()
    """How the workloads write it."""
    running: Sequence[str] = ()
    """Digests that run now."""


class Images(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer of `/api/v1/images`."""

    images: Sequence[Image]


class Transfer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A blob on its way."""

    image: str
    digest: str
    size: int
    pulled: int = 0
    """Bytes read from the source."""
    pushed: int = 0
    """Bytes that the target took."""
    started: datetime | None = None


class Transfers(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer of `/api/v1/transfers`."""

    transfers: Sequence[Transfer]


class Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer of `/api/v1/status`."""

    version: str
    target: str
    """Registry and prefix."""
    leading: bool = True
    holder: str = ""
    ready: bool = True
    mode: str = ""
    """Empty, or `dryRun`, `dryPull`, or both."""
    images: Mapping[str, int] = {}
    """How many images are in which state."""
    total: int = 0
    protected: int = 0
    workloads: int = 0
    queued: int = 0
    working: int = 0
    uncovered: Sequence[str] = ()
    """What is not watched, in words: namespaces, kinds without permission."""
    started: datetime | None = None


class LogLevel(msgspec.Struct, frozen=True, kw_only=True):
    """What `/api/v1/loglevel` answers and takes, as zap's own handler did."""

    level: str


class Message(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Any answer that is only a sentence."""

    message: str


class Api(Protocol):
    """Answers from memory, at once."""

    def status(self) -> Status:
        """The program as a whole; also on standby."""
        ...

    def images(self) -> Sequence[Image]:
        """Every image, sorted by source and target."""
        ...

    def transfers(self) -> Sequence[Transfer]:
        """Blobs on their way now."""
        ...


def clean(images: Sequence[Image]) -> Images:
    """The answer, with the last word on secrets: errors quote what servers said."""
    return Images(
        images=[
            msgspec.structs.replace(i, message=redact_text(i.message)) if i.message else i
            for i in images
        ]
    )
