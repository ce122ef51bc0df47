"""What refers to a manifest, in a registry with the API and in one without."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import anyio
import pytest
from aiohttp import web

from copycat.errors import InvalidManifest, TooLarge, Unavailable, Unsupported
from copycat.oci.digest import Digest
from copycat.oci.manifest import MAX_PULL, OCI_INDEX, OCI_MANIFEST, Descriptor
from copycat.registry.referrers import FORGET, TRIES, fallback_tag
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.registry.support import Seen, World, scripted, world

SUBJECT = images.image(seed="subject")
DIGEST = Digest.parse(SUBJECT.digest)
TAG = images.cosign_tag(SUBJECT, "")
#: Has the tag and no API.
OLD = replace(PROFILES["distribution"], name="old", referrers="404", oci_subject=False)


def signature(seed: object = 0) -> Image:
    """Something that refers to the subject."""
    return images.artifact(subject=SUBJECT, seed=seed)


def described(image: Image, artifact_type: str = "application/vnd.example.thing") -> Descriptor:
    """As a list of referrers names it."""
    return Descriptor(
        media_type=image.media_type,
        digest=Digest.parse(image.digest),
        size=len(image.data),
        artifact_type=artifact_type,
        annotations={"made": "here"},
    )


def filled(registry: Registry, *referrers: Image) -> None:
    """The subject and what refers to it, listed under the tag."""
    registry.add("team/app", SUBJECT)
    for image in referrers:
        registry.add("team/app", image)
    if referrers:
        registry.add("team/app", images.index(*referrers), TAG)


async def found(here: World, registry: Registry, *, artifact_type: str = "") -> list[str]:
    """The digests that refer to the subject."""
    source = here.source(registry.address)
    listing = await source.referrers(DIGEST, artifact_type=artifact_type)
    return [str(d.digest) for d in listing.descriptors]


@pytest.mark.parametrize("profile", ["distribution", "ecr-public", "ghcr", "quay", "gitlab"])
async def test_referrers(profile: str) -> None:
    """By the API, or by the fallback tag where there is none: a 404, a 405, a web page or the subject itself."""
    thing = signature()
    async with Registry(profile=profile, auth="none") as a:
        a.add("team/app", SUBJECT)
        a.add("team/app", thing)
        if profile not in {"distribution", "gitlab"}:
            a.add("team/app", images.index(thing), TAG)
        async with world(a.address) as here:
            listing = await here.source(a.address).referrers(DIGEST)
        expected = [] if profile == "gitlab" else [thing.digest]
        assert [str(d.digest) for d in listing.descriptors] == expected
        assert listing.by_api == (profile == "distribution")
        assert a.violations == []


@pytest.mark.parametrize(
    ("profile", "requests"),
    [
        pytest.param("distribution", {Phase.REFERRERS: 1}, id="api"),
        pytest.param("ghcr", {Phase.REFERRERS: 2, Phase.HEAD_MANIFEST: 1}, id="no-api"),
    ],
)
async def test_nothing(profile: str, requests: dict[Phase, int]) -> None:
    """Nothing refers to it, which costs one request, without the API three that no quota counts."""
    async with Registry(profile=profile, auth="none") as a:
        a.add("team/app", SUBJECT)
        async with world(a.address) as here:
            assert await found(here, a) == []
        for phase in (Phase.REFERRERS, Phase.HEAD_MANIFEST, Phase.GET_MANIFEST):
            assert a.ledger.count(phase) == requests.get(phase, 0)


async def test_no_api_is_remembered() -> None:
    """A host that has no API is asked for it twice in ten minutes, not once an image; whoever wants to know anew asks once more."""
    now = [1000.0]
    async with Registry(profile=OLD) as a:
        filled(a, signature())
        async with world(a.address, clock=lambda: now[0]) as here:
            for _ in range(3):
                assert await found(here, a) == [signature().digest]
            assert a.ledger.count(Phase.REFERRERS) == 2
            await here.source(a.address).referrers(DIGEST, anew=True)
            assert a.ledger.count(Phase.REFERRERS) == 3
            now[0] += FORGET
            await found(here, a)
            assert a.ledger.count(Phase.REFERRERS) == 5


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        pytest.param(404, {"Content-Type": "text/html"}, id="a-page-with-404"),
        pytest.param(405, {}, id="405"),
        pytest.param(302, {"Location": "https://login.example/"}, id="a-login"),
    ],
)
async def test_a_bad_moment(status: int, headers: dict[str, str]) -> None:
    """One refusal, as a proxy gives it in passing, hides nothing: neither from this question nor from the next."""
    async with Registry() as a:
        a.add("team/app", SUBJECT)
        a.add("team/app", signature())
        a.fail(Phase.REFERRERS, status=status, headers=headers, body=b"<html></html>")
        async with world(a.address) as here:
            for _ in range(2):
                listing = await here.source(a.address).referrers(DIGEST)
                assert [str(d.digest) for d in listing.descriptors] == [signature().digest]
                assert listing.by_api


async def test_a_bad_minute_of_a_host_with_the_api() -> None:
    """A host that has shown a list is asked again by the next image, whatever it said in between."""
    async with Registry() as a:
        a.add("team/app", SUBJECT)
        a.add("team/app", signature())
        async with world(a.address) as here:
            assert await found(here, a) == [signature().digest]
            a.fail(Phase.REFERRERS, status=404, times=2)
            assert await found(here, a) == []
            assert await found(here, a) == [signature().digest]


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        pytest.param(200, "text/html", "text/html", id="a-page"),
        pytest.param(200, "application/json", "no list", id="json"),
        pytest.param(403, "application/json", "HTTP 403", id="403"),
    ],
)
async def test_doubt(status: int, kind: str, says: str) -> None:
    """Where the API says neither what there is nor that it does not exist, "nothing" comes with the reason to doubt it."""
    async with Registry() as a:
        a.add("team/app", SUBJECT)
        headers = {"Content-Type": kind}
        a.fail(Phase.REFERRERS, status=status, headers=headers, body=b"<html></html>", times=None)
        async with world(a.address) as here:
            listing = await here.source(a.address).referrers(DIGEST)
            assert (listing.descriptors, listing.by_api) == ((), False)
            assert says in str(listing.doubt)

            filled(a, signature())
            listing = await here.source(a.address).referrers(DIGEST)
            assert [str(d.digest) for d in listing.descriptors] == [signature().digest]
            assert listing.doubt is None

            a.faults.clear()
            assert (await here.source(a.address).referrers(DIGEST)).by_api


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "NAME_UNKNOWN"),
        (404, "MANIFEST_UNKNOWN"),
        (400, "DIGEST_INVALID"),
        (403, "DENIED"),
    ],
)
async def test_a_refusal_of_this_question_alone(status: int, code: str) -> None:
    """What a registry says about one repository or digest is no word about the API."""
    async with Registry() as a:
        filled(a, signature())
        a.fail(Phase.REFERRERS, status=status, code=code, times=1)
        async with world(a.address) as here:
            assert await found(here, a) == [signature().digest]
            await found(here, a)
        assert a.ledger.count(Phase.REFERRERS) == 2


@pytest.mark.parametrize("body", [b"<html>", b'{"errors":null}', b'{"errors":[{}]}', b"\xff"])
async def test_odd_refusals(body: bytes) -> None:
    """Whatever a registry without the API says instead, it has none."""

    def answer(seen: Seen) -> web.Response:
        return web.Response(status=404, body=body if "referrers" in seen.target else b"")

    async with scripted(answer) as script, world(script.address) as here:
        for _ in range(2):
            listing = await here.source(script.address).referrers(DIGEST)
            assert listing.descriptors == ()
        assert sum("referrers" in s.target for s in script.seen) == 2


async def test_the_tag_goes_meanwhile() -> None:
    """A list that is there at HEAD and gone at GET is none."""
    async with Registry(profile=OLD) as a:
        filled(a, signature())
        a.fail(Phase.GET_MANIFEST, status=404, times=1)
        async with world(a.address) as here:
            assert await found(here, a) == []


async def test_a_tag_that_is_no_list() -> None:
    """An image under that name says nothing about referrers."""
    async with Registry(profile=OLD) as a:
        filled(a)
        a.add("team/app", images.image(seed="other"), TAG)
        async with world(a.address) as here:
            assert await found(here, a) == []


async def test_pages() -> None:
    """The API's pages are followed, and end."""

    def index(number: int) -> bytes:
        row = {"mediaType": OCI_MANIFEST, "digest": f"sha256:{number:064}", "size": 1}
        return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [row]}).encode()

    def answer(seen: Seen) -> web.Response:
        page = int(seen.target.partition("page=")[2] or 0)
        headers = {"Content-Type": OCI_INDEX, "Link": f'<?page={min(page + 1, 2)}>; rel="next"'}
        return web.Response(body=index(page), headers=headers)

    async with scripted(answer) as script, world(script.address) as here:
        listing = await here.source(script.address).referrers(DIGEST)

    assert [int(d.digest.hex) for d in listing.descriptors] == [0, 1, 2]


