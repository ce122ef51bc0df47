"""How a graph gets to the target: everything once, leaves first, and again what was lost."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal

import anyio
import pytest

from copycat.errors import InvalidManifest, NotFound, UploadRejected
from copycat.mirror.blobs import Blobs
from copycat.mirror.copy import (
    MAX_DEPTH,
    SMALL,
    Copier,
    Copy,
    Direction,
    served_elsewhere,
)
from copycat.oci.digest import Digest
from copycat.oci.manifest import Document, Manifest, parse_document
from copycat.registry.bandwidth import Bandwidth
from copycat.registry.hosts import HostConfig
from copycat.registry.target import Target
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from copycat.sandbox.store import StoredManifest
from tests.mirror.conftest import Bench
from tests.registry.support import world

SHARED = images.layer(4096, seed="shared")


def job(bench: Bench, repository: str = "copy/app", *, distrust: bool = False) -> Copy:
    """A copy from team/app to this repository."""
    return Copy(
        source=bench.world.source(bench.source.address),
        target=bench.plain.repository(repository),
        image=f"image for {repository}",
        distrust=distrust,
    )


async def copied(bench: Bench, image: Image, repository: str = "copy/app") -> Copy:
    """Copy an image that the source gets first."""
    bench.source.add("team/app", image)
    found = job(bench, repository)
    await bench.copier.copy(found, image.document)
    return found


def written(bench: Bench) -> list[str]:
    """The manifests that the target was sent, in order."""
    return [r.reference for r in bench.target.ledger.select(Phase.PUT_MANIFEST)]


def index_of(*descriptors: dict[str, Any]) -> tuple[StoredManifest, Document]:
    """An index of anything."""
    body = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": list(descriptors)}
    root = StoredManifest.of(json.dumps(body).encode())
    return root, parse_document(root.data, content_type=root.media_type)


def nest(levels: int) -> Image:
    """So many indexes around one image."""
    found = images.image()
    for _ in range(levels):
        found = images.index(found)
    return found


# Graphs


async def test_nested(bench: Bench) -> None:
    """Nested indexes arrive whole, children before parents, a shared child once, and no tag is written."""
    one, two = images.image(seed="one"), images.image(seed="two")
    left, right = images.index(one), images.index(one, two)
    root = images.index(left, right)
    found = await copied(bench, root)
    assert bench.target.has("copy/app", root)
    order = written(bench)
    assert sorted(order) == sorted(m.digest for m in root.manifests)
    for parent, child in ((left, one), (right, one), (right, two), (root, left), (root, right)):
        assert order.index(child.digest) < order.index(parent.digest)
    asked = [r.reference for r in bench.source.ledger.select(Phase.GET_MANIFEST)]
    assert sorted(asked) == sorted(i.digest for i in (one, two, left, right))
    assert not bench.target.tags.get("copy/app")
    assert found.moved.bytes_pulled == found.moved.bytes_pushed == root.blob_bytes


async def test_children_that_stand(bench: Bench) -> None:
    """A child that is at the target costs one HEAD there and nothing at the source."""
    old, new = images.image(seed="old"), images.image(seed="new")
    bench.target.add("copy/app", old)
    root = images.index(old, new)
    await copied(bench, root)
    assert [r.reference for r in bench.source.ledger.select(Phase.GET_MANIFEST)] == [new.digest]
    assert bench.source.ledger.bytes_out(Phase.GET_BLOB) == new.blob_bytes
    assert written(bench) == [new.digest, root.digest]


async def test_depth(bench: Bench) -> None:
    """Indexes may be nested as deep as the limit, and no deeper."""
    await copied(bench, nest(MAX_DEPTH))
    assert bench.target.has("copy/app", nest(MAX_DEPTH))
    with pytest.raises(InvalidManifest, match="deep") as caught:
        await copied(bench, nest(MAX_DEPTH + 1), "copy/other")
    assert (caught.value.side, caught.value.reason) == ("source", "too_large")


async def test_nodes(bench: Bench) -> None:
    """An image of 10,000 manifests is copied, one of more is refused."""
    image = images.image()
    found = job(bench)
    bench.source.add("team/app", image)
    for number in range(9_999):
        found.enter(Digest("sha256", f"{number:064x}"))
    await bench.copier.copy(found, image.document)
    assert bench.target.has("copy/app", image)
    other = images.image(seed="one more")
    with pytest.raises(InvalidManifest, match="more than 10000 manifests") as caught:
        await bench.copier.copy(found, other.document)
    assert caught.value.reason == "too_large"


async def test_layers_among_manifests(bench: Bench) -> None:
    """BuildKit's cache lists layers in an index: what is no manifest is copied as a blob."""
    layer = images.layer(seed="cache")
    assert layer.data is not None
    bench.source.put_blob("team/app", layer.data)
    root, document = index_of(layer.descriptor())
    await bench.copier.copy(job(bench), document)
    assert bench.target.blobs["copy/app"] == {layer.digest: layer.data}
    assert written(bench) == [root.digest]


