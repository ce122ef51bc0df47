"""What is signed stays signed: which signatures follow an image, when, and at what price."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import anyio
import pytest

from copycat.mirror import signatures
from copycat.mirror.mirror import Mirror
from copycat.mirror.request import MirrorResult, Need, RunningDigest, Transferred
from copycat.mirror.signatures import Kind, Look
from copycat.oci.digest import Digest
from copycat.oci.manifest import OCI_INDEX
from copycat.oci.platform import Platform
from copycat.registry.referrers import fallback_tag
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES, Profile
from copycat.sandbox.registry import Registry
from tests.mirror.conftest import Bench
from tests.registry.support import world

NEW = PROFILES["distribution"]
#: No referrers API; the tag stands in for it.
OLD = replace(NEW, name="old", referrers="404", oci_subject=False)
#: Says OCI-Subject and has no API (ECR in 2024).
LIAR = replace(OLD, name="liar", oci_subject=True)
#: Has the API and does not say so.
MODEST = replace(NEW, name="modest", oci_subject=False)

APP = images.image(seed="app")
FORCED = Need(check_anchors=True, check_signatures=True)


@asynccontextmanager
async def between(source: Profile = NEW, target: Profile = NEW) -> AsyncIterator[Bench]:
    """A bench of these two kinds of registry."""
    async with (
        Registry(profile=source) as a,
        Registry(profile=target) as b,
        world(a.address, b.address, target_registries=frozenset({b.address})) as here,
    ):
        bench = Bench(a, b, here)
        yield bench
        assert (a.violations, b.violations) == ([], [])


def refer(registry: Registry, *referrers: Image, subject: Image = APP) -> None:
    """Put these where whoever asks for the subject's referrers finds them."""
    for image in referrers:
        registry.add("team/app", image)
    if registry.profile.referrers != "api":
        registry.add(
            "team/app", images.index(*referrers), fallback_tag(Digest.parse(subject.digest))
        )


def sign(registry: Registry, suffix: str = ".sig", seed: object = 0, subject: Image = APP) -> Image:
    """What cosign does."""
    made = images.signature(subject, seed=f"{suffix}{seed}")
    return registry.add("team/app", made, images.cosign_tag(subject, suffix))


@dataclass(frozen=True, slots=True)
class Signed:
    """An image with everything that people attach to images."""

    signature: Image
    sbom: Image
    sbom_signature: Image
    tags: dict[str, Image]

    @property
    def referrers(self) -> list[Image]:
        """In the OCI way."""
        return [self.signature, self.sbom, self.sbom_signature]


def signed(registry: Registry) -> Signed:
    """The image at the source, with all of it."""
    registry.add("team/app", APP, "1.0")
    signature = images.artifact(subject=APP, seed="sig", artifact_type="application/vnd.cosign")
    sbom = images.artifact(
        subject=APP, seed="sbom", artifact_type="application/spdx", annotations={"by": "us"}
    )
    above = images.artifact(subject=sbom, seed="above", artifact_type="application/vnd.cosign")
    refer(registry, signature, sbom)
    refer(registry, above, subject=sbom)
    tags = {suffix: sign(registry, suffix) for suffix in (".sig", ".att", ".sbom")}
    return Signed(signature, sbom, above, tags)


async def run(
    mirror: Mirror, bench: Bench, need: Need | None = None, reference: str = "team/app:1.0"
) -> MirrorResult:
    """One attempt with a mirror that remembers."""
    return await mirror.run(bench.ask(reference), need or Need())


async def listed(bench: Bench, subject: Image = APP) -> set[str]:
    """What whoever asks the target for referrers is told."""
    here = bench.plain.repository("copy/app")
    listing = await here.referrers(Digest.parse(subject.digest))
    return {str(d.digest) for d in listing.descriptors}


