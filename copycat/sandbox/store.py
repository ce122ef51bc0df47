"""What the sandbox registry keeps: blobs, manifests and tags of each repository, in memory and open to the tests."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Store", "StoredManifest", "digest_of", "sniff"]

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """`sha256:…` of the bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def sniff(data: bytes) -> str:
    """The media type that a manifest's body names, or the one that its structure gives; "" if it has neither."""
    try:
        body = json.loads(data)
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    if isinstance(body.get("mediaType"), str):
        return str(body["mediaType"])
    if "manifests" in body:
        return _INDEX
    return _MANIFEST if "config" in body else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredManifest:
    """A manifest's exact bytes, with the type under which they were pushed."""

    media_type: str
    data: bytes
    digest: str

    @classmethod
    def of(cls, data: bytes, media_type: str = "", algorithm: str = "sha256") -> StoredManifest:
        """From bytes; without a media type, the one in the body."""
        return cls(
            media_type=media_type or sniff(data), data=data, digest=digest_of(data, algorithm)
        )

    @property
    def body(self) -> dict[str, Any]:
        """The parsed JSON; {} when it is no object."""
        try:
            body = json.loads(self.data)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    def descriptor(self, **more: Any) -> dict[str, Any]:
        """As an index or a subject names it."""
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.data),
            **more,
        }


class Store:
    """Plain dictionaries by repository; digests are text."""

    def __init__(self) -> None:
        self.blobs: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.manifests: dict[str, dict[str, StoredManifest]] = defaultdict(dict)
        self.tags: dict[str, dict[str, str]] = defaultdict(dict)
        self.repositories: set[str] = set()

    def blob(self, repository: str, digest: str) -> bytes | None:
        """The bytes, or None."""
        return self.blobs[repository].get(digest) if repository in self.blobs else None

    def manifest(self, repository: str, reference: str) -> StoredManifest | None:
        """By tag or digest, or None."""
        if repository not in self.manifests:
            return None
        digest = reference if ":" in reference else self.tags[repository].get(reference, "")
        return self.manifests[repository].get(digest)

    def put_blob(self, repository: str, data: bytes, digest: str = "") -> str:
        """Stores and answers the digest."""
        digest = digest or digest_of(data)
        self.repositories.add(repository)
        self.blobs[repository][digest] = data
        return digest

    def put_manifest(
        self, repository: str, manifest: StoredManifest, tag: str | None = None
    ) -> None:
        """Stores without any check."""
        self.repositories.add(repository)
        self.manifests[repository][manifest.digest] = manifest
        if tag is not None:
            self.tags[repository][tag] = manifest.digest

    def delete_manifest(self, repository: str, digest: str) -> None:
        """With the tags that point at it."""
        del self.manifests[repository][digest]
        tags = self.tags[repository]
        for tag in [tag for tag, target in tags.items() if target == digest]:
            del tags[tag]

    def referrers(self, repository: str, digest: str) -> Iterator[StoredManifest]:
        """The manifests whose `subject` is the digest."""
        for manifest in self.manifests.get(repository, {}).values():
            subject = manifest.body.get("subject")
            if isinstance(subject, dict) and subject.get("digest") == digest:
                yield manifest

    def unique_blob_bytes(self, *repositories: str) -> int:
        """The sum of the sizes of different blobs in the repositories (in all without an argument)."""
        chosen = repositories or tuple(self.blobs)
        return sum({d: len(data) for r in chosen for d, data in self.blobs[r].items()}.values())
