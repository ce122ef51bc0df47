"""The fault injector: each kind of trouble happens at the request, the step and the byte that was asked for, and only there."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import aiohttp
import anyio
import pytest

from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.sandbox.driver import IDENTITY, OCTETS, Driver, driving

BLOB = images.layer(600_000, seed="faults")
DATA = BLOB.data or b""


def filled(**options: object) -> Registry:
    registry = Registry(**options)  # type: ignore[arg-type] # the options of each test
    registry.store.put_blob("a", DATA, BLOB.digest)
    return registry


async def statuses(driver: Driver, count: int) -> list[int]:
    path = f"/v2/a/blobs/{BLOB.digest}"
    return [(await driver.call("HEAD", path)).status for _ in range(count)]


@pytest.mark.parametrize(
    ("nth", "times", "expected"),
    [
        (1, 1, [503, 200, 200, 200]),
        (2, 2, [200, 503, 503, 200]),
        (3, None, [200, 200, 503, 503]),
    ],
    ids=["first", "second-and-third", "for-ever"],
)
async def test_which_requests(nth: int, times: int | None, expected: list[int]) -> None:
    """`nth` and `times` choose among the requests of the phase; others do not count."""
    async with driving(filled()) as driver:
        fault = driver.registry.fail(Phase.HEAD_BLOB, nth=nth, times=times, status=503)
        await driver.call("GET", "/v2/")

        assert expected == await statuses(driver, 4)
        assert (4, expected.count(503)) == (fault.seen, fault.hits)


async def test_matching() -> None:
    """Requests that do not match neither count nor suffer; a phase may be given by its name."""
    async with driving(filled()) as driver:
        driver.registry.fail(
            "head_blob", times=None, match=lambda request: request.repository == "b", status=500
        )

        assert await statuses(driver, 2) == [200, 200]
        assert (await driver.call("HEAD", f"/v2/b/blobs/{BLOB.digest}")).status == 500


async def test_an_error_has_a_body_and_401_a_challenge() -> None:
    """Injected errors look as the registry's own: code, and challenge with the scope."""
    async with driving(filled(auth="token")) as driver:
        token = driver.registry.authority.issue("u", ("a", "pull"))
        headers = {"Authorization": f"Bearer {token}", **IDENTITY}
        driver.registry.fail(Phase.GET_BLOB, status=401)
        driver.registry.fail(Phase.GET_BLOB, nth=2, status=429, headers={"Retry-After": "2"})
        driver.registry.fail(Phase.GET_BLOB, nth=3, status=400, code="SIZE_INVALID")
        driver.registry.fail(Phase.GET_BLOB, nth=4, status=502, body=b"<html>")
        path = f"/v2/a/blobs/{BLOB.digest}"
        found = [await driver.call("GET", path, headers) for _ in range(4)]

        assert 'scope="repository:a:pull"' in found[0].headers["WWW-Authenticate"]
        assert [a.code for a in found[:3]] == ["UNAUTHORIZED", "TOOMANYREQUESTS", "SIZE_INVALID"]
        assert found[1].headers["Retry-After"] == "2"
        assert found[3].body == b"<html>"


async def test_faults_of_ping_and_token_need_no_credentials() -> None:
    """Ping and token are spoiled before anybody is asked who they are."""
    async with driving(filled(auth="token")) as driver:
        driver.registry.fail(Phase.PING, status=500)
        driver.registry.fail(Phase.TOKEN, body=b"<html>", status=200)

        assert (await driver.call("GET", "/v2/")).status == 500
        assert (await driver.call("GET", "/token")).body == b"<html>"