def endless(size: int) -> Callable[[Seen], web.Response]:
    """Every page has something new of so many bytes, and another one after it."""

    def answer(seen: Seen) -> web.Response:
        page = int(seen.target.partition("page=")[2] or 0)
        digest = f"sha256:{page:064}"
        row = {"digest": digest, "size": 1, "annotations": {"long": "x" * size}}
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [row]})
        headers = {"Content-Type": OCI_INDEX, "Link": f'<?page={page + 1}>; rel="next"'}
        return web.Response(text=body, headers=headers)

    return answer


async def test_endless_pages() -> None:
    """A list is read no further than anybody wants to know, and never more of it than an index may have."""
    async with scripted(endless(0)) as script, world(script.address) as here:
        listing = await here.source(script.address).referrers(DIGEST, most=7)
        assert len(listing.descriptors) == 7
        assert len(script.targets()) == 7
    async with scripted(endless(MAX_PULL // 4)) as script, world(script.address) as here:
        with pytest.raises(TooLarge, match="pages"):
            await here.source(script.address).referrers(DIGEST)
        assert len(script.targets()) == 4


async def test_a_page_that_cannot_be_read() -> None:
    """It is told whose it is."""

    def answer(_: Seen) -> web.Response:
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"size": -1}]}
        return web.Response(text=json.dumps(body), headers={"Content-Type": OCI_INDEX})

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(
            InvalidManifest, match=f"source registry {script.address}: referrers of"
        ):
            await here.source(script.address).referrers(DIGEST)


