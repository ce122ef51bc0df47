"""Pushing manifests to the sandbox registry: order, digests, types, tags, and what is deleted again."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.pushes import MAX_MANIFEST
from copycat.sandbox.registry import Registry
from tests.sandbox.driver import driving

OCI = images.OCI_MANIFEST
BASE = images.image(seed="base")

GRAPHS = {
    "image": images.image(),
    "docker": images.image(docker=True),
    "sha512": images.image(algorithm="sha512"),
    "inline": images.image(inline=True),
    "no-layers": images.image(layers=()),
    "no-media-type": images.image(media_type_field=False),
    "zero-byte": images.image(layers=(images.empty_layer(), 100)),
    "duplicates": images.image(layers=(images.layer(100), images.layer(100))),
    "foreign": images.image(layers=(images.foreign_layer(), 100)),
    "index": images.index(attestations=True),
    "docker-list": images.index(docker=True),
    "nested": images.index(images.index(seed=1), images.image(seed=2)),
    "artifact": images.artifact(),
    "referrer-without-subject": images.artifact(subject=BASE),
    "index-with-subject": images.index(subject=BASE, annotations={"a": "b"}),
    "signature": images.signature(BASE),
}


@pytest.mark.parametrize("image", GRAPHS.values(), ids=GRAPHS.keys())
async def test_everything_in_order_is_taken(image: Image) -> None:
    """Each kind of image can be pushed leaves first, and is then there byte by byte without a violation."""
    async with driving(Registry()) as driver:
        assert not driver.registry.has("a", image, tag="1")
        await driver.push("a", image, "1")

        assert driver.registry.violations == []
        assert driver.registry.has("a", image, tag="1")
        assert image.data == (await driver.manifest("a", "1")).body


@pytest.mark.parametrize("image", [images.image(), images.index()], ids=["blobs", "children"])
async def test_a_manifest_before_its_parts(image: Image) -> None:
    """A manifest whose blobs or children are not there is refused, with the first that is missing."""
    async with driving(Registry()) as driver:
        found = await driver.put_manifest("a", image.digest, image.data, image.media_type)

        assert (found.status, found.code) == (400, "MANIFEST_BLOB_UNKNOWN")
        assert found.json["errors"][0]["detail"]["digest"] in image.data.decode()
        assert len(driver.registry.violations) == 1
        assert "the manifest comes before sha256:" in driver.registry.violations[0]


async def test_to_rely_on_a_false_answer_is_no_mistake() -> None:
    """If the server said that a blob is there and it is not, the refusal is its own fault: no violation."""
    registry = Registry()
    image = registry.add("a", images.image(layers=(10,)))
    async with driving(registry) as driver:
        for digest in image.blobs:
            assert (await driver.call("HEAD", f"/v2/a/blobs/{digest}")).status == 200
        registry.blobs["a"].clear()
        found = await driver.put_manifest("a", "1", image.data, image.media_type)

        assert found.code == "MANIFEST_BLOB_UNKNOWN"
        assert registry.violations == []


async def test_layer_blobs_as_children() -> None:
    """BuildKit's cache manifests name layer blobs in an index."""
    registry = Registry()
    layer = images.layer(10)
    registry.put_blob("a", layer.data or b"")
    body = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [layer.descriptor()]}
    async with driving(registry) as driver:
        data = json.dumps(body).encode()

        assert (await driver.put_manifest("a", "cache", data, images.OCI_INDEX)).status == 201


@dataclass(frozen=True, slots=True)
class Refused:
    """A push that no registry takes."""

    reference: str
    data: bytes
    kind: str
    outcome: tuple[int, str]
    violations: int = 0


REFUSED = {
    "json": Refused("1", b"{", OCI, (400, "MANIFEST_INVALID")),
    "object": Refused("1", b"[]", OCI, (400, "MANIFEST_INVALID")),
    "schema1": Refused("1", images.schema1().data, images.SCHEMA1, (400, "MANIFEST_INVALID")),
    "type": Refused("1", BASE.data, images.DOCKER_MANIFEST, (400, "MANIFEST_INVALID"), 1),
    "digest": Refused("sha256:" + "0" * 64, BASE.data, OCI, (400, "DIGEST_INVALID"), 1),
    "algorithm": Refused("md5:" + "0" * 32, BASE.data, OCI, (400, "DIGEST_INVALID")),
    "tag": Refused("no%20tag", BASE.data, OCI, (400, "TAG_INVALID"), 1),
    "size": Refused("1", b"{%s}" % (b" " * MAX_MANIFEST), OCI, (413, "SIZE_INVALID"), 1),
}


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED.keys())
async def test_refused_manifests(row: Refused) -> None:
    """What no registry takes is refused with its code; what a careful client never sends is a violation too."""
    registry = Registry()
    registry.add("a", BASE)
    async with driving(registry) as driver:
        found = await driver.put_manifest("a", row.reference, row.data, row.kind)

        assert row.outcome == (found.status, found.code)
        assert row.violations == len(registry.violations)


async def test_subject_is_acknowledged_and_listed() -> None:
    """A pushed referrer gets OCI-Subject and is in the subject's list."""
    image = images.artifact(subject=BASE)
    async with driving(Registry()) as driver:
        for digest, data in image.blobs.items():
            await driver.upload("a", digest, data)
        found = await driver.put_manifest("a", image.digest, image.data, image.media_type)
        listed = await driver.call("GET", f"/v2/a/referrers/{BASE.digest}")

        assert BASE.digest == found.headers["OCI-Subject"]
        assert [image.digest] == [row["digest"] for row in listed.json["manifests"]]


async def test_immutable_tags() -> None:
    """With immutable tags the same digest may be pushed again and another may not."""
    registry = Registry()
    registry.core.immutable_tags = True
    first, second = images.image(seed=1), images.image(seed=2)
    registry.add("a", first, tag="1")
    registry.add("a", second)
    async with driving(registry) as driver:
        same = await driver.put_manifest("a", "1", first.data, first.media_type)
        other = await driver.put_manifest("a", "1", second.data, second.media_type)

        assert same.status == 201
        assert (other.status, other.code) == (400, "TAG_INVALID")
        assert first.digest == registry.tags["a"]["1"]


async def test_deleting() -> None:
    """A tag, a manifest with its tags and a blob can be deleted, once."""
    registry = Registry()
    image = registry.add("a", images.image(layers=()), tag="1")
    registry.tags["a"] |= {"2": image.digest, "3": image.digest}
    blob = next(iter(image.blobs))
    async with driving(registry) as driver:
        paths = ("manifests/3", f"manifests/{image.digest}", f"blobs/{blob}")
        done = [(await driver.call("DELETE", f"/v2/a/{path}")).status for path in paths]
        again = [(await driver.call("DELETE", f"/v2/a/{path}")).status for path in paths]

        assert (done, again) == ([202] * 3, [404] * 3)
        assert (registry.tags["a"], registry.manifests["a"], registry.blobs["a"]) == ({}, {}, {})
        assert registry.ledger.count(Phase.DELETE) == 6
