"""Images made to order: valid for any reader, the same for the same seed, and as odd as was asked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

import pytest

from copycat.oci.manifest import Index, Manifest
from copycat.sandbox import images
from copycat.sandbox.images import Image

MAKERS = {
    "image": lambda seed: images.image(seed=seed),
    "docker": lambda seed: images.image(seed=seed, docker=True),
    "sha512": lambda seed: images.image(seed=seed, algorithm="sha512"),
    "index": lambda seed: images.index(seed=seed, attestations=True),
    "nested": lambda seed: images.index(images.index(seed=seed)),
    "artifact": lambda seed: images.artifact(seed=seed),
    "signature": lambda seed: images.signature(images.image(seed=seed)),
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS.keys())
def test_seeds(maker: object) -> None:
    """The same seed gives the same bytes, another one others; every digest and size is right."""
    assert callable(maker)
    one, same, other = maker(1), maker(1), maker(2)

    assert isinstance(one, Image)
    assert one == same
    assert one.digest != other.digest
    for digest, data in [*one.blobs.items(), *((m.digest, m.data) for m in one.manifests)]:
        algorithm, _, value = digest.partition(":")
        assert value == hashlib.new(algorithm, data).hexdigest()
    assert one.manifests[-1] == one.root
    assert sum(map(len, one.blobs.values())) == one.blob_bytes


def test_layers_are_real() -> None:
    """A layer is a gzip'd tar with a file of the size; the config names the tar's digest; stored, not compressed."""
    layer = images.layer(5000, seed="x")
    plain = gzip.decompress(layer.data or b"")
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        sizes = [member.size for member in tar.getmembers()]

    assert sizes == [5000]
    assert "sha256:" + hashlib.sha256(plain).hexdigest() == layer.diff_id
    assert len(plain) <= layer.size <= len(plain) + 100
    image = images.image(layers=(layer,))
    config = json.loads(image.blobs[image.root.body["config"]["digest"]])
    assert [layer.diff_id] == config["rootfs"]["diff_ids"]
    assert (config["os"], config["architecture"]) == ("linux", "amd64")


def test_the_parser_of_the_program_reads_them() -> None:
    """What is made here is a manifest or an index for copycat.oci."""
    single = images.image(platform="linux/arm/v7").document
    index = images.index(attestations=True).document

    assert isinstance(single, Manifest)
    assert isinstance(index, Index)
    assert len(index.manifests) == 4
    assert [str(p) for p in index.platforms()] == ["linux/amd64", "linux/arm64"]


def test_attestations_name_their_image() -> None:
    """BuildKit's annotations tie an attestation to its image, whose platform is unknown."""
    rows = images.index(attestations=True).root.body["manifests"]

    for image, found in zip(rows[:2], rows[2:], strict=True):
        assert image["digest"] == found["annotations"]["vnd.docker.reference.digest"]
        assert found["platform"] == {"os": "unknown", "architecture": "unknown"}


def test_variants() -> None:
    """Platform variants, inline data, missing media type, foreign and empty layers come out as asked."""
    body = images.image(
        inline=True, media_type_field=False, layers=(images.foreign_layer(), images.empty_layer())
    )
    config, (foreign, empty) = body.root.body["config"], body.root.body["layers"]

    assert images.image(platform="linux/arm/v7").descriptor()["platform"] == {
        "os": "linux",
        "architecture": "arm",
        "variant": "v7",
    }
    assert "data" in config
    assert "mediaType" not in body.root.body
    assert body.media_type == images.OCI_MANIFEST
    assert foreign["urls"]
    assert foreign["digest"] not in body.blobs
    assert empty["size"] == 0
    assert body.blobs[empty["digest"]] == b""


def test_subjects_and_tags() -> None:
    """A referrer names its subject; cosign's tag is made of the digest."""
    image = images.image()
    referrer = images.artifact(subject=image, annotations={"a": "b"})

    assert image.digest == referrer.root.body["subject"]["digest"]
    assert referrer.root.body["annotations"] == {"a": "b"}
    assert "sha256-" + image.digest[7:] + ".sig" == images.cosign_tag(image)
    assert images.EMPTY_CONFIG.data == b"{}"
    assert images.schema1().root.body["schemaVersion"] == 1