@pytest.mark.parametrize("profile", ["distribution", "old", "deaf"])
async def test_one_type(profile: str) -> None:
    """Of one type alone, whether the registry filters and says so, does not, or has no API."""
    sbom = images.artifact(subject=SUBJECT, artifact_type="application/spdx+json")
    rows = [described(signature()), described(sbom, "application/spdx+json")]
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": d.media_type,
                    "digest": str(d.digest),
                    "size": d.size,
                    "artifactType": d.artifact_type,
                }
                for d in rows
            ],
        }
    ).encode()
    if profile == "deaf":
        reply = web.Response(body=body, headers={"Content-Type": OCI_INDEX})
        async with scripted(lambda _: reply) as script, world(script.address) as here:
            source = here.source(script.address)
            listing = await source.referrers(DIGEST, artifact_type="application/spdx+json")
            assert [str(d.digest) for d in listing.descriptors] == [sbom.digest]
            assert script.targets()[0].endswith("?artifactType=application%2Fspdx%2Bjson")
        return
    async with Registry(profile=OLD if profile == "old" else profile) as a:
        filled(a, signature(), sbom)
        a.put_manifest("team/app", body, tag=TAG)
        async with world(a.address) as here:
            assert await found(here, a, artifact_type="application/spdx+json") == [sbom.digest]


async def test_unavailable() -> None:
    """Trouble is not 'none'."""
    async with Registry() as a:
        a.fail(Phase.REFERRERS, status=503, times=None)
        async with world(a.address) as here:
            with pytest.raises(Unavailable):
                await here.source(a.address).referrers(DIGEST)


def test_tag() -> None:
    """Long digests are cut as the specification says."""
    assert fallback_tag(DIGEST) == f"sha256-{DIGEST.hex}"
    assert fallback_tag(Digest.of(b"", "sha512")) == f"sha512-{Digest.of(b'', 'sha512').hex[:64]}"


@pytest.mark.parametrize(("profile", "says"), [("distribution", True), ("old", False)])
async def test_who_lists(profile: str, says: bool) -> None:
    """A registry that lists a manifest among the referrers of its subject says so; of an image nobody does."""
    async with Registry(profile=OLD if profile == "old" else profile) as b:
        b.add("copy/app", SUBJECT)
        b.add("copy/app", signature())
        async with world(b.address) as here:
            target = here.target(b.address)
            document = signature().document
            assert await target.put_manifest(document, document.digest) is says
            assert await target.put_manifest(SUBJECT.document, DIGEST) is False


# The fallback tag, written


def listed(registry: Registry) -> list[dict[str, object]]:
    """What the tag's index has."""
    manifest = registry.store.manifest("copy/app", TAG)
    assert manifest is not None
    assert manifest.media_type == OCI_INDEX
    entries: list[dict[str, object]] = manifest.body["manifests"]
    return entries


async def write(here: World, registry: Registry, *seeds: object) -> None:
    """These signatures into the tag."""
    await here.target(registry.address).list_referrers(
        DIGEST, [described(signature(seed)) for seed in seeds]
    )


