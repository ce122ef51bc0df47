"""Images made to order: small or large, plain or odd, always valid, and the same bytes for the same seed.

Everything that a copier must copy bit by bit (the list of distribution-spec's conformance tests and what
real registries hold): single images, indexes with attestations, nested indexes, artifacts, zero-byte and
duplicate layers, foreign layers, sha512, inline data, no layers, referrers, cosign tags, schema 1.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from copycat.oci.manifest import Document, parse_document
from copycat.sandbox.parts import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    EMPTY_CONFIG,
    IN_TOTO,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    SCHEMA1,
    Blob,
    empty_layer,
    foreign_layer,
    layer,
    make_blob,
)
from copycat.sandbox.store import StoredManifest, digest_of

__all__ = [
    "DOCKER_MANIFEST",
    "EMPTY_CONFIG",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "SCHEMA1",
    "Blob",
    "Image",
    "ImageOptions",
    "artifact",
    "attestation",
    "cosign_tag",
    "empty_layer",
    "foreign_layer",
    "image",
    "index",
    "layer",
    "schema1",
    "signature",
]

_CREATED = "2024-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A graph: its root, all its manifests (leaves first, the root last) and all its blobs."""

    root: StoredManifest
    manifests: tuple[StoredManifest, ...]
    blobs: Mapping[str, bytes] = field(repr=False)
    platform: Mapping[str, str] = field(default_factory=dict)
    """What an index says about it."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """What an index's descriptor says about it."""

    @property
    def digest(self) -> str:
        """Of the root."""
        return self.root.digest

    @property
    def media_type(self) -> str:
        """Of the root."""
        return self.root.media_type

    @property
    def data(self) -> bytes:
        """The root's bytes."""
        return self.root.data

    @property
    def document(self) -> Document:
        """The root, parsed and checked."""
        return parse_document(self.root.data, content_type=self.root.media_type)

    @property
    def blob_bytes(self) -> int:
        """The sum of the sizes of its different blobs."""
        return sum(map(len, self.blobs.values()))

    def descriptor(self) -> dict[str, Any]:
        """As an index names it."""
        more: dict[str, Any] = {}
        if self.annotations:
            more["annotations"] = dict(self.annotations)
        if self.platform:
            more["platform"] = dict(self.platform)
        return self.root.descriptor(**more)


class ImageOptions(TypedDict, total=False):
    """What `image` takes."""

    seed: object
    layers: Sequence[int | Blob]
    platform: str
    docker: bool
    algorithm: str
    inline: bool
    subject: Image | None
    annotations: Mapping[str, str] | None
    media_type_field: bool


# Images


def image(
    *,
    seed: object = 0,
    layers: Sequence[int | Blob] = (1024, 2048),
    platform: str = "linux/amd64",
    docker: bool = False,
    algorithm: str = "sha256",
    inline: bool = False,
    subject: Image | None = None,
    annotations: Mapping[str, str] | None = None,
    media_type_field: bool = True,
) -> Image:
    """A runnable image.

    Args:
        layers: sizes (each becomes a layer of its own seed) or ready layers, in order, duplicates kept.
        docker: Docker schema 2 types.
        algorithm: of all digests in it and of its own.
        inline: the config's descriptor carries its bytes.
        media_type_field: whether the body says its media type.
    """
    parts = [
        part
        if isinstance(part, Blob)
        else layer(part, seed=f"{seed}/{number}", docker=docker, algorithm=algorithm)
        for number, part in enumerate(layers)
    ]
    where = _platform(platform)
    config = make_blob(
        DOCKER_CONFIG if docker else OCI_CONFIG,
        _json(
            {
                "created": _CREATED,
                **where,
                "config": {"Env": [f"SEED={seed}"], "Entrypoint": ["/srv/run"]},
                "rootfs": {"type": "layers", "diff_ids": [part.diff_id for part in parts]},
                "history": [{"created": _CREATED, "created_by": "sandbox"} for _ in parts],
            }
        ),
        algorithm,
        inline=inline,
    )
    kind = DOCKER_MANIFEST if docker else OCI_MANIFEST
    body = _manifest_body(kind, config, parts, subject=subject, annotations=annotations)
    if not media_type_field:
        del body["mediaType"]
    return _leaf(kind, body, [config, *parts], algorithm, platform=where)


def artifact(
    *,
    seed: object = 0,
    artifact_type: str = "application/vnd.example.thing",
    size: int = 300,
    subject: Image | None = None,
    annotations: Mapping[str, str] | None = None,
    algorithm: str = "sha256",
) -> Image:
    """An OCI artifact with the empty config; with a subject it is a referrer of it."""
    content = make_blob(artifact_type, random.Random(f"artifact:{seed}").randbytes(size), algorithm)
    config = make_blob(OCI_EMPTY, b"{}", algorithm, inline=True)
    body = _manifest_body(
        OCI_MANIFEST,
        config,
        [content],
        subject=subject,
        annotations=annotations,
        artifact_type=artifact_type,
    )
    return _leaf(OCI_MANIFEST, body, [config, content], algorithm)


