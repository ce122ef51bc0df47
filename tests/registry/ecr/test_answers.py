"""What ECR's registry answers, with the remedy."""

from __future__ import annotations

import pytest

from copycat.errors import Denied, NotFound, RegistryError, UploadRejected
from copycat.registry.ecr.answers import explained, repository_missing


@pytest.mark.parametrize(
    ("said", "kind", "reason", "remedy"),
    [
        pytest.param(
            "User: arn:aws:sts::1:assumed-role/x is not authorized to perform: ecr:InitiateLayerUpload on resource: y",
            Denied,
            "aws_denied",
            "does not allow ecr:InitiateLayerUpload on a/b: allow this action",
            id="missing-action",
        ),
        pytest.param(
            "The image tag '1' already exists in the 'a/b' repository and cannot be overwritten because the tag is immutable.",
            UploadRejected,
            "tag_immutable",
            "allowDifferentDigestRepush",
            id="immutable",
        ),
        pytest.param(
            "The maximum number of tags has been reached",
            UploadRejected,
            "tag_limit",
            "Service Quotas",
            id="tags-per-image",
        ),
    ],
)
def test_explained(said: str, kind: type[RegistryError], reason: str, remedy: str) -> None:
    """ECR's answer keeps its words, status and code, and says what to do."""
    error = RegistryError(said, side="target", registry="host", status=400, code="CODE")
    better = explained(error, "a/b")

    assert type(better) is kind
    assert (better.reason, better.side, better.reference) == (reason, "target", "a/b")
    assert (better.registry, better.status, better.code) == ("host", 400, "CODE")
    assert remedy in str(better)
    assert said in str(better)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(RegistryError("immutable", side="source"), id="source"),
        pytest.param(RegistryError("manifest invalid", side="target"), id="nothing-to-add"),
    ],
)
def test_not_explained(error: RegistryError) -> None:
    """The source's answers, and those that speak for themselves, stay as they are."""
    assert explained(error, "a/b") is None


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        pytest.param(NotFound("", side="target", code="NAME_UNKNOWN"), True, id="by-code"),
        pytest.param(NotFound("", side="target"), True, id="no-body"),
        pytest.param(NotFound("", side="target", code="BLOB_UNKNOWN"), False, id="a-blob"),
        pytest.param(NotFound("", side="source", code="NAME_UNKNOWN"), False, id="source"),
    ],
)
def test_repository_missing(error: NotFound, missing: bool) -> None:
    """A missing repository is told from a missing manifest, and the target's from the source's."""
    assert repository_missing(error) is missing
