"""What one attempt asks, copies and names, seen from both registries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from copycat.errors import CopycatError
from copycat.mirror.naming import ARCH, subset_tag
from copycat.mirror.policy import Policy
from copycat.mirror.request import MirrorRequest, MirrorResult, Need, RunningDigest
from copycat.oci.digest import Digest
from copycat.oci.manifest import Index, parse_document
from copycat.oci.mediatypes import OCI_MANIFEST
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from tests.mirror.conftest import Bench, PolicyOptions

AMD, ARM, S390 = (Platform.parse(f"linux/{a}") for a in ("amd64", "arm64", "s390x"))
THREE = ("linux/amd64", "linux/arm64", "linux/s390x")
RIVAL_FIRST = Reference.parse("0.example/other:1.0")
RIVAL_LAST = Reference.parse("z.example/other:1.0")


def of(image: Image) -> Digest:
    """The root's digest."""
    return Digest.parse(image.digest)


def runs(*found: Image, certain: bool = True) -> Need:
    """Containers of these images are running."""
    return Need(running=tuple(RunningDigest(digest=of(i), certain=certain) for i in found))


def two(bench: Bench) -> tuple[Image, Image]:
    """An image under its tag at the source, and a newer one that no tag names."""
    old = bench.source.add_image("team/app", "1.0", seed="old")
    new = bench.source.add("team/app", images.image(seed="new"))
    return old, new


def child(image: Image, platform: Platform) -> Digest:
    """The manifest of one platform of an index."""
    root = image.document
    assert isinstance(root, Index)
    [found] = [m.digest for m in root.manifests if m.platform == platform]
    return found


def move(bench: Bench, image: Image, tag: str = "1.0") -> None:
    """The source's tag stands for another image."""
    bench.source.tags["team/app"][tag] = image.digest


# Tags


async def test_new_tag(bench: Bench) -> None:
    """A new image is copied, anchored and tagged, with one GET for its tag, and its tag is seen at the end."""
    image = bench.source.add_image("team/app", "1.0")
    result = await bench.run()
    assert (result.state, result.protected, result.error) == ("protected", True, None)
    assert result.pulled
    assert result.pushed
    assert result.tag_written
    assert result.source_checked
    assert result.digest == of(image)
    assert result.anchored == {of(image)}
    assert str(result.target) == f"{bench.target.address}/copy/app:1.0"
    assert bench.target.has("copy/app", image, "1.0")
    assert bench.anchored(image)
    assert bench.source.ledger.count(Phase.GET_MANIFEST) == 1
    assert bench.source.ledger.count(Phase.HEAD_MANIFEST) == 0
    assert result.moved.bytes_pulled == result.moved.bytes_pushed == image.blob_bytes
    assert [r.reference for r in bench.target.ledger.select(Phase.PUT_MANIFEST)] == [
        of(image).anchor,
        "1.0",
    ]


async def test_nothing_to_do(bench: Bench) -> None:
    """A copy that stands costs one HEAD at each side, and none at the source if it need not be asked."""
    bench.source.add_image("team/app", "1.0")
    await bench.run()
    bench.forget_requests()
    again = await bench.run()
    assert (again.state, again.pushed, again.source_checked) == ("protected", False, True)
    assert [r.method for r in bench.source.requests] == ["HEAD"]
    assert [r.method for r in bench.target.requests] == ["HEAD"]
    bench.forget_requests()
    third = await bench.run(need=Need(check_source=False, owned=again.digest))
    assert (third.state, third.protected, third.source_checked) == ("protected", True, False)
    assert bench.source.requests == []


@pytest.mark.parametrize("known", [False, True], ids=["lost", "seen-before"])
async def test_check_anchors(bench: Bench, known: bool) -> None:
    """A forced pass writes an anchor that is missing, without copying anything, and skips one that it knows."""
    image = bench.source.add_image("team/app", "1.0")
    await bench.run()
    del bench.target.tags["copy/app"][of(image).anchor]
    anchored = frozenset({of(image)}) if known else frozenset()
    result = await bench.run(need=Need(check_anchors=True, anchored=anchored))
    assert result.pushed is not known
    assert bench.anchored(image) is not known
    assert bench.source.ledger.count(Phase.GET_BLOB) == 3


async def test_moved_tag(bench: Bench) -> None:
    """A tag that moved at the source moves at the target; the old image keeps its anchor."""
    old, new = two(bench)
    await bench.run()
    move(bench, new)
    result = await bench.run()
    assert (result.state, result.digest, result.tag_written) == ("protected", of(new), True)
    assert bench.tag("1.0") == new.digest
    assert bench.anchored(old)
    assert bench.anchored(new)