async def test_headers_and_body_of_the_own_answer() -> None:
    """Headers can be replaced or taken away, and a body swapped, without another status."""
    registry = Registry()
    image = registry.add("a", images.image(), tag="1")
    registry.fail(Phase.GET_MANIFEST, headers={"Docker-Content-Digest": "sha256:x"})
    registry.fail(Phase.GET_MANIFEST, nth=2, headers={"Docker-Content-Digest": None}, body=b"{}")
    async with driving(registry) as driver:
        first = await driver.manifest("a", "1")
        second = await driver.manifest("a", "1")

        assert ("sha256:x", image.data) == (first.headers["Docker-Content-Digest"], first.body)
        assert "Docker-Content-Digest" not in second.headers
        assert second.body == b"{}"


@pytest.mark.parametrize("at", [0, 1, 300_000, len(DATA) - 1], ids=str)
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
async def test_cut_download(at: int, reset: bool) -> None:
    """A cut answer breaks off after exactly so many bytes; the next one is whole."""
    async with driving(filled()) as driver:
        driver.registry.fail(Phase.GET_BLOB, cut_at=at, reset=reset)
        url = f"{driver.registry.url}/v2/a/blobs/{BLOB.digest}"
        async with driver.session.get(url, headers=IDENTITY) as response:
            with pytest.raises(aiohttp.ClientError):
                await response.read()

        assert at == driver.registry.ledger.bytes_out(Phase.GET_BLOB)
        assert (await driver.blob("a", BLOB.digest)).body == DATA


async def test_reset_at_once() -> None:
    """A reset without a place comes before any answer."""
    async with driving(filled()) as driver:
        driver.registry.fail(Phase.GET_BLOB, times=2, reset=True)  # aiohttp asks twice by itself
        with pytest.raises(aiohttp.ClientOSError):
            await driver.blob("a", BLOB.digest)

        assert driver.registry.requests[-1].status == 0
        await driver.registry.wait_for(lambda request: request.done)


@pytest.mark.parametrize("at", [0, 300_000], ids=str)
async def test_stalled_download(at: int) -> None:
    """A stalled answer goes on when it is released, and not before."""
    async with driving(filled()) as driver, anyio.create_task_group() as tasks:
        fault = driver.registry.fail(Phase.GET_BLOB, stall_at=at)
        bodies: list[bytes] = []

        async def get() -> None:
            bodies.append((await driver.blob("a", BLOB.digest)).body)

        tasks.start_soon(get)
        await fault.reached.wait()
        assert (at, False) == (
            driver.registry.requests[0].bytes_out,
            driver.registry.requests[0].done,
        )
        assert driver.registry.ledger.active == 1
        fault.release()
        await driver.registry.wait_for(lambda request: request.done)
    assert bodies == [DATA]


async def test_a_stall_ends_with_its_client() -> None:
    """A client that hangs up frees the handler."""
    async with driving(filled()) as driver:
        fault = driver.registry.fail(Phase.GET_BLOB, stall_at=10)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(driver.blob, "a", BLOB.digest)
            await fault.reached.wait()
            tasks.cancel_scope.cancel()
        request = await driver.registry.wait_for(lambda request: request.done)

        assert (request.bytes_out, driver.registry.ledger.active) == (10, 0)


async def test_hold_and_delay() -> None:
    """`hold` keeps a request before the server acts; `delay` too, for a time."""
    async with driving(filled()) as driver, anyio.create_task_group() as tasks:
        gate = anyio.Event()
        fault = driver.registry.fail(Phase.HEAD_BLOB, hold=gate, delay=0.001)
        tasks.start_soon(statuses, driver, 1)
        await fault.reached.wait()
        assert driver.registry.requests[0].status == 0
        gate.set()
        found = await driver.registry.wait_for(lambda request: request.done)
        assert found.status == 200