def asked(registry: Registry) -> dict[str, int]:
    """Requests by what they are for, blobs and pings left out."""
    found: dict[str, int] = {}
    for request in registry.requests:
        phase = request.phase
        if phase is Phase.HEAD_MANIFEST and request.reference.startswith("sha256-"):
            name = "HEAD tag"
        elif "MANIFEST" in phase.name or phase is Phase.REFERRERS:
            name = phase.value
        else:
            continue
        found[name] = found.get(name, 0) + 1
    return found


# What is copied


@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param(NEW, NEW, id="api-to-api"),
        pytest.param(OLD, NEW, id="tag-to-api"),
        pytest.param(NEW, OLD, id="api-to-tag"),
        pytest.param(OLD, OLD, id="tag-to-tag"),
        pytest.param(NEW, LIAR, id="a-target-that-lies"),
        pytest.param(NEW, MODEST, id="a-target-that-does-not-tell"),
        pytest.param(PROFILES["ghcr"], PROFILES["quay"], id="ghcr-to-quay"),
    ],
)
async def test_everything(source: Profile, target: Profile) -> None:
    """Referrers, referrers of referrers and cosign's tags arrive bit by bit, and are found as at the source."""
    source, target = (replace(p, auth="none", strict_types=False) for p in (source, target))
    async with between(source, target) as bench:
        what = signed(bench.source)
        result = await bench.run(signatures="all")
        assert (result.state, result.message, result.signatures_due) == ("protected", "", False)
        assert bench.target.has("copy/app", APP, "1.0")
        assert await listed(bench) == {what.signature.digest, what.sbom.digest}
        assert await listed(bench, what.sbom) == {what.sbom_signature.digest}
        for image in what.referrers:
            assert bench.target.has("copy/app", image)
        for suffix, image in what.tags.items():
            assert bench.target.has("copy/app", image, images.cosign_tag(APP, suffix))
            assert bench.anchored(image)


async def test_what_a_written_list_says() -> None:
    """Where the target has no API its tag names type and annotations of each, in a fixed order."""
    async with between(NEW, OLD) as bench:
        what = signed(bench.source)
        await bench.run(signatures="referrers")
        manifest = bench.target.store.manifest("copy/app", images.cosign_tag(APP, ""))
        assert manifest is not None
        entries = {e["digest"]: e for e in manifest.body["manifests"]}
        assert list(entries) == sorted(entries)
        assert entries[what.sbom.digest]["artifactType"] == "application/spdx"
        assert entries[what.sbom.digest]["annotations"] == {"by": "us"}


async def test_type_of_an_old_signature() -> None:
    """A referrer without an artifact type has that of its config, in a list that we write."""
    async with between(NEW, OLD) as bench:
        bench.source.add("team/app", APP, "1.0")
        plain = images.image(seed="plain", subject=APP)
        wrapped = images.index(images.image(seed="in"), subject=APP)
        refer(bench.source, plain, wrapped)
        await bench.run(signatures="all")
        manifest = bench.target.store.manifest("copy/app", images.cosign_tag(APP, ""))
        assert manifest is not None
        kinds = {e["digest"]: e.get("artifactType") for e in manifest.body["manifests"]}
        assert kinds == {
            plain.digest: "application/vnd.oci.image.config.v1+json",
            wrapped.digest: None,
        }
        assert bench.target.has("copy/app", wrapped)


@pytest.mark.parametrize(
    ("kind", "referrers", "tags"),
    [("none", 0, 0), ("tags", 0, 3), ("referrers", 2, 0), ("all", 2, 3)],
)
async def test_kinds(bench: Bench, kind: Kind, referrers: int, tags: int) -> None:
    """Each setting copies its own, and asks for nothing else."""
    signed(bench.source)
    await bench.run(signatures=kind)
    assert len(await listed(bench)) == referrers
    assert sum(name.startswith("sha256-") for name in bench.target.tags["copy/app"]) == tags
    found = asked(bench.source)
    assert found.get("HEAD tag", 0) == tags
    assert (found.get("referrers", 0) > 0) == (referrers > 0)