@pytest.mark.parametrize(("tag", "state"), [("1.0", "tag_held"), ("latest", "protected")])
async def test_held_tag(bench: Bench, tag: str, state: str) -> None:
    """Where tags may not be written again, the new content is kept by digest; `latest` moves all the same."""
    old, new = two(bench)
    move(bench, old, tag)
    await bench.run(f"team/app:{tag}", allow_different_digest_repush=False)
    move(bench, new, tag)
    result = await bench.run(f"team/app:{tag}", allow_different_digest_repush=False)
    assert (result.state, result.protected) == (state, True)
    assert bench.tag(tag) == (old if state == "tag_held" else new).digest
    assert bench.anchored(new)


@pytest.mark.parametrize("ours", [False, True], ids=["foreign", "ours"])
async def test_foreign_tag(bench: Bench, ours: bool) -> None:
    """With overwriteForeignTags off, a tag moves only if what it stands for has an anchor."""
    old, new = two(bench)
    bench.target.add("copy/app", old, "1.0")
    if ours:
        bench.target.tags["copy/app"][of(old).anchor] = old.digest
    move(bench, new)
    result = await bench.run(overwrite_foreign_tags=False)
    assert (result.state, result.reason) == (
        ("protected", "") if ours else ("conflict", "foreign_tag")
    )
    assert bench.tag("1.0") == (new if ours else old).digest
    assert bench.anchored(new)


@pytest.mark.parametrize("policy", ["foreign", "held", "rival"])
async def test_a_tag_that_is_not_ours_stays_so(bench: Bench, policy: str) -> None:
    """A look at the target alone does not take somebody else's content for a copy, nor anchors it."""
    new = bench.source.add_image("team/app", "1.0")
    old = bench.target.add("copy/app", images.image(seed="theirs"), "1.0")
    options = PolicyOptions(
        overwrite_foreign_tags=policy != "foreign", allow_different_digest_repush=policy != "held"
    )
    rivals = (Reference.parse("other.example/team/app:1.0"),) if policy == "rival" else ()
    first = await bench.run(need=Need(rivals=rivals), **options)
    assert first.state == ("tag_held" if policy == "held" else "conflict")
    look = Need(check_source=False, check_anchors=True, known=True, rivals=rivals)
    again = await bench.run(need=look, **options)
    assert (again.state, again.reason) == (first.state, first.reason)
    assert bench.tag("1.0") == old.digest
    assert bench.anchored(new)
    assert not bench.anchored(old)


async def test_nobody_vouches_for_a_tag(bench: Bench) -> None:
    """The source is away and the tag was never seen to be ours: it is not anchored, so that it stays somebody else's."""
    old = bench.target.add("copy/app", images.image(seed="theirs"), "1.0")
    await bench.source.stop()
    result = await bench.run(need=Need(check_anchors=True))
    assert result.error is not None
    assert not bench.anchored(old)


@pytest.mark.parametrize("overwrite", [True, False])
async def test_a_foreign_tag_without_the_source(bench: Bench, overwrite: bool) -> None:
    """The source is away from the start: a tag that is to be left alone as somebody else's is not taken for the copy."""
    theirs = bench.target.add("copy/app", images.image(seed="theirs"), "1.0")
    await bench.source.stop()
    options = PolicyOptions(overwrite_foreign_tags=overwrite)
    found = await bench.run(**options)
    assert found.protected is overwrite
    assert found.state == ("protected" if overwrite else "failed")
    bench.target.tags["copy/app"][of(theirs).anchor] = theirs.digest
    ours = await bench.run(**options)
    assert (ours.state, ours.protected) == ("protected", True)


async def test_immutable_tag(bench: Bench) -> None:
    """A registry that does not let tags move holds the tag; the content is kept by digest."""
    old, new = two(bench)
    await bench.run()
    bench.target.core.immutable_tags = True
    move(bench, new)
    result = await bench.run()
    assert (result.state, result.reason) == ("tag_held", "tag_immutable")
    assert result.protected
    assert bench.tag("1.0") == old.digest
    assert bench.anchored(new)


async def test_immutable_tag_that_is_right(bench: Bench) -> None:
    """Somebody else wrote the same tag first: that is no failure."""
    image = bench.source.add_image("team/app", "1.0")
    fault = bench.target.fail(
        Phase.PUT_MANIFEST,
        match=lambda r: r.reference == "1.0",
        after=True,
        status=400,
        code="TAG_INVALID",
        body=b'{"errors":[{"code":"TAG_INVALID","message":"tag is immutable"}]}',
    )
    result = await bench.run()
    assert fault.hits == 1
    assert (result.state, result.digest) == ("protected", of(image))


async def test_read_and_refused(bench: Bench) -> None:
    """What was read in full counts as pulled, though the target takes no manifest of it; what was not, does not."""
    bench.source.add_image("team/app", "1.0")
    bench.target.fail(Phase.PUT_MANIFEST, status=400, code="MANIFEST_INVALID")
    result = await bench.run()
    assert (result.state, result.pulled, result.pushed) == ("failed", True, False)
    assert result.error is not None
    assert result.error.side == "target"
    bench.source.add_image("team/other", "1.0", seed="other")
    bench.source.fail(Phase.GET_BLOB, status=404, times=None)
    result = await bench.run("team/other:1.0")
    assert (result.state, result.pulled, result.pushed) == ("failed", False, False)


