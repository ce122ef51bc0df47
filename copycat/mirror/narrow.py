"""Some of an index's platforms instead of all: which document stands for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from copycat.errors import NotFound, PlatformMissing
from copycat.mirror.content import Content
from copycat.mirror.naming import subset_tag
from copycat.mirror.policy import Policy
from copycat.mirror.request import Need
from copycat.oci.digest import Digest
from copycat.oci.manifest import Document, Index
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference

__all__ = ["Narrowing", "names"]


@dataclass(slots=True, kw_only=True)
class Narrowing:
    """Narrows one image; `notes` says what was left out."""

    reference: Reference
    need: Need
    policy: Policy
    content: Content
    notes: list[str] = field(default_factory=list)

    async def select(self, document: Document, platforms: frozenset[Platform]) -> Document:
        """The document for these platforms: the whole, one child, or an index of some children.

        Raises:
            PlatformMissing: the index lacks one that a node runs, or has none of them.
        """
        if not isinstance(document, Index):
            return document
        selection = document.select(platforms)
        self._judge(selection.missing, document)
        if not selection.children:
            raise PlatformMissing(
                f"{self.reference} has none of the wanted platforms {names(platforms)}; it has {names(document.platforms())}",
                side="source",
                reference=str(self.reference),
            )
        if len(selection.children) == 1:
            return await self.content.fetch(selection.children[0].digest)
        if len(selection.children) + len(selection.attestations) == len(document.manifests):
            return document
        return document.narrowed(selection)

    async def is_wider(
        self, present: Digest, whole: Digest, platforms: frozenset[Platform]
    ) -> bool:
        """Whether a narrowed copy of this root stands at the target that has these platforms and more."""
        try:
            document = await self.content.target.get_manifest(present)
        except NotFound:
            return False
        if not isinstance(document, Index):
            return False
        has = frozenset(document.platforms())
        return has > platforms and await self.content.head(subset_tag(whole.hex, has)) == present

    def _judge(self, missing: Collection[Platform], document: Index) -> None:
        missing = [p for p in missing if p not in self.policy.ignore_missing_platforms]
        needed = [p for p in missing if p in self.need.required]
        if needed:
            raise PlatformMissing(
                f"{self.reference} has no {names(needed)}, which a node runs; it has {names(document.platforms())}"
                " (ignoreMissingPlatforms skips a platform)",
                side="source",
                reference=str(self.reference),
            )
        if missing:
            self.notes.append(f"no {names(missing)} in the source's index")


def names(platforms: Collection[Platform]) -> str:
    """Platforms for a message."""
    return ", ".join(sorted(map(str, platforms))) or "none"