async def test_below_the_root() -> None:
    """Manifests below a root are looked at if it has anything itself: those of nested indexes too."""
    child, deep = images.image(seed="child"), images.image(seed="deep")
    inner = images.index(deep)
    root = images.index(child, inner)
    for is_signed in (False, True):
        async with between() as bench:
            bench.source.add("team/app", root, "1.0")
            below = [sign(bench.source, subject=i, seed=i.digest) for i in (child, deep, inner)]
            reference = images.artifact(subject=deep)
            refer(bench.source, reference)
            if is_signed:
                sign(bench.source, subject=root)
            result = await bench.run(signatures="all")
            assert result.state == "protected"
            for image in [*below, reference]:
                assert bench.target.has("copy/app", image) is is_signed
            # root, child, inner, deep; and what refers to `reference`
            assert asked(bench.source)["referrers"] == (5 if is_signed else 1)
            assert asked(bench.source)["HEAD tag"] == (12 if is_signed else 3)


async def test_running_digests(bench: Bench) -> None:
    """What runs is looked at too, not the tag's image alone."""
    old = bench.source.add("team/app", images.image(seed="old"))
    bench.source.add("team/app", APP, "1.0")
    one, two = sign(bench.source, subject=old), sign(bench.source)
    need = Need(running=(RunningDigest(digest=Digest.parse(old.digest)),))
    await bench.run(need=need, signatures="tags")
    assert bench.target.has("copy/app", one, images.cosign_tag(old))
    assert bench.target.has("copy/app", two, images.cosign_tag(APP))


async def test_digest_references(bench: Bench) -> None:
    """References by digest have theirs as well."""
    what = signed(bench.source)
    await bench.run(f"team/app@{APP.digest}", signatures="all")
    assert bench.target.has("copy/app", what.tags[".sig"], images.cosign_tag(APP))
    assert what.sbom.digest in await listed(bench)


async def test_sha512(bench: Bench) -> None:
    """Cosign has no tags for other digests: none are asked for; referrers are."""
    image = images.image(seed="long", algorithm="sha512")
    bench.source.add("team/app", image, "1.0")
    result = await bench.run(f"team/app@{image.digest}", signatures="all")
    assert result.state == "protected"
    assert asked(bench.source)["referrers"] == 1
    assert not [r for r in bench.source.requests if ".sig" in r.path]


async def test_what_is_no_referrer() -> None:
    """A tag's list may name anything: what has another subject, or none, is left alone."""
    async with between(OLD, OLD) as bench:
        bench.source.add("team/app", APP, "1.0")
        real = images.artifact(subject=APP)
        others = [images.image(seed="no"), images.artifact(subject=images.image(seed="other"))]
        refer(bench.source, real, *others)
        result = await bench.run(signatures="all")
        assert (result.state, result.signatures_due) == ("protected", False)
        assert await listed(bench) == {real.digest}
        for other in others:
            assert not bench.target.has("copy/app", other)


async def test_shared_content(bench: Bench) -> None:
    """Blobs of signatures are blobs like others: one that another repository has is mounted."""
    for name in ("one", "two"):
        bench.source.add(f"team/{name}", APP, "1.0")
        bench.source.add(f"team/{name}", images.artifact(subject=APP, size=5000))
    mirror = bench.mirror(signatures="referrers")
    first = await mirror.run(bench.ask("team/one:1.0", repository="copy/one"), Need())
    assert first.moved.copied > 0
    second = await mirror.run(bench.ask("team/two:1.0", repository="copy/two"), Need())
    assert second.moved.copied == 0
    assert second.moved.bytes_pulled == 0


# What it costs


