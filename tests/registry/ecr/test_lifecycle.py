"""Lifecycle policies: what ECR refuses, and what would expire images in use."""

from __future__ import annotations

import json

import pytest

from copycat.errors import ConfigError
from copycat.registry.ecr.lifecycle import PROTECTION, lifecycle_warnings


def rule(priority: int = 1, *, action: str = "expire", **selection: object) -> dict[str, object]:
    """One rule, by default one that takes nothing of ours."""
    return {
        "rulePriority": priority,
        "description": "a description that makes the text as long as ECR wants it",
        "selection": {"countType": "imageCountMoreThan", "countNumber": 30, **selection},
        "action": {"type": action},
    }


def policy(*rules: dict[str, object]) -> str:
    """The policy's text."""
    return json.dumps({"rules": list(rules)})


ANY = rule(2, tagStatus="any")


@pytest.mark.parametrize(
    ("dangerous", "text"),
    [
        pytest.param(rule(2, tagStatus="any"), "expires any image by age or number", id="any"),
        pytest.param(rule(2, tagStatus="untagged"), "expires untagged images", id="untagged"),
        pytest.param(
            rule(2, tagStatus="tagged", tagPrefixList=["v"], countType="sinceImagePulled"),
            "by their last pull",
            id="pulled-since",
        ),
        pytest.param(
            rule(2, tagStatus="tagged", tagPatternList=["v*"], action="transition"),
            "an archived image cannot be pulled",
            id="archive",
        ),
        pytest.param(
            rule(2, tagStatus="untagged", action="transition"),
            "archives untagged images",
            id="archive-untagged",
        ),
        pytest.param(
            rule(2, tagStatus="tagged", tagPrefixList=["digest"]),
            "begin with digest-",
            id="anchors",
        ),
        pytest.param(
            rule(2, tagStatus="tagged", tagPatternList=["*"]), "begin with digest-", id="all-tags"
        ),
    ],
)
def test_dangerous_rules(dangerous: dict[str, object], text: str) -> None:
    """A rule that can hit what is in use gets a warning with its number."""
    (warning,) = lifecycle_warnings(policy(dangerous))

    assert warning.startswith("ecr.lifecyclePolicy: rule 2 ")
    assert text in warning


def test_remedy() -> None:
    """The warning gives the rule that helps, as text that can be put into the policy."""
    (warning,) = lifecycle_warnings(policy(ANY))

    assert PROTECTION in warning
    assert lifecycle_warnings(policy(json.loads(PROTECTION), ANY)) == []


def test_protection_by_pattern() -> None:
    """A pattern protects as well as a prefix does."""
    keep = rule(1, tagStatus="tagged", tagPatternList=["digest-*"], countNumber=50_000)

    assert lifecycle_warnings(policy(keep, ANY)) == []


@pytest.mark.parametrize(
    "keep",
    [
        pytest.param(
            rule(3, tagStatus="tagged", tagPrefixList=["digest-"], countNumber=99_999),
            id="too-late",
        ),
        pytest.param(
            rule(1, tagStatus="tagged", tagPrefixList=["digest-"], countNumber=30), id="too-few"
        ),
    ],
)
def test_no_protection(keep: dict[str, object]) -> None:
    """A rule of lower priority, or one that keeps only a few, does not protect."""
    assert any("any image" in text for text in lifecycle_warnings(policy(keep, ANY)))


def test_untagged_images_cannot_be_protected_by_tag() -> None:
    """Images without a tag are no business of the protecting rule."""
    warnings = lifecycle_warnings(policy(json.loads(PROTECTION), rule(2, tagStatus="untagged")))

    assert len(warnings) == 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="none"),
        pytest.param(policy(rule(tagStatus="tagged", tagPrefixList=["v"])), id="own-tags"),
    ],
)
def test_no_warning(text: str) -> None:
    """No policy, and a rule for tags that its owner named, give no warning."""
    assert lifecycle_warnings(text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("{", "must be the JSON text", id="no-json"),
        pytest.param("\ud800", "must be the JSON text", id="no-text"),
        pytest.param('{"rules": [{"selection": 1}]}', "must be the JSON text", id="wrong-type"),
        pytest.param('{"rules": []}' + " " * 100, "at least one rule", id="no-rules"),
        pytest.param(
            '{"rules":[{"rulePriority":1,"selection":{"tagStatus":"any","countType":"x"}}]}',
            "100 to 30720 characters",
            id="too-short",
        ),
        pytest.param(policy(ANY) + " " * 31_000, "100 to 30720 characters", id="too-long"),
        pytest.param(policy(ANY, ANY), "a rulePriority of its own", id="same-priority"),
    ],
)
def test_refused(text: str, problem: str) -> None:
    """What ECR would refuse later is refused at start, with the key."""
    with pytest.raises(ConfigError, match=problem) as caught:
        lifecycle_warnings(text)

    assert caught.value.problems[0].path == "ecr.lifecyclePolicy"
