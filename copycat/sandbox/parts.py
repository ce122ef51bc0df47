"""The blobs of images made to order: layers, configs, and how a manifest names them."""

from __future__ import annotations

import base64
import gzip
import io
import random
import tarfile
from dataclasses import dataclass, field, replace
from typing import Any

from copycat.sandbox.store import digest_of

__all__ = ["EMPTY_CONFIG", "Blob", "empty_layer", "foreign_layer", "layer", "make_blob"]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
IN_TOTO = "application/vnd.in-toto+json"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob and how a manifest names it. `data` is None for one that lives elsewhere (`urls`)."""

    media_type: str
    digest: str
    size: int
    data: bytes | None = field(repr=False)
    diff_id: str = ""
    """The digest of the layer's tar, for the config."""
    urls: tuple[str, ...] = ()
    inline: bool = False
    """The descriptor carries the bytes as `data`."""

    def descriptor(self) -> dict[str, Any]:
        """As JSON wants it."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.urls:
            found["urls"] = list(self.urls)
        if self.inline and self.data is not None:
            found["data"] = base64.b64encode(self.data).decode()
        return found


def layer(
    size: int = 1024, *, seed: object = 0, docker: bool = False, algorithm: str = "sha256"
) -> Blob:
    """A gzip'd tar with one file of `size` random bytes. The blob is some 10 KiB larger: tar's padding, nothing is compressed."""
    content = random.Random(f"{seed}:{size}").randbytes(size)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo(f"srv/{seed}-{size}.bin"[-90:])
        member.size = size
        tar.addfile(member, io.BytesIO(content))
    plain = stream.getvalue()
    data = gzip.compress(plain, compresslevel=0, mtime=0)
    return Blob(
        media_type=DOCKER_LAYER if docker else OCI_LAYER,
        digest=digest_of(data, algorithm),
        size=len(data),
        data=data,
        diff_id=digest_of(plain),
    )


def empty_layer(algorithm: str = "sha256") -> Blob:
    """A blob of no bytes at all, as old tools have pushed."""
    digest = digest_of(b"", algorithm)
    return Blob(media_type=OCI_LAYER, digest=digest, size=0, data=b"", diff_id=digest_of(b""))


def foreign_layer(size: int = 512, *, seed: object = 0, url: str = "") -> Blob:
    """A layer that its vendor serves; no registry has it."""
    found = layer(size, seed=f"foreign-{seed}")
    urls = (url or f"https://vendor.example/{found.digest}",)
    return replace(found, media_type=FOREIGN_LAYER, data=None, urls=urls)


def make_blob(
    media_type: str, data: bytes, algorithm: str = "sha256", *, inline: bool = False
) -> Blob:
    """Any bytes as a blob."""
    digest = digest_of(data, algorithm)
    return Blob(media_type=media_type, digest=digest, size=len(data), data=data, inline=inline)


#: The two bytes that artifacts have for a config.
EMPTY_CONFIG = make_blob(OCI_EMPTY, b"{}")
