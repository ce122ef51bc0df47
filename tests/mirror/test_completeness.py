"""What may be called a copy: the anchor stands for a whole image, and for nothing less."""

from __future__ import annotations

import pytest

from copycat.mirror.naming import ARCH, incomplete_tag
from copycat.mirror.request import Need, RunningDigest
from copycat.oci.digest import Digest
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from tests.mirror.conftest import Bench


def restart(bench: Bench) -> None:
    """Forget what the process knew of the target's blobs."""
    bench.use(bench.plain)
    bench.forget_requests()


def windows(seed: object = 0) -> Image:
    """An image whose base layer only its vendor may hand out."""
    layers = (512, images.foreign_layer(seed="base"))
    return images.image(layers=layers, platform="windows/amd64", seed=seed)


def marker(image: Image) -> str:
    """The tag of an image that lacks something."""
    return incomplete_tag(Digest.parse(image.digest))


@pytest.mark.parametrize("by_digest", [False, True], ids=["tag", "digest"])
async def test_incomplete_stays_incomplete(bench: Bench, by_digest: bool) -> None:
    """An image without its foreign layers gets no anchor, so that no later look takes it for a copy."""
    image = bench.source.add("team/app", windows(), "1.0")
    reference = f"team/app@{image.digest}" if by_digest else "team/app:1.0"
    first = await bench.run(reference)
    assert (first.state, first.protected, first.reason) == ("incomplete", False, "foreign_layers")
    assert "vendor.example" in first.message
    assert bench.tag(marker(image)) == image.digest
    assert not bench.anchored(image)
    restart(bench)
    again = await bench.run(reference, Need(check_anchors=True))
    assert (again.state, again.protected) == ("incomplete", False)
    assert again.anchored == frozenset()
    assert bench.source.ledger.count(Phase.GET_BLOB) == 1, "the foreign layer alone"


async def test_completed_later(bench: Bench) -> None:
    """Once the source serves the foreign layer the copy becomes whole and is anchored."""
    image = bench.source.add("team/app", windows(), "1.0")
    await bench.run()
    data = images.layer(512, seed="foreign-base").data
    assert data is not None
    bench.source.put_blob("team/app", data)
    result = await bench.run(need=Need(check_anchors=True))
    assert (result.state, result.protected) == ("protected", True)
    assert bench.anchored(image)


async def test_incomplete_child_of_a_new_index(bench: Bench) -> None:
    """A Windows child that stands without its layers makes the next index with it incomplete as well."""
    child = windows()
    bench.source.add("team/app", images.index(images.image(seed="old"), child), "1.0")
    assert (await bench.run()).state == "incomplete"
    newer = bench.source.add("team/app", images.index(images.image(seed="new"), child), "1.0")
    restart(bench)
    result = await bench.run()
    assert (result.state, result.protected) == ("incomplete", False)
    assert bench.tag("1.0") == newer.digest
    assert not bench.anchored(newer)


async def test_incomplete_root_beside_a_whole_one(bench: Bench) -> None:
    """Of two roots in one attempt each is judged by itself; the image is what its worst root is."""
    old = bench.source.add("team/app", windows("old"))
    new = bench.source.add_image("team/app", "1.0")
    running = (RunningDigest(digest=Digest.parse(old.digest)),)
    result = await bench.run(need=Need(running=running))
    assert result.state == "incomplete"
    assert result.anchored == {Digest.parse(new.digest)}
    assert bench.anchored(new)
    assert bench.tag(marker(old)) == old.digest


async def test_incomplete_tag_is_ours(bench: Bench) -> None:
    """The tag of an incomplete copy was put there by us and may be moved, also where foreign tags stay."""
    bench.source.add("team/app", windows(), "1.0")
    await bench.run(overwrite_foreign_tags=False)
    whole = bench.source.add_image("team/app", "1.0", seed="whole")
    result = await bench.run(overwrite_foreign_tags=False)
    assert result.state == "protected"
    assert bench.tag("1.0") == whole.digest


async def test_digest_without_anchor_is_looked_into(bench: Bench) -> None:
    """A manifest that stands and a blob that does not: found by the walk, brought, and only then anchored."""
    image = bench.source.add("team/app", images.index(), "1.0")
    await bench.run()
    lost = next(iter(images.index().blobs))
    bench.target.tags["copy/app"].clear()
    del bench.target.blobs["copy/app"][lost]
    restart(bench)
    result = await bench.run(f"team/app@{image.digest}")
    assert result.state == "protected"
    assert bench.anchored(image)
    assert [r.reference for r in bench.source.ledger.select(Phase.GET_BLOB)] == [lost]
    assert bench.source.ledger.count(Phase.GET_MANIFEST) == 0, "the manifests stand at the target"


async def test_running_digest_of_a_tag_that_is_gone(bench: Bench) -> None:
    """The tag is missing at the source; what runs under it is kept all the same, and the failure is told."""
    image = bench.source.add_image("team/app", "1.0")
    bench.source.tags["team/app"].clear()
    running = (RunningDigest(digest=Digest.parse(image.digest)),)
    result = await bench.run(need=Need(running=running))
    assert (result.state, result.reason) == ("failed", "not_found")
    assert result.anchored == {Digest.parse(image.digest)}
    assert bench.anchored(image)


async def test_running_digest_of_a_tag_that_nobody_can_read(bench: Bench) -> None:
    """digestPull: the tag means a schema 1 manifest by now; the digest that runs is what is copied."""
    image = bench.source.add_image("team/app", "old")
    bench.source.add("team/app", images.schema1("team/app", "1.0"), "1.0")
    running = (RunningDigest(digest=Digest.parse(image.digest)),)
    result = await bench.run(need=Need(running=running), digest_pull=True)
    assert (result.state, result.reason) == ("protected", "schema1")
    assert bench.tag("1.0") == image.digest
    assert bench.anchored(image)


async def test_two_failures_at_once(bench: Bench) -> None:
    """The tag is missing, and so is what runs: the first error is the one that is told."""
    running = (RunningDigest(digest=Digest.of(b"gone")),)
    result = await bench.run(need=Need(running=running))
    assert result.state == "failed"
    assert "team/app:1.0" in result.message


@pytest.mark.parametrize("by_digest", [False, True], ids=["tag", "digest"])
@pytest.mark.parametrize("image", [images.image(), images.index()], ids=["single", "index"])
async def test_arch_without_the_source(bench: Bench, image: Image, by_digest: bool) -> None:
    """With `$arch` in the name a copy is found without the source, after a restart too."""
    bench.source.add("team/app", image, "1.0")
    reference = f"team/app@{image.digest}" if by_digest else "team/app:1.0"
    request = bench.ask(reference, repository=f"{ARCH}/app")
    first = await bench.mirror(prefix=ARCH).run(request, Need())
    assert first.protected
    await bench.source.stop()
    restart(bench)
    again = await bench.mirror(prefix=ARCH).run(request, Need())
    assert (again.state, again.protected) == ("protected", True)
    assert again.target == first.target


async def test_arch_without_source_and_copy(bench: Bench) -> None:
    """Where no copy is found under the usual architectures the source's error is what is told."""
    await bench.source.stop()
    result = await bench.mirror(prefix=ARCH).run(bench.ask(repository=f"{ARCH}/app"), Need())
    assert (result.state, result.protected) == ("failed", False)
    assert result.error is not None
    assert result.error.side == "source"