async def test_refused_tag(bench: Bench) -> None:
    """A tag that is refused and does not stand at all is a failure of the target."""
    bench.source.add_image("team/app", "1.0")
    bench.target.fail(
        Phase.PUT_MANIFEST,
        match=lambda r: r.reference == "1.0",
        status=400,
        code="MANIFEST_INVALID",
    )
    result = await bench.run()
    assert (result.state, result.protected) == ("failed", False)
    assert result.error is not None
    assert result.error.side == "target"


@pytest.mark.parametrize(
    ("rival", "stands", "owned", "state"),
    [
        pytest.param(RIVAL_FIRST, "", False, "conflict", id="the-other-is-first"),
        pytest.param(RIVAL_LAST, "", False, "protected", id="we-are-first"),
        pytest.param(RIVAL_LAST, "theirs", False, "conflict", id="not-our-content"),
        pytest.param(RIVAL_FIRST, "theirs", True, "protected", id="our-content"),
        pytest.param(RIVAL_LAST, "old", False, "protected", id="our-source-has-it"),
        pytest.param(RIVAL_FIRST, "old", False, "conflict", id="who-cannot-be-asked-may-have-it"),
    ],
)
async def test_rivals(bench: Bench, rival: Reference, stands: str, owned: bool, state: str) -> None:
    """Of several sources that want one tag the first gets it; the others are kept by digest."""
    old, new = two(bench)
    there = old if stands == "old" else images.image(seed="theirs")
    if stands:
        bench.target.add("copy/app", there, "1.0")
    move(bench, new)
    need = Need(rivals=(rival,), owned=of(there) if owned else None)
    result = await bench.run(need=need)
    assert (result.state, result.protected) == (state, True)
    assert (bench.tag("1.0") == new.digest) is (state == "protected")
    assert bench.anchored(new)
    if state == "conflict":
        assert str(rival) in result.message


@pytest.mark.parametrize("late", [False, True], ids=["never", "late"])
async def test_visibility(bench: Bench, late: bool) -> None:
    """A tag is read back: a target that shows it late is waited for, one that never does has failed."""
    bench.source.add_image("team/app", "1.0")
    bench.target.fail(
        Phase.HEAD_MANIFEST,
        match=lambda r: r.reference == "1.0",
        nth=2,
        times=3 if late else None,
        status=404,
    )
    bench.target.fail(
        Phase.GET_MANIFEST, match=lambda r: r.reference == "1.0", times=None, status=404
    )
    result = await bench.run()
    assert result.state == ("protected" if late else "failed")
    assert result.reason == ("" if late else "not_visible")
    assert bench.naps == [1.0] * (3 if late else 5)


async def test_another_hand(bench: Bench) -> None:
    """A tag that shows something else than what was written is no copy."""
    old, new = two(bench)
    move(bench, new)
    bench.target.add("copy/app", old, "1.0")

    bench.target.fail(
        Phase.HEAD_MANIFEST,
        match=lambda r: r.reference == "1.0",
        nth=2,
        times=None,
        headers={"Docker-Content-Digest": old.digest},
    )
    result = await bench.run()
    assert (result.state, result.protected) == ("failed", False)
    assert old.digest in result.message


# Digests


async def test_digest(bench: Bench) -> None:
    """A digest gets its anchor and no other tag, least of all `latest`; when it stands, no source is asked."""
    image = bench.source.add_image("team/app", "1.0")
    result = await bench.run(f"team/app@{image.digest}")
    assert (result.state, result.digest, result.tag_written) == ("protected", of(image), False)
    assert result.target.tag == of(image).anchor
    assert set(bench.target.tags["copy/app"]) == {of(image).anchor}
    bench.forget_requests()
    again = await bench.run(f"team/app@{image.digest}")
    assert again.protected
    assert bench.source.requests == []
    assert len(bench.target.requests) == 1


async def test_digest_that_stands_without_anchor(bench: Bench) -> None:
    """Content that is there already only needs its anchor: no source is asked."""
    image = images.image()
    bench.target.add("copy/app", image)
    result = await bench.run(f"team/app@{image.digest}")
    assert result.state == "protected"
    assert bench.anchored(image)
    assert bench.source.requests == []