@pytest.mark.parametrize(
    ("options", "body", "length"),
    [
        ({"corrupt_at": 5}, DATA[:5] + bytes([DATA[5] ^ 1]) + DATA[6:], len(DATA)),
        ({"corrupt_at": len(DATA)}, DATA, len(DATA)),
        ({"extra_bytes": 1}, DATA + b"\0", len(DATA) + 1),
        ({"extra_bytes": -3}, DATA[:-3], len(DATA) - 3),
        ({"chunked": True}, DATA, None),
        ({"close_delimited": True}, DATA, None),
        ({"encoding": "gzip"}, gzip.compress(DATA, mtime=0), None),
    ],
    ids=["corrupt", "corrupt-beyond", "too-long", "too-short", "chunked", "until-close", "gzip"],
)
async def test_spoiled_download(
    options: dict[str, object], body: bytes, length: int | None
) -> None:
    """Bytes and framing of the answer are as asked for."""
    async with driving(filled()) as driver:
        driver.registry.fail(Phase.GET_BLOB, **options)  # type: ignore[arg-type] # the options of each row
        found = await driver.blob("a", BLOB.digest)

        assert body == found.body
        if "encoding" in options:
            assert found.headers["Content-Encoding"] == "gzip"
        else:
            assert (None if length is None else str(length)) == found.headers.get("Content-Length")
        assert ("Transfer-Encoding" in found.headers) == bool(options.get("chunked"))


async def test_cut_without_a_length() -> None:
    """A body whose end is the connection's end can be cut short without any sign of it."""
    async with driving(filled()) as driver:
        driver.registry.fail(Phase.GET_BLOB, close_delimited=True, cut_at=1000)

        assert DATA[:1000] == (await driver.blob("a", BLOB.digest)).body


async def test_ignored_range() -> None:
    """Range is ignored: 200 and everything."""
    async with driving(filled()) as driver:
        driver.registry.fail(Phase.GET_BLOB, ignore_range=True)
        found = await driver.blob("a", BLOB.digest, Range="bytes=5-")

        assert (found.status, found.body) == (200, DATA)


async def test_fault_at_the_second_origin() -> None:
    """Redirect targets have faults of their own."""
    async with driving(filled(redirect_blobs=True)) as driver:
        driver.registry.fail(Phase.REDIRECT, status=403)
        location = (await driver.blob("a", BLOB.digest)).headers["Location"]

        assert (await driver.call("GET", location)).status == 403
        assert (await driver.call("GET", location)).body == DATA


# Uploads


async def upload(driver: Driver) -> int:
    return (await driver.upload("a", BLOB.digest, DATA)).status


async def test_early_answer_to_an_upload() -> None:
    """A refusal may come before the body, or in the middle of it, and the client hears it."""
    for at in (0, 70_000):
        async with driving(Registry()) as driver:
            driver.registry.fail(Phase.UPLOAD_BODY, status=413, answer_at=at)

            assert await upload(driver) == 413
            assert at == driver.registry.ledger.bytes_in(Phase.UPLOAD_BODY)
            assert driver.registry.blobs["a"] == {}
            assert await upload(driver) == 201


async def test_late_answer_to_an_upload() -> None:
    """Without a place the body is read first."""
    async with driving(Registry()) as driver:
        driver.registry.fail(Phase.UPLOAD_BODY, status=500)

        assert await upload(driver) == 500
        assert len(DATA) == driver.registry.ledger.bytes_in(Phase.UPLOAD_BODY)


async def test_an_answer_that_waits_for_more_than_there_is() -> None:
    """A place beyond the body's end does no harm."""
    async with driving(Registry()) as driver:
        driver.registry.fail(Phase.UPLOAD_BODY, cut_at=10**9)

        assert await upload(driver) == 201


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
async def test_cut_upload(reset: bool) -> None:
    """The connection breaks after so many bytes of the body; nothing is stored."""
    async with driving(Registry()) as driver:
        driver.registry.fail(Phase.UPLOAD_BODY, cut_at=1000, reset=reset)
        with pytest.raises(aiohttp.ClientError):
            await upload(driver)

        assert driver.registry.ledger.bytes_in(Phase.UPLOAD_BODY) == 1000
        assert (driver.registry.blobs["a"], driver.registry.sessions) == ({}, 1)
        assert await upload(driver) == 201


