"""Row 42: the ways in which registries tell, or do not tell, what refers to an image."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import anyio
import pytest

from copycat.mirror.request import Need
from copycat.oci.digest import Digest
from copycat.sandbox import images
from copycat.sandbox.images import OCI_INDEX, Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from tests.faults.child import mirroring
from tests.faults.support import IMAGE, SOURCE, TAG, TARGET, Bench, bench, flags_of

#: What refers to the image.
SIGNED = [images.artifact(seed=number, subject=IMAGE) for number in range(5)]
#: Of the fallback tag.
FALLBACK = images.cosign_tag(IMAGE, "")


def with_referrers(b: Bench, *, listed: bool) -> list[str]:
    """They stand at the source; the fallback tag lists them if wanted."""
    for found in SIGNED:
        b.source.add(SOURCE, found)
    if listed:
        rows = [
            found.root.descriptor(artifactType="application/vnd.example.thing") for found in SIGNED
        ]
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows}
        b.source.put_manifest(SOURCE, json.dumps(body).encode(), OCI_INDEX, FALLBACK)
    return [found.digest for found in SIGNED]


def source(**flags: Any) -> dict[str, Any]:
    """Options of a source with such referrers."""
    return {"profile": replace(PROFILES["distribution"], **flags)}


@pytest.mark.parametrize("kind", ["404", "405", "html"])
@pytest.mark.parametrize("listed", [True, False], ids=["R-fallback", "R-nothing"])
async def test_42_no_api(kind: str, listed: bool) -> None:
    """Without the API the fallback tag says it; without that there is nothing. No page for people is asked for."""
    async with bench(source=source(referrers=kind)) as b:
        wanted = with_referrers(b, listed=listed)
        assert await b.act("R") == (wanted if listed else [])

        assert b.count("R") == 2  # a proxy's bad moment looks the same, and is over then
        assert b.source.ledger.count(Phase.HEAD_MANIFEST) == 1  # the fallback tag
        assert b.count("Gm") == (1 if listed else 0)
        hosts = {r.host for r in b.source.requests}
        assert hosts == {b.source.address}


@pytest.mark.parametrize("status", [400, 501, 302, 307])
async def test_42_refused_in_other_ways(status: int) -> None:
    """[R] A refusal is a refusal, whatever its number."""
    async with bench() as b:
        wanted = with_referrers(b, listed=True)
        b.fail("R", status=status, headers={"Location": "https://github.example/login"})
        assert await b.act("R") == wanted


async def test_42_page_with_200() -> None:
    """[R] A page with 200 in place of a list is no list."""
    async with bench() as b:
        wanted = with_referrers(b, listed=True)
        b.fail("R", status=200, body=b"<html></html>", headers={"Content-Type": "text/html"})
        assert await b.act("R") == wanted


async def test_42_empty() -> None:
    """[R] An empty list is the answer; the fallback tag is not asked for."""
    async with bench() as b:
        assert await b.act("R") == []
        assert b.count("Gm") == 0


async def test_42_pages() -> None:
    """[R] A list in pages is read to its end."""
    async with bench() as b:
        wanted = with_referrers(b, listed=False)
        b.source.core.referrers_page = 2
        assert await b.act("R") == wanted
        assert b.count("R") == 3


async def test_42_fallback_is_the_subject() -> None:
    """[R] GitLab resolves the fallback tag to the image itself, which is no list of what refers to it."""
    async with bench(source=source(referrers="subject")) as b:
        with_referrers(b, listed=False)
        assert await b.act("R") == []


@pytest.mark.parametrize("image", [images.index(seed="self"), IMAGE], ids=["R-index", "R-manifest"])
async def test_42_fallback_is_an_index_of_itself(image: Image) -> None:
    """An index under its own fallback tag refers to nothing."""
    async with bench(image=image, source=source(referrers="404")) as b:
        b.source.tags[SOURCE][images.cosign_tag(image, "")] = image.digest
        assert await b.act("R") == []


async def test_42_not_a_list() -> None:
    """[R] What calls itself an index and is none is an error, not an empty list."""
    async with bench(source=source(referrers="404")) as b:
        b.source.put_manifest(SOURCE, b"[]", OCI_INDEX, FALLBACK)
        found = await b.act("R")
        assert getattr(found, "reason", "") == "invalid_manifest"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        pytest.param({"status": 503}, "HTTP 503", id="R-503"),
        pytest.param({"reset": True}, "connection", id="R-reset"),
        pytest.param(
            {"status": 429, "headers": {"Retry-After": "86400"}}, "HTTP 429", id="R-throttled"
        ),
        pytest.param({"body": b"[]"}, "manifest", id="R-no-list"),
    ],
)
async def test_42_the_image_is_safe(trouble: dict[str, Any], said: str) -> None:
    """What goes wrong with signatures is a note and another look later; the image is protected."""
    async with bench(signatures="referrers") as b:
        with_referrers(b, listed=False)
        b.fail("R", times=None, **trouble)
        found = await b.copy()

        assert (found.state, found.reason, found.signatures_due) == ("protected", "", True)
        assert said in found.message
        assert b.arrived()
        b.source.faults.clear()
        b.time.skipped += 1000
        again = await b.copy(need=Need(check_signatures=True))

        assert (again.state, again.message, again.signatures_due) == ("protected", "", False)
        assert all(b.target.has(TARGET, signature) for signature in SIGNED)


@pytest.mark.parametrize("kind", ["404", "405", "html"])
async def test_42_subject_is_a_lie(kind: str) -> None:
    """[R] A target that says OCI-Subject and has no API gets the list under the fallback tag."""
    target = {"profile": replace(PROFILES["distribution"], referrers=kind, oci_subject=True)}  # type: ignore[arg-type] # parametrised
    async with bench(signatures="referrers", target=target) as b:
        wanted = with_referrers(b, listed=False)
        found = await b.copy()

        assert (found.state, found.message) == ("protected", "")
        listing = await b.to_target().referrers(Digest.parse(IMAGE.digest))
        assert ({str(d.digest) for d in listing.descriptors}, listing.by_api) == (
            set(wanted),
            False,
        )


async def test_42_target_means_the_subject() -> None:
    """[R] A target that resolves the fallback tag to an index itself gets a list with nothing of that index in it."""
    image = images.index(seed="gitlab")
    signature = images.artifact(seed="of-index", subject=image)
    lab = {"profile": replace(PROFILES["distribution"], referrers="subject")}
    async with bench(image=image, signatures="referrers", target=lab) as b:
        b.source.add(SOURCE, signature)
        assert (await b.copy()).state == "protected"

        listed = b.target.store.manifest(TARGET, images.cosign_tag(image, ""))
        assert listed is not None
        assert [row["digest"] for row in listed.body["manifests"]] == [signature.digest]


async def test_46_killed_before_signatures() -> None:
    """[R] Killed after the image was safe: it stays so, and the next forced pass brings the signatures."""
    async with bench(signatures="referrers") as b:
        with_referrers(b, listed=False)
        fault = b.fail("R", hold=anyio.Event())
        flags = flags_of(b.source, b.target, signatures="referrers")
        async with mirroring(flags, f"{b.source.address}/{SOURCE}:{TAG}") as process:
            with anyio.fail_after(20):
                await fault.reached.wait()
            process.kill()
        assert b.arrived()
        found = await b.copy(need=Need(check_anchors=True, check_signatures=True))

        assert (found.state, found.signatures_due) == ("protected", False)
        assert all(b.target.has(TARGET, signature) for signature in SIGNED)