async def test_lost_child(bench: Bench) -> None:
    """A manifest that the source lost is an error of the source, and nothing above it is written."""
    child = images.image()
    _, document = index_of(child.descriptor())
    bench.source.create_repository("team/app")
    with pytest.raises(NotFound) as caught:
        await bench.copier.copy(job(bench), document)
    assert caught.value.side == "source"
    assert written(bench) == []


async def test_inline_manifest(bench: Bench) -> None:
    """A child whose bytes its parent carries is not asked for."""
    child = bench.source.add("team/app", images.image())
    inline = {"data": base64.b64encode(child.data).decode()}
    _, document = index_of({**child.descriptor(), **inline})
    await bench.copier.copy(job(bench), document)
    assert bench.target.has("copy/app", child)
    assert bench.source.ledger.count(Phase.GET_MANIFEST) == 0


# Blobs


async def test_inline_blob(bench: Bench) -> None:
    """A config whose bytes the manifest carries is pushed without being read."""
    image = images.image(inline=True, layers=(SHARED,))
    found = await copied(bench, image)
    assert bench.target.has("copy/app", image)
    assert [r.reference for r in bench.source.ledger.select(Phase.GET_BLOB)] == [SHARED.digest]
    assert found.moved.bytes_pulled == SHARED.size
    assert found.moved.bytes_pushed == image.blob_bytes


async def test_zero_bytes(bench: Bench) -> None:
    """A blob of no bytes arrives as one."""
    image = images.image(layers=(images.empty_layer(), SHARED))
    found = await copied(bench, image)
    assert bench.target.has("copy/app", image)
    assert found.moved.copied == 3


async def test_mounted(bench: Bench) -> None:
    """What another repository of the target has is mounted: each byte is read and sent once."""
    first = images.image(seed="first", layers=(SHARED, 100))
    second = images.image(seed="second", layers=(SHARED, 200))
    await copied(bench, first)
    found = await copied(bench, second, "copy/other")
    assert bench.target.has("copy/other", second)
    assert bench.source.ledger.bytes_out(Phase.GET_BLOB) == bench.source.unique_blob_bytes
    assert (found.moved.mounted, found.moved.bytes_mounted) == (1, SHARED.size)
    assert found.moved.copied == 2
    assert bench.world.metric("k8s_copycat_blobs_total", result="mounted") == 1


@pytest.mark.parametrize("mount", ["202", "404", "405"])
async def test_mount_refused(bench: Bench, mount: Literal["202", "404", "405"]) -> None:
    """A target that does not mount gets the blob as bytes."""
    core = bench.target.core
    core.profile = replace(core.profile, mount=mount)
    image = images.image(layers=(SHARED,))
    await copied(bench, image)
    found = await copied(bench, image, "copy/other")
    assert bench.target.has("copy/other", image)
    assert (found.moved.mounted, found.moved.copied) == (0, 2)