@pytest.mark.parametrize(
    ("source", "kind", "first", "second"),
    [
        pytest.param(NEW, "all", {"referrers": 1, "HEAD tag": 3}, {"referrers": 1, "HEAD tag": 3}, id="all"),
        pytest.param(NEW, "referrers", {"referrers": 1}, {"referrers": 1}, id="referrers"),
        pytest.param(NEW, "tags", {"HEAD tag": 3}, {"HEAD tag": 3}, id="tags"),
        pytest.param(NEW, "none", {}, {}, id="none"),
        pytest.param(OLD, "all", {"referrers": 2, "HEAD tag": 4}, {"HEAD tag": 4}, id="all-without-api"),
    ],
)  # fmt: skip
async def test_price_of_an_unsigned_image(
    source: Profile, kind: Kind, first: dict[str, int], second: dict[str, int]
) -> None:
    """The requests of docs/signatures.md: at the source alone, when an image is copied and never in a warm check."""
    async with between(source) as bench:
        mirror = bench.mirror(signatures=kind)
        for name, extra in (("one", first), ("two", second)):
            image = images.image(seed=name)
            bench.source.add("team/app", image, name)
            bench.forget_requests()
            await run(mirror, bench, reference=f"team/app:{name}")
            assert asked(bench.source) == {"get_manifest": 1, **extra}
            assert "referrers" not in asked(bench.target)
            assert "HEAD tag" not in asked(bench.target)
        bench.forget_requests()
        result = await run(mirror, bench, reference="team/app:two")
        assert (result.state, result.signatures_due) == ("protected", None)
        assert asked(bench.source) == {"head_manifest": 1}
        assert asked(bench.target) == {"head_manifest": 1}
        bench.forget_requests()
        await run(mirror, bench, FORCED, reference="team/app:two")
        if source is OLD:
            second = {**second, "referrers": 1}  # whether it has the API by now
        assert asked(bench.source) == {"head_manifest": 1, **second}


async def test_price_of_a_signed_image(bench: Bench) -> None:
    """The requests of docs/signatures.md for one referrer and one tag; a forced pass that finds nothing new sends nothing."""
    bench.source.add("team/app", APP, "1.0")
    refer(bench.source, images.artifact(subject=APP))
    sign(bench.source)
    mirror = bench.mirror(signatures="all")
    await run(mirror, bench)
    # the image, the referrer, the tag's manifest; the image's referrers and the referrer's
    assert asked(bench.source) == {"get_manifest": 3, "referrers": 2, "HEAD tag": 3}
    # anchor and tag of the image, itself; the referrer; signature, its anchor, its tag
    assert asked(bench.target) == {
        "head_manifest": 2,
        "HEAD tag": 1,
        "referrers": 1,
        "put_manifest": 5,
    }
    bench.forget_requests()
    await run(mirror, bench, FORCED)
    assert asked(bench.source) == {"head_manifest": 1, "referrers": 2, "HEAD tag": 3}
    assert asked(bench.target) == {
        "head_manifest": 2,
        "get_manifest": 1,
        "HEAD tag": 1,
        "referrers": 1,
    }


async def test_several_tags_of_one_image(bench: Bench) -> None:
    """An image that has nothing is asked about once in a while, however many tags it has; a forced pass asks again."""
    now = [1000.0]
    for tag in ("1.0", "latest", "late"):
        bench.source.add("team/app", APP, tag)
    mirror = bench.mirror(signatures="all", clock=lambda: now[0])
    for tag in ("1.0", "latest"):
        await run(mirror, bench, reference=f"team/app:{tag}")
    assert asked(bench.source)["referrers"] == 1
    now[0] += 600
    await run(mirror, bench, reference="team/app:late")
    assert asked(bench.source)["referrers"] == 2
    sign(bench.source)
    await run(mirror, bench, FORCED, reference="team/app:latest")
    assert asked(bench.source)["referrers"] == 3
    assert images.cosign_tag(APP) in bench.target.tags["copy/app"]
    # now that there is something, it is looked at whenever the image is copied
    await mirror.run(bench.ask(repository="copy/other"), Need())
    assert images.cosign_tag(APP) in bench.target.tags["copy/other"]


# When


