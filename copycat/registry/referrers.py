"""What refers to a manifest (signatures, SBOMs): the referrers API and the tag that stands in for it.

Registries differ in what they do without the API: 404, 405, a redirect to a web page (GHCR, artifacthub#4785), or
a fallback tag that is the subject itself (GitLab, oras-go#1396). That a host has no API is remembered for
a while, so that it costs each image one question and not two; but proxies say the same when they have a bad moment,
so it is asked twice before that is believed, and never believed of a host that has shown a list.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import quote

import msgspec
from yarl import URL

from copycat.decoding import UNREADABLE
from copycat.errors import (
    Denied,
    NotFound,
    RegistryError,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unsupported,
    printable,
)
from copycat.oci.digest import Digest
from copycat.oci.manifest import (
    INDEX_TYPES,
    MAX_PULL,
    OCI_INDEX,
    Descriptor,
    Index,
    parse_document,
)
from copycat.registry.answers import Place, Reply
from copycat.registry.lists import collect, content_type
from copycat.registry.manifests import Manifests, read_document

__all__ = ["Listing", "Referrers", "fallback_tag"]

#: A host without the API is asked again after this (seconds).
FORGET = 600.0
#: How often a fallback tag is written and read back before it is given up, a second apart.
TRIES = 5

_REFUSED = frozenset({301, 302, 303, 307, 308, 400, 404, 405, 501})
#: About this request, not about the API.
_NO_WORD = frozenset({"DIGEST_INVALID", "MANIFEST_UNKNOWN", "NAME_UNKNOWN"})


class _Problem(msgspec.Struct):
    code: str | None = None


class _Problems(msgspec.Struct):
    errors: list[_Problem] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a registry says refers to a manifest."""

    descriptors: tuple[Descriptor, ...] = ()
    by_api: bool = False
    """The referrers API said so; otherwise the fallback tag."""
    doubt: RegistryError | None = None
    """Nothing is listed, and that may not be true: why the API did not say it."""


