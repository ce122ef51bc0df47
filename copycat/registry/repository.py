"""One repository on one registry: what a copy asks of it, in the words of the distribution specification.

Everything that is read is verified against its digest before it is returned, everything that is
written is the bytes that were read.
"""

from __future__ import annotations

from yarl import URL

from copycat.errors import NotFound
from copycat.oci.digest import Digest
from copycat.oci.manifest import INDEX_TYPES, MAX_PULL, OCI_INDEX, Descriptor, Index
from copycat.registry.answers import Reply
from copycat.registry.blobs import Blobs
from copycat.registry.lists import collect, content_type, read_referrers, read_tags
from copycat.registry.manifests import Manifests

__all__ = ["Repository"]

#: Tags per page; ECR answers more with an error (go-containerregistry#1091).
TAGS_PAGE = 1000
PAGE_LIMIT = 4 * 1024 * 1024


class Repository(Manifests, Blobs):
    """One repository. Cheap to make; keeps what it learns about its login and its open upload sessions."""

    async def list_tags(self) -> list[str]:
        """Every tag, in the registry's order. Raises NotFound if the repository is not there."""
        place = self._place("list of tags")

        async def page(url: URL | None) -> Reply:
            return await self._fetch(
                "GET", f"tags/list?n={TAGS_PAGE}", place, url=url, limit=PAGE_LIMIT
            )

        return await collect(await page(None), page, lambda reply: read_tags(place, reply))

    async def referrers(self, digest: Digest) -> list[Descriptor]:
        """What refers to a manifest (signatures, SBOMs): by the API, else by the fallback tag.

        GHCR redirects this path to a web page (artifacthub#4785), so redirects are not followed.
        """
        place = self._place("referrers of", digest)
        refused = frozenset({301, 302, 303, 307, 308, 400, 404, 405, 501})

        async def page(url: URL | None) -> Reply:
            return await self._fetch(
                "GET",
                f"referrers/{digest}",
                place,
                url=url,
                headers={"Accept": OCI_INDEX},
                accept=refused if url is None else frozenset(),
                follow=False,
                limit=MAX_PULL,
            )

        first = await page(None)
        if first.status in refused or content_type(first) not in INDEX_TYPES:
            return await self._fallback(digest)
        return await collect(first, page, read_referrers)

    async def _fallback(self, digest: Digest) -> list[Descriptor]:
        tag = f"{digest.algorithm}-{digest.hex}"[:128]
        try:
            document = await self.get_manifest(tag)
        except NotFound:
            return []
        # GitLab resolves the tag to the subject itself (oras-go#1396).
        if not isinstance(document, Index) or document.digest == digest:
            return []
        return [d for d in document.manifests if d.digest != digest]
