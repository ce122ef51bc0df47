"""Which architectures an image is for, where the target's name says it (`$arch`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

import msgspec

from copycat.decoding import UNREADABLE
from copycat.mirror.content import Content
from copycat.oci.digest import Digest
from copycat.oci.manifest import Document, Index, Manifest
from copycat.oci.platform import Platform
from copycat.registry.repository import Repository

__all__ = ["USUAL", "Architectures"]

#: Where to look for a copy whose name holds the architectures, when the source cannot say which they are.
USUAL = (
    ("amd64",),
    ("arm64",),
    ("amd64", "arm64"),
    ("amd64", "arm"),
    ("amd64", "arm", "arm64"),
    ("amd64", "arm64", "ppc64le", "s390x"),
    ("amd64", "arm", "arm64", "ppc64le", "s390x"),
)
_REMEMBERED = 10_000


class _Config(msgspec.Struct):
    architecture: str = ""


class Architectures:
    """What the process has learnt about images; a digest's never change."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._known: OrderedDict[Digest, tuple[str, ...]] = OrderedDict()

    async def names(
        self, digest: Digest, content: Content, platforms: Collection[Platform] | None
    ) -> Collection[str]:
        """The architectures of an image of the content's source, of these platforms only if it has any of them.

        Raises the source's errors.
        """
        names = self._known.get(digest)
        if names is None:
            names = await self._of(content.source, await content.fetch(digest))
            self._known[digest] = names
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        if platforms is None or len(names) < 2:
            return names
        wanted = {p.architecture for p in platforms}
        return [name for name in names if name in wanted] or names

    async def _of(self, source: Repository, document: Document) -> tuple[str, ...]:
        """An index lists them; an image without an index says it in its config."""
        if isinstance(document, Index):
            return tuple(sorted({p.architecture for p in document.platforms()}))
        return await self._from_config(source, document)

    async def _from_config(self, source: Repository, image: Manifest) -> tuple[str, ...]:
        if image.config is None:
            return ()
        raw = await source.get_blob(image.config)
        try:
            architecture = msgspec.json.decode(raw, type=_Config).architecture
        except UNREADABLE:
            return ()
        return (architecture,) if architecture else ()
