"""What refers to a manifest (signatures, SBOMs): the referrers API and the tag that stands in for it.

Registries differ in what they do without the API: 404, 405, a redirect to a web page (GHCR, artifacthub#4785), or
a fallback tag that is the subject itself (GitLab, oras-go#1396). That a host has no API is remembered for
a day, so that it costs each image one question and not two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from urllib.parse import quote

import msgspec
from yarl import URL

from copycat.errors import Denied, NotFound, Unauthorized, Unavailable, Unsupported
from copycat.oci.digest import Digest
from copycat.oci.manifest import (
    INDEX_TYPES,
    MAX_PULL,
    OCI_INDEX,
    Descriptor,
    Index,
    parse_document,
)
from copycat.registry.answers import UNREADABLE, Reply
from copycat.registry.lists import collect, content_type, read_referrers
from copycat.registry.manifests import Manifests

__all__ = ["Listing", "Referrers", "fallback_tag"]

#: A host without the API is asked again after this (seconds).
FORGET = 24 * 3600.0
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

    descriptors: tuple[Descriptor, ...]
    by_api: bool
    """The referrers API said so; otherwise the fallback tag."""


def fallback_tag(subject: Digest) -> str:
    """The tag under which a registry without the API lists referrers (distribution-spec, "Referrers Tag Schema")."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


class Referrers(Manifests):
    """The part of a repository's API that concerns referrers."""

    async def referrers(self, subject: Digest, *, artifact_type: str = "") -> Listing:
        """What refers to the subject. Args: `artifact_type`: only what has that type.

        Raises the registry errors.
        """
        listing = await self._by_api(subject, artifact_type)
        if listing is None:
            listing = Listing(descriptors=await self._by_tag(subject), by_api=False)
        if artifact_type:
            # whether or not the registry filtered (OCI-Filters-Applied): most do not
            kept = (d for d in listing.descriptors if d.artifact_type == artifact_type)
            return Listing(descriptors=tuple(kept), by_api=listing.by_api)
        return listing

    async def _by_api(self, subject: Digest, artifact_type: str) -> Listing | None:
        """What the API says; None where there is none."""
        endpoint = self._transport.endpoint(self.registry)
        if endpoint.no_referrers_until > self._transport.clock():
            return None
        query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        place = self._place("referrers of", subject)

        async def page(url: URL | None) -> Reply:
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

        try:
            first = await page(None)
        except (Denied, Unauthorized):
            return None  # where the tag is refused too, that says why
        if first.status in _REFUSED or content_type(first) not in INDEX_TYPES:
            if first.status != 400 and not _NO_WORD.intersection(_codes(first)):
                endpoint.no_referrers_until = self._transport.clock() + FORGET
            return None
        return Listing(descriptors=tuple(await collect(first, page, read_referrers)), by_api=True)

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
