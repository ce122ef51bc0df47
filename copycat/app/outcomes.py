"""What counts as good where something is done once and the exit code says how it went."""

from __future__ import annotations

from copycat.mirror.request import MirrorResult

__all__ = ["is_good", "verdict_key"]

#: States that mean: the image is at the target as asked, or is not wanted there.
_GOOD = frozenset({"protected", "tag_only", "in_place", "excluded"})


def is_good(result: MirrorResult, *, dry: bool) -> bool:
    """Whether the image is at the target as asked. Args: `dry`: being told what would be done is what was asked."""
    if dry and result.state == "dry_run":
        return True
    return result.state in _GOOD and (result.state != "in_place" or result.protected)


def verdict_key(verdict: str) -> str:
    """The configuration's key that decides so."""
    return "excludeRegistries" if verdict == "excluded" else "allowedRegistries"
