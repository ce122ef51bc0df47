"""Manifests and indexes: bytes that stay as they came, with a typed view of them.

The digest of an image is the hash of the bytes that a registry served. `raw` is therefore the truth
that is copied; everything else is read from it once and never written back. (The one document that
the mirror writes itself is a narrowed index, which is new content with a digest of its own.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

import msgspec

from copycat.decoding import UNREADABLE
from copycat.errors import DigestMismatch, InvalidManifest, printable
from copycat.oci.descriptor import Descriptor, DescriptorJSON, text_map
from copycat.oci.digest import Digest
from copycat.oci.mediatypes import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    KNOWN_TYPES,
    MANIFEST_TYPES,
    MAX_DESCRIPTORS,
    MAX_PULL,
    MAX_PUSH,
    OCI_ARTIFACT,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    SCHEMA1,
    SCHEMA1_SIGNED,
    SCHEMA1_TYPES,
    is_foreign,
)
from copycat.oci.platform import Platform

__all__ = [
    "ACCEPT",
    "DOCKER_LIST",
    "DOCKER_MANIFEST",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "MAX_PULL",
    "MAX_PUSH",
    "OCI_ARTIFACT",
    "OCI_EMPTY",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "SCHEMA1",
    "SCHEMA1_SIGNED",
    "Descriptor",
    "Document",
    "Index",
    "Manifest",
    "Selection",
    "is_foreign",
    "parse_document",
]

#: BuildKit's annotation that ties an attestation to the image it speaks about.
_ATTESTS = "vnd.docker.reference.digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image (or artifact): a configuration and layers."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    """For an OCI artifact manifest: its `blobs`."""
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=lambda: text_map(None), hash=False)

    def blobs(self) -> tuple[Descriptor, ...]:
        """What must stand in a registry before this manifest: every digest once, foreign layers too."""
        return _once((*filter(None, (self.config,)), *self.layers))

    def successors(self) -> tuple[Descriptor, ...]:
        """The same as `blobs`; the name that manifests and indexes share."""
        return self.blobs()

    @property
    def descriptor(self) -> Descriptor:
        """How a parent refers to this document."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The part of an index that is wanted."""

    children: tuple[Descriptor, ...]
    """Images for the wanted platforms, in the index's order."""
    attestations: tuple[Descriptor, ...]
    """What BuildKit attached to those images."""
    missing: tuple[Platform, ...]
    """Wanted platforms for which there is nothing, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Several images under one name, told apart by platform."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=lambda: text_map(None), hash=False)

    def successors(self) -> tuple[Descriptor, ...]:
        """What must stand in a registry before this index: every digest once."""
        return _once(self.manifests)

    def platforms(self) -> tuple[Platform, ...]:
        """The platforms that have an image, sorted."""
        return tuple(
            sorted({d.platform for d in self.manifests if d.platform and _is_image(d)}),
        )

    def select(self, wanted: Collection[Platform]) -> Selection:
        """What these platforms need.

        Entries without a platform are selected too and nothing is `missing` beside them: a container
        runtime looks inside them for its platform (containerd, `images.Manifest`).
        """
        images = [d for d in self.manifests if _is_image(d)]
        children = [
            d for d in images if d.platform is None or any(w.matches(d.platform) for w in wanted)
        ]
        found = [d.platform for d in children]
        missing = {w for w in wanted if not any(p is None or w.matches(p) for p in found)}
        digests = {str(d.digest) for d in children}
        return Selection(
            children=tuple(children),
            attestations=tuple(d for d in self.manifests if _attests(d, digests)),
            missing=tuple(sorted(missing)),
        )

    def narrowed(self, selection: Selection) -> Index:
        """A new index with nothing but the selection; all other members, and each entry, are kept byte for byte.

        Raises:
            InvalidManifest: the index has text that is not UTF-8 where nobody had to look before.
        """
        kept = {*selection.children, *selection.attestations}
        try:
            members = msgspec.json.decode(self.raw, type=dict[str, msgspec.Raw])
            entries = msgspec.json.decode(members["manifests"], type=list[msgspec.Raw])
        except UNREADABLE as error:
            _refuse_json(error)

        chosen = [e for e, d in zip(entries, self.manifests, strict=True) if d in kept]
        body = members | {"mediaType": self.media_type, "manifests": chosen}
        raw = msgspec.json.encode(body, order="deterministic")
        return replace(
            self,
            raw=raw,
            digest=Digest.of(raw),
            manifests=tuple(d for d in self.manifests if d in kept),
        )

    @property
    def descriptor(self) -> Descriptor:
        """How a parent refers to this document."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))


Document = Manifest | Index


