"""The ECR guide: its policies are policies, and name every action that the program takes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from moto.ecr.policy_validation import EcrLifecyclePolicyValidator

from tests.docs.pages import ROOT, Block, blocks

JSON = blocks("json")
POLICIES = [json.loads(b.text) for b in JSON if b.page.name == "ecr.md" and '"Statement"' in b.text]
#: What the registry itself asks for when images are pushed over its HTTP API (ECR User Guide, "Pushing an image").
PUSH = {
    "ecr:BatchGetImage",
    "ecr:BatchCheckLayerAvailability",
    "ecr:InitiateLayerUpload",
    "ecr:UploadLayerPart",
    "ecr:CompleteLayerUpload",
    "ecr:PutImage",
}


@pytest.mark.parametrize("block", JSON, ids=lambda b: b.name)
def test_every_json_block_is_json(block: Block) -> None:
    """What is called JSON can be read as JSON."""
    assert json.loads(block.text)


def actions(statement: dict[str, Any]) -> set[str]:
    """The actions of a statement, one or several."""
    found = statement["Action"]
    return {found} if isinstance(found, str) else set(found)


def test_policies_have_the_form_that_iam_takes() -> None:
    """Each has a version, allows something by name, and is about a resource or says whom it trusts."""
    assert len(POLICIES) >= 5
    for policy in POLICIES:
        assert policy["Version"] == "2012-10-17"
        for statement in policy["Statement"]:
            assert statement["Effect"] == "Allow"
            assert ("Resource" in statement) != ("Principal" in statement)
            assert all(re.fullmatch(r"[a-z-]+:[A-Z]\w+", a) for a in actions(statement))


def test_every_action_that_the_program_takes_is_granted_somewhere() -> None:
    """The guide's policies hold what the code asks AWS for, and what a push needs."""
    code = "".join(p.read_text() for p in (ROOT / "copycat" / "registry" / "ecr").glob("*.py"))
    taken = set(re.findall(r'"(ecr(?:-public)?:[A-Z]\w+)"', code))
    assert len(taken) >= 6
    granted = {a for policy in POLICIES for s in policy["Statement"] for a in actions(s)}
    assert (taken | PUSH) - granted == set()


def test_the_least_policy_grants_nothing_on_everything_but_logins_and_settings() -> None:
    """Whatever has a repository as its resource is limited to the prefix."""
    least = next(p for p in POLICIES if any(s.get("Sid") == "Create" for s in p["Statement"]))
    wide = {a for s in least["Statement"] if s["Resource"] == "*" for a in actions(s)}
    assert wide == {"ecr:GetAuthorizationToken", "ecr:GetAccountSetting"}


def test_the_lifecycle_policies_are_taken_by_ecr() -> None:
    """What the guide recommends passes the checks that ECR makes, as far as moto knows them."""
    configs = [yaml.safe_load(b.text) for b in blocks("yaml", marked="# config.yaml")]
    policies = [text for c in configs if (text := c.get("ecr", {}).get("lifecyclePolicy"))]
    assert policies
    for policy in policies:
        EcrLifecyclePolicyValidator(policy).validate()
