"""One repository on one registry: what a copy asks of it, in the words of the distribution specification.

Everything that is read is verified against its digest before it is returned, everything that is
written is the bytes that were read.
"""

from __future__ import annotations

from yarl import URL

from copycat.registry.answers import Reply
from copycat.registry.blobs import Blobs
from copycat.registry.lists import collect, read_tags
from copycat.registry.referrers import Referrers

__all__ = ["Repository"]

#: Tags per page; ECR answers more with an error (go-containerregistry#1091).
TAGS_PAGE = 1000
PAGE_LIMIT = 4 * 1024 * 1024


class Repository(Referrers, Blobs):
    """One repository. Cheap to make; keeps what it learns about its login and its open upload sessions."""

    def beside(self, registry: str, name: str) -> Repository:
        """Another one, to be read on the same behalf."""
        return Repository(self._transport, registry, name, access=self.access)

    async def list_tags(self) -> list[str]:
        """Every tag, in the registry's order. Raises NotFound if the repository is not there."""
        place = self._place("list of tags")

        async def page(url: URL | None) -> Reply:
            return await self._fetch(
                "GET", f"tags/list?n={TAGS_PAGE}", place, url=url, limit=PAGE_LIMIT
            )

        return await collect(await page(None), page, lambda reply: read_tags(place, reply))