class Unmountable(Target):
    """A target where mounting is not worth a request."""

    @property
    def mounts(self) -> bool:
        """Never."""
        return False


async def test_no_mounts(bench: Bench) -> None:
    """Where mounting is off nobody asks for it, and the bytes are sent for each repository."""
    bench.use(Unmountable(bench.world.transport, bench.target.address))
    image = images.image(layers=(SHARED,))
    await copied(bench, image)
    found = await copied(bench, image, "copy/other")
    assert bench.target.has("copy/other", image)
    assert found.moved.copied == 2
    assert not [r for r in bench.target.requests if "mount=" in r.query]


async def test_side_by_side(bench: Bench) -> None:
    """Without mounting two repositories get one blob at the same time, neither waits for the other."""
    bench.use(Unmountable(bench.world.transport, bench.target.address))
    image = bench.source.add("team/app", images.image(layers=(SHARED,)))
    gate = anyio.Event()
    bench.source.fail(
        Phase.GET_BLOB, match=lambda r: r.reference == SHARED.digest, times=2, hold=gate
    )
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for repository in ("copy/app", "copy/other"):
                tasks.start_soon(bench.copier.copy, job(bench, repository), image.document)
            await bench.source.wait_for(lambda r: r.reference == SHARED.digest, count=2)
            gate.set()
    assert bench.target.has("copy/app", image)
    assert bench.target.has("copy/other", image)


@pytest.mark.parametrize("repository", ["copy/app", "copy/other"], ids=["same", "other"])
@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
async def test_single_flight(bench: Bench, repository: str, fails: bool) -> None:
    """Two images at once read a shared layer once; if the first fails, the second reads it itself."""
    first = bench.source.add("team/app", images.image(seed="first", layers=(SHARED, 100)))
    second = bench.source.add("team/app", images.image(seed="second", layers=(SHARED, 200)))
    gate = anyio.Event()
    held = bench.source.fail(
        Phase.GET_BLOB,
        match=lambda r: r.reference == SHARED.digest,
        hold=gate,
        status=404 if fails else None,
        code="BLOB_UNKNOWN",
    )
    errors: list[NotFound] = []

    async def copy_first() -> None:
        try:
            await bench.copier.copy(job(bench), first.document)
        except NotFound as error:
            errors.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(copy_first)
            await held.reached.wait()
            tasks.start_soon(bench.copier.copy, job(bench, repository), second.document)
            await bench.target.wait_for(lambda r: Phase.COMMIT in r.phases and r.done, count=4)
            gate.set()
    assert bench.target.has(repository, second)
    assert bench.target.has("copy/app", first) is not fails
    assert len(errors) == fails
    asked = [r for r in bench.source.ledger.select(Phase.GET_BLOB) if r.reference == SHARED.digest]
    assert len(asked) == 1 + fails


@pytest.mark.parametrize("served", [False, True], ids=["elsewhere", "served"])
async def test_foreign(bench: Bench, served: bool) -> None:
    """A foreign layer is copied if the source has it; if not, the image is copied without and says so."""
    foreign = images.foreign_layer()
    if served:
        data = images.layer(512, seed="foreign-0").data
        assert data is not None
        bench.source.put_blob("team/app", data)
    image = images.image(layers=(SHARED, foreign))
    found = await copied(bench, image)
    assert bench.target.has("copy/app", image)
    assert (foreign.digest in bench.target.blobs["copy/app"]) is served
    assert [str(b.digest) for b in found.missing] == ([] if served else [foreign.digest])
    assert served_elsewhere(found.missing) == ("an unnamed host" if served else "vendor.example")


async def test_lost_blob(bench: Bench) -> None:
    """A plain layer that the source lost is an error, and the manifest is not written."""
    image = bench.source.add("team/app", images.image(layers=(SHARED,)))
    del bench.source.blobs["team/app"][SHARED.digest]
    found = job(bench)
    with pytest.raises(NotFound):
        await bench.copier.copy(found, image.document)
    assert found.missing == []
    assert written(bench) == []


