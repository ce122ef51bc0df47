"""Lifecycle policies: refuse those that ECR would refuse, warn about rules that can expire what is in use.

A mirror is hardly ever pulled from, and a Pod that runs by digest needs content that no tag may
name any more. A rule that counts pulls, or that takes any image, throws away just what the mirror
is for. Every copy has a tag that begins with `digest-`; a rule of higher priority that selects
those and keeps them protects them, because ECR lets an image be expired by one rule only: the
first that selects it.

Source: Amazon ECR User Guide, "Lifecycle policy properties" and "How lifecycle policies work".
"""

from __future__ import annotations

import msgspec

from copycat.errors import ConfigError, Problem

__all__ = ["PROTECTION", "check_lifecycle_policy", "lifecycle_warnings"]

#: Bounds of `lifecyclePolicyText` in the ECR API, in characters.
MIN_LENGTH, MAX_LENGTH = 100, 30_720

#: The rule that keeps anchors: it selects them first, and expires none as long as there are fewer.
PROTECTION = (
    '{"rulePriority": 1, "description": "keep the copies of k8s-copycat", "selection": '
    '{"tagStatus": "tagged", "tagPrefixList": ["digest-"], "countType": "imageCountMoreThan", '
    '"countNumber": 100000}, "action": {"type": "expire"}}'
)

_KEY = "ecr.lifecyclePolicy"


class _Selection(msgspec.Struct, rename="camel"):
    tag_status: str
    count_type: str
    count_number: int = 0
    tag_prefix_list: list[str] = []
    tag_pattern_list: list[str] = []


class _Action(msgspec.Struct, rename="camel"):
    type: str = "expire"


class _Rule(msgspec.Struct, rename="camel"):
    rule_priority: int
    selection: _Selection
    action: _Action = msgspec.field(default_factory=_Action)


class _Policy(msgspec.Struct):
    rules: list[_Rule]


def check_lifecycle_policy(policy: str, *, key: str = _KEY) -> list[Problem]:
    """What makes ECR refuse `policy`; empty if nothing does that can be seen from here."""
    try:
        rules = msgspec.json.decode(policy, type=_Policy).rules
    except (msgspec.DecodeError, UnicodeError) as error:
        message = f"must be the JSON text of an ECR lifecycle policy: {error}"
        return [Problem(path=key, message=message)]

    problems = []
    if not rules:
        problems.append("must have at least one rule; leave the key out for none")

    if not MIN_LENGTH <= len(policy) <= MAX_LENGTH:
        problems.append(
            f"must have {MIN_LENGTH} to {MAX_LENGTH} characters (ECR's bounds); it has {len(policy)}"
        )

    if len({rule.rule_priority for rule in rules}) < len(rules):
        problems.append("must give every rule a rulePriority of its own")

    return [Problem(path=key, message=message) for message in problems]


def lifecycle_warnings(policy: str, *, key: str = _KEY) -> list[str]:
    """A sentence for each rule that can expire, or archive, an image in use.

    Raises:
        ConfigError: ECR would refuse the policy.
    """
    if not policy:
        return []

    if problems := check_lifecycle_policy(policy, key=key):
        raise ConfigError(*problems)

    rules = sorted(
        msgspec.json.decode(policy, type=_Policy).rules, key=lambda rule: rule.rule_priority
    )
    warnings = []
    protected = False
    for rule in rules:
        protected = protected or _protects(rule)
        danger = _danger(rule)
        # No rule can expire what one of higher priority selects, and that one cannot select what has no tag.
        if danger is not None and (not protected or rule.selection.tag_status == "untagged"):
            warnings.append(f"{key}: rule {rule.rule_priority} {danger}")

    return warnings


def _protects(rule: _Rule) -> bool:
    """Whether the rule selects every anchor, and expires none as long as there are fewer than it counts."""
    selection = rule.selection
    return (
        rule.action.type == "expire"
        and selection.tag_status == "tagged"
        and (selection.tag_prefix_list == ["digest-"] or selection.tag_pattern_list == ["digest-*"])
        and selection.count_type == "imageCountMoreThan"
        and selection.count_number >= 10_000
    )


def _danger(rule: _Rule) -> str | None:
    """Why the rule may hit an image in use, with the remedy; or None."""
    selection = rule.selection
    verb = "archives" if rule.action.type == "transition" else "expires"
    if selection.tag_status == "untagged":
        return (
            f"{verb} untagged images. ECR spares those that a tagged index refers to; whatever else "
            "has no tag, signatures for instance, can be lost."
        )

    if rule.action.type == "transition":
        why = "archives images, and an archived image cannot be pulled until it is restored"
    elif selection.count_type == "sinceImagePulled":
        why = "expires images by their last pull, and a copy is hardly ever pulled while its source works"
    elif selection.tag_status == "any":
        why = "expires any image by age or number, whether it is in use or not"
    elif _reaches_anchors(selection):
        why = "expires tags that begin with digest-, which keep what runs by digest"
    else:
        return None

    return f"{why}. Put this rule before it, with a lower rulePriority: {PROTECTION}"


def _reaches_anchors(selection: _Selection) -> bool:
    """Whether a selection of tagged images names the tags of anchors; one that names other tags is its owner's wish."""
    starts = selection.tag_prefix_list + [p.partition("*")[0] for p in selection.tag_pattern_list]
    return any(start.startswith("digest-") or "digest-".startswith(start) for start in starts)
