"""What the owner wants of repositories that copycat makes in ECR, and what ECR would not accept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from copycat.errors import Problem
from copycat.registry.ecr.lifecycle import check_lifecycle_policy

__all__ = ["EcrSettings", "Mutability"]

Mutability = Literal[
    "", "MUTABLE", "IMMUTABLE", "MUTABLE_WITH_EXCLUSION", "IMMUTABLE_WITH_EXCLUSION"
]

#: ECR API: `ImageTagMutabilityExclusionFilter`, `RepositoryPolicyText`, `TagList`.
_EXCLUSION = re.compile(r"[0-9a-zA-Z._*-]{1,128}")
MAX_EXCLUSIONS, MAX_POLICY, MAX_TAGS = 5, 10_240, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class EcrSettings:
    """The `ecr.*` keys of the configuration; empty means ECR's own default."""

    account_id: str
    region: str
    create_repo: bool | Literal["on-push"] = True
    lifecycle_policy: str = ""
    tag_mutability: Mutability = ""
    mutability_exclusions: tuple[str, ...] = ()
    scan_on_push: bool | None = None
    kms_key: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    repository_policy: str = ""

    @property
    def mutability(self) -> Mutability:
        """ECR's word for `tag_mutability` together with the exclusions."""
        if not self.mutability_exclusions or self.tag_mutability.endswith("_WITH_EXCLUSION"):
            return self.tag_mutability

        if self.tag_mutability == "IMMUTABLE":
            return "IMMUTABLE_WITH_EXCLUSION"

        return "MUTABLE_WITH_EXCLUSION"

    def problems(self) -> list[Problem]:
        """Everything that ECR would refuse and that can be seen from here."""
        found = []
        if re.fullmatch(r"[0-9]{12}", self.account_id) is None:
            found.append(("ecr.accountID", "must be the 12 digits of an AWS account, in quotes"))

        if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", self.region) is None:
            found.append(("ecr.region", "must be an AWS region, like eu-central-1"))

        found += self._exclusion_problems()
        if len(self.tags) > MAX_TAGS:
            found.append(("ecr.tags", f"ECR takes at most {MAX_TAGS} tags"))

        if self.repository_policy and not _is_policy(self.repository_policy):
            found.append(
                (
                    "ecr.repositoryPolicy",
                    f"must be the JSON text of a policy, at most {MAX_POLICY} characters",
                )
            )

        problems = [Problem(path=path, message=message) for path, message in found]
        if self.lifecycle_policy:
            problems += check_lifecycle_policy(self.lifecycle_policy)

        return problems

    def _exclusion_problems(self) -> list[tuple[str, str]]:
        key = "ecr.mutabilityExclusions"
        if self.tag_mutability.endswith("_WITH_EXCLUSION") and not self.mutability_exclusions:
            return [(key, f"ecr.tagMutability {self.tag_mutability} needs at least one exclusion")]

        if len(self.mutability_exclusions) > MAX_EXCLUSIONS:
            return [(key, f"ECR takes at most {MAX_EXCLUSIONS} exclusions")]

        return [
            (f"{key}[{i}]", "letters, digits and . _ * - only, at most 128")
            for i, text in enumerate(self.mutability_exclusions)
            if _EXCLUSION.fullmatch(text) is None
        ]


def _is_policy(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError):
        return False

    return len(text) <= MAX_POLICY
