"""The writing half for manifests: what real registries refuse because its parts are not there, and what they merely note."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from copycat.sandbox.exchange import Exchange
from copycat.sandbox.ledger import Phase
from copycat.sandbox.pulls import Pulls, missing
from copycat.sandbox.reply import Reply, refusal
from copycat.sandbox.store import StoredManifest

__all__ = ["MAX_MANIFEST", "Pushes"]

MAX_MANIFEST = 4 * 1024 * 1024

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_FOREIGN = ("foreign", "nondistributable")
_DOCKER = "application/vnd.docker."
_KNOWN_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.empty.v1+json",
    "application/vnd.cncf.helm.config.v1+json",
    "application/vnd.dev.cosign.",
)


class Pushes:
    """The handlers of PUT and DELETE on manifests, and of DELETE on blobs."""

    def __init__(self, pulls: Pulls) -> None:
        self._pulls = pulls
        self.acknowledged: set[tuple[str, str]] = set()
        """(repository, digest) of which the client was told that it is there: to rely on it is no mistake."""

    async def put(self, x: Exchange) -> Reply:
        """Checks, stores, tags."""
        data = bytearray()
        await x.read_body(data.extend)
        await x.enter(Phase.PUT_MANIFEST)
        algorithm = x.reference.partition(":")[0] if ":" in x.reference else "sha256"
        kind = x.request.headers.get("Content-Type", "")
        if algorithm not in ("sha256", "sha512"):
            return refusal(400, "DIGEST_INVALID", "unsupported digest algorithm")
        manifest = StoredManifest.of(bytes(data), kind, algorithm)
        refused = await self._refuse(x, manifest) or self._refuse_tag(x, manifest)
        if refused is not None:
            return refused
        self._store(x, manifest)
        return self._stored(x, manifest)

    async def _refuse(self, x: Exchange, manifest: StoredManifest) -> Reply | None:
        profile = x.core.profile
        if not profile.create_on_push and not await x.core.repository_exists(x.repository):
            return await missing(x, "NAME_UNKNOWN", "repository name not known to registry")
        if len(manifest.data) > MAX_MANIFEST:
            x.violation("a manifest over 4 MiB")
            return refusal(413, "SIZE_INVALID", "manifest over 4 MiB")
        body = manifest.body
        if not body or body.get("schemaVersion") != 2:
            return refusal(400, "MANIFEST_INVALID", "manifest invalid")
        if (
            body.get("mediaType", manifest.media_type) != manifest.media_type
            or not manifest.media_type
        ):
            x.violation(f"Content-Type {manifest.media_type!r} of a {body.get('mediaType')!r}")
            return refusal(400, "MANIFEST_INVALID", "mediaType and Content-Type differ")
        if ":" in x.reference and x.reference != manifest.digest:
            x.violation("the manifest does not hash to the digest")
            return refusal(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        return self._refuse_types(x, manifest, body) or self._refuse_parts(x, body)

    def _refuse_types(
        self, x: Exchange, manifest: StoredManifest, body: dict[str, Any]
    ) -> Reply | None:
        profile = x.core.profile
        if not profile.docker_types and manifest.media_type.startswith(_DOCKER):
            return refusal(415, "MANIFEST_INVALID", "docker media types are not supported")
        if not profile.strict_types:
            return None
        config = body.get("config", {}).get("mediaType", _KNOWN_CONFIGS[0])
        if not str(config).startswith(_KNOWN_CONFIGS):
            return refusal(400, "MANIFEST_INVALID", f"config media type {config} is not allowed")
        mixed = any(str(c.get("mediaType")).startswith(_DOCKER) for c in body.get("manifests", []))
        if mixed and not manifest.media_type.startswith(_DOCKER):
            return refusal(400, "MANIFEST_INVALID", "docker manifest inside an OCI index")
        return None

    def _refuse_parts(self, x: Exchange, body: dict[str, Any]) -> Reply | None:
        """Everything that it refers to must be in this repository; only a subject may be missing."""
        store, repository = x.core.store, x.repository
        blobs = [d for d in _blobs(body) if store.blob(repository, d) is None]
        children = [
            d
            for d in _children(body)
            if store.manifest(repository, d) is None and store.blob(repository, d) is None
        ]
        if not blobs and not children:
            return None
        absent = blobs + children
        if any((repository, digest) not in self.acknowledged for digest in absent):
            x.violation(f"the manifest comes before {', '.join(absent)}")
        code = "MANIFEST_BLOB_UNKNOWN" if blobs else x.core.profile.nested_references
        return refusal(400, code, "manifest references unknown content", {"digest": absent[0]})

    def _refuse_tag(self, x: Exchange, manifest: StoredManifest) -> Reply | None:
        if ":" in x.reference:
            return None
        if not _TAG.fullmatch(x.reference):
            x.violation("no tag")
            return refusal(400, "TAG_INVALID", "manifest tag did not match the grammar")
        held = x.core.store.tags[x.repository].get(x.reference)
        immutable = x.core.immutable_tags or x.core.profile.immutable_tags
        if immutable and held not in (None, manifest.digest):
            text = (
                f"The image tag '{x.reference}' already exists in the '{x.repository}' repository "
                "and cannot be overwritten because the repository is immutable."
            )
            return refusal(400, "TAG_INVALID", text)
        return None

    def _store(self, x: Exchange, manifest: StoredManifest) -> None:
        key = (x.repository, manifest.digest)
        fresh = x.core.store.manifest(*key) is None
        tag = None if ":" in x.reference else x.reference
        x.core.store.put_manifest(x.repository, manifest, tag)
        if fresh and x.core.profile.visible_after:
            self._pulls.hidden[key] = x.core.profile.visible_after

    def _stored(self, x: Exchange, manifest: StoredManifest) -> Reply:
        headers = {}
        if x.core.profile.put_location:
            headers["Location"] = f"/v2/{x.repository}/manifests/{manifest.digest}"
        if x.core.profile.put_location and x.core.profile.manifest_digest:
            headers["Docker-Content-Digest"] = manifest.digest
        subject = manifest.body.get("subject")
        if isinstance(subject, dict) and x.core.profile.oci_subject:
            headers["OCI-Subject"] = str(subject.get("digest"))
        return Reply(status=201, headers=headers)

    async def delete(self, x: Exchange) -> Reply:
        """A manifest by digest with its tags, or a tag alone."""
        store = x.core.store
        if store.manifest(x.repository, x.reference) is None:
            return await missing(x, "MANIFEST_UNKNOWN", "manifest unknown")
        if ":" in x.reference:
            store.delete_manifest(x.repository, x.reference)
        else:
            del store.tags[x.repository][x.reference]
        return Reply(status=202)

    async def delete_blob(self, x: Exchange) -> Reply:
        """By digest."""
        if x.core.store.blob(x.repository, x.reference) is None:
            return await missing(x, "BLOB_UNKNOWN", "blob unknown to registry")
        del x.core.store.blobs[x.repository][x.reference]
        return Reply(status=202)


def _blobs(body: dict[str, Any]) -> Iterator[str]:
    """Config and layers that must be here; foreign ones with URLs may be elsewhere."""
    config = body.get("config")
    if isinstance(config, dict):
        yield str(config.get("digest"))
    for layer in [*body.get("layers", []), *body.get("blobs", [])]:
        elsewhere = layer.get("urls") and any(w in layer.get("mediaType", "") for w in _FOREIGN)
        if not elsewhere:
            yield str(layer.get("digest"))


def _children(body: dict[str, Any]) -> Iterator[str]:
    yield from (str(child.get("digest")) for child in body.get("manifests", []))