async def test_stalled_upload() -> None:
    """A server that stops reading goes on when it is released."""
    async with driving(Registry()) as driver:
        fault = driver.registry.fail(Phase.UPLOAD_BODY, stall_at=1000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upload, driver)
            await fault.reached.wait()
            assert driver.registry.requests[-1].bytes_in == 1000
            fault.release()
        assert driver.registry.blobs["a"][BLOB.digest] == DATA


@pytest.mark.parametrize("single", [False, True], ids=["put", "post"])
async def test_commit_faults(single: bool) -> None:
    """At the commit the body has been read; the blob is stored only if the server acts first."""
    for after in (False, True):
        async with driving(Registry()) as driver:
            driver.registry.fail(Phase.COMMIT, status=500, after=after)
            if single:
                path = f"/v2/a/blobs/uploads/?digest={BLOB.digest}"
                status = (await driver.call("POST", path, OCTETS, DATA)).status
            else:
                status = await upload(driver)

            assert status == 500
            assert after == (BLOB.digest in driver.registry.blobs["a"])


async def test_lost_reply() -> None:
    """The blob is stored and the connection reset: the reply is lost."""
    async with driving(Registry()) as driver:
        driver.registry.fail(Phase.COMMIT, after=True, reset=True)
        with pytest.raises(aiohttp.ClientError):
            await upload(driver)

        assert driver.registry.blobs["a"][BLOB.digest] == DATA


async def test_lost_reply_that_says_nothing_else() -> None:
    """`after` without a status or a reset leaves the answer as it was."""
    async with driving(Registry()) as driver:
        driver.registry.fail(Phase.COMMIT, after=True)

        assert await upload(driver) == 201


async def test_start_and_manifest_faults() -> None:
    """The POST and the manifest's PUT have their own phases."""
    image = images.image(layers=())
    registry = Registry()
    registry.add("a", image)
    async with driving(registry) as driver:
        registry.fail(Phase.START_UPLOAD, status=503)
        registry.fail(Phase.PUT_MANIFEST, status=400, code="MANIFEST_BLOB_UNKNOWN")

        assert (await driver.start("a")).status == 503
        found = await driver.put_manifest("a", "1", image.data, image.media_type)
        assert found.code == "MANIFEST_BLOB_UNKNOWN"
        assert registry.tags["a"] == {}


async def test_fault_of_the_start_leaves_the_body_alone() -> None:
    """A place in a fault of the POST's own phase is not one in the body that it carries."""
    async with driving(Registry()) as driver:
        driver.registry.fail(Phase.START_UPLOAD, cut_at=10**6)
        path = f"/v2/a/blobs/uploads/?digest={BLOB.digest}"

        assert (await driver.call("POST", path, OCTETS, DATA)).status == 201


async def test_clear() -> None:
    """Clearing releases what stalls and forgets the rest."""
    async with driving(filled()) as driver:
        fault = driver.registry.fail(Phase.GET_BLOB, times=None, stall_at=0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(driver.blob, "a", BLOB.digest)
            await fault.reached.wait()
            driver.registry.faults.clear()
        assert (await driver.blob("a", BLOB.digest)).body == DATA


async def test_client_that_leaves_in_the_middle_of_a_body() -> None:
    """The session stays, as it does at real registries."""
    arrived = anyio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield DATA[:1000]
        arrived.set()
        await anyio.sleep_forever()

    async with driving(Registry()) as driver:
        location = (await driver.start("a")).headers["Location"]
        headers = {**OCTETS, "Content-Length": str(len(DATA))}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(driver.call, "PATCH", location, headers, body())
            await driver.registry.wait_for(lambda request: request.method == "PATCH")
            await arrived.wait()
            tasks.cancel_scope.cancel()
        await driver.registry.wait_for(lambda r: r.method == "PATCH" and r.done)

        assert driver.registry.sessions == 1
