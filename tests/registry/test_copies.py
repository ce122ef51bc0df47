"""Whole images from one registry to another, against every product that the sandbox knows."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from copycat.errors import Unsupported
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor, Document, Index
from copycat.registry.keychain import Credentials
from copycat.registry.repository import Repository
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.registry.support import Keys, world

KEYS = Keys(
    Credentials(username="robot", password="s3cret"), Credentials(username="AWS", password="s3cret")
)


async def copy(source: Repository, target: Repository, document: Document) -> None:
    """The simplest copy there is: leaves first, one after the other."""
    if isinstance(document, Index):
        for child in document.manifests:
            await copy(source, target, await source.get_manifest(child.digest, size=child.size))
    else:
        for blob in document.blobs():
            if not await target.has_blob(blob.digest):
                await copy_blob(source, target, blob)
    await target.put_manifest(document, document.digest)


async def copy_blob(source: Repository, target: Repository, blob: Descriptor) -> None:
    """One blob, streamed."""
    await target.upload_blob(blob, lambda: source.read_blob(blob))


def picture() -> Image:
    """An index of two platforms with an attestation, one layer above the size that is sent as bytes."""
    amd64 = images.image(seed="a", layers=(100, 1_500_000))
    arm64 = images.image(seed="b", layers=(100,), platform="linux/arm64")
    return images.index(amd64, arm64, images.attestation(amd64))


@pytest.mark.parametrize("profile", sorted(PROFILES))
async def test_source(profile: str) -> None:
    """Every product can be copied from: bytes arrive unchanged, no rule of the protocol is broken."""
    async with (
        Registry(
            profile=profile,
            password="s3cret",
            username="robot" if PROFILES[profile].basic_user == "" else "AWS",
        ) as a,
        Registry() as b,
    ):
        image = a.add("team/app", picture(), "1.0")
        async with world(a.address, b.address, keys=KEYS) as here:
            source, target = here.source(a.address), here.target(b.address)
            document = await source.get_manifest("1.0")
            await copy(source, target, document)
            await target.put_manifest(document, "1.0")

        assert b.has("copy/app", image, "1.0")
        assert (a.violations, b.violations) == ([], [])
        assert a.ledger.count(Phase.PING) == 1


@pytest.mark.parametrize("profile", sorted(PROFILES))
async def test_target(profile: str) -> None:
    """Every product can be copied to, in as many requests as its habits need."""
    row = PROFILES[profile]
    async with (
        Registry() as a,
        Registry(profile=profile, password="s3cret", username=row.basic_user or "robot") as b,
    ):
        image = a.add("team/app", picture(), "1.0")
        b.create_repository("copy/app")
        async with world(a.address, b.address, keys=KEYS) as here:
            source, target = here.source(a.address), here.target(b.address)
            document = await source.get_manifest("1.0")
            await copy(source, target, document)
            await target.put_manifest(document, "1.0")

        assert b.has("copy/app", image, "1.0")
        assert (a.violations, b.violations) == ([], [])
        assert b.ledger.count(Phase.PING) == 1
        assert b.sessions == 0 or row.put_body != 201


async def test_requests_of_a_small_image() -> None:
    """Besides the pings: one GET per manifest and blob at the source; HEAD, POST and PUT per blob at the target."""
    async with Registry() as a, Registry() as b:
        a.add_image("team/app", "1.0", layers=(10, 20))
        async with world(a.address, b.address) as here:
            source, target = here.source(a.address), here.target(b.address)
            await copy(source, target, await source.get_manifest("1.0"))

        assert [r.method for r in a.requests] == ["GET"] * 5
        assert [r.method for r in b.requests] == ["GET", *["HEAD", "POST", "PUT"] * 3, "PUT"]
        assert a.ledger.connections == 1


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_algorithms(algorithm: str) -> None:
    """Digests of both registered algorithms are asked for, checked and written."""
    async with Registry() as a, Registry() as b:
        image = a.add_image("team/app", "1.0", algorithm=algorithm, layers=(10, 400_000))
        async with world(a.address, b.address) as here:
            source, target = here.source(a.address), here.target(b.address)
            await copy(source, target, await source.get_manifest(Digest.parse(image.digest)))

        assert b.has("copy/app", image)


async def test_no_bytes_at_all() -> None:
    """An empty blob is sent as such, without a request to the source."""
    async with Registry() as a, Registry() as b:
        image = a.add_image("team/app", "1.0", layers=(images.empty_layer(),))
        async with world(a.address, b.address) as here:
            source, target = here.source(a.address), here.target(b.address)
            await copy(source, target, await source.get_manifest("1.0"))

        assert b.has("copy/app", image)
        assert a.ledger.count(Phase.GET_BLOB) == 1


async def test_ecr_takes_no_empty_blob() -> None:
    """A registry that cannot store an empty blob is named, and it is not tried again and again."""
    async with Registry(profile="ecr", password="s3cret", username="AWS") as b:
        b.create_repository("copy/app")
        empty = images.empty_layer()
        async with world(b.address, keys=KEYS) as here:
            source, target = here.source(b.address), here.target(b.address)
            blob = Descriptor(media_type="", digest=Digest.parse(empty.digest), size=0)
            with pytest.raises(Unsupported, match="empty blobs"):
                await copy_blob(source, target, blob)

        assert b.ledger.count(Phase.COMMIT) == 1


async def test_reading_can_stop() -> None:
    """Who closes a stream early gets the connection closed, and nothing else is disturbed."""
    async with Registry() as a:
        image = a.add_image("team/app", "1.0", layers=(8_000_000,))
        async with world(a.address) as here:
            document = await here.source(a.address).get_manifest(Digest.parse(image.digest))
            layer = max(document.successors(), key=lambda d: d.size)
            async with aclosing(here.source(a.address).read_blob(layer)) as chunks:
                async for chunk in chunks:
                    assert chunk
                    break
            assert await here.source(a.address).has_blob(layer.digest)
