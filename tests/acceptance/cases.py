"""The cases: what is at the source, under what reference it is asked for, and what happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.parts import OCI_LAYER, make_blob
from copycat.sandbox.store import StoredManifest

__all__ = ["CASES", "Case"]

ZSTD = OCI_LAYER.removesuffix("gzip") + "zstd"
#: Some zstd frame; nobody looks inside.
_FRAME = bytes.fromhex("28b52ffd") + bytes(range(256)) * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case."""

    image: Image
    more: tuple[Image, ...] = ()
    """Besides, in the same repository of the source."""
    tags: Mapping[str, str] | None = None
    """Tag → digest, besides."""
    by_digest: bool = False
    signatures: str = "none"


def _zstd() -> Image:
    data = _FRAME
    return images.image(
        seed="zstd", layers=(replace(make_blob(ZSTD, data), diff_id="sha256:0"), 700)
    )


def _duplicates() -> Image:
    part = images.layer(300_000, seed="twice")
    return images.image(seed="duplicates", layers=(part, 500, part, part))


def _served() -> Image:
    """A foreign layer that the source has all the same."""
    part = images.layer(900, seed="served")
    vendor = replace(
        images.foreign_layer(900, seed="served"),
        digest=part.digest,
        size=part.size,
        data=part.data,
        diff_id=part.diff_id,
    )
    return images.image(seed="served", layers=(vendor, 400))


def _mixed() -> Image:
    return images.index(images.image(seed="mixed", docker=True), images.image(seed="mixed-oci"))


def _unknown_config() -> Image:
    """An artifact of old Helm's kind: a config type of its own."""
    base = images.image(seed="own", layers=(400,))
    config = make_blob("application/vnd.example.config.v1+json", b'{"own":true}')
    body = json.loads(base.data)
    body["config"] = config.descriptor()
    root = StoredManifest.of(json.dumps(body).encode(), base.media_type)
    blobs = {layer["digest"]: base.blobs[layer["digest"]] for layer in body["layers"]}
    return replace(
        base, root=root, manifests=(root,), blobs={**blobs, config.digest: b'{"own":true}'}
    )


def _referrers() -> Case:
    image = images.index(seed="signed", attestations=True)
    child = images.artifact(seed="sbom", subject=image)
    return Case(
        image=image,
        more=(child, images.artifact(seed="signed-sbom", subject=child)),
        signatures="all",
    )


def _cosign() -> Case:
    image = images.image(seed="cosigned")
    signature, attestation = images.signature(image), images.signature(image, seed=1)
    tags = {
        images.cosign_tag(image): signature.digest,
        images.cosign_tag(image, ".att"): attestation.digest,
    }
    return Case(image=image, more=(signature, attestation), tags=tags, signatures="all")


#: Name in the table → how the case is made.
CASES: dict[str, Callable[[], Case]] = {
    "index": lambda: Case(image=images.index(seed="index", attestations=True, layers=(300_000, 900))),
    "nested-index": lambda: Case(image=images.index(images.index(seed="inner"), images.image(seed="leaf"))),
    "docker-list": lambda: Case(image=images.index(seed="docker", docker=True)),
    "docker-in-oci": lambda: Case(image=_mixed()),
    "zero-byte-layer": lambda: Case(image=images.image(seed="zero", layers=(images.empty_layer(), 600))),
    "duplicate-layers": lambda: Case(image=_duplicates()),
    "large-layer": lambda: Case(image=images.image(seed="large", layers=(2_500_000,))),
    "zstd-layer": lambda: Case(image=_zstd()),
    "foreign-layer": lambda: Case(image=images.image(seed="foreign", layers=(images.foreign_layer(), 500))),
    "foreign-served": lambda: Case(image=_served()),
    "sha512": lambda: Case(
        image=images.index(seed="strong", algorithm="sha512", layers=(300_000, 500)), by_digest=True
    ),
    "data-field": lambda: Case(image=images.image(seed="inline", inline=True)),
    "no-media-type": lambda: Case(image=images.image(seed="bare", media_type_field=False)),
    "artifact": lambda: Case(image=images.artifact(seed="thing")),
    "unknown-config": lambda: Case(image=_unknown_config()),
    "no-layers": lambda: Case(image=images.image(seed="none", layers=())),
    "referrers": _referrers,
    "cosign-tags": _cosign,
    "schema1": lambda: Case(image=images.schema1()),
    "token-expiry": lambda: Case(image=images.index(seed="expiry", layers=(300_000, 300_001))),
    "mount-refused": lambda: Case(image=images.image(seed="mount", layers=(300_000,))),
}  # fmt: skip