async def test_after_the_image() -> None:
    """The image is safe, its tag included, before anybody asks for signatures."""
    async with between() as bench, anyio.create_task_group() as tasks:
        signed(bench.source)
        hold = anyio.Event()
        bench.source.fail(Phase.REFERRERS, hold=hold)
        tasks.start_soon(partial(bench.run, signatures="all"))
        await bench.source.wait_for(lambda r: r.phase is Phase.REFERRERS)
        assert bench.target.has("copy/app", APP, "1.0")
        assert bench.anchored(APP)
        hold.set()


async def test_what_is_signed_later(bench: Bench) -> None:
    """A forced pass finds what is new since, sends that alone, and follows a tag that moved."""
    bench.source.add("team/app", APP, "1.0")
    old = sign(bench.source)
    refer(bench.source, images.artifact(subject=APP, seed=1))
    mirror = bench.mirror(signatures="all")
    await run(mirror, bench)
    new, later = sign(bench.source, seed="again"), images.artifact(subject=APP, seed=2)
    refer(bench.source, later)

    bench.forget_requests()
    await run(mirror, bench)
    assert asked(bench.source) == {"head_manifest": 1}

    result = await run(mirror, bench, FORCED)
    assert (result.state, result.signatures_due) == ("protected", False)
    assert bench.tag(images.cosign_tag(APP)) == new.digest
    assert bench.anchored(old)
    assert later.digest in await listed(bench)
    sent = {r.reference for r in bench.target.ledger.select(Phase.PUT_MANIFEST)}
    assert sent == {
        later.digest,
        Digest.parse(new.digest).anchor,
        images.cosign_tag(APP),
    }


async def test_a_target_that_lost_everything(bench: Bench) -> None:
    """An image that is copied again because it is gone has its signatures again: nothing that was known of them is believed."""
    what = signed(bench.source)
    mirror = bench.mirror(signatures="all")
    await run(mirror, bench)
    for kept in (bench.target.blobs, bench.target.manifests, bench.target.tags):
        kept["copy/app"].clear()
    bench.forget_requests()
    result = await run(mirror, bench, Need(known=True))
    assert (result.state, result.signatures_due) == ("protected", False)
    for image in [*what.referrers, *what.tags.values()]:
        assert bench.target.has("copy/app", image)
    assert not [r for r in bench.target.ledger.select(Phase.PUT_MANIFEST) if r.status >= 400]


async def test_lists_of_two_at_once() -> None:
    """Two tags of one image that are copied at the same time write one list, and nothing is lost."""
    async with between(NEW, OLD) as bench:
        made = [images.artifact(subject=APP, seed=n) for n in range(6)]
        refer(bench.source, *made)
        mirror = bench.mirror(signatures="referrers")
        async with anyio.create_task_group() as tasks:
            for tag in ("a", "b", "c"):
                bench.source.add("team/app", APP, tag)
                tasks.start_soon(partial(run, mirror, bench, reference=f"team/app:{tag}"))
        assert await listed(bench) == {i.digest for i in made}
        tag = images.cosign_tag(APP, "")
        assert sum(r.reference == tag for r in bench.target.ledger.select(Phase.PUT_MANIFEST)) == 1


# What goes wrong


@pytest.mark.parametrize(
    "phase", [Phase.REFERRERS, Phase.HEAD_MANIFEST, Phase.GET_MANIFEST, Phase.GET_BLOB]
)
async def test_a_source_that_fails(bench: Bench, phase: Phase) -> None:
    """The image is protected, with a note; the next look that is told so mends it."""
    what = signed(bench.source)
    mirror = bench.mirror(signatures="all")
    first = {Phase.GET_MANIFEST: 2, Phase.GET_BLOB: 1 + len(APP.blobs)}.get(phase, 1)
    for nth in range(first, first + 60):
        bench.source.fail(phase, status=429, nth=nth)
    result = await run(mirror, bench)
    assert (result.state, result.protected, result.error) == ("protected", True, None)
    assert result.signatures_due is True
    assert "signatures: " in result.message
    assert bench.target.has("copy/app", APP, "1.0")

    bench.source.faults.clear()
    again = await run(mirror, bench, Need(check_source=False, check_signatures=True))
    assert (again.state, again.message, again.signatures_due) == ("protected", "", False)
    assert await listed(bench) == {what.signature.digest, what.sbom.digest}
    assert await listed(bench, what.sbom) == {what.sbom_signature.digest}
    for suffix in what.tags:
        assert images.cosign_tag(APP, suffix) in bench.target.tags["copy/app"]


