"""Uploading to the sandbox registry: all forms of the specification, and every rule that a client may break."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.sandbox.driver import OCTETS, Driver, driving

BLOB = images.layer(4096, seed="upload")
DATA = BLOB.data or b""


async def _started(driver: Driver) -> str:
    return (await driver.start("a")).headers["Location"]


def _reasons(registry: Registry) -> list[str]:
    return [text.partition(": ")[2] for text in registry.violations]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_post_and_put(algorithm: str) -> None:
    """Form B: the blob is stored under its digest, in two requests that the ledger knows by their steps."""
    blob = images.layer(100_000, algorithm=algorithm)
    data = blob.data or b""
    async with driving(Registry()) as driver:
        found = await driver.upload("a", blob.digest, data)

        assert found.status == 201
        assert blob.digest == found.headers["Docker-Content-Digest"]
        assert data == driver.registry.blobs["a"][blob.digest]
        assert [request.phases for request in driver.registry.requests] == [
            (Phase.START_UPLOAD,),
            (Phase.UPLOAD_BODY, Phase.COMMIT),
        ]
        assert len(data) == driver.registry.ledger.bytes_in(Phase.UPLOAD_BODY)
        assert driver.registry.violations == []
        assert driver.registry.sessions == 0


async def test_single_post() -> None:
    """Form A: a POST with the digest and the whole body."""
    async with driving(Registry()) as driver:
        path = f"/v2/a/blobs/uploads/?digest={BLOB.digest}"
        found = await driver.call("POST", path, OCTETS, DATA)

        assert found.status == 201
        assert driver.registry.blobs["a"][BLOB.digest] == DATA
        assert driver.registry.violations == []


async def test_zero_byte_blob() -> None:
    """A blob of no bytes is POST and PUT with Content-Length 0."""
    empty = images.empty_layer()
    async with driving(Registry()) as driver:
        assert (await driver.upload("a", empty.digest, b"")).status == 201
        assert driver.registry.blobs["a"][empty.digest] == b""
        assert driver.registry.requests[-1].phases == (Phase.COMMIT,)
        assert driver.registry.violations == []


@pytest.mark.parametrize("ranges", [False, True], ids=["stream", "chunks"])
async def test_patch(ranges: bool) -> None:
    """Forms C and D: a PATCH without Content-Range, or several with, each to the newest Location."""
    async with driving(Registry()) as driver:
        location, step = await _started(driver), 1500 if ranges else len(DATA)
        for at in range(0, len(DATA), step):
            part = DATA[at : at + step]
            span = f"{at}-{at + len(part) - 1}" if ranges else ""
            found = await driver.patch(location, part, span)
            location = found.headers["Location"]
            assert found.status == 202
            assert f"0-{at + len(part) - 1}" == found.headers["Range"]
        found = await driver.put(location, BLOB.digest)

        assert found.status == 201
        assert driver.registry.blobs["a"][BLOB.digest] == DATA
        assert driver.registry.violations == []


async def test_sha512_in_chunks() -> None:
    """The digest's algorithm may become known at the end only."""
    digest = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    async with driving(Registry()) as driver:
        found = await driver.patch(await _started(driver), DATA)

        assert (await driver.put(found.headers["Location"], digest)).status == 201


async def test_status_and_cancel() -> None:
    """GET says how much is there, DELETE forgets it; an unknown session is 404."""
    async with driving(Registry()) as driver:
        patched = await driver.patch(await _started(driver), DATA[:10])
        location = patched.headers["Location"]
        status = await driver.call("GET", location)
        assert (status.status, status.headers["Range"]) == (204, "0-9")
        assert driver.registry.sessions == 1
        assert (await driver.call("DELETE", location)).status == 204
        assert driver.registry.sessions == 0
        for method in ("GET", "DELETE"):
            gone = await driver.call(method, location)
            assert (gone.status, gone.code) == (404, "BLOB_UPLOAD_UNKNOWN")
        assert (await driver.patch(location, b"x")).status == 404
        assert (await driver.put(location, BLOB.digest)).status == 404