class Inventory(Target):
    """A target that knows its blobs without being asked for each."""

    async def known_blobs(
        self, repository: str, digests: Collection[Digest], *, make: bool = True
    ) -> set[Digest] | None:
        """All of them."""
        return set(digests)


async def test_known_blobs(bench: Bench) -> None:
    """What a target's control plane knows saves the HEADs."""
    bench.use(Inventory(bench.world.transport, bench.target.address))
    image = images.image()
    bench.target.add("copy/app", image)
    found = await copied(bench, image)
    assert bench.target.ledger.count(Phase.HEAD_BLOB, Phase.START_UPLOAD) == 0
    assert bench.source.ledger.count(Phase.GET_BLOB) == 0
    assert (found.moved.existing, found.moved.copied) == (3, 0)


async def test_existing_blobs(bench: Bench) -> None:
    """Blobs that stand at the target are found by HEAD, and the second time not even asked for."""
    image = images.image()
    bench.target.add("copy/app", image)
    for heads in (3, 0):
        bench.forget_requests()
        found = await copied(bench, image)
        assert found.moved.existing == 3
        assert bench.target.ledger.count(Phase.HEAD_BLOB) == heads
    assert bench.source.ledger.count(Phase.GET_BLOB) == 0


async def test_transfers(bench: Bench) -> None:
    """A blob on its way is shown with its image, size and progress, and gone from the list afterwards."""
    layer = images.layer(SMALL * 2, seed="large")
    image = bench.source.add("team/app", images.image(layers=(layer,)))
    gate = anyio.Event()
    held = bench.source.fail(
        Phase.GET_BLOB, match=lambda r: r.reference == layer.digest, hold=gate, stall_at=SMALL
    )
    counts = {"pull": 0, "push": 0}

    def progress(direction: Direction, count: int) -> None:
        counts[direction] += count

    found = job(bench)
    found.progress = progress
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.copier.copy, found, image.document)
            await held.reached.wait()
            shown = [
                t for t in bench.copier.blobs.transfers.values() if str(t.digest) == layer.digest
            ]
            assert [(t.image, t.size) for t in shown] == [(found.image, layer.size)]
            assert shown[0].pulled < layer.size
            assert bench.world.metric("k8s_copycat_transfers_in_flight") >= 1
            gate.set()
    assert bench.copier.blobs.transfers == {}
    assert (shown[0].pulled, shown[0].pushed) == (layer.size, layer.size)
    assert counts == {"pull": image.blob_bytes, "push": image.blob_bytes}


async def test_a_slow_source_takes_no_place_of_others(bench: Bench) -> None:
    """Blobs that wait for the streams of a source that stands still leave the places in flight to other sources."""
    gate = anyio.Event()
    async with Registry() as fast:
        slow = bench.source.address
        own = {name: HostConfig(host=name, insecure=True, concurrency=1) for name in (slow,)}
        async with world(bench.target.address, fast.address, hosts=own) as here:
            copier = Copier(
                Blobs(
                    transport=here.transport,
                    target=Target(here.transport, bench.target.address),
                    metrics=here.metrics,
                    max_transfers=2,
                )
            )
            layers = tuple(images.layer(SMALL * 2, seed=f"slow {n}") for n in range(4))
            large = bench.source.add("team/slow", images.image(layers=layers))
            small = fast.add("team/fast", images.image())
            held = bench.source.fail(Phase.GET_BLOB, times=None, hold=gate, stall_at=SMALL)

            def wanted(registry: str, name: str) -> Copy:
                return Copy(
                    source=here.source(registry, name),
                    target=here.target(bench.target.address, f"copy/{name}"),
                    image=name,
                )

            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(copier.copy, wanted(slow, "team/slow"), large.document)
                    await held.reached.wait()
                    await anyio.wait_all_tasks_blocked()
                    await copier.copy(wanted(fast.address, "team/fast"), small.document)
                    gate.set()


