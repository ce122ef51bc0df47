"""Targets without a control plane, and what a target's refusal means for all images."""

from __future__ import annotations

import pytest

from copycat.errors import (
    CopycatError,
    Denied,
    DigestMismatch,
    NotFound,
    RegistryError,
    Throttled,
    TooLarge,
    Unauthorized,
    Unavailable,
    UploadRejected,
)
from copycat.metrics import Metrics
from copycat.oci.digest import Digest
from copycat.registry.hosts import HostPolicy
from copycat.registry.keychain import ChainKeychain
from copycat.registry.target import Refusal, Target, target_refusal
from copycat.registry.transport import Transport


@pytest.fixture
def target() -> Target:
    """A plain registry."""
    transport = Transport(
        keychain=ChainKeychain(),
        metrics=Metrics(version="test"),
        policy=HostPolicy(named=frozenset()),
        target_registries=frozenset({"harbor.example"}),
    )
    return Target(transport, "harbor.example")


async def test_plain_registry(target: Target) -> None:
    """A plain registry makes its own repositories, answers for each blob, and may mount."""
    await target.provision("a/b")
    await target.maintain()

    assert target.kind == "docker"
    assert target.mounts
    assert await target.known_blobs("a/b", [Digest.of(b"")]) is None


def test_longest_name(target: Target) -> None:
    """Host, slash and name together have at most 255 characters."""
    assert len(target.registry) + 1 + target.max_repository == 255


def test_repository(target: Target) -> None:
    """A repository of the target is one to push to, in that registry."""
    repository = target.repository("a/b")

    assert (repository.registry, repository.name) == ("harbor.example", "a/b")


async def test_attempts_once(target: Target) -> None:
    """Where nothing is to be made, nothing is tried twice."""
    tries = 0

    async def attempt() -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            return 7

        raise NotFound("no", side="target", code="NAME_UNKNOWN")

    assert await target.provisioned("a/b", attempt) == 7
    with pytest.raises(NotFound):
        await target.provisioned("a/b", attempt)

    assert tries == 2


def refusal(kind: type[RegistryError], said: str = "", **details: object) -> RegistryError:
    """The target's answer, worded as the transport does."""
    text = (
        f"target registry harbor.example: blob of quota/project-not-found: no (HTTP 400: {said})."
    )
    return kind(text, **{"side": "target", **details})  # type: ignore[arg-type] # any of its keywords


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(refusal(Denied, "requested access is denied"), "target_denied", id="denied"),
        pytest.param(refusal(Unauthorized), "target_denied", id="wrong-password"),
        pytest.param(refusal(Denied, reason="aws_denied"), "target_denied", id="aws"),
        pytest.param(
            refusal(Denied, "adding 3 MiB of storage will exceed the configured quota"),
            "quota",
            id="harbor-quota",
        ),
        pytest.param(refusal(UploadRejected, "Quota has been exceeded"), "quota", id="quay-quota"),
        pytest.param(refusal(RegistryError, status=507), "quota", id="507"),
        pytest.param(refusal(Denied, reason="quota"), "quota", id="aws-quota"),
        pytest.param(
            refusal(Unauthorized, "project team not found"), "missing_project", id="harbor-project"
        ),
        pytest.param(
            refusal(NotFound, "namespace team does not exist"), "missing_project", id="namespace"
        ),
        pytest.param(refusal(NotFound, code="NAME_UNKNOWN"), "missing_project", id="gar"),
    ],
)
def test_target_refuses(error: CopycatError, expected: Refusal) -> None:
    """Permissions, quota and missing projects hold the whole target."""
    assert target_refusal(error) == expected


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(refusal(Denied, "denied", side="source"), id="source"),
        pytest.param(refusal(NotFound, code="MANIFEST_UNKNOWN"), id="one-manifest"),
        pytest.param(refusal(UploadRejected, code="MANIFEST_INVALID"), id="one-image"),
        pytest.param(refusal(TooLarge), id="too-large"),
        pytest.param(refusal(Unavailable), id="trouble"),
        pytest.param(refusal(Throttled, "quota of requests exceeded"), id="rate"),
        pytest.param(
            refusal(NotFound, code="NAME_UNKNOWN", reason="repository_missing"), id="not-to-be-made"
        ),
        pytest.param(DigestMismatch("no", side="target"), id="no-registry-error"),
        pytest.param(ValueError("quota"), id="foreign"),
    ],
)
def test_others_do_not_hold_the_target(error: BaseException) -> None:
    """What concerns one image, the source, or passes by itself holds nobody else."""
    assert target_refusal(error) is None