async def test_one_that_is_lost(bench: Bench) -> None:
    """One signature that cannot be had takes nothing from the others."""
    what = signed(bench.source)
    for digest in what.signature.blobs:
        if digest not in APP.blobs and digest not in what.sbom.blobs:
            del bench.source.blobs["team/app"][digest]
    result = await bench.run(signatures="all")
    assert (result.state, result.signatures_due) == ("protected", True)
    assert what.signature.digest not in await listed(bench)
    assert await listed(bench) == {what.sbom.digest}
    assert await listed(bench, what.sbom) == {what.sbom_signature.digest}
    assert images.cosign_tag(APP) in bench.target.tags["copy/app"]


async def test_a_target_that_refuses(bench: Bench) -> None:
    """A refusal of the target is a note as well, not the image's failure."""
    what = signed(bench.source)
    for nth in range(4, 40):
        bench.target.fail(Phase.PUT_MANIFEST, status=403, code="DENIED", nth=nth)
    result = await bench.run(signatures="all")
    assert (result.state, result.protected, result.signatures_due) == ("protected", True, True)
    assert "DENIED" in result.message
    assert bench.target.has("copy/app", APP, "1.0")
    assert not bench.target.has("copy/app", what.sbom)


async def test_a_bug(bench: Bench) -> None:
    """Whatever breaks while signatures are looked for, the image that stands is protected."""
    what = signed(bench.source)
    mirror = bench.mirror(signatures="all")

    def broken(_direction: str, _count: int) -> None:
        if bench.tag("1.0"):
            raise ZeroDivisionError("a bug")

    result = await mirror.run(bench.ask(), Need(), progress=broken)
    assert (result.state, result.protected, result.signatures_due) == ("protected", True, True)
    assert "internal error: ZeroDivisionError" in result.message
    assert bench.target.has("copy/app", APP, "1.0")
    again = await run(mirror, bench, FORCED)
    assert (again.state, again.signatures_due) == ("protected", False)
    assert what.sbom.digest in await listed(bench)


async def test_a_source_that_is_away() -> None:
    """In a forced pass whose source is out of reach nobody waits for signatures; the next look makes up for it."""
    async with between() as bench:
        signed(bench.source)
        mirror = bench.mirror(signatures="all")
        first = await run(mirror, bench)
        await bench.source.stop()
        result = await run(mirror, bench, replace(FORCED, owned=first.digest))
        assert (result.state, result.protected, result.signatures_due) == ("protected", True, True)
        await bench.source.start()


async def test_a_failed_tag_and_a_running_digest(bench: Bench) -> None:
    """Where the tag is gone and a digest that runs is copied, its signatures are too."""
    bench.source.add("team/app", APP)
    mine = sign(bench.source)
    need = Need(running=(RunningDigest(digest=Digest.parse(APP.digest)),))
    result = await bench.run("team/app:gone", need=need, signatures="all")
    assert result.state == "failed"
    assert bench.anchored(APP)
    assert bench.target.has("copy/app", mine, images.cosign_tag(APP))


async def test_a_running_digest_that_fails(bench: Bench) -> None:
    """An attempt that ends before the look leaves a mark for the next one."""
    bench.source.add("team/app", APP, "1.0")
    need = Need(running=(RunningDigest(digest=Digest.of(b"gone")),))
    result = await bench.run(need=need, signatures="all")
    assert (result.state, result.signatures_due) == ("failed", True)


