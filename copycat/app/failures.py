"""Failures of attempts as Events on the workloads that use the image.

What an Event says is made of our own words: whoever may name an image must not be shown what servers in our
reach answer (the log and the status page, which belong to the owner, quote them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Literal

from copycat.controller.inventory import Inventory
from copycat.errors import InvalidReference
from copycat.kube.events import EventWriter, Notice, ObjectKey
from copycat.kube.kinds import KINDS
from copycat.kube.selection import Selection
from copycat.kube.workload import Workload
from copycat.mirror.request import MirrorRequest, MirrorResult
from copycat.oci.reference import Reference

__all__ = ["MAX_WORKLOADS", "FailureEvents"]

#: Workloads that get an Event for one failed image; the status page names the others.
MAX_WORKLOADS = 10

#: Of so many users of one image those are chosen: choosing must not hold up the event loop.
_LOOKED_AT = 2000

#: States that people should hear of, and the Event's reason.
_REASONS: Mapping[str, str] = {
    "failed": "ImageMirrorFailed",
    "incomplete": "ImageMirrorFailed",
    "conflict": "ImageMirrorFailed",
    "denied": "ImageMirrorDenied",
}
_WATCHED = frozenset(row.kind for row in KINDS.values())

_WORDS: Mapping[str, str] = {
    "conflict": "another image wants the same tag at the mirror",
    "denied": "access is denied",
    "digest_mismatch": "the content does not match its digest",
    "host_not_allowed": "the host may not be contacted",
    "incomplete": "part of it is served by no registry",
    "foreign_layers": "part of it is served by no registry",
    "invalid_manifest": "it has no valid manifest",
    "invalid_reference": "that is no name of an image",
    "not_allowed": "its registry is not one of those that may be mirrored",
    "not_found": "it does not exist, or is not visible without other credentials",
    "platform_missing": "it lacks a platform that is wanted",
    "private_image": "it needs a pull secret, and its copy would be open to others",
    "pull_secret_not_allowed": "access is denied without a pull secret, which may not be read,",
    "pull_secret_unavailable": "access is denied without a pull secret, which could not be read,",
    "pull_secret_unusable": "access is denied, and a pull secret is missing or makes no sense,",
    "throttled": "there were too many requests",
    "too_large": "it is larger than what is accepted",
    "unauthorized": "the credentials are missing or not accepted",
    "unavailable": "there is no usable answer",
    "unsupported": "its format is not supported",
}


class FailureEvents:
    """Implements the controller's Observer."""

    def __init__(self, inventory: Inventory, selection: Selection, writer: EventWriter) -> None:
        """Args: `writer` must be running for anything to be written."""
        self._inventory = inventory
        self._selection = selection
        self._writer = writer

    def started(self, request: MirrorRequest) -> None:
        """Nothing."""

    def moved(self, request: MirrorRequest, direction: Literal["pull", "push"], count: int) -> None:
        """Nothing."""

    def finished(self, request: MirrorRequest, result: MirrorResult) -> None:
        """Report a failure."""
        entry = self._inventory.entries.get(request)
        if entry is None or result.state not in _REASONS:
            return
        pull_secret = result.reason.startswith("pull_secret")
        self._report(
            str(request.source),
            entry.users.values(),
            reason="PullSecretUnusable" if pull_secret else _REASONS[result.state],
            message=_message(request, result),
        )

    def look_at(self, old: Workload | None, new: Workload | None) -> None:
        """A workload came or changed: report what of it is never even tried."""
        invalid = self._inventory.invalid
        if new is None or not (invalid or self._selection.allowed_registries):
            return
        if not self._selection.admits(new):
            return
        before = {image.image for image in old.images} if old else set()
        for image in sorted({image.image for image in new.images} - before):
            if image in invalid:
                self._never(image, new, "failed", "invalid_reference")
            elif self._is_denied(image):
                self._never(image, new, "denied", "not_allowed")

    def _is_denied(self, image: str) -> bool:
        try:
            reference = Reference.parse(image)
        except InvalidReference:
            return False
        return not (self._selection.excluded(reference) or self._selection.allowed(reference))

    def _never(self, image: str, user: Workload, state: str, reason: str) -> None:
        message = f"{image[:300]} is not mirrored: {_WORDS[reason]} ({reason})"
        self._report(image, (user,), reason=_REASONS[state], message=message)

    def _report(self, image: str, users: Iterable[Workload], *, reason: str, message: str) -> None:
        for owner, candidates in sorted(_owners(users).items())[:MAX_WORKLOADS]:
            self._writer.report(
                Notice(
                    owner=owner,
                    candidates=candidates,
                    reason=reason,
                    subject=image,
                    message=message,
                )
            )


def _message(request: MirrorRequest, result: MirrorResult) -> str:
    error = result.error
    reason = result.reason or result.state
    words = _WORDS.get(reason) or _WORDS.get(result.state) or "the attempt failed"
    side = f" at the {error.side}" if error is not None and error.side else ""
    copy = "an earlier copy stands" if result.protected else "there is no copy"
    again = "it is tried again soon" if error is not None and error.temporary else "see k8s-copycat's status page or log"  # fmt: skip
    return f"{request.source} is not mirrored: {words}{side} ({reason}); {copy}; {again}"


def _owners(users: Iterable[Workload]) -> dict[ObjectKey, tuple[ObjectKey, ...]]:
    """The workloads by their top owners, and which objects may stand for each: the owner itself, else one of its own."""
    found: dict[ObjectKey, tuple[ObjectKey, ...]] = {}
    for workload in islice(users, _LOOKED_AT):
        itself = (workload.kind, workload.namespace, workload.name)
        owner = (workload.owner_kind, workload.namespace, workload.owner_name)
        candidates = (owner, itself) if owner[0] in _WATCHED and owner != itself else (itself,)
        if workload.kind in _WATCHED and (owner not in found or itself == owner):
            found[owner] = candidates
    return found