@pytest.mark.parametrize(
    ("rivals", "stands", "state", "written"),
    [
        pytest.param((), False, "protected", True, id="new"),
        pytest.param((), True, "protected", False, id="taken"),
        pytest.param((RIVAL_FIRST,), False, "conflict", False, id="rival-first"),
        pytest.param((RIVAL_LAST,), False, "protected", True, id="rival-last"),
    ],
)
async def test_tag_and_digest(
    bench: Bench, rivals: tuple[Reference, ...], stands: bool, state: str, written: bool
) -> None:
    """The digest rules; its tag is written where it is free, and never moved."""
    old, new = two(bench)
    if stands:
        bench.target.add("copy/app", old, "1.0")
    result = await bench.run(f"team/app:1.0@{new.digest}", Need(rivals=rivals))
    assert (result.state, result.tag_written, result.protected) == (state, written, True)
    assert (bench.tag("1.0") == new.digest) is written
    assert bench.anchored(new)


async def test_tag_of_an_anchored_digest(bench: Bench) -> None:
    """Where the anchor stands and the tag does not, the manifest comes from the target."""
    image = images.image()
    bench.target.add("copy/app", image, of(image).anchor)
    result = await bench.run(f"team/app:1.0@{image.digest}")
    assert result.tag_written
    assert bench.tag("1.0") == image.digest
    assert bench.source.requests == []


# What runs


async def test_running(bench: Bench) -> None:
    """Every digest that runs is kept, though its tag has moved on."""
    old, new = two(bench)
    result = await bench.run(need=runs(new, old))
    assert (result.state, result.digest) == ("protected", of(old))
    assert result.anchored == {of(old), of(new)}
    assert bench.anchored(new)


async def test_running_elsewhere(bench: Bench) -> None:
    """A reported digest that may mean something else is let go if it is not there."""
    bench.source.add_image("team/app", "1.0")
    other = images.image(seed="loaded")
    result = await bench.run(need=runs(other, certain=False))
    assert (result.state, result.absent) == ("protected", frozenset(frozenset({of(other)})))


async def test_running_and_gone(bench: Bench) -> None:
    """A digest that certainly runs and cannot be had any more is a failure."""
    bench.source.add_image("team/app", "1.0")
    result = await bench.run(need=runs(images.image(seed="gone")))
    assert (result.state, result.reason) == ("failed", "not_found")


async def test_running_at_a_target_that_fails(bench: Bench) -> None:
    """A missing repository at the target is not taken for a digest that is unknown at the source."""
    bench.source.add_image("team/app", "1.0", seed="a")
    other = bench.source.add("team/app", images.image(seed="b"))
    bench.target.fail(
        Phase.PUT_MANIFEST,
        match=lambda r: r.reference == of(other).anchor,
        times=None,
        status=404,
        code="NAME_UNKNOWN",
    )
    result = await bench.run(need=runs(other, certain=False))
    assert (result.state, result.absent) == ("failed", frozenset())
    assert result.error is not None
    assert result.error.side == "target"


@pytest.mark.parametrize(
    ("options", "certain", "pulls"),
    [
        pytest.param({"digest_pull": True}, True, True, id="on"),
        pytest.param({}, True, False, id="off"),
        pytest.param({"digest_pull": True}, False, False, id="uncertain"),
        pytest.param(
            {"digest_pull": True, "digest_pull_ignored_tags": frozenset({"1.0"})},
            True,
            False,
            id="ignored-tag",
        ),
    ],
)
async def test_digest_pull(
    bench: Bench, options: PolicyOptions, certain: bool, pulls: bool
) -> None:
    """With digestPull the tag stands for what certainly runs, and for what the source says otherwise."""
    says, running = two(bench)
    result = await bench.run(need=runs(running, certain=certain), **options)
    assert result.digest == of(running if pulls else says)
    assert bench.tag("1.0") == (running if pulls else says).digest
    assert bench.anchored(running)


async def test_digest_pull_agrees(bench: Bench) -> None:
    """Of several digests that run, the one that the source's tag means gets the tag."""
    says, running = two(bench)
    result = await bench.run(need=runs(running, says), digest_pull=True)
    assert result.digest == of(says)


async def test_digest_pull_without_the_tag(bench: Bench) -> None:
    """The tag is gone at the source, the digest is not: what runs is copied and tagged."""
    _, running = two(bench)
    del bench.source.tags["team/app"]["1.0"]
    result = await bench.run(need=runs(running), digest_pull=True)
    assert (result.state, result.protected, result.reason) == ("protected", True, "not_found")
    assert bench.tag("1.0") == running.digest


# The source is not what it was


def vanish(bench: Bench) -> None:
    """The tag is deleted."""
    bench.source.tags["team/app"].clear()


def refuse(bench: Bench) -> None:
    """Access is taken away."""
    bench.source.fail(Phase.HEAD_MANIFEST, times=None, status=403, code="DENIED")
    bench.source.fail(Phase.GET_MANIFEST, times=None, status=403, code="DENIED")


def break_down(bench: Bench) -> None:
    """Every answer is an error."""
    for phase in (Phase.HEAD_MANIFEST, Phase.GET_MANIFEST):
        bench.source.fail(phase, times=None, status=503)