async def test_mount() -> None:
    """A mount needs no bytes; when the source has not got the blob it becomes an ordinary session."""
    registry = Registry()
    registry.put_blob("base", DATA)
    async with driving(registry) as driver:
        done = await driver.start("a", f"?mount={BLOB.digest}&from=base")
        session = await driver.start("a", f"?mount={BLOB.digest}&from=elsewhere")

        assert (done.status, session.status) == (201, 202)
        assert BLOB.digest == done.headers["Docker-Content-Digest"]
        assert registry.blobs["a"][BLOB.digest] == DATA
        assert (await driver.put(session.headers["Location"], BLOB.digest, DATA)).status == 201
        assert registry.violations == []


async def test_stale_location() -> None:
    """An old Location after a PATCH is refused with what to do next."""
    async with driving(Registry()) as driver:
        location = await _started(driver)
        newest = (await driver.patch(location, DATA[:10])).headers["Location"]
        found = await driver.patch(location, DATA[10:], f"10-{len(DATA) - 1}")

        assert (found.status, found.code) == (416, "RANGE_INVALID")
        assert ("0-9", newest) == (found.headers["Range"], found.headers["Location"])
        assert _reasons(driver.registry) == ["a stale Location"]
        assert (await driver.call("GET", location)).status == 416
        assert (await driver.call("DELETE", location)).status == 416


async def test_altered_location() -> None:
    """A Location whose query was decoded and encoded again is not the one that was given."""
    async with driving(Registry()) as driver:
        location = (await _started(driver)).replace("%2F", "/")

        assert (await driver.put(location, BLOB.digest, DATA)).status == 404
        assert _reasons(driver.registry) == ["the Location was altered"]


@pytest.mark.parametrize(
    ("span", "status", "reason"),
    [
        ("bytes 0-9", 400, "Content-Range 'bytes 0-9' is not <start>-<end>"),
        ("0-9/10", 400, "Content-Range '0-9/10' is not <start>-<end>"),
        ("0-10", 400, "Content-Range '0-10' does not fit Content-Length 10"),
        ("5-14", 416, ""),
    ],
    ids=["unit", "total", "length", "gap"],
)
async def test_wrong_content_range(span: str, status: int, reason: str) -> None:
    """Content-Range is `<start>-<end>`, fits the body and starts where the session ends."""
    async with driving(Registry()) as driver:
        found = await driver.patch(await _started(driver), DATA[:10], span)

        assert status == found.status
        assert ([reason] if reason else []) == _reasons(driver.registry)


async def test_content_range_with_a_whole_blob() -> None:
    """A PUT of everything says no range: GHCR would apply its limit for chunks."""
    async with driving(Registry()) as driver:
        span = {"Content-Range": f"0-{len(DATA) - 1}"}
        found = await driver.put(await _started(driver), BLOB.digest, DATA, **span)

        assert found.status == 201
        assert _reasons(driver.registry) == ["Content-Range with a whole blob"]


async def test_second_chunk_without_range() -> None:
    """After the first chunk, where the next one starts must be said."""
    async with driving(Registry()) as driver:
        location = (await driver.patch(await _started(driver), DATA[:10])).headers["Location"]
        await driver.patch(location, DATA[10:])

        assert _reasons(driver.registry) == ["a chunk without Content-Range"]


async def test_chunked_transfer_encoding() -> None:
    """A body without a length is accepted, and noted."""

    async def body() -> AsyncIterator[bytes]:
        yield DATA

    async with driving(Registry()) as driver:
        location = await _started(driver)
        url = f"{location}&digest={BLOB.digest}"
        found = await driver.call("PUT", url, OCTETS, body())

        assert found.status == 201
        assert _reasons(driver.registry) == ["chunked transfer-encoding on an upload"]