def _once(descriptors: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
    unique: dict[Digest, Descriptor] = {}
    for descriptor in descriptors:
        unique.setdefault(descriptor.digest, descriptor)

    return tuple(unique.values())


def _is_image(descriptor: Descriptor) -> bool:
    if descriptor.platform is None:
        # Artifacts and BuildKit's cache layers stand in indexes as well; they run nowhere.
        return (
            descriptor.media_type in KNOWN_TYPES
            and not descriptor.artifact_type
            and _ATTESTS not in descriptor.annotations
        )

    return not descriptor.platform.is_unknown


def _attests(descriptor: Descriptor, digests: Collection[str]) -> bool:
    return not _is_image(descriptor) and descriptor.annotations.get(_ATTESTS) in digests


class _DocumentJSON(msgspec.Struct, frozen=True, rename="camel"):
    """Every member that any of the types has, as served; `null` is the same as absent."""

    schema_version: int | None = None
    media_type: str | None = None
    artifact_type: str | None = None
    config: DescriptorJSON | None = None
    layers: list[DescriptorJSON] | None = None
    blobs: list[DescriptorJSON] | None = None
    manifests: list[DescriptorJSON] | None = None
    subject: DescriptorJSON | None = None
    annotations: dict[str, str | None] | None = None


_DECODER = msgspec.json.Decoder(_DocumentJSON)


def parse_document(raw: bytes, *, content_type: str = "", digest: Digest | None = None) -> Document:
    """The manifest or index that `raw` is.

    Args:
        raw: The bytes as served.
        content_type: The answer's header, as served; generic or missing ones are no obstacle.
        digest: What was asked for; without it the document's digest is the sha256 of `raw`.

    Raises:
        DigestMismatch: `raw` is not what was asked for.
        InvalidManifest: no document that can be copied; reason `schema1` for Docker's first schema,
            `too_large` over `MAX_PULL`.
    """
    if len(raw) > MAX_PULL:
        raise InvalidManifest(
            f"the manifest has {len(raw)} bytes, at most {MAX_PULL} are read", reason="too_large"
        )

    actual = Digest.of(raw, digest.algorithm if digest else "sha256")
    if digest is not None and actual != digest:
        raise DigestMismatch(
            f"the manifest asked for as {digest} hashes to {actual}", reference=str(digest)
        )

    try:
        body = _DECODER.decode(raw)
    except UNREADABLE as error:
        _refuse_json(error)

    media_type = _resolve_type(body, content_type.partition(";")[0].strip().lower())
    if media_type in INDEX_TYPES:
        return _index(raw, actual, media_type, body)

    return _manifest(raw, actual, media_type, body)


def _refuse_json(error: Exception) -> NoReturn:
    raise InvalidManifest(f"the manifest cannot be read: {printable(str(error))}") from error


def _resolve_type(body: _DocumentJSON, header: str) -> str:
    """Body, then header, then structure; types that contradict each other are refused.

    A document that reads as two types means different things to different programs
    (CVE-2021-41190).
    """
    stated = body.media_type or ""
    known = [t for t in (stated, header) if t in KNOWN_TYPES]
    if body.schema_version == 1 or SCHEMA1_TYPES.intersection(known):
        raise InvalidManifest(
            "the image uses Docker schema 1, which is no longer supported; rebuild it or push it again",
            reason="schema1",
        )

    if len(set(known)) > 1:
        raise InvalidManifest(f"the manifest says {stated}, the registry says {header}")

    media_type = known[0] if known else _type_by_structure(body)
    _check_structure(body, media_type)
    return media_type


def _type_by_structure(body: _DocumentJSON) -> str:
    if body.manifests is not None:
        return OCI_INDEX

    if body.config is not None:
        return OCI_MANIFEST

    raise InvalidManifest("neither an image manifest nor an index: no config and no manifests")


def _check_structure(body: _DocumentJSON, media_type: str) -> None:
    if body.manifests is not None and (body.layers is not None or body.config is not None):
        raise InvalidManifest("the manifest has both manifests and config or layers")

    if media_type in INDEX_TYPES and (body.config or body.layers is not None):
        raise InvalidManifest(f"the manifest is called {media_type}, but has config or layers")

    if media_type in MANIFEST_TYPES and body.manifests is not None:
        raise InvalidManifest(f"the manifest is called {media_type}, but has manifests")

    if media_type in MANIFEST_TYPES and media_type != OCI_ARTIFACT and body.config is None:
        raise InvalidManifest("the manifest has no config")


def _index(raw: bytes, digest: Digest, media_type: str, body: _DocumentJSON) -> Index:
    return Index(
        raw=raw,
        media_type=media_type,
        digest=digest,
        manifests=_checked_all(body.manifests, "manifests"),
        subject=body.subject.checked("subject") if body.subject else None,
        artifact_type=body.artifact_type or "",
        annotations=text_map(body.annotations),
    )


def _manifest(raw: bytes, digest: Digest, media_type: str, body: _DocumentJSON) -> Manifest:
    is_artifact = media_type == OCI_ARTIFACT
    return Manifest(
        raw=raw,
        media_type=media_type,
        digest=digest,
        config=body.config.checked("config") if body.config and not is_artifact else None,
        layers=_checked_all(body.blobs, "blobs")
        if is_artifact
        else _checked_all(body.layers, "layers"),
        subject=body.subject.checked("subject") if body.subject else None,
        artifact_type=body.artifact_type or "",
        annotations=text_map(body.annotations),
    )


def _checked_all(served: list[DescriptorJSON] | None, place: str) -> tuple[Descriptor, ...]:
    if served is None:
        return ()

    if len(served) > MAX_DESCRIPTORS:
        raise InvalidManifest(
            f"{place} has {len(served)} entries, at most {MAX_DESCRIPTORS} are allowed",
            reason="too_large",
        )

    return tuple(d.checked(f"{place}[{i}]") for i, d in enumerate(served))