TROUBLE = pytest.mark.parametrize("trouble", [vanish, refuse, break_down])


@TROUBLE
@pytest.mark.parametrize("platforms", [None, frozenset({AMD})], ids=["whole", "narrowed"])
async def test_source_down(
    bench: Bench, trouble: Callable[[Bench], None], platforms: frozenset[Platform] | None
) -> None:
    """A copy that stands stays protected without its source; the error is told all the same."""
    image = bench.source.add("team/app", images.index(), "1.0")
    need = Need(platforms=platforms)
    first = await bench.run(need=need)
    assert first.protected
    trouble(bench)
    result = await bench.run(need=need)
    assert result.protected
    assert result.digest == first.digest
    assert not result.source_checked
    assert result.error is not None
    assert result.error.side == "source"
    assert result.reason == result.error.reason
    assert result.message
    assert bench.anchored(image) is (platforms is None)


@TROUBLE
async def test_source_down_from_the_start(bench: Bench, trouble: Callable[[Bench], None]) -> None:
    """Without a copy it is a failure, and nothing is written."""
    bench.source.add_image("team/app", "1.0")
    trouble(bench)
    result = await bench.run()
    assert (result.state, result.protected) == ("failed", False)
    assert bench.target.ledger.count(Phase.PUT_MANIFEST) == 0


async def test_source_switched_off(bench: Bench) -> None:
    """A machine that does not answer at all takes nothing from the copy."""
    bench.source.add_image("team/app", "1.0")
    await bench.run()
    await bench.source.stop()
    result = await bench.run()
    assert (result.state, result.protected) == ("protected", True)
    assert result.error is not None
    assert result.error.temporary


async def test_source_lost_between(bench: Bench) -> None:
    """The source says which image is wanted and cannot give its manifest: a narrowed copy that stands is kept."""
    two_platforms = images.index(seed="a")
    bench.source.add("team/app", two_platforms, "1.0")
    need = Need(platforms=frozenset({AMD}))
    first = await bench.run(need=need)
    bench.source.add("team/app", images.index(seed="b"), "1.0")
    bench.source.fail(Phase.GET_MANIFEST, times=None, status=403)
    result = await bench.run(need=need)
    assert (result.state, result.protected) == ("protected", True)
    assert result.digest == first.digest
    assert result.error is not None


async def test_denied_host(bench: Bench) -> None:
    """A source that policy forbids is denied, not failed."""
    request = MirrorRequest(Reference.parse("127.0.0.2:1/team/app:1.0"), "copy/app")
    result = await bench.mirror().run(request, Need())
    assert (result.state, result.protected) == ("denied", False)


async def test_target_down(bench: Bench) -> None:
    """Without the target nothing is known: that is a failure of the target."""
    bench.source.add_image("team/app", "1.0")
    await bench.target.stop()
    result = await bench.run()
    assert (result.state, result.protected) == ("failed", False)
    assert isinstance(result.error, CopycatError)
    assert result.error.side == "target"


# Platforms


async def test_one_platform(bench: Bench) -> None:
    """One wanted platform: its image alone, under the tag, and a marker that makes the next look cheap."""
    child, other = images.image(platform="linux/amd64"), images.image(platform="linux/arm64")
    root = bench.source.add("team/app", images.index(child, other), "1.0")
    need = Need(platforms=frozenset({AMD}))
    result = await bench.run(need=need)
    assert (result.state, result.protected, result.digest) == ("tag_only", True, of(child))
    assert bench.target.has("copy/app", child, "1.0")
    assert not bench.target.has("copy/app", other)
    assert bench.tag(subset_tag(of(root).hex, [AMD])) == child.digest
    bench.forget_requests()
    again = await bench.run(need=need)
    assert (again.state, again.pushed) == ("tag_only", False)
    assert [r.method for r in bench.source.requests] == ["HEAD"]
    assert [r.method for r in bench.target.requests] == ["HEAD", "HEAD"]
    third = await bench.run(need=Need(platforms=frozenset({AMD}), check_source=False))
    assert (third.state, third.digest) == ("tag_only", of(child))


async def test_lost_marker(bench: Bench) -> None:
    """A marker that is lost is written again; the tag stays as it is."""
    root = bench.source.add("team/app", images.index(), "1.0")
    need = Need(platforms=frozenset({AMD}))
    first = await bench.run(need=need)
    del bench.target.tags["copy/app"][subset_tag(of(root).hex, [AMD])]
    result = await bench.run(need=need)
    assert (result.state, result.tag_written, result.digest) == ("tag_only", False, first.digest)
    assert bench.tag(subset_tag(of(root).hex, [AMD])) == str(first.digest)


