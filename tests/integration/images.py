"""Images of real files: parts of Python's own library in several layers, as build tools publish them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import sysconfig
import tarfile
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Image",
    "bulky_image",
    "layer_of",
    "library_image",
    "push",
    "put_blob",
    "put_manifest",
    "single_image",
]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
IN_TOTO = "application/vnd.in-toto+json"

#: Which parts of the library make which layer; some hundred files, two to three megabytes together.
PARTS = (
    ("asyncio", "concurrent"),
    ("email", "http", "urllib"),
    ("json", "logging"),
    ("xml", "html"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Blobs by digest, and manifests in the order in which a registry takes them: the root is the last."""

    blobs: Mapping[str, bytes]
    manifests: Sequence[tuple[str, bytes]]

    @property
    def digest(self) -> str:
        """The root's digest."""
        return sha256(self.manifests[-1][1])

    @property
    def children(self) -> list[str]:
        """The digests of the other manifests."""
        return [sha256(raw) for _, raw in self.manifests[:-1]]

    @property
    def anchor(self) -> str:
        """The tag that keeps the root at the target."""
        return "digest-" + self.digest.removeprefix("sha256:")

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(len(blob) for blob in self.blobs.values())


def sha256(data: bytes) -> str:
    """A digest as registries write it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer_of(files: Iterable[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A gzipped tar archive of these files, and the digest of the tar inside; the same bytes each time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0), sha256(buffer.getvalue())


def library_image(*, salt: str = "") -> Image:
    """An OCI index: amd64 and arm64, sharing all layers but one, and an attestation of the first.

    Args:
        salt: another text makes another version, which shares the library's layers.
    """
    shared = [layer_of(_library(names)) for names in PARTS]
    blobs: dict[str, bytes] = {}
    manifests: list[tuple[str, bytes]] = []
    children: list[dict[str, Any]] = []
    for architecture in ("amd64", "arm64"):
        own = layer_of([("etc/architecture", f"{architecture} {salt}\n".encode())])
        raw = _manifest([*shared, own], {"os": "linux", "architecture": architecture}, blobs)
        manifests.append((OCI_MANIFEST, raw))
        platform = {"os": "linux", "architecture": architecture}
        children.append(_descriptor(OCI_MANIFEST, raw) | {"platform": platform})
    attestation = _attestation(children[0]["digest"], blobs)
    manifests.append((OCI_MANIFEST, attestation))
    children.append(
        _descriptor(OCI_MANIFEST, attestation)
        | {
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {
                "vnd.docker.reference.digest": children[0]["digest"],
                "vnd.docker.reference.type": "attestation-manifest",
            },
        }
    )
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}
    return Image(blobs=blobs, manifests=[*manifests, (OCI_INDEX, _json(index))])


def single_image(text: str) -> Image:
    """A Docker image of one platform: a layer of the library and one with this text."""
    blobs: dict[str, bytes] = {}
    layers = [layer_of(_library(PARTS[0])), layer_of([("etc/text", text.encode())])]
    types = (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER)
    raw = _manifest(layers, {"os": "linux", "architecture": "amd64"}, blobs, types=types)
    return Image(blobs=blobs, manifests=[(DOCKER_MANIFEST, raw)])


def bulky_image(*sizes: int, seed: int = 0) -> Image:
    """An image with a layer of random bytes of each size, which no compression makes smaller."""
    source = random.Random(seed)
    layers = [layer_of([(f"data/{n}", source.randbytes(size))]) for n, size in enumerate(sizes)]
    blobs: dict[str, bytes] = {}
    raw = _manifest(layers, {"os": "linux", "architecture": "amd64"}, blobs)
    return Image(blobs=blobs, manifests=[(OCI_MANIFEST, raw)])


def push(image: Image, registry: str, repository: str, *tags: str) -> str:
    """Puts an image into a registry over plain HTTP; its root's digest."""
    for digest, data in image.blobs.items():
        put_blob(registry, repository, digest, data)
    for media_type, raw in image.manifests:
        put_manifest(registry, repository, sha256(raw), raw, media_type)
    media_type, raw = image.manifests[-1]
    for tag in tags:
        put_manifest(registry, repository, tag, raw, media_type)
    return image.digest


def put_blob(registry: str, repository: str, digest: str, data: bytes) -> None:
    """Puts a blob into a repository over plain HTTP."""
    with _request("POST", f"http://{registry}/v2/{repository}/blobs/uploads/") as answer:
        location = answer.headers["Location"]
    separator = "&" if "?" in location else "?"
    _request("PUT", f"{location}{separator}digest={digest}", data).close()


def put_manifest(
    registry: str, repository: str, reference: str, raw: bytes, media_type: str
) -> None:
    """Puts a manifest into a repository over plain HTTP, under a tag or its digest."""
    url = f"http://{registry}/v2/{repository}/manifests/{reference}"
    _request("PUT", url, raw, media_type).close()


def _request(
    method: str, url: str, data: bytes = b"", media_type: str = "application/octet-stream"
) -> Any:
    request = urllib.request.Request(
        url, method=method, data=data, headers={"Content-Type": media_type}
    )
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)


def _library(names: Iterable[str]) -> list[tuple[str, bytes]]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for name in names for path in (root / name).rglob("*.py"))
    return [(f"usr/lib/python3/{path.relative_to(root)}", path.read_bytes()) for path in files]


def _manifest(
    layers: Sequence[tuple[bytes, str]],
    config: dict[str, Any],
    blobs: dict[str, bytes],
    *,
    types: tuple[str, str, str] = (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER),
) -> bytes:
    """The bytes of an image manifest; its blobs are added to `blobs`."""
    inside = [diff for _, diff in layers]
    settings = _json(config | {"config": {}, "rootfs": {"type": "layers", "diff_ids": inside}})
    data = [blob for blob, _ in layers]
    blobs.update({sha256(blob): blob for blob in [settings, *data]})
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": types[0],
            "config": _descriptor(types[1], settings),
            "layers": [_descriptor(types[2], blob) for blob in data],
        }
    )


def _attestation(subject: str, blobs: dict[str, bytes]) -> bytes:
    """A provenance statement in the form that BuildKit publishes."""
    statement = _json(
        {
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://slsa.dev/provenance/v0.2",
            "subject": [{"name": "app", "digest": {"sha256": subject.removeprefix("sha256:")}}],
            "predicate": {"buildType": "test"},
        }
    )
    unknown = {"os": "unknown", "architecture": "unknown"}
    types = (OCI_MANIFEST, OCI_CONFIG, IN_TOTO)
    return _manifest([(statement, sha256(statement))], unknown, blobs, types=types)


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()
