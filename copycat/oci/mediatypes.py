"""Media types that the mirror has to tell apart, and the limits for documents."""

from __future__ import annotations

__all__ = [
    "ACCEPT",
    "DOCKER_LIST",
    "DOCKER_MANIFEST",
    "INDEX_TYPES",
    "KNOWN_TYPES",
    "MANIFEST_TYPES",
    "MAX_DESCRIPTORS",
    "MAX_PULL",
    "MAX_PUSH",
    "OCI_ARTIFACT",
    "OCI_EMPTY",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "SCHEMA1",
    "SCHEMA1_SIGNED",
    "SCHEMA1_TYPES",
    "is_foreign",
]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST, OCI_ARTIFACT})
SCHEMA1_TYPES = frozenset({SCHEMA1, SCHEMA1_SIGNED})
KNOWN_TYPES = INDEX_TYPES | MANIFEST_TYPES | SCHEMA1_TYPES

#: For every request of a manifest. One header, because some servers read the first one only, and no
#: `*/*`, because old servers would then convert to schema 1, which changes the digest.
ACCEPT = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}, {OCI_ARTIFACT}"

#: Bytes of a document that every registry must accept (distribution-spec, "Pushing Manifests").
MAX_PUSH = 4 * 1024 * 1024
#: Bytes of a document that we read.
MAX_PULL = 8 * 1024 * 1024
#: Entries of one document; real ones have a few hundred at most.
MAX_DESCRIPTORS = 10_000

_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"


def is_foreign(media_type: str) -> bool:
    """Whether this is a layer that its registry need not serve (Windows bases: image-spec "Non-distributable layers")."""
    return media_type.startswith((_DOCKER_FOREIGN, _OCI_FOREIGN))