async def test_several_platforms(bench: Bench) -> None:
    """Several wanted platforms: an index of them with their attestations, and nothing of the others."""
    platforms = ("linux/amd64", "linux/arm64", "linux/s390x")
    bench.source.add("team/app", images.index(platforms=platforms, attestations=True), "1.0")
    result = await bench.run(need=Need(platforms=frozenset({AMD, ARM})))
    assert result.state == "tag_only"
    stored = bench.target.store.manifest("copy/app", "1.0")
    assert stored is not None
    document = parse_document(stored.data, content_type=stored.media_type)
    assert isinstance(document, Index)
    assert document.platforms() == (AMD, ARM)
    assert len(document.manifests) == 4
    assert document.digest == result.digest


@pytest.mark.parametrize("again", [False, True], ids=["new", "standing"])
async def test_all_platforms(bench: Bench, again: bool) -> None:
    """If all that there is is wanted, the copy is the whole image, bit by bit."""
    root = bench.source.add("team/app", images.index(), "1.0")
    need = Need(platforms=frozenset({AMD, ARM}))
    result = await bench.run(need=need)
    if again:
        result = await bench.run(need=need)
    assert (result.state, result.digest) == ("protected", of(root))
    look = replace(need, check_source=False, check_anchors=True, owned=result.digest, whole=True)
    assert (await bench.run(need=look)).state == "protected"
    assert bench.target.has("copy/app", root, "1.0")
    assert bench.anchored(root)


async def test_no_index(bench: Bench) -> None:
    """An image without an index is copied as it is."""
    image = bench.source.add_image("team/app", "1.0")
    result = await bench.run(need=Need(platforms=frozenset({ARM})))
    assert (result.state, result.digest) == ("protected", of(image))


async def test_narrowed_tag_held(bench: Bench) -> None:
    """A tag that may not move holds narrowed copies too."""
    bench.source.add("team/app", images.index(seed="a"), "1.0")
    need = Need(platforms=frozenset({AMD}))
    await bench.run(need=need)
    bench.source.add("team/app", images.index(seed="b"), "1.0")
    result = await bench.run(need=need, allow_different_digest_repush=False)
    assert (result.state, result.protected) == ("tag_held", True)


async def test_narrowed_digest_pull(bench: Bench) -> None:
    """With digestPull a narrowed tag stands for what runs too, not for what the source's tag has come to mean."""
    running = bench.source.add("team/app", images.index(seed="a"), "1.0")
    says = bench.source.add("team/app", images.index(seed="b"), "1.0")
    need = replace(runs(running), platforms=frozenset({AMD}))
    result = await bench.run(need=need, digest_pull=True)
    assert (result.state, result.digest) == ("tag_only", child(running, AMD))
    assert bench.tag("1.0") == str(child(running, AMD))
    await bench.source.stop()
    again = await bench.run(need=replace(need, owned=result.digest), digest_pull=True)
    assert (again.state, again.digest, again.protected) == ("tag_only", result.digest, True)
    await bench.source.start()
    free = await bench.run(need=replace(need, running=()), digest_pull=True)
    assert free.digest == child(says, AMD)


@pytest.mark.parametrize("asks", [True, False], ids=["forced", "check"])
async def test_narrowed_anchor_comes_back(bench: Bench, asks: bool) -> None:
    """A narrowed copy whose anchor vanished gets it again, from what stands at the target."""
    bench.source.add("team/app", images.index(platforms=THREE), "1.0")
    need = Need(platforms=frozenset({AMD, ARM}))
    kept = (await bench.run(need=need)).digest
    assert kept is not None
    del bench.target.tags["copy/app"][kept.anchor]
    bench.forget_requests()
    look = replace(need, check_source=asks, check_anchors=True, owned=kept, known=True)
    result = await bench.run(need=look)
    assert (result.state, result.digest) == ("tag_only", kept)
    assert bench.tag(kept.anchor) == str(kept)
    assert bench.source.ledger.count(Phase.GET_MANIFEST, Phase.GET_BLOB) == 0


@pytest.mark.parametrize(
    ("required", "ignored", "state"),
    [
        pytest.param(False, False, "tag_only", id="only-asked-for"),
        pytest.param(True, False, "failed", id="a-node-runs-it"),
        pytest.param(True, True, "tag_only", id="ignored"),
    ],
)
async def test_missing_platform(bench: Bench, required: bool, ignored: bool, state: str) -> None:
    """A platform that a node runs must be there unless it is ignored; one that is only wished for is noted."""
    bench.source.add("team/app", images.index(), "1.0")
    policy = Policy(ignore_missing_platforms=frozenset({S390} if ignored else ()))
    need = Need(platforms=frozenset({AMD, S390}), required=frozenset({S390} if required else ()))
    result = await bench.mirror(policy).run(bench.ask(), need)
    assert result.state == state
    assert ("s390x" in result.message) is not ignored


async def test_no_wanted_platform(bench: Bench) -> None:
    """None of the wanted platforms: nothing to copy, and the message says what there is."""
    bench.source.add("team/app", images.index(), "1.0")
    result = await bench.run(need=Need(platforms=frozenset({S390})))
    assert (result.state, result.protected) == ("failed", False)
    assert "linux/amd64, linux/arm64" in result.message