@pytest.mark.parametrize(
    ("status", "says"), [(200, "text/html"), (403, "HTTP 403")], ids=["a-page", "denied"]
)
async def test_nobody_knows(bench: Bench, status: int, says: str) -> None:
    """Where the source does not say whether there are signatures, that is told, and asked again the next time."""
    bench.source.add("team/app", APP, "1.0")
    one = images.artifact(subject=APP)
    refer(bench.source, one)
    headers = {"Content-Type": "text/html"}
    bench.source.fail(Phase.REFERRERS, status=status, headers=headers, body=b"<html></html>")
    mirror = bench.mirror(signatures="all")
    result = await run(mirror, bench)
    assert (result.state, result.protected, result.signatures_due) == ("protected", True, True)
    assert says in result.message
    again = await run(mirror, bench, Need(check_source=False, check_signatures=True))
    assert (again.state, again.message, again.signatures_due) == ("protected", "", False)
    assert await listed(bench) == {one.digest}


async def test_an_api_that_comes_later() -> None:
    """A forced pass asks a host that had no API a moment ago whether it has one."""
    async with between(OLD) as bench:
        bench.source.add("team/app", APP, "1.0")
        mirror = bench.mirror(signatures="referrers")
        await run(mirror, bench)
        bench.source.core.profile = NEW
        refer(bench.source, images.artifact(subject=APP))
        await run(mirror, bench, FORCED)
        assert len(await listed(bench)) == 1


async def test_a_source_that_does_not_say(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that is not answered keeps the image's result no longer than the patience for it."""
    monkeypatch.setattr(signatures, "_PATIENCE", 0.05)
    signed(bench.source)
    bench.source.fail(Phase.REFERRERS, hold=anyio.Event(), times=None)
    with anyio.fail_after(20):
        result = await bench.run(signatures="all")
    assert (result.state, result.protected, result.signatures_due) == ("protected", True, True)
    assert "takes too long" in result.message
    assert images.cosign_tag(APP) in bench.target.tags["copy/app"]


def liar(registry: Registry, count: int) -> None:
    """Whatever is asked about, it lists so many referrers that it does not have."""
    rows = [
        {"mediaType": OCI_INDEX, "digest": str(Digest.of(str(n).encode())), "size": 9}
        for n in range(count)
    ]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows})
    headers = {"Content-Type": OCI_INDEX}
    registry.fail(Phase.REFERRERS, status=200, headers=headers, body=body.encode(), times=None)


async def test_what_refers_to_nothing(bench: Bench) -> None:
    """What a list names and nobody has is not asked about in turn, and not told a hundred times."""
    bench.source.add("team/app", APP, "1.0")
    liar(bench.source, 100)
    result = await bench.run(signatures="referrers")
    assert (result.state, result.protected, result.signatures_due) == ("protected", True, True)
    assert asked(bench.source)["referrers"] == 1
    assert result.message.count("signatures: ") == 6
    assert "other failures" in result.message


async def test_too_much_trouble(bench: Bench) -> None:
    """A source that asks for patience each time is left alone, not asked for every signature that there is."""
    bench.source.add("team/app", APP, "1.0")
    liar(bench.source, 200)
    bench.source.fail(Phase.GET_MANIFEST, status=429, nth=2, times=None)
    result = await bench.run(signatures="referrers")
    assert (result.state, result.protected, result.signatures_due) == ("protected", True, True)
    assert asked(bench.source)["get_manifest"] < 200


# Tags of the target that stand for something else


@pytest.mark.parametrize(
    ("foreign", "repush", "overwrite", "moves", "says"),
    [
        pytest.param(True, True, True, True, "", id="overwritten"),
        pytest.param(True, True, False, False, "overwriteForeignTags", id="somebody-elses-stays"),
        pytest.param(False, True, False, True, "", id="ours-moves"),
        pytest.param(False, False, True, False, "allowDifferentDigestRepush", id="held"),
    ],
)
async def test_tags_that_stand(
    bench: Bench, *, foreign: bool, repush: bool, overwrite: bool, moves: bool, says: str
) -> None:
    """Cosign's tags are the owner's to guard as all others; what they would have been given is kept by its anchor."""
    bench.source.add("team/app", APP, "1.0")
    new, tag = sign(bench.source, seed="new"), images.cosign_tag(APP)
    old = images.signature(APP, seed="old")
    bench.target.add("copy/app", old, tag)
    if not foreign:
        bench.target.tags["copy/app"][Digest.parse(old.digest).anchor] = old.digest
    result = await bench.run(
        signatures="tags", allow_different_digest_repush=repush, overwrite_foreign_tags=overwrite
    )
    assert (result.state, result.signatures_due) == ("protected", False)
    assert bench.tag(tag) == (new if moves else old).digest
    assert bench.anchored(new)
    assert says in result.message
    assert bool(result.message) is not moves


