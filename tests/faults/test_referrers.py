"""Row 42: the ways in which registries tell, or do not tell, what refers to an image."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from copycat.sandbox import images
from copycat.sandbox.images import OCI_INDEX, Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.store import StoredManifest
from tests.faults.support import IMAGE, SOURCE, Bench, bench

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

        assert b.count("R") == 1
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


def test_42_stored() -> None:
    """[R] The sandbox's referrers are what the specification calls so: manifests with the subject."""
    subject = json.loads(SIGNED[0].data)["subject"]
    assert subject["digest"] == IMAGE.digest
    assert StoredManifest.of(SIGNED[0].data).digest == SIGNED[0].digest