def fallback_tag(subject: Digest) -> str:
    """The tag under which a registry without the API lists referrers (distribution-spec, "Referrers Tag Schema")."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


class _Pages:
    """The pages of one list, which have as many bytes as one index between them."""

    def __init__(
        self, place: Place, fetch: Callable[[Place, URL | None], Awaitable[Reply]]
    ) -> None:
        self._place, self._fetch, self._taken = place, fetch, 0

    async def get(self, url: URL | None = None) -> Reply:
        """The first page, or one that a page led to."""
        if self._taken > MAX_PULL:
            place = self._place
            raise place.error(
                TooLarge,
                f"{place.who}: the pages of {place.what} have more than the {MAX_PULL} bytes that are read.",
            )
        return await self._fetch(self._place, url)

    def read(self, page: Reply) -> Iterable[Descriptor]:
        """What is on it. Raises InvalidManifest if it is no list."""
        self._taken += len(page.body)
        return read_document(self._place, page.body, OCI_INDEX).successors()

    def no_list(self, page: Reply) -> Unsupported:
        """For an answer that calls itself something else, a page for people perhaps."""
        place, kind = self._place, printable(content_type(page) or "nothing", 80)
        return place.error(
            Unsupported,
            f"{place.who}: it answers {kind} when asked for {place.what}, which is no list (HTTP {page.status}).",
            status=page.status,
        )


def _no_api(reply: Reply) -> bool:
    """Whether an answer says that there is no API, rather than something about this question."""
    absent = reply.status in _REFUSED and reply.status != 400
    return absent and not _NO_WORD.intersection(_codes(reply))


class Referrers(Manifests):
    """The part of a repository's API that concerns referrers."""

    async def referrers(
        self,
        subject: Digest,
        *,
        artifact_type: str = "",
        most: int = sys.maxsize,
        anew: bool = False,
    ) -> Listing:
        """What refers to the subject, without repetitions.

        Args: `artifact_type`: only what has that type; `most`: so many are enough; `anew`: ask for the API also
            where there was none a moment ago. Raises the registry errors.
        """
        listing = await self._by_api(subject, artifact_type, most, anew=anew)
        if not listing.by_api and (tagged := await self._by_tag(subject)):
            listing = Listing(descriptors=tagged[:most], by_api=False)
        if artifact_type:
            # whether or not the registry filtered (OCI-Filters-Applied): most do not
            kept = (d for d in listing.descriptors if d.artifact_type == artifact_type)
            return replace(listing, descriptors=tuple(kept))
        return listing

    async def _by_api(
        self, subject: Digest, artifact_type: str, most: int, *, anew: bool
    ) -> Listing:
        """What the API says; nothing, and not `by_api`, where there is none."""
        endpoint, clock = self._transport.endpoint(self.registry), self._transport.clock
        known = endpoint.no_referrers_until > clock()
        if known and not anew:
            return Listing()
        pages = _Pages(
            self._place("referrers of", subject), partial(self._page, subject, artifact_type)
        )
        try:
            first = await pages.get()
            if _no_api(first) and not known:
                # a proxy that has a bad moment says the same
                first = await pages.get()
        except (Denied, Unauthorized) as error:
            return Listing(doubt=error)
        if first.status in _REFUSED:
            if _no_api(first) and not endpoint.lists_referrers:
                endpoint.no_referrers_until = clock() + FORGET
            return Listing()
        if content_type(first) not in INDEX_TYPES:
            return Listing(doubt=pages.no_list(first))
        endpoint.lists_referrers = True
        found = await collect(first, pages.get, pages.read, enough=most)
        return Listing(descriptors=tuple(found), by_api=True)

    async def _page(
        self, subject: Digest, artifact_type: str, place: Place, url: URL | None
    ) -> Reply:
        query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        return await self._fetch(
            "GET",
            f"referrers/{subject}{query}",
            place,
            url=url,
            headers={"Accept": OCI_INDEX},
            accept=_REFUSED if url is None else frozenset(),
            follow=False,
            limit=MAX_PULL,
        )

    async def _by_tag(self, subject: Digest) -> tuple[Descriptor, ...]:
        tag = fallback_tag(subject)
        # mostly there is nothing: HEAD costs no quota
        found = await self.head_manifest(tag)
        if found is None or found.digest == subject:
            return ()
        try:
            document = await self.get_manifest(found.digest)
        except NotFound:
            return ()
        if not isinstance(document, Index):
            return ()
        return tuple(d for d in document.successors() if d.digest != subject)

    async def list_referrers(self, subject: Digest, found: Collection[Descriptor]) -> None:
        """Write into the fallback tag what a registry without the API does not list by itself.

        Read, changed, written and read back until everything is there: what others write meanwhile stays.
        One process at a time should do so for a subject. Raises Unsupported if the tag is used for something
        else, Unavailable if it does not stay, and the registry errors.
        """
        tag = fallback_tag(subject)
        last: Index | None = None
        entries = {str(d.digest): _entry(d) for d in found}
        for attempt in range(TRIES):
            if attempt > 1:
                await self._transport.sleep(1.0)
            present = await self._fallback(tag, subject)
            last = present or last
            standing = _entries(present)
            # what was once seen there stays, whoever overwrote it
            entries |= standing
            if len(entries) == len(standing):
                return
            await self.put_manifest(_index(entries.values(), last), tag)
        raise Unavailable(
            f"{self.registry} does not keep what is written under {self.name}:{tag}.",
            side=self._side,
            reference=f"{self.registry}/{self.name}:{tag}",
            registry=self.registry,
            reason="not_visible",
        )

    async def _fallback(self, tag: str, subject: Digest) -> Index | None:
        try:
            document = await self.get_manifest(tag)
        except NotFound:
            return None
        if document.digest == subject:
            return None  # GitLab means the subject by it, which may be an index (oras-go#1396)
        if isinstance(document, Index):
            return document
        raise Unsupported(
            f"{self.registry}/{self.name}:{tag} is {document.digest}, which is no list of referrers; it stays.",
            side=self._side,
            reference=f"{self.registry}/{self.name}:{tag}",
            registry=self.registry,
            reason="fallback_tag",
        )


def _codes(reply: Reply) -> set[str]:
    """The error codes of a refusal."""
    try:
        problems = msgspec.json.decode(reply.body, type=_Problems).errors or []
    except UNREADABLE:
        return set()
    return {problem.code or "" for problem in problems}


_Entry = dict[str, object]


def _entries(index: Index | None) -> dict[str, _Entry]:
    """Digest → the entry as it stands there, with whatever else it says."""
    if index is None:
        return {}
    body = msgspec.json.decode(index.raw)
    return {str(entry["digest"]): entry for entry in body.get("manifests") or []}


def _entry(descriptor: Descriptor) -> _Entry:
    entry: _Entry = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.artifact_type:
        entry["artifactType"] = descriptor.artifact_type
    if descriptor.annotations:
        entry["annotations"] = dict(descriptor.annotations)
    return entry


def _index(entries: Iterable[_Entry], before: Index | None) -> Index:
    """An index of the entries; whatever else stood in the one before stays."""
    body = msgspec.json.decode(before.raw) if before is not None else {}
    body |= {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    document = parse_document(msgspec.json.encode(body), content_type=OCI_INDEX)
    assert isinstance(document, Index)  # noqa: S101 - it was just made
    return document
