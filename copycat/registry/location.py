"""Where an upload goes on: Locations, with every byte of their state kept (registry notes 2.2)."""

from __future__ import annotations

from yarl import URL

from copycat.errors import HostNotAllowed, UploadRejected
from copycat.oci.digest import Digest
from copycat.registry.answers import Place, Reply
from copycat.registry.hosts import same_origin, web_url

__all__ = ["next_location", "resolve_location", "with_digest"]


def resolve_location(base: URL, location: str) -> URL:
    """The URL that a Location means; every byte of its query stays.

    On the same host a lost scheme or port is the request's own (registries behind TLS proxies,
    distribution#2225). Raises ValueError if it is no URL of HTTP.
    """
    target = web_url(location, base=base)
    if (target.host or "").lower() != (base.host or "").lower() or same_origin(target, base):
        return target
    if target.explicit_port is not None and target.scheme == base.scheme:
        return target
    path = target.raw_path_qs
    return URL(f"{base.scheme}://{base.raw_authority}{path}", encoded=True)


def with_digest(location: URL, digest: Digest) -> URL:
    """The Location with `digest=` appended raw: yarl's query functions would decode a signed state."""
    text = str(location)
    return URL(
        f"{text}{'&' if '?' in text else '?'}digest={digest.algorithm}%3A{digest.hex}", encoded=True
    )


def next_location(place: Place, reply: Reply) -> URL:
    """The Location of an answer about an upload. Raises UploadRejected if it has none that can be used."""
    try:
        target = resolve_location(reply.url, reply.headers["Location"])
    except (KeyError, ValueError) as error:
        raise place.error(
            UploadRejected,
            f"{place.who}: no usable Location for {place.what} (HTTP {reply.status}).",
            status=reply.status,
            reason="no_location",
        ) from error
    if reply.url.scheme == "https" and target.scheme != "https":
        raise place.error(
            HostNotAllowed,
            f"{place.who}: {place.what} is to be sent to {target.host} without TLS, which is not done.",
            reason="downgrade",
        )
    return target