def attestation(of: Image, *, seed: object = 0) -> Image:
    """BuildKit's: an in-toto statement in a manifest of the platform unknown/unknown that names its image in annotations."""
    statement = {
        "_type": "https://in-toto.io/Statement/v0.1",
        "subject": [of.digest],
        "seed": str(seed),
    }
    content = replace(make_blob(IN_TOTO, _json(statement)), diff_id=digest_of(_json(statement)))
    config = make_blob(
        OCI_CONFIG,
        _json(
            {
                "architecture": "unknown",
                "os": "unknown",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [content.diff_id]},
            }
        ),
    )
    body = _manifest_body(OCI_MANIFEST, config, [content])
    leaf = _leaf(OCI_MANIFEST, body, [config, content], platform=_platform("unknown/unknown"))
    return replace(
        leaf,
        annotations={
            "vnd.docker.reference.digest": of.digest,
            "vnd.docker.reference.type": "attestation-manifest",
        },
    )


def index(
    *children: Image,
    platforms: Sequence[str] = ("linux/amd64", "linux/arm64"),
    attestations: bool = False,
    seed: object = 0,
    layers: Sequence[int | Blob] = (1024, 2048),
    docker: bool = False,
    algorithm: str = "sha256",
    subject: Image | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """An index of the children (indexes among them make it nested); without any, of one new image for each platform."""
    found = list(children) or [
        image(seed=f"{seed}/{p}", layers=layers, platform=p, docker=docker, algorithm=algorithm)
        for p in platforms
    ]
    if attestations:
        found += [attestation(child, seed=seed) for child in found]
    kind = DOCKER_LIST if docker else OCI_INDEX
    body: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": kind,
        "manifests": [child.descriptor() for child in found],
    }
    _decorate(body, subject, annotations)
    root = StoredManifest.of(_json(body), kind, algorithm)
    manifests = {m.digest: m for child in found for m in child.manifests} | {root.digest: root}
    blobs = {digest: data for child in found for digest, data in child.blobs.items()}
    return Image(root=root, manifests=tuple(manifests.values()), blobs=blobs)


def signature(of: Image, *, seed: object = 0) -> Image:
    """What cosign writes under `cosign_tag(of)`: a plain manifest whose layer is the signed payload."""
    payload = {
        "critical": {
            "identity": {"docker-reference": "sandbox"},
            "image": {"docker-manifest-digest": of.digest},
            "type": "cosign container image signature",
        },
        "optional": {"seed": str(seed)},
    }
    content = make_blob("application/vnd.dev.cosign.simplesigning.v1+json", _json(payload))
    content = replace(content, diff_id=content.digest)
    config = make_blob(
        OCI_CONFIG,
        _json(
            {
                "architecture": "",
                "os": "",
                "rootfs": {"type": "layers", "diff_ids": [content.digest]},
            }
        ),
    )
    return _leaf(OCI_MANIFEST, _manifest_body(OCI_MANIFEST, config, [content]), [config, content])


def cosign_tag(of: Image, suffix: str = ".sig") -> str:
    """`sha256-<hex>.sig`; with another suffix `.att`, `.sbom`, or "" for the fallback tag of the referrers."""
    return of.digest.replace(":", "-") + suffix


def schema1(name: str = "old/image", tag: str = "1") -> Image:
    """A manifest of the format that nobody should serve any more."""
    body = {
        "schemaVersion": 1,
        "name": name,
        "tag": tag,
        "architecture": "amd64",
        "fsLayers": [{"blobSum": digest_of(b"old")}],
        "history": [{"v1Compatibility": "{}"}],
    }
    root = StoredManifest.of(_json(body), SCHEMA1)
    return Image(root=root, manifests=(root,), blobs={digest_of(b"old"): b"old"})


# Assembly


def _manifest_body(
    kind: str,
    config: Blob,
    parts: Sequence[Blob],
    *,
    subject: Image | None = None,
    annotations: Mapping[str, str] | None = None,
    artifact_type: str = "",
) -> dict[str, Any]:
    body: dict[str, Any] = {"schemaVersion": 2, "mediaType": kind}
    if artifact_type:
        body["artifactType"] = artifact_type
    body["config"] = config.descriptor()
    body["layers"] = [part.descriptor() for part in parts]
    _decorate(body, subject, annotations)
    return body


def _decorate(
    body: dict[str, Any], subject: Image | None, annotations: Mapping[str, str] | None
) -> None:
    if subject is not None:
        body["subject"] = subject.root.descriptor()
    if annotations:
        body["annotations"] = dict(annotations)


def _leaf(
    kind: str,
    body: Mapping[str, Any],
    parts: Sequence[Blob],
    algorithm: str = "sha256",
    *,
    platform: Mapping[str, str] | None = None,
) -> Image:
    root = StoredManifest.of(_json(body), kind, algorithm)
    blobs = {part.digest: part.data for part in parts if part.data is not None}
    return Image(root=root, manifests=(root,), blobs=blobs, platform=platform or {})


def _platform(text: str) -> dict[str, str]:
    names = ("os", "architecture", "variant")
    return dict(zip(names, text.split("/"), strict=False))


def _json(body: Mapping[str, Any]) -> bytes:
    """Indented, as BuildKit writes it: whoever parses and rebuilds the JSON changes the digest."""
    return json.dumps(body, indent=3).encode()
