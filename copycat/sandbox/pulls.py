"""The reading half of the protocol: manifests, blobs with Range, tags and referrers."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

from copycat.sandbox.exchange import Exchange
from copycat.sandbox.ledger import Phase
from copycat.sandbox.reply import Reply, refusal
from copycat.sandbox.store import StoredManifest

__all__ = ["WANTED_TYPES", "Pulls"]

_INDEX = "application/vnd.oci.image.index.v1+json"
#: What a client must accept on every manifest request, or an old server converts and the digest changes.
WANTED_TYPES = (
    _INDEX,
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_FALLBACK_TAG = re.compile(r"(sha256|sha512)-([0-9a-f]+)")
_WINDOW = 21600


class Pulls:
    """The handlers that change nothing, and what they must remember to be as odd as the profile says."""

    def __init__(self) -> None:
        self.hidden: dict[tuple[str, str], int] = {}
        """(repository, digest) → reads that are still answered 404 after a push."""

    # Manifests

    async def manifest(self, x: Exchange) -> Reply:
        """HEAD and GET by tag or digest."""
        self._check_manifest_request(x)
        limited = self._rate_limit(x)
        if limited.status != 200:
            return limited
        if x.method == "HEAD" and x.core.profile.head_manifest == "405":
            return refusal(405)
        found = self._find(x)
        if found is None:
            return await missing(x, "MANIFEST_UNKNOWN", "manifest unknown", limited.headers)
        if x.core.redirect_manifests and x.entry.phase is not Phase.REDIRECT:
            return Reply(status=307, headers={"Location": x.core.sign(x.request.path)})
        headers = {"Content-Type": found.media_type, **limited.headers}
        profile = x.core.profile
        bare = x.method == "HEAD" and profile.head_manifest == "no-digest"
        if profile.manifest_digest and not bare:
            headers["Docker-Content-Digest"] = found.digest
            headers["ETag"] = f'"{found.digest}"'
        return Reply(headers=headers, body=found.data)

    def _find(self, x: Exchange) -> StoredManifest | None:
        found = x.core.store.manifest(x.repository, x.reference)
        if found is None and x.core.profile.referrers == "subject":
            fallback = _FALLBACK_TAG.fullmatch(x.reference)
            if fallback is not None:
                found = x.core.store.manifest(x.repository, f"{fallback[1]}:{fallback[2]}")
        if found is None:
            return None
        left = self.hidden.get((x.repository, found.digest), 0)
        if left:
            self.hidden[x.repository, found.digest] = left - 1
            return None
        return found

    def _rate_limit(self, x: Exchange) -> Reply:
        """HEAD is free; the headers come with both (Docker Hub)."""
        limit = x.core.profile.rate_limit
        if limit is None:
            return Reply()
        if x.method == "GET":
            x.core.pulls += 1
        left = max(limit - x.core.pulls, 0)
        headers = {
            "RateLimit-Limit": f"{limit};w={_WINDOW}",
            "RateLimit-Remaining": f"{left};w={_WINDOW}",
            "Docker-RateLimit-Source": "127.0.0.1",
        }
        if x.method == "HEAD" or x.core.pulls <= limit:
            return Reply(headers=headers)
        reply = refusal(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.")
        reply.headers |= headers
        return reply

    def _check_manifest_request(self, x: Exchange) -> None:
        accepted = ",".join(x.request.headers.getall("Accept", []))
        absent = [kind for kind in WANTED_TYPES if kind not in accepted]
        if absent:
            x.violation(f"Accept lacks {', '.join(absent)}")
        if len(x.request.headers.getall("Accept", [])) > 1:
            x.violation("more than one Accept header")
        check_encoding(x)

    # Blobs

    async def blob(self, x: Exchange) -> Reply:
        """HEAD and GET, the latter with Range."""
        if x.method == "GET":
            check_encoding(x)
        data = x.core.store.blob(x.repository, x.reference)
        if data is None:
            return await missing(x, "BLOB_UNKNOWN", "blob unknown to registry")
        if x.method == "GET" and x.core.redirect_blobs:
            return Reply(status=307, headers={"Location": x.core.sign(x.request.path)})
        return ranged(x, data, {"Docker-Content-Digest": x.reference})

    # Lists

    async def tags(self, x: Exchange) -> Reply:
        """`tags/list?n=&last=`."""
        if not await x.core.repository_exists(x.repository):
            return await missing(x, "NAME_UNKNOWN", "repository name not known to registry")
        cap = x.core.profile.max_tags_page
        size = _number(x.query.get("n"))
        if size is not None and cap is not None and size > cap:
            return refusal(400, "UNSUPPORTED", f"n must not be over {cap}")
        tags = sorted(
            tag for tag in x.core.store.tags[x.repository] if tag > x.query.get("last", "")
        )
        page = tags if size is None else tags[:size]
        headers = {"Content-Type": "application/json"}
        if len(page) < len(tags) and page:
            target = f"/v2/{x.repository}/tags/list?last={quote(page[-1])}&n={size}"
            headers["Link"] = f'<{target}>; rel="next"'
        return Reply(
            headers=headers, body=json.dumps({"name": x.repository, "tags": page}).encode()
        )

    async def referrers(self, x: Exchange) -> Reply:
        """The API of distribution-spec 1.1, or what the product has in its place."""
        match x.core.profile.referrers:
            case "html":
                page = "https://github.example/search?q=" + quote(x.repository)
                return Reply(status=303, headers={"Location": page, "Content-Type": "text/html"})
            case "404" | "subject":
                return refusal(404, "NOT_FOUND", "not found")
            case "405":
                return refusal(405)
            case "api":
                return self._referrers(x)

    def _referrers(self, x: Exchange) -> Reply:
        found = [
            _referrer(manifest) for manifest in x.core.store.referrers(x.repository, x.reference)
        ]
        headers = {"Content-Type": _INDEX}
        wanted = x.query.get("artifactType")
        if wanted is not None:
            found = [row for row in found if row.get("artifactType") == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        start, size = _number(x.query.get("start")) or 0, x.core.referrers_page
        page = found[start:] if size is None else found[start : start + size]
        if start + len(page) < len(found):
            target = f"/v2/{x.repository}/referrers/{x.reference}?start={start + len(page)}"
            headers["Link"] = f'<{target}>; rel="next"'
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": page}
        return Reply(headers=headers, body=json.dumps(index).encode())


def ranged(x: Exchange, data: bytes, headers: dict[str, str]) -> Reply:
    """The blob, or the part that a Range header asks for."""
    headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    wanted = x.request.headers.get("Range")
    if wanted is None or (x.fault is not None and x.fault.ignore_range):
        return Reply(headers=headers, body=data)
    found = _RANGE.fullmatch(wanted)
    if found is None or int(found[1]) >= len(data):
        return refusal(416, "RANGE_INVALID", Content_Range=f"bytes */{len(data)}")
    first = int(found[1])
    last = min(int(found[2] or len(data)), len(data) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return Reply(status=206, headers=headers, body=data[first : last + 1])


async def missing(
    x: Exchange, code: str, message: str, headers: dict[str, str] | None = None
) -> Reply:
    """404, or what the product says about a repository that is not there."""
    profile = x.core.profile
    known = await x.core.repository_exists(x.repository)
    if known or (
        profile.create_on_push and x.core.authority.may_push(x.authorization, x.repository)
    ):
        # who may make it is told that it is not there; others are told less
        reply = refusal(404, code, message, {"reference": x.reference})
    elif profile.missing_repository == 404:
        text = f"The repository with name '{x.repository}' does not exist in the registry"
        reply = refusal(404, "NAME_UNKNOWN", text)
    elif profile.missing_repository == 401:
        reply = refusal(401, "UNAUTHORIZED", "authentication required")
        challenge = x.core.authority.challenge(x.origin, [(x.repository, "pull")])
        reply.headers["WWW-Authenticate"] = challenge
    else:
        reply = refusal(profile.missing_repository, "DENIED", "requested access is denied")
    reply.headers |= headers or {}
    return reply


def check_encoding(x: Exchange) -> None:
    """Some servers compress on the way when asked to; the bytes then hash to something else."""
    if x.request.headers.get("Accept-Encoding", "") != "identity":
        x.violation("Accept-Encoding is not identity")


def _referrer(manifest: StoredManifest) -> dict[str, object]:
    body = manifest.body
    kind = body.get("artifactType") or body.get("config", {}).get("mediaType", "")
    row: dict[str, object] = {**manifest.descriptor(), "artifactType": kind}
    if body.get("annotations"):
        row["annotations"] = body["annotations"]
    return row


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
