"""What answers about manifests, tags and referrers say, page by page."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import TypeVar

import msgspec
from yarl import URL

from copycat.decoding import UNREADABLE
from copycat.errors import InvalidReference, Unsupported
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor
from copycat.registry.answers import Place, Reply
from copycat.registry.location import resolve_location

__all__ = ["collect", "content_type", "described", "read_tags"]

T = TypeVar("T", bound=Hashable)

MAX_PAGES = 1000
#: A link and its parameters, up to the next link. What a registry sends may be long and hostile: no two of these
#: patterns look at the same text twice.
_LINK = re.compile(r"<([^<>]*)>([^<]*)")
_REL_NEXT = re.compile(r'\brel="?next"?', re.IGNORECASE)


def content_type(reply: Reply) -> str:
    """The media type of an answer, without its parameters."""
    return reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def described(reply: Reply, reference: str | Digest) -> Descriptor | None:
    """The descriptor that the head of an answer gives; None if it gives none that can be trusted."""
    length = reply.headers.get("Content-Length", "")
    if not length.isdecimal() or "Content-Encoding" in reply.headers:
        return None
    try:
        digest = Digest.parse(reply.headers.get("Docker-Content-Digest", ""))
    except InvalidReference:
        if isinstance(reference, str):
            return None
        digest = reference
    if isinstance(reference, str) and digest.algorithm != "sha256":
        return None  # what a GET of the tag would be called is its sha256
    if isinstance(reference, Digest):
        if digest.algorithm == reference.algorithm and digest != reference:
            return None
        digest = reference
    return Descriptor(media_type=content_type(reply), digest=digest, size=int(length))


async def collect(
    first: Reply,
    page: Callable[[URL], Awaitable[Reply]],
    read: Callable[[Reply], Iterable[T]],
    *,
    enough: int = sys.maxsize,
) -> list[T]:
    """What is on all pages, each thing once; a list that goes in circles ends.

    Args: with so many things it is `enough`, whatever else the list has.
    """
    found: dict[T, None] = {}
    reply = first
    for _ in range(MAX_PAGES):
        before = len(found)
        found.update(dict.fromkeys(read(reply)))
        url = next_page(reply)
        if url is None or len(found) == before or len(found) >= enough:
            break
        reply = await page(url)
    return list(found)[:enough]


def next_page(reply: Reply) -> URL | None:
    """The `Link: <…>; rel="next"` of a list, with a scheme or port that a proxy lost put right."""
    for header in reply.headers.getall("Link", ()):
        for target, parameters in _LINK.findall(header):
            own = parameters.partition(",")[0].lstrip()
            if own.startswith(";") and _REL_NEXT.search(own):
                try:
                    return resolve_location(reply.url, target)
                except ValueError:
                    return None
    return None


class _TagsJSON(msgspec.Struct):
    tags: list[str] | None = None


def read_tags(place: Place, reply: Reply) -> list[str]:
    """The tags of one page. Raises Unsupported if it is none."""
    try:
        return msgspec.json.decode(reply.body, type=_TagsJSON).tags or []
    except UNREADABLE as error:
        raise place.error(
            Unsupported,
            f"{place.who}: its answer for {place.what} is no list of tags.",
            status=reply.status,
        ) from error