# Narrowed copies


@pytest.mark.parametrize("root_is_signed", [True, False])
@pytest.mark.parametrize(
    "platforms", [["linux/amd64"], ["linux/amd64", "linux/arm64"]], ids=["one", "two"]
)
async def test_narrowed(bench: Bench, platforms: list[str], *, root_is_signed: bool) -> None:
    """Of a part of an image what belongs to the selected manifests is copied, if the source's root has anything; the root's own is not."""
    children = [
        images.image(seed=p, platform=p) for p in ("linux/amd64", "linux/arm64", "linux/s390x")
    ]
    root = images.index(*children)
    bench.source.add("team/app", root, "1.0")
    below = [sign(bench.source, subject=c, seed=c.digest) for c in children]
    if root_is_signed:
        sign(bench.source, subject=root, seed="root")
        refer(bench.source, images.artifact(subject=root))
    need = Need(platforms=frozenset(map(Platform.parse, platforms)))
    mirror = bench.mirror(signatures="all")
    result = await run(mirror, bench, need)
    assert (result.state, result.signatures_due) == ("tag_only", False)
    for number, image in enumerate(below):
        expected = root_is_signed and number < len(platforms)
        assert bench.target.has("copy/app", image) is expected
    assert images.cosign_tag(root) not in bench.target.tags["copy/app"]

    late = [sign(bench.source, ".att", subject=c, seed=c.digest) for c in children]
    forced = replace(need, check_anchors=True, check_signatures=True)
    again = await run(mirror, bench, forced)
    assert (again.state, again.signatures_due) == ("tag_only", False)
    for number, image in enumerate(late):
        expected = root_is_signed and number < len(platforms)
        assert bench.target.has("copy/app", image) is expected


# Limits


async def test_depth(bench: Bench) -> None:
    """Signatures of signatures are followed for eight levels, and a circle is none."""
    bench.source.add("team/app", APP, "1.0")
    chain = [APP]
    for number in range(10):
        chain.append(images.artifact(subject=chain[-1], seed=number))
        bench.source.add("team/app", chain[-1])
    await bench.run(signatures="referrers")
    assert [bench.target.has("copy/app", i) for i in chain] == [True] * 9 + [False] * 2


async def test_a_list_of_itself() -> None:
    """A list that names its subject, or what was copied, does not go in circles."""
    async with between(OLD, OLD) as bench:
        bench.source.add("team/app", APP, "1.0")
        one = images.artifact(subject=APP)
        refer(bench.source, one, APP)
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [i.root.descriptor() for i in (one, APP)],
        }
        tag = images.cosign_tag(one, "")
        bench.source.put_manifest("team/app", json.dumps(body).encode(), tag=tag)
        result = await bench.run(signatures="referrers")
        assert (result.state, result.signatures_due) == ("protected", False)
        assert await listed(bench) == {one.digest}


async def test_more_than_anybody_needs(bench: Bench) -> None:
    """A thousand referrers of an image are enough; that there are more is said once."""
    look = Look(
        source=bench.world.source(bench.source.address),
        target=bench.plain.repository("copy/app"),
        image="app",
        progress=lambda _direction, _count: None,
        moved=Transferred(),
    )
    turns = [look.enter(Digest.of(str(n % 1500).encode())) for n in range(3000)]
    assert sum(turns) == 1000
    assert len(look.notes) == 1
    assert "no others" in look.notes[0]