async def test_a_new_list() -> None:
    """The first ones, with type and annotations; written again nothing is sent."""
    async with Registry(profile=OLD) as b:
        for seed in (1, 2):
            b.add("copy/app", signature(seed))
        async with world(b.address) as here:
            await write(here, b, 1, 2)
            assert [e["digest"] for e in listed(b)] == [signature(n).digest for n in (1, 2)]
            assert listed(b)[0] == {
                "mediaType": OCI_MANIFEST,
                "digest": signature(1).digest,
                "size": len(signature(1).data),
                "artifactType": "application/vnd.example.thing",
                "annotations": {"made": "here"},
            }
            await write(here, b, 2)
        assert b.ledger.count(Phase.PUT_MANIFEST) == 1


async def test_what_stands_stays() -> None:
    """Others' entries, what they say and what the index says besides are kept."""
    theirs = {**signature("theirs").root.descriptor(), "artifactType": "x/y", "org.example": [1]}
    before = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [theirs],
        "annotations": {"a": "b"},
    }
    async with Registry(profile=OLD) as b:
        for seed in ("theirs", "ours"):
            b.add("copy/app", signature(seed))
        b.put_manifest("copy/app", json.dumps(before).encode(), tag=TAG)
        async with world(b.address) as here:
            await write(here, b, "ours")
        assert [e["digest"] for e in listed(b)] == [
            signature("ours").digest,
            signature("theirs").digest,
        ]
        assert theirs in listed(b)
        manifest = b.store.manifest("copy/app", TAG)
        assert manifest is not None
        assert manifest.body["annotations"] == {"a": "b"}


async def test_writers_at_once() -> None:
    """Two that do not know of each other lose nothing: each reads back and mends."""
    async with Registry(profile=OLD) as b:
        for seed in range(2):
            b.add("copy/app", signature(seed))
        async with world(b.address) as here, anyio.create_task_group() as tasks:
            for seed in range(2):
                tasks.start_soon(write, here, b, seed)
        assert {e["digest"] for e in listed(b)} == {signature(n).digest for n in range(2)}


async def test_what_another_overwrote() -> None:
    """Somebody's entry that was seen once and is gone at the reading back is written again."""
    async with Registry(profile=OLD) as b:
        for seed in ("theirs", "ours", "rude"):
            b.add("copy/app", signature(seed))
        b.add("copy/app", images.index(signature("theirs")), TAG)
        rude = images.index(signature("rude"))

        async with world(b.address) as here, anyio.create_task_group() as tasks:
            hold = anyio.Event()
            b.fail(Phase.GET_MANIFEST, hold=hold, nth=2)
            tasks.start_soon(write, here, b, "ours")
            await b.wait_for(lambda r: r.phase is Phase.GET_MANIFEST, count=2)
            b.add("copy/app", rude, TAG)
            hold.set()
        assert {e["digest"] for e in listed(b)} == {
            signature(seed).digest for seed in ("theirs", "ours", "rude")
        }


async def test_slow_registries() -> None:
    """One that shows what it took only later is given the time, and nothing is lost meanwhile."""
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    async with Registry(profile=replace(OLD, visible_after=2)) as b:
        b.add("copy/app", signature())
        async with world(b.address, sleep=nap) as here:
            await write(here, b, 0)
        assert [e["digest"] for e in listed(b)] == [signature().digest]
        assert 1.0 in naps


async def test_a_list_that_never_shows() -> None:
    """It is said, not believed."""

    async def nap(_: float) -> None:
        """At once."""

    async with Registry(profile=replace(OLD, visible_after=1000)) as b:
        b.add("copy/app", signature())
        async with world(b.address, sleep=nap) as here:
            with pytest.raises(Unavailable, match="does not keep") as caught:
                await write(here, b, 0)
        assert (caught.value.side, caught.value.reason) == ("source", "not_visible")
        assert b.ledger.count(Phase.PUT_MANIFEST) == TRIES


async def test_a_tag_of_something_else() -> None:
    """A manifest that somebody put under that name stays; the subject itself (GitLab) is no list and no obstacle."""
    async with Registry(profile=OLD) as b:
        other = b.add("copy/app", images.image(seed="other"), TAG)
        async with world(b.address) as here:
            with pytest.raises(Unsupported, match="it stays") as caught:
                await write(here, b, 0)
        assert caught.value.reason == "fallback_tag"
        assert b.tags["copy/app"][TAG] == other.digest
    async with Registry(profile="gitlab", auth="none") as b:
        b.add("copy/app", SUBJECT)
        b.add("copy/app", signature())
        async with world(b.address) as here:
            await write(here, b, 0)
            listing = await here.source(b.address, "copy/app").referrers(DIGEST)
        assert [str(d.digest) for d in listing.descriptors] == [signature().digest]
        assert isinstance(listing.descriptors, tuple)
