"""Whether a tag of the target may be moved, and moving it.

Content is safe under its digest and its anchor before a tag is thought of. So every "no" here costs a
name and never an image.
"""

from __future__ import annotations

from dataclasses import dataclass

from copycat.errors import CopycatError, UploadRejected
from copycat.mirror.content import Content
from copycat.mirror.naming import incomplete_tag
from copycat.mirror.policy import Policy, Verdict
from copycat.mirror.request import Need
from copycat.oci.digest import Digest
from copycat.oci.reference import Reference

__all__ = ["Tags"]


@dataclass(slots=True, kw_only=True)
class Tags:
    """The tags that one attempt wants at the target."""

    reference: Reference
    need: Need
    policy: Policy
    content: Content
    written: bool = False

    async def move(self, tag: str, present: Digest | None, wanted: Digest) -> Verdict:
        """Give the tag to what is wanted, if it is ours to give. Args: `present`: what it stands for now."""
        return await self.refusal(tag, present, wanted) or await self.write(tag, wanted)

    async def refusal(self, tag: str, present: Digest | None, wanted: Digest) -> Verdict | None:
        """Why the tag is not ours to give; None if it is. Nothing is written."""
        refusal = await self._rivalry(tag, present)
        if refusal is None and present is not None:
            refusal = self._held(tag, present, wanted) or await self.foreign(tag, present)
        return refusal

    def yields(self, tag: str) -> Verdict | None:
        """A conflict, if a tag that nobody has belongs to another claimant: to the first by name."""
        if self.need.rivals and min(self.need.rivals) < self.reference:
            return self._conflict(
                f"the tag {tag} goes to {min(self.need.rivals)}, the first of those that want it"
            )
        return None

    async def _rivalry(self, tag: str, present: Digest | None) -> Verdict | None:
        if present is None:
            return self.yields(tag)
        if self.need.rivals and present != self.need.owned and not await self._ours(present):
            return self._conflict(
                f"the tag {tag} at the target stands for other content ({present})"
            )
        return None

    async def _ours(self, present: Digest) -> bool:
        """Whether what stands there came from this source: it has the digest still, and no rival before it does.

        Nobody remembers it over a restart, and the tag may have moved at the source since. Who cannot be asked may have it.
        """
        source = self.content.source
        try:
            if await source.head_manifest(present) is None:
                return False
            for rival in self.need.rivals:
                if rival.name == self.reference.name or rival > self.reference:
                    continue
                other = source.beside(rival.registry, rival.repository)
                if await other.head_manifest(present) is not None:
                    return False
        except CopycatError:
            return False
        return True

    def _conflict(self, why: str) -> Verdict:
        others = ", ".join(map(str, self.need.rivals))
        verb = "want" if len(self.need.rivals) > 1 else "wants"
        return Verdict(
            "conflict",
            "conflict",
            f"{others} {verb} the same tag in {self.content.target.name}: {why}. This image is kept by digest; "
            "use $registry in the prefix, or a pathMap rule, to keep them apart",
        )

    def _held(self, tag: str, present: Digest, wanted: Digest) -> Verdict | None:
        if tag == "latest" or self.policy.allow_different_digest_repush:
            return None
        return Verdict(
            "tag_held",
            "tag_held",
            f"the tag {tag} stays at {present}; the source's {wanted} is kept under {wanted.anchor} (allowDifferentDigestRepush)",
        )

    async def foreign(self, tag: str, present: Digest) -> Verdict | None:
        """A conflict, if what stands there is somebody else's and is to be left alone."""
        if self.policy.overwrite_foreign_tags:
            return None
        for ours in (present.anchor, incomplete_tag(present)):
            if await self.content.head(ours) == present:
                return None
        return Verdict(
            "conflict",
            "foreign_tag",
            f"the tag {tag} at the target stands for {present}, which was not put there by copycat; it stays. "
            "Remove the tag there, or set overwriteForeignTags",
        )

    async def write(self, tag: str, digest: Digest) -> Verdict:
        """Write the tag and see that it stands. Raises the target's errors."""
        content = self.content
        try:
            await content.put_known(digest, tag)
        except UploadRejected as error:
            stands = await content.head(tag)
            if error.reason != "tag_immutable" or stands is None:
                raise
            if stands != digest:
                return Verdict(
                    "tag_held",
                    "tag_immutable",
                    f"the tag {tag} is immutable at the target and stands for {stands}; {digest} is kept under {digest.anchor}",
                )
        self.written = True
        await content.see(tag, digest)
        return Verdict("protected")