# What was lost


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize(("times", "reads"), [(1, 3), (2, 6)], ids=["once", "twice"])
async def test_heal(bench: Bench, status: int, times: int, reads: int) -> None:
    """A target that misses a blob is asked again; if it insists, everything is sent again."""
    fault = bench.target.fail(
        Phase.PUT_MANIFEST, times=times, status=status, code="MANIFEST_BLOB_UNKNOWN"
    )
    image = images.image()
    await copied(bench, image)
    assert fault.hits == times
    assert bench.target.has("copy/app", image)
    assert bench.source.ledger.count(Phase.GET_BLOB) == reads


@pytest.mark.parametrize("times", [1, 2])
async def test_heal_index(bench: Bench, times: int) -> None:
    """A target that misses a child of an index gets the children again."""
    root = images.index()
    fault = bench.target.fail(
        Phase.PUT_MANIFEST,
        match=lambda r: r.reference == root.digest,
        times=times,
        status=400,
        code="MANIFEST_BLOB_UNKNOWN",
    )
    await copied(bench, root)
    assert fault.hits == times
    assert bench.target.has("copy/app", root)
    assert len(written(bench)) == 3 * (1 + times)
    assert bench.source.ledger.count(Phase.GET_BLOB) == 6


@pytest.mark.parametrize(("code", "tries"), [("MANIFEST_BLOB_UNKNOWN", 3), ("MANIFEST_INVALID", 1)])
async def test_no_cure(bench: Bench, code: str, tries: int) -> None:
    """A target that insists a third time, or has another reason, has refused."""
    fault = bench.target.fail(Phase.PUT_MANIFEST, times=None, status=400, code=code)
    with pytest.raises(UploadRejected):
        await copied(bench, images.image())
    assert fault.hits == tries


async def test_heal_without_foreign(bench: Bench) -> None:
    """Sending again leaves out the foreign layers that the source does not serve."""
    bench.target.fail(Phase.PUT_MANIFEST, times=2, status=400, code="MANIFEST_BLOB_UNKNOWN")
    image = images.image(layers=(SHARED, images.foreign_layer()))
    found = await copied(bench, image)
    assert bench.target.has("copy/app", image)
    assert len(found.missing) == 1


@pytest.mark.parametrize("distrust", [False, True], ids=["believes", "distrusts"])
async def test_deleted_blob(bench: Bench, distrust: bool) -> None:
    """A blob that vanished from the target is sent again: at once in distrust, else when the target complains."""
    image = images.image(layers=(SHARED,))
    await copied(bench, image)
    del bench.target.blobs["copy/app"][SHARED.digest]
    bench.forget_requests()
    found = job(bench, distrust=distrust)
    await bench.copier.copy(found, image.document)
    assert bench.target.has("copy/app", image)
    assert found.moved.copied == 1
    assert len(written(bench)) == (1 if distrust else 2)


async def test_no_layers(bench: Bench) -> None:
    """A manifest without layers has but a config to copy."""
    image = images.image(layers=())
    found = await copied(bench, image)
    assert isinstance(image.document, Manifest)
    assert (found.moved.copied, bench.target.has("copy/app", image)) == (1, True)


# Bandwidth


async def test_bandwidth(bench: Bench) -> None:
    """With a limit all blobs of all images share it, large and small; the bytes are right and counted once."""
    now, naps = 0.0, []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        await anyio.lowlevel.checkpoint()

    limit = Bandwidth(100_000, clock=lambda: now, sleep=sleep)
    blobs = Blobs(
        transport=bench.world.transport,
        target=bench.plain,
        metrics=bench.world.metrics,
        bandwidth=limit,
    )
    bench.copier = Copier(blobs)
    image = images.image(layers=[2 * SMALL, 1000, 2000])
    await copied(bench, image)
    assert bench.target.has("copy/app", image)
    # the clock stands still, so the last one in the line waits for everything before it
    assert max(naps) * 100_000 == pytest.approx(image.blob_bytes, rel=0.03)
