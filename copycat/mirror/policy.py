"""The owner's will about digests, tags and dry modes, and what it makes of one tag."""

from __future__ import annotations

from dataclasses import dataclass

from copycat.oci.platform import Platform

__all__ = ["Policy", "Verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the configuration says about digests, tags and dry modes."""

    digest_pull: bool = False
    digest_pull_ignored_tags: frozenset[str] = frozenset()
    allow_different_digest_repush: bool = True
    overwrite_foreign_tags: bool = True
    ignore_missing_platforms: frozenset[Platform] = frozenset()
    dry_run: bool = False
    dry_pull: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the tag came out, where the content stands anyway."""

    state: str
    reason: str = ""
    message: str = ""