# $arch


@pytest.mark.parametrize(
    ("image", "platforms", "name"),
    [
        pytest.param(images.index(), None, "amd64-arm64/app", id="index"),
        pytest.param(images.index(), frozenset({AMD}), "amd64/app", id="narrowed"),
        pytest.param(images.index(), frozenset({S390, AMD}), "amd64/app", id="some-missing"),
        pytest.param(images.image(platform="linux/arm64"), None, "arm64/app", id="config"),
        pytest.param(images.artifact(), None, "app", id="artifact"),
    ],
)
async def test_arch(
    bench: Bench, image: Image, platforms: frozenset[Platform] | None, name: str
) -> None:
    """`$arch` becomes what the image runs on, and is asked for once."""
    bench.source.add("team/app", image, "1.0")
    mirror = bench.mirror(prefix=ARCH)
    request, need = bench.ask(repository=f"{ARCH}/app"), Need(platforms=platforms)
    result = await mirror.run(request, need)
    assert (result.protected, result.target.repository) == (True, name)
    bench.forget_requests()
    again = await mirror.run(request, need)
    assert again.target.repository == name
    assert {r.method for r in bench.source.requests} == {"HEAD"}


async def test_arch_of_a_config_that_is_none(bench: Bench) -> None:
    """A config that is no JSON has no architecture."""
    odd = images.artifact()
    bench.source.add("team/app", odd, "1.0")
    body = odd.data.replace(
        images.EMPTY_CONFIG.digest.encode(), str(Digest.of(b"??")).encode()
    ).replace(b"e30=", b"Pz8=")
    bench.source.put_blob("team/app", b"??")
    bench.source.put_manifest("team/app", body, odd.media_type, "1.0")
    result = await bench.mirror(prefix=ARCH).run(bench.ask(repository=f"{ARCH}/app"), Need())
    assert (result.state, result.target.repository) == ("protected", "app")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(b'{"architecture":"\xff"}', id="no-text"),
        pytest.param(b'{"x":' + b"[" * 60_000, id="nested"),
    ],
)
async def test_arch_of_a_config_that_nobody_can_read(bench: Bench, config: bytes) -> None:
    """A config from somebody who means ill has no architecture either, and its image is copied."""
    bench.source.put_blob("team/app", config)
    told = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": str(Digest.of(config)),
        "size": len(config),
    }
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": told, "layers": []}
    bench.source.put_manifest("team/app", json.dumps(body).encode(), OCI_MANIFEST, "1.0")
    result = await bench.mirror(prefix=ARCH).run(bench.ask(repository=f"{ARCH}/app"), Need())
    assert (result.state, result.target.repository) == ("protected", "app")


@pytest.mark.parametrize("by_digest", [False, True], ids=["tag", "digest"])
async def test_arch_of_nothing(bench: Bench, by_digest: bool) -> None:
    """Without the image there is no name: a failure of the source."""
    bench.source.create_repository("team/app")
    reference = f"team/app@{Digest.of(b'x')}" if by_digest else "team/app:1.0"
    result = await bench.run(reference, repository=f"{ARCH}/app")
    assert (result.state, result.reason) == ("failed", "not_found")


# The copy itself is what runs


@pytest.mark.parametrize(
    ("stands", "options", "protected", "asked"),
    [
        pytest.param(True, {}, True, 1, id="stands"),
        pytest.param(False, {}, False, 1, id="missing"),
        pytest.param(True, {"dry_run": True}, True, 1, id="dry-run"),
        pytest.param(True, {"dry_pull": True}, True, 1, id="dry-pull"),
        pytest.param(True, {"dry_run": True, "dry_pull": True}, False, 0, id="dry-both"),
    ],
)
async def test_in_place(
    bench: Bench, stands: bool, options: PolicyOptions, protected: bool, asked: int
) -> None:
    """An image of the target itself is looked at and never copied."""
    if stands:
        bench.target.add_image("team/app", "1.0")
    request = MirrorRequest(Reference.parse(f"{bench.target.address}/team/app:1.0"), "copy/app")
    result = await bench.mirror(**options).run(request, Need())
    assert (result.state, result.protected) == ("in_place", protected)
    assert result.target.repository == "team/app"
    assert bench.target.ledger.count(Phase.HEAD_MANIFEST) == asked
    assert bench.source.requests == []


# Dry modes


async def dry(bench: Bench, reference: str, options: PolicyOptions) -> MirrorResult:
    """An attempt that writes nothing, whatever it says."""
    bench.forget_requests()
    before = {name: dict(tags) for name, tags in bench.target.tags.items()}
    result = await bench.run(reference, **options)
    assert {name: dict(tags) for name, tags in bench.target.tags.items()} == before
    assert not {r.method for r in bench.target.requests} & {"PUT", "POST", "PATCH", "DELETE"}
    assert not result.pushed
    return result


