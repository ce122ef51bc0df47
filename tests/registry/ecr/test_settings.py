"""The keys of `ecr.*` for new repositories."""

from __future__ import annotations

from typing import Any

import pytest

from copycat.registry.ecr.settings import EcrSettings, Mutability


def settings(**values: Any) -> EcrSettings:
    """Settings that are right but for `values`."""
    return EcrSettings(**{"account_id": "123456789012", "region": "eu-central-1", **values})


def test_minimal() -> None:
    """Account and region are enough."""
    assert settings().problems() == []
    assert settings().mutability == ""


@pytest.mark.parametrize(
    ("values", "path"),
    [
        pytest.param({"account_id": "123"}, "ecr.accountID", id="account"),
        pytest.param({"region": "Frankfurt"}, "ecr.region", id="region"),
        pytest.param(
            {"tag_mutability": "IMMUTABLE_WITH_EXCLUSION"}, "ecr.mutabilityExclusions", id="none"
        ),
        pytest.param(
            {"mutability_exclusions": tuple("abcdef")}, "ecr.mutabilityExclusions", id="six"
        ),
        pytest.param(
            {"mutability_exclusions": ("latest", "a b")}, "ecr.mutabilityExclusions[1]", id="blank"
        ),
        pytest.param({"tags": {str(i): "x" for i in range(51)}}, "ecr.tags", id="tags"),
        pytest.param({"repository_policy": "[]"}, "ecr.repositoryPolicy", id="policy-type"),
        pytest.param({"repository_policy": "{"}, "ecr.repositoryPolicy", id="policy-json"),
        pytest.param(
            {"repository_policy": "{}" + " " * 11_000}, "ecr.repositoryPolicy", id="policy-length"
        ),
        pytest.param({"lifecycle_policy": "{"}, "ecr.lifecyclePolicy", id="lifecycle"),
    ],
)
def test_problems(values: dict[str, Any], path: str) -> None:
    """What ECR would refuse is found before anything is sent, with its key."""
    assert [path] == [problem.path for problem in settings(**values).problems()]


def test_good_values() -> None:
    """A full set of good values has no problem."""
    good = settings(
        tag_mutability="IMMUTABLE",
        mutability_exclusions=("latest", "digest-*"),
        tags={"team": "a"},
        repository_policy="{}",
    )

    assert good.problems() == []


@pytest.mark.parametrize(
    ("mutability", "exclusions", "expected"),
    [
        ("", (), ""),
        ("IMMUTABLE", (), "IMMUTABLE"),
        ("IMMUTABLE", ("a",), "IMMUTABLE_WITH_EXCLUSION"),
        ("MUTABLE", ("a",), "MUTABLE_WITH_EXCLUSION"),
        ("", ("a",), "MUTABLE_WITH_EXCLUSION"),
        ("IMMUTABLE_WITH_EXCLUSION", ("a",), "IMMUTABLE_WITH_EXCLUSION"),
    ],
)
def test_mutability(
    mutability: Mutability, exclusions: tuple[str, ...], expected: Mutability
) -> None:
    """Exclusions and mutability together give ECR's word for it."""
    assert (
        expected == settings(tag_mutability=mutability, mutability_exclusions=exclusions).mutability
    )
