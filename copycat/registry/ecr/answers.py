"""What ECR's registry answers while an image is pushed, with what it means there: the missing action, the setting to change."""

from __future__ import annotations

import re

from copycat.errors import Denied, NotFound, RegistryError, UploadRejected

__all__ = ["explained", "repository_missing"]

_ACTION = re.compile(r"not authorized to perform:? (ecr:\w+)")
_IMMUTABLE = re.compile(r"\bimmutable\b", re.IGNORECASE)
_TAG_LIMIT = re.compile(r"tags? per image|number of tags", re.IGNORECASE)


def repository_missing(error: NotFound) -> bool:
    """Whether the target says that the repository is not there, rather than something in it."""
    # ECR's code, or none where the answer had no body.
    return error.side != "source" and error.code in {"", "NAME_UNKNOWN"}


def explained(error: RegistryError, repository: str) -> RegistryError | None:
    """The error to raise in place of `error`, which the target answered; None if there is nothing to add."""
    if error.side == "source":
        return None

    kind, reason, message = _verdict(error.message, repository)
    if kind is None:
        return None

    return kind(
        f"{message} ({error.message})",
        side="target",
        reference=error.reference or repository,
        registry=error.registry,
        reason=reason,
        status=error.status,
        code=error.code,
    )


def _verdict(text: str, repository: str) -> tuple[type[RegistryError] | None, str, str]:
    """Class, reason, and the sentence to put before ECR's own words."""
    if action := _ACTION.search(text):
        message = (
            f"AWS does not allow {action[1]} on {repository}: allow this action in the policy of the "
            "role or user that copycat runs as"
        )
        return Denied, "aws_denied", message

    if _IMMUTABLE.search(text):
        message = (
            f"The repository {repository} is immutable and has this tag with other content: set "
            "allowDifferentDigestRepush to false, or exclude the tag from immutability "
            "(ecr.mutabilityExclusions, for repositories that are made from then on)"
        )
        return UploadRejected, "tag_immutable", message

    if _TAG_LIMIT.search(text):
        message = (
            f"An image in {repository} has as many tags as ECR allows: ask AWS for a higher quota "
            "(Service Quotas), or delete tags that nothing uses"
        )
        return UploadRejected, "tag_limit", message

    return None, "", ""