@pytest.mark.parametrize("stands", ["nothing", "same", "other"])
@pytest.mark.parametrize(
    ("options", "source", "target"),
    [
        pytest.param({"dry_run": True}, ["HEAD"], ["HEAD"], id="dry-run"),
        pytest.param({"dry_pull": True}, [], ["HEAD"], id="dry-pull"),
        pytest.param({"dry_run": True, "dry_pull": True}, [], [], id="both"),
    ],
)
async def test_dry(
    bench: Bench, options: PolicyOptions, source: list[str], target: list[str], stands: str
) -> None:
    """dryRun asks both sides, dryPull only the target, both nobody; none of them writes or reads content."""
    old, new = two(bench)
    await bench.run("team/app:warm-up")  # the registries are known now
    if stands != "nothing":
        bench.target.add("copy/app", old, "1.0")
    if stands == "other":
        move(bench, new)
    result = await dry(bench, "team/app:1.0", options)
    assert result.state == "dry_run"
    assert [r.method for r in bench.source.requests if r.status == 200] == source
    assert {r.method for r in bench.target.requests if r.status == 200} <= set(target)
    assert bool(bench.source.requests) is bool(source)
    assert bool(bench.target.requests) is bool(target)
    asked_both = "dry_pull" not in options
    wanted = stands == "same" or (stands == "other" and not asked_both)
    assert result.protected is (wanted and bool(target))
    assert result.message


@pytest.mark.parametrize("policy", ["foreign", "held", "rival"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "new"])
async def test_dry_tag_that_stays(bench: Bench, policy: str, kept: bool) -> None:
    """dryRun does not announce a tag that a run would not write, and says what keeps it from it."""
    new = bench.source.add_image("team/app", "1.0")
    bench.target.add("copy/app", images.image(seed="theirs"), "1.0")
    options = PolicyOptions(
        overwrite_foreign_tags=policy != "foreign", allow_different_digest_repush=policy != "held"
    )
    need = Need(rivals=(RIVAL_LAST,) if policy == "rival" else ())
    real = await bench.run(need=need, **options) if kept else None
    options["dry_run"] = True
    result = await bench.run(need=need, **options)
    assert (result.state, result.protected) == ("dry_run", kept)
    assert f"{new.digest} is kept: " in result.message if kept else "would keep" in result.message
    if real is not None:
        assert real.message in result.message
    assert "would move" not in result.message


async def test_dry_digest_pull(bench: Bench) -> None:
    """dryRun with digestPull speaks of what runs, as a run would decide."""
    says, running = two(bench)
    bench.target.add("copy/app", running, "1.0")
    bench.target.tags["copy/app"][of(running).anchor] = running.digest
    options = PolicyOptions(dry_run=True, digest_pull=True)
    same = await bench.run(need=runs(running), **options)
    assert (same.protected, same.digest) == (True, of(running))
    assert "nothing to do" in same.message
    moved = await bench.run(need=Need(), **options)
    assert f"would move {moved.target} from {running.digest} to {says.digest}" in moved.message


@pytest.mark.parametrize("options", [{"dry_run": True}, {"dry_pull": True}], ids=["run", "pull"])
async def test_dry_digest(bench: Bench, options: PolicyOptions) -> None:
    """A digest is looked for under its anchor."""
    image = bench.source.add_image("team/app", "1.0")
    await bench.run(f"team/app@{image.digest}")
    result = await dry(bench, f"team/app@{image.digest}", options)
    assert (result.state, result.protected, result.digest) == ("dry_run", True, of(image))


async def test_dry_and_gone(bench: Bench) -> None:
    """dryRun finds out that an image is missing at its source."""
    bench.source.create_repository("team/app")
    result = await dry(bench, "team/app:1.0", {"dry_run": True})
    assert (result.state, result.reason) == ("failed", "not_found")


@pytest.mark.parametrize("options", [{"dry_run": True}, {"dry_pull": True}], ids=["run", "pull"])
async def test_dry_arch(bench: Bench, options: PolicyOptions) -> None:
    """`$arch` needs more than HEAD: no dry mode fetches it, and the message says what does."""
    bench.source.add("team/app", images.index(), "1.0")
    result = await bench.run(repository=f"{ARCH}/app", **options)
    assert result.state == "dry_run"
    assert "$arch" in result.message
    assert "copycat plan" in result.message
    assert bench.source.requests == bench.target.requests == []


async def test_what_a_mirror_shows(bench: Bench) -> None:
    """Its target, its naming, and the blobs on their way."""
    mirror = bench.mirror(prefix="p")
    assert mirror.target is bench.plain
    assert not mirror.naming.needs_architecture
    assert mirror.transfers() == []
    assert str(bench.ask()).endswith("/team/app:1.0 → copy/app")
