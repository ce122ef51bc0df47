"""What an attempt would do, where the owner only wants to know.

dryRun asks both sides with HEAD and writes nothing; dryPull asks the target alone. With both nobody is
asked, and there is nothing to find out: that is told by the attempt itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from copycat.mirror.content import Content
from copycat.mirror.naming import subset_tag
from copycat.mirror.narrow import names
from copycat.mirror.tags import Tags
from copycat.oci.digest import Digest

__all__ = ["Rehearsal", "rehearse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What was found, and what would follow from it."""

    message: str
    protected: bool
    digest: Digest | None = None
    source_checked: bool = False
    missing: tuple[Digest, ...] = ()
    """What runs besides and is not kept yet."""


async def rehearse(
    content: Content, tags: Tags, *, tag: str, where: object, meant: Digest | None
) -> Rehearsal:
    """Look at the target, compare, and say it. Raises the target's errors.

    Args:
        where: the target reference, for the message.
        meant: what the tag is to have, or the digest of the reference; None if the source was not asked.
    """
    wanted = content.reference.digest
    present = await content.head(wanted.anchor if wanted else tag)
    if meant is None:
        return await _would(
            content, where, present, present, f"would be copied to {where}", asked=False
        )
    digest, what = meant, str(meant)
    platforms = content.need.platforms
    if platforms is not None:
        what = f"{names(platforms)} of {what}"
        marker = subset_tag(digest.hex, platforms)
        if present is not None and await content.head(marker) == present:
            digest = present
    if present == digest:
        return await _would(content, where, present, digest, "", asked=True)
    refusal = None if wanted else await tags.refusal(tag, present, digest)
    if refusal is not None:
        kept = await content.head(digest.anchor) == digest
        otherwise = f"{what} is kept" if kept else f"would keep {what} without a tag"
        said = await _would(
            content, where, None, digest, f"{otherwise}: {refusal.message}", asked=True
        )
        return replace(said, protected=kept and not said.missing)
    move = f"would move {where} from {present} to {what}"
    otherwise = move if present is not None else f"would copy {what} to {where}"
    return await _would(content, where, None, digest, otherwise, asked=True)


async def _would(
    content: Content,
    where: object,
    stands: Digest | None,
    digest: Digest | None,
    otherwise: str,
    *,
    asked: bool,
) -> Rehearsal:
    """Add the digests that run and are not kept yet. Args: `otherwise` is said where nothing stands."""
    message = f"stands at {where} as {stands}" if stands else otherwise
    missing = [
        running.digest
        for running in content.need.running
        if running.digest not in {stands, digest}
        and await content.head(running.digest.anchor) is None
    ]
    if missing:
        message += f"; would keep {', '.join(map(str, missing))}, which runs"
    elif stands:
        certain = asked or content.reference.digest is not None
        message += "; nothing to do" if certain else "; whether its tag moved was not asked"
    return Rehearsal(
        message=message,
        protected=stands is not None and not missing,
        digest=digest,
        source_checked=asked,
        missing=tuple(missing),
    )
