"""Reading from the sandbox registry: what a correct client gets, and what an incorrect one is told off for."""

from __future__ import annotations

import pytest

from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.sandbox.driver import IDENTITY, MANIFESTS, driving


async def test_ping_without_auth() -> None:
    """`GET /v2/` answers 200 where nobody must log in."""
    async with driving(Registry()) as driver:
        found = await driver.call("GET", "/v2/")

        assert (found.status, found.body) == (200, b"{}")
        assert [r.phase for r in driver.registry.requests] == [Phase.PING]


@pytest.mark.parametrize("by_digest", [False, True], ids=["tag", "digest"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_manifest_by_tag_and_digest(algorithm: str, by_digest: bool) -> None:
    """A manifest comes back byte by byte under its tag and its digest, with type and digest in the headers."""
    registry = Registry()
    image = registry.add("team/app", images.image(algorithm=algorithm), tag="1")
    async with driving(registry) as driver:
        reference = image.digest if by_digest else "1"

        got = await driver.manifest("team/app", reference)
        head = await driver.manifest("team/app", reference, "HEAD")

        assert image.data == got.body
        assert head.body == b""
        for found in (got, head):
            assert image.digest == found.headers["Docker-Content-Digest"]
            assert image.media_type == found.headers["Content-Type"]
            assert str(len(image.data)) == found.headers["Content-Length"]
        assert registry.violations == []


async def test_missing_content_is_404_with_its_code() -> None:
    """Missing manifests, blobs and repositories have different codes."""
    registry = Registry()
    registry.create_repository("a")
    async with driving(registry) as driver:
        digest = images.layer(1).digest
        found = [
            await driver.manifest("a", "1"),
            await driver.manifest("a", digest),
            await driver.blob("a", digest),
            await driver.manifest("b", "1"),
            await driver.call("GET", "/v2/b/tags/list"),
        ]

        assert [answer.status for answer in found] == [404] * 5
        assert [answer.code for answer in found] == [
            "MANIFEST_UNKNOWN",
            "MANIFEST_UNKNOWN",
            "BLOB_UNKNOWN",
            "NAME_UNKNOWN",
            "NAME_UNKNOWN",
        ]


@pytest.mark.parametrize(
    ("span", "status", "content_range", "part"),
    [
        ("bytes=0-3", 206, "bytes 0-3/10", b"0123"),
        ("bytes=7-", 206, "bytes 7-9/10", b"789"),
        ("bytes=7-99", 206, "bytes 7-9/10", b"789"),
        ("bytes=10-", 416, "bytes */10", None),
        ("lines=1-2", 416, "bytes */10", None),
    ],
    ids=["both", "open", "beyond", "outside", "other-unit"],
)
async def test_blob_ranges(span: str, status: int, content_range: str, part: bytes | None) -> None:
    """A Range gets exactly its part, or 416 when there is none."""
    registry = Registry()
    digest = registry.put_blob("a", b"0123456789")
    async with driving(registry) as driver:
        found = await driver.blob("a", digest, Range=span)

        assert status == found.status
        assert content_range == found.headers["Content-Range"]
        assert part is None or part == found.body


async def test_large_blob_is_streamed_whole() -> None:
    """A blob of many pieces arrives whole; the ledger counts its bytes, HEAD none."""
    registry = Registry()
    data = images.layer(3_000_000).data or b""
    digest = registry.put_blob("a", data)
    async with driving(registry) as driver:
        assert data == (await driver.blob("a", digest)).body
        head = await driver.call("HEAD", f"/v2/a/blobs/{digest}")

        assert str(len(data)) == head.headers["Content-Length"]
        assert len(data) == registry.ledger.bytes_out(Phase.GET_BLOB)
        assert registry.ledger.bytes_out(Phase.HEAD_BLOB) == 0
        assert len(data) == registry.unique_blob_bytes


async def test_tags_in_pages() -> None:
    """`n` and `last` page through the tags; a Link names the next page."""
    registry = Registry()
    for tag in ("c", "a", "b"):
        registry.add("a", images.image(), tag=tag)
    async with driving(registry) as driver:
        first = await driver.call("GET", "/v2/a/tags/list?n=2")
        target = first.headers["Link"].partition(">")[0][1:]
        second = await driver.call("GET", target)

        assert first.json["tags"] == ["a", "b"]
        assert second.json["tags"] == ["c"]
        assert "Link" not in second.headers
        assert (await driver.call("GET", "/v2/a/tags/list")).json["tags"] == ["a", "b", "c"]


async def test_referrers_filtered_and_paged() -> None:
    """Referrers list what has the subject, by type if asked, in pages if configured, and nothing for a stranger."""
    registry = Registry()
    image = registry.add("a", images.image(), tag="1")
    kinds = ("application/x.one", "application/x.two")
    for kind in kinds:
        registry.add(
            "a", images.artifact(artifact_type=kind, subject=image, annotations={"k": kind})
        )
    async with driving(registry) as driver:
        path = f"/v2/a/referrers/{image.digest}"
        everything = await driver.call("GET", path)
        filtered = await driver.call("GET", f"{path}?artifactType={kinds[1]}")
        stranger = await driver.call("GET", f"/v2/b/referrers/{image.digest}")
        registry.core.referrers_page = 1
        first = await driver.call("GET", path)
        second = await driver.call("GET", first.headers["Link"].partition(">")[0][1:])

        assert set(kinds) == {row["artifactType"] for row in everything.json["manifests"]}
        assert [kinds[1]] == [row["artifactType"] for row in filtered.json["manifests"]]
        assert {"k": kinds[1]} == filtered.json["manifests"][0]["annotations"]
        assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
        assert stranger.json["manifests"] == []
        pages = first.json["manifests"] + second.json["manifests"]
        assert everything.json["manifests"] == pages
        assert "Link" not in second.headers


async def test_redirect_to_the_second_origin() -> None:
    """A redirected blob needs the signed URL byte by byte, and no credentials; Range works there."""
    registry = Registry(redirect_blobs=True)
    digest = registry.put_blob("a", b"0123456789")
    async with driving(registry) as driver:
        sent = await driver.blob("a", digest)
        location = sent.headers["Location"]
        got = await driver.call("GET", location, {"Range": "bytes=8-"})

        assert (sent.status, got.body) == (307, b"89")
        assert location.startswith(registry.cdn)
        assert "%2F" in location
        assert registry.violations == []
        assert registry.ledger.bytes_out(Phase.REDIRECT) == 2


async def test_redirected_manifest() -> None:
    """Manifests can be redirected too, as registry.k8s.io does."""
    registry = Registry()
    registry.core.redirect_manifests = True
    image = registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        sent = await driver.manifest("a", "1")
        got = await driver.call("GET", sent.headers["Location"], MANIFESTS)

        assert (307, image.data) == (sent.status, got.body)
        assert registry.violations == []


async def test_misuse_of_the_second_origin_is_noted() -> None:
    """Credentials, cookies and a decoded query at the second origin are violations, and an altered URL is refused."""
    registry = Registry(redirect_blobs=True)
    digest = registry.put_blob("a", b"0123456789")
    async with driving(registry) as driver:
        location = (await driver.blob("a", digest)).headers["Location"]
        leaks = {"Authorization": "Bearer x", "Cookie": "sid=1"}
        await driver.call("GET", location, leaks)
        altered = await driver.call("GET", location.replace("%2F", "/"))

        assert altered.status == 403
        assert [text.partition(": ")[2].partition(" sent")[0] for text in registry.violations] == [
            "credentials",
            "a cookie",
            "the signed URL was altered",
        ]


async def test_signed_urls_expire() -> None:
    """After its life a signed URL is answered 403; the registry gives a fresh one. What was deleted is 404 there."""
    now = [1000.0]
    registry = Registry(redirect_blobs=True, clock=lambda: now[0])
    digest = registry.put_blob("a", b"0123456789")
    async with driving(registry) as driver:
        old = (await driver.blob("a", digest)).headers["Location"]
        now[0] += registry.core.url_lifetime
        fresh = (await driver.blob("a", digest)).headers["Location"]

        assert (await driver.call("GET", old)).status == 403
        assert (await driver.call("GET", fresh)).status == 200
        del registry.blobs["a"][digest]
        assert (await driver.call("GET", fresh)).status == 404
        assert registry.violations == []


async def test_careless_reads_are_noted() -> None:
    """A missing or split Accept, a transfer encoding that may change bytes and unknown paths are violations."""
    registry = Registry()
    registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        await driver.call("GET", "/v2/a/manifests/1", IDENTITY)
        await driver.call("GET", "/v2/a/manifests/1", {**MANIFESTS, "Accept-Encoding": "gzip"})
        await driver.call("GET", "/v2/_catalog")
        await driver.call("POST", "/v2/a/tags/list")
        headers = [("Accept", part) for part in MANIFESTS["Accept"].split(",")]
        async with driver.session.get(
            f"{registry.url}/v2/a/manifests/1", headers=[*headers, *IDENTITY.items()]
        ) as response:
            assert response.status == 200

        texts = [text.partition(": ")[2][:12] for text in registry.violations]
        assert texts == [
            "Accept lacks",
            "Accept-Encod",
            "nothing that",
            "nothing that",
            "more than on",
        ]
