"""Rows 12 to 16, 39 to 41 and 47: manifests that lie, change, contradict themselves, are refused, or are too many."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from copycat.errors import (
    CopycatError,
    DigestMismatch,
    InvalidManifest,
    TooLarge,
    Unavailable,
    UploadRejected,
)
from copycat.oci.manifest import MAX_PULL, MAX_PUSH
from copycat.sandbox import images
from copycat.sandbox.images import OCI_INDEX, OCI_MANIFEST, Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.store import StoredManifest, digest_of
from tests.faults.support import (
    IMAGE,
    LAYER,
    SOURCE,
    TAG,
    TARGET,
    bench,
    failure,
    success,
)

# Row 12


@pytest.mark.parametrize(
    ("head", "gets"),
    [
        # HEAD of the tag, and of the tag again when it was written: each is asked with GET
        pytest.param({"status": 405}, 2, id="Hm-405"),
        pytest.param({"headers": {"Docker-Content-Digest": None}}, 1, id="Hm-no-digest"),
    ],
)
async def test_12_head_of_no_use(head: dict[str, Any], gets: int) -> None:
    """A HEAD that is not supported, or that tells no digest, is replaced by GET."""
    async with bench() as b:
        b.fail("Hm", times=None, **head)
        success(b, "", await b.copy())

        # without the header a 404 is still a 404: only the last HEAD needed more
        assert b.target.ledger.count(Phase.GET_MANIFEST) == gets
        assert b.count("Hm") == (1 if gets == 2 else 2)


@pytest.mark.parametrize("code", ["MANIFEST_BLOB_UNKNOWN", "ReferencedImagesNotFound"])
async def test_12_head_says_a_manifest_is_there(code: str) -> None:
    """[Hm] A child that HEAD claims and that is not there is found out when its index is refused, and sent."""
    image = images.index(seed="lies", layers=(500,))
    row = replace(PROFILES["distribution"], nested_references=code)  # type: ignore[arg-type] # parametrised
    async with bench(image=image, target={"profile": row}) as b:
        children = [m.digest for m in image.manifests[:-1]]
        fault = b.target.fail(
            Phase.HEAD_MANIFEST,
            times=len(children),
            match=lambda r: r.reference in children,
            status=200,
            body=b"{}",
            headers={"Content-Type": OCI_MANIFEST},
        )
        success(b, "", await b.copy())

        assert fault.hits == len(children)
        assert b.target.ledger.count(Phase.PUT_MANIFEST) == 1 + len(children) + 2


@pytest.mark.parametrize("again", [1, 2], ids=["Hb-once", "Hb-twice"])
async def test_12_head_says_a_blob_is_there(again: int) -> None:
    """A blob that HEAD claims is sent when the manifest is refused; the second time HEAD is not asked."""
    async with bench() as b:
        lie = b.fail("Hb", times=again, status=200)
        success(b, "", await b.copy())

        assert lie.hits == again
        assert b.count("U") == (1 if again == 1 else 2)  # certain: all that belongs to it goes
        assert b.count("M") == 2 + again


async def test_12_head_hides_a_manifest() -> None:
    """[Hm] A manifest that is there and that HEAD denies is written again."""
    async with bench() as b:
        b.target.add(TARGET, IMAGE, TAG)
        b.fail("Hm", times=1, status=404)
        success(b, "", await b.copy())

        assert b.count("M") == 2


async def test_12_head_hides_a_blob() -> None:
    """[Hb] A blob that is there and that HEAD denies is sent again."""
    async with bench() as b:
        b.target.put_blob(TARGET, IMAGE.blobs[LAYER])
        b.fail("Hb", status=404)
        success(b, "", await b.copy())

        assert b.count("U") == 1


# Row 13

WRONG = f"sha256:{'0' * 64}"
OTHER = digest_of(IMAGE.data, "sha512")


@pytest.mark.parametrize(
    "told", [None, WRONG, OTHER, "nonsense"], ids=["absent", "wrong", "other", "nonsense"]
)
@pytest.mark.parametrize("step", ["Hm", "Gm"])
async def test_13_told_digest(step: str, told: str | None) -> None:
    """What the header tells is believed where nothing better is known; the bytes decide."""
    async with bench() as b:
        headers = {"Docker-Content-Digest": told}
        b.fail(step, times=None, headers=headers)
        found = await b.copy()

        if step == "Gm":
            success(b, "", found)
            assert b.count("Gm") == (
                2 if told == WRONG else 1
            )  # asked again by the digest of the bytes
        elif told == WRONG:
            # the target says of what was just written that it is something else
            assert (found.state, found.reason) == ("failed", "digest_mismatch")
            assert b.arrived()
        else:
            success(b, "", found)


@pytest.mark.parametrize(
    ("told", "state"),
    [
        pytest.param(None, "protected", id="M-absent"),
        pytest.param(OTHER, "protected", id="M-other"),
        pytest.param(WRONG, "failed", id="M-wrong"),
    ],
)
async def test_13_stored_digest(told: str | None, state: str) -> None:
    """A target that stored something else says so in its answer."""
    async with bench() as b:
        b.fail("M", times=None, headers={"Docker-Content-Digest": told})
        found = await b.copy()

        assert found.state == state
        if state == "failed":
            assert (type(found.error), found.reason) == (UploadRejected, "upload_rejected")
            assert not found.protected
            assert TAG not in b.target.tags[TARGET]


# Row 14


@pytest.mark.parametrize("times", [1, None], ids=["Gm-once", "Gm-for-ever"])
async def test_14_other_bytes(times: int | None) -> None:
    """A manifest that does not hash to what was asked for is asked for once more; then nothing is pushed."""
    async with bench() as b:
        fault = b.fail("Gm", corrupt_at=30, times=times)
        found = await b.copy(f"{SOURCE}@{b.image.digest}")

        if times == 1:
            assert found.state == "protected"
            assert b.arrived(tag=None)
            return
        assert (found.state, found.reason) == ("failed", "digest_mismatch")
        assert found.error is not None
        assert (type(found.error), found.error.temporary) == (DigestMismatch, False)
        assert (fault.hits, b.count("I"), b.count("M")) == (2, 0, 0)


@pytest.mark.parametrize("at", [30, 0], ids=["readable", "unreadable"])
@pytest.mark.parametrize("times", [1, None], ids=["once", "for-ever"])
async def test_14_other_bytes_of_a_tag(times: int | None, at: int) -> None:
    """[Gm] Bytes that contradict the header and that nobody has by their digest were damaged: asked once more."""
    async with bench() as b:
        b.fail("Gm", corrupt_at=at, times=times)
        found = await b.copy()

        assert b.count("Gm") == 3
        if times == 1:
            assert found.state == "protected"
            assert b.arrived()
            return
        assert (found.state, found.reason) == ("failed", "digest_mismatch")
        assert (b.count("I"), b.count("M")) == (0, 0)


# Row 15


def of_size(size: int) -> Image:
    """An image whose manifest has so many bytes."""
    image = images.image(seed="long", layers=(600,), annotations={"pad": "x"})
    return images.image(
        seed="long", layers=(600,), annotations={"pad": "x" * (size - len(image.data) + 1)}
    )


def both() -> Image:
    """Manifests and layers in one document (CVE-2021-41190)."""
    body = {**json.loads(IMAGE.data), "manifests": [IMAGE.root.descriptor()]}
    root = StoredManifest.of(json.dumps(body).encode(), OCI_MANIFEST)
    return replace(IMAGE, root=root, manifests=(root,))


def unknown() -> Image:
    """A document of no type that anybody knows."""
    body = b'{"schemaVersion":2,"mediaType":"application/vnd.example.thing+json","things":[]}'
    root = StoredManifest.of(body)
    return Image(root=root, manifests=(root,), blobs={})


CONTENTS: dict[str, tuple[Callable[[], Image], Mapping[str, str | None], type[CopycatError] | None, str]] = {
    "schema1": (images.schema1, {}, InvalidManifest, "schema1"),
    "unknown": (unknown, {}, InvalidManifest, "invalid_manifest"),
    "both": (both, {}, InvalidManifest, "invalid_manifest"),
    "contradiction": (lambda: IMAGE, {"Content-Type": OCI_INDEX}, InvalidManifest, "invalid_manifest"),
    "octet-stream": (lambda: IMAGE, {"Content-Type": "application/octet-stream"}, None, ""),
    "none": (lambda: IMAGE, {"Content-Type": None}, None, ""),
    "parameters": (lambda: IMAGE, {"Content-Type": f"{OCI_MANIFEST}; charset=utf-8"}, None, ""),
    "4MiB": (lambda: of_size(MAX_PUSH), {}, None, ""),
    "4MiB+1": (lambda: of_size(MAX_PUSH + 1), {}, TooLarge, "too_large"),
    "8MiB+1": (lambda: of_size(MAX_PULL + 1), {}, TooLarge, "too_large"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"Gm-{kind}") for kind in CONTENTS])
async def test_15_content(kind: str) -> None:
    """What cannot be copied is refused with its own reason and for good; odd headers alone are no obstacle."""
    make, headers, error, reason = CONTENTS[kind]
    image = make()
    async with bench(image=image) as b:
        b.fail("Gm", headers=headers, times=None)
        found = await b.copy()

        if error is None:
            success(b, "", found)
            return
        assert (found.state, found.reason, type(found.error)) == ("failed", reason, error)
        assert found.error is not None
        assert not found.error.temporary
        assert b.untouched()
        if kind == "schema1":
            assert "schema 1" in found.message
        if kind == "4MiB+1":
            assert str(MAX_PUSH) in found.message


# Row 16


async def test_16_tag_moves() -> None:
    """[Gm] A tag that moves after it was resolved changes nothing: one image is copied, whole."""
    first = images.index(seed="first", layers=(400_000,))
    second = images.index(seed="second", layers=(400_000,))
    async with bench(image=first) as b:
        b.fail("Gm", nth=2, run=lambda _: b.source.add(SOURCE, second, TAG))
        success(b, "", await b.copy())

        assert b.target.tags[TARGET][TAG] == first.digest
        assert not set(second.blobs) & set(b.target.blobs[TARGET]) - set(first.blobs)


async def test_16_tag_moves_between_head_and_get() -> None:
    """[Gm] Between the HEAD that finds a new digest and the GET, which asks for that digest."""
    old = images.image(seed="old", layers=(400_000,))
    third = images.image(seed="third", layers=(400_000,))
    async with bench() as b:
        b.target.add(TARGET, old, TAG)
        b.fail("Gm", run=lambda _: b.source.add(SOURCE, third, TAG))
        success(b, "", await b.copy())

        assert b.target.tags[TARGET][TAG] == IMAGE.digest


# Row 39


@pytest.mark.parametrize(
    "code",
    [
        "MANIFEST_BLOB_UNKNOWN",
        "BLOB_UNKNOWN",
        "MANIFEST_UNKNOWN",
        "LayersNotFound",
        "ReferencedImagesNotFound",
    ],
)
@pytest.mark.parametrize("status", [400, 404])
async def test_39_missing_parts(code: str, status: int) -> None:
    """[M] A manifest whose parts are said to be missing is put again after they were looked for."""
    async with bench() as b:
        b.fail("M", status=status, code=code)
        success(b, "", await b.copy())

        assert (b.count("U"), b.count("M")) == (1, 3)
        assert b.count("Hb") == 4  # both parts again


async def test_39_missing_for_ever() -> None:
    """[M] A target that never finds the parts is given up after it had them twice."""
    async with bench() as b:
        b.fail("M", status=400, code="MANIFEST_BLOB_UNKNOWN", times=None)
        error = failure(await b.copy())

        assert (type(error), error.temporary) == (UploadRejected, False)
        assert b.count("M") == 3
        assert b.untouched()


# Row 40


@pytest.mark.parametrize("status", [400, 403, 409, 412])
@pytest.mark.parametrize("same", [True, False], ids=["same", "other"])
async def test_40_immutable(status: int, same: bool) -> None:
    """[M] A tag that may not be moved: fine if it is what it should be, else held, and the content is anchored."""
    old = images.image(seed="older")
    async with bench() as b:
        if not same:
            b.target.add(TARGET, old, TAG)
        tagged = b.fail(
            "M",
            status=status,
            code="TAG_INVALID",
            times=None,
            match=lambda r: r.reference == TAG,
            run=lambda _: b.target.tags[TARGET].setdefault(TAG, b.image.digest),
        )
        found = await b.copy()

        assert tagged.hits == 1
        if same:
            success(b, "", found)
            return
        assert (found.state, found.reason, found.protected) == ("tag_held", "tag_immutable", True)
        assert old.digest in found.message
        assert b.target.tags[TARGET][TAG] == old.digest
        assert b.arrived(tag=None)


async def test_40_immutable_repository() -> None:
    """[M] The same against a registry that holds its tags by itself; a second copy changes nothing."""
    async with bench(target={"profile": "ecr", "auth": "token"}) as b:
        b.target.core.immutable_tags = True
        success(b, "", await b.copy())
        b.source.add(SOURCE, images.image(seed="newer"), TAG)
        found = await b.copy()

        assert (found.state, found.reason) == ("tag_held", "tag_immutable")


# Row 41


@pytest.mark.parametrize(
    ("late", "state"),
    [
        pytest.param(1, "protected", id="M-1"),
        pytest.param(5, "protected", id="M-5"),
        pytest.param(None, "failed", id="M-never"),
    ],
)
async def test_41_not_visible_yet(late: int | None, state: str) -> None:
    """A tag that does not show at once is looked for a second apart; one that never shows is a temporary failure."""
    async with bench() as b:
        b.fail("Hm", nth=2, status=404, times=late)
        found = await b.copy()

        assert found.state == state
        tries = 6 if late is None else late + 1
        assert b.count("Hm") == 1 + tries
        assert b.time.naps == [1.0] * (tries - 1)
        if late is None:
            assert (type(found.error), found.reason) == (Unavailable, "not_visible")
            assert found.error is not None
            assert found.error.temporary


# Row 47


def tree(depth: int) -> Image:
    """An image under so many indexes."""
    image = images.image(seed="deep", layers=(100,))
    for _ in range(depth):
        image = images.index(image)
    return image


@pytest.mark.parametrize(
    ("depth", "state"),
    [pytest.param(8, "protected", id="Gm-8"), pytest.param(9, "failed", id="Gm-9")],
)
async def test_47_deep(depth: int, state: str) -> None:
    """Eight indexes in one another pass, nine do not."""
    async with bench(image=tree(depth)) as b:
        found = await b.copy()

        assert found.state == state
        if state == "failed":
            assert (type(found.error), found.reason) == (InvalidManifest, "too_large")
            assert b.untouched()


def wide(count: int, begin: int = 0) -> Image:
    """An index of so many manifests that differ in nothing but an annotation."""
    first = images.image(seed="wide", layers=(100,))
    body = json.loads(first.data)
    leaves = [
        StoredManifest.of(json.dumps({**body, "annotations": {"n": str(n)}}).encode(), OCI_MANIFEST)
        for n in range(begin, begin + count)
    ]
    rows = [leaf.descriptor() for leaf in leaves]
    root = StoredManifest.of(
        json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows}).encode(),
        OCI_INDEX,
    )
    return Image(root=root, manifests=(*leaves, root), blobs=first.blobs)


async def test_47_two_thousand() -> None:
    """[Gm] An index of 2,000 manifests is copied whole; each is asked for once."""
    image = wide(2000)
    async with bench(image=image) as b:
        success(b, "", await b.copy())

        assert b.count("Gm") == 2001
        assert b.count("M") == 2001 + 1


@pytest.mark.parametrize("kind", ["Gm-in-one", "Gm-in-all"])
async def test_47_too_many(kind: str) -> None:
    """Over 10,000 manifests, in one index or in all that are nested, are refused; no tag is written."""
    image = wide(10_001) if kind == "Gm-in-one" else images.index(wide(5_000), wide(5_000, 5_000))
    async with bench(image=image) as b:
        found = await b.copy()

        assert (found.state, found.reason) == ("failed", "too_large")
        assert b.untouched()


async def test_47_circle() -> None:
    """[Gm] Indexes cannot contain themselves: whoever serves a circle serves bytes of another digest."""
    inner = images.index(seed="inner")
    outer = images.index(inner)
    async with bench(image=outer) as b:
        circle = json.loads(inner.data)
        circle["manifests"].append(outer.root.descriptor())
        b.fail("Gm", nth=2, times=None, body=json.dumps(circle).encode())
        found = await b.copy()

        assert (found.state, found.reason) == ("failed", "digest_mismatch")
        assert b.untouched()


async def test_47_same_child_twice() -> None:
    """[Gm] What stands in several places of a graph is fetched and written once."""
    leaf = images.image(seed="shared", layers=(200,))
    image = images.index(
        images.index(leaf, images.image(seed="x")), images.index(leaf, images.image(seed="y")), leaf
    )
    async with bench(image=image) as b:
        success(b, "", await b.copy())

        assert b.count("Gm") == len(image.manifests)