async def test_careless_headers() -> None:
    """Accept of manifests, another Content-Type and Expect do not belong on an upload."""
    headers = {
        "Accept": "application/vnd.oci.image.index.v1+json",
        "Content-Type": "text/plain",
        "Expect": "200-maybe",
    }
    async with driving(Registry()) as driver:
        await driver.put(await _started(driver), BLOB.digest, DATA, **headers)

        assert _reasons(driver.registry) == [
            "Accept of manifests on an upload",
            "Content-Type 'text/plain' on an upload",
            "Expect on an upload",
        ]


@pytest.mark.parametrize(
    ("digest", "reason"),
    [("md5:1234", "commit without a digest"), ("", "commit without a digest")],
    ids=["unknown", "none"],
)
async def test_commit_needs_a_digest(digest: str, reason: str) -> None:
    """A commit without a digest that the registry knows is refused."""
    async with driving(Registry()) as driver:
        found = await driver.put(await _started(driver), digest, DATA)

        assert (found.status, found.code) == (400, "DIGEST_INVALID")
        assert [reason] == _reasons(driver.registry)


async def test_wrong_bytes() -> None:
    """Bytes that do not hash to the digest are not stored."""
    async with driving(Registry()) as driver:
        found = await driver.upload("a", BLOB.digest, DATA[:-1])

        assert (found.status, found.code) == (400, "DIGEST_INVALID")
        assert driver.registry.blobs["a"] == {}
        assert _reasons(driver.registry) == ["the bytes do not hash to the digest"]


@pytest.mark.parametrize("asked", [False, True], ids=["blind", "after-status"])
async def test_body_into_a_used_session(asked: bool) -> None:
    """After a body that broke off, the session takes no other before its state was asked for."""
    async with driving(Registry()) as driver:
        driver.registry.fail(Phase.UPLOAD_BODY, cut_at=1000)
        location = await _started(driver)
        with pytest.raises(aiohttp.ClientError):
            await driver.patch(location, DATA)
        at = 0
        if asked:
            status = await driver.call("GET", location)
            at = int(status.headers["Range"].partition("-")[2]) + 1
            assert at == 1000
        found = await driver.patch(location, DATA[at:], f"{at}-{len(DATA) - 1}")

        assert (202 if asked else 416) == found.status
        assert ([] if asked else ["a body into a used session"]) == _reasons(driver.registry)


@pytest.mark.parametrize(
    ("style", "start"),
    [
        ("absolute", "http://127.0.0.1:{port}/v2/"),
        ("relative", "/v2/"),
        ("lost-port", "http://127.0.0.1/v2/"),
        ("lost-scheme", "http://127.0.0.1:{port}/v2/"),
    ],
)
async def test_location_styles(style: str, start: str) -> None:
    """Locations come in the ways that registries behind proxies write them."""
    async with driving(Registry(location_style=style)) as driver:  # type: ignore[arg-type] # a parameter is a plain str
        location = await _started(driver)

        assert location.startswith(start.format(port=driver.registry.port))


async def test_location_at_another_host() -> None:
    """An upload may go on at the second origin, where credentials must not follow."""
    registry = Registry(location_style="other-host")
    async with driving(registry) as driver:
        location = await _started(driver)
        assert location.startswith(registry.cdn)
        assert (await driver.put(location, BLOB.digest, DATA)).status == 201
        assert registry.violations == []

        leak = {"Authorization": "Bearer x"}
        await driver.put(await _started(driver), BLOB.digest, DATA, **leak)
        assert _reasons(registry) == ["credentials sent to another origin"]


async def test_mount_without_from() -> None:
    """A mount that names no source is noted and becomes a session."""
    async with driving(Registry()) as driver:
        assert (await driver.start("a", f"?mount={BLOB.digest}")).status == 202
        assert _reasons(driver.registry) == ["mount without from"]
