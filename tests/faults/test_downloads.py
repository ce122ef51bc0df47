"""Rows 17 to 25 and 31: blobs that break off, stall, lie about themselves, and redirects that lead astray."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import trustme

from copycat.errors import DigestMismatch, Unavailable, Unsupported
from copycat.sandbox import images
from copycat.sandbox.faults import Fault
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.faults.support import IMAGE, LAYER, TARGET, Bench, Names, bench, failure, success

SIZE = len(IMAGE.blobs[LAYER])
#: Where a blob breaks.
PLACES = [0, 1, SIZE // 2, SIZE - 1]
#: Blobs from the registry itself, or from the store that it redirects to.
WAYS = ["Gb", "Rd"]


@asynccontextmanager
async def blobs(step: str, **flags: Any) -> AsyncIterator[Bench]:
    """A source that serves blobs itself, or redirects."""
    async with bench(source={"redirect_blobs": step == "Rd"}, **flags) as b:
        yield b


def one_upload(b: Bench) -> bool:
    """Whatever the source did, the target saw one session, one body, one commit."""
    return (b.count("I"), b.count("U"), b.count("C")) == (1, 1, 1)


def ranges(b: Bench) -> list[str]:
    """The Range headers of the requests for the blob, in order."""
    phases = (Phase.REDIRECT,) if b.source.core.redirect_blobs else (Phase.GET_BLOB,)
    return [r.headers.get("Range", "") for r in b.source.ledger.select(*phases)]


# Row 17


@pytest.mark.parametrize("more", [1, -1, 1000], ids=["Gb-long", "Gb-short", "Gb-longer"])
@pytest.mark.parametrize("times", [1, None], ids=["once", "for-ever"])
async def test_17_length(more: int, times: int | None) -> None:
    """A length that is not the descriptor's is refused before a byte goes to the target."""
    async with blobs("Gb") as b:
        fault = b.fail("Gb", extra_bytes=more, times=times)
        found = await b.copy()

        assert b.target.ledger.bytes_in(Phase.UPLOAD_BODY) == (SIZE if times == 1 else 0)
        if times == 1:
            success(b, "", found)
            return
        error = failure(found)
        assert (type(error), error.temporary, fault.hits) == (DigestMismatch, False, 2)
        assert f"should have {SIZE} bytes" in str(error)
        assert LAYER not in b.target.blobs[TARGET]


# Rows 18 and 19


@pytest.mark.parametrize("length", [True, False], ids=["length", "no-length"])
@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("step", WAYS)
async def test_18_breaks_off(step: str, at: int, length: bool) -> None:
    """A blob that breaks off is read on from there; the target sees nothing of it."""
    async with blobs(step) as b:
        b.fail(step, cut_at=at, close_delimited=not length)
        success(b, "", await b.copy())

        assert one_upload(b)
        assert b.count("Gb") == 2
        first, second = ranges(b)
        assert first == ""
        assert second in {"", f"bytes={at}-{SIZE - 1}"}
        assert (second == "") == (at == 0)


async def test_18_bytes_are_read_once() -> None:
    """[Gb] After a reset in the middle of a large blob no more is read again than what the socket lost."""
    image = images.image(seed="large", layers=(6_000_000,))
    async with bench(source={"redirect_blobs": False}, image=image) as b:
        b.fail("Gb", cut_at=3_000_000, match=lambda r: r.reference in image.blobs)
        success(b, "", await b.copy())

        assert b.source.ledger.bytes_out(Phase.GET_BLOB) <= image.blob_bytes + 600_000


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("step", WAYS)
async def test_19_stalls(step: str, at: int) -> None:
    """A blob that stalls for requestTimeout is read on from there."""
    async with blobs(step, request_timeout="120ms") as b:
        fault = b.fail(step, stall_at=at)
        success(b, "", await b.copy())

        assert one_upload(b)
        assert (b.count("Gb"), fault.hits) == (2, 1)
        assert ranges(b)[1] in {"", f"bytes={at}-{SIZE - 1}"}


# Row 20

RESTS: dict[str, tuple[dict[str, Any], int]] = {
    "200": ({"ignore_range": True}, 2),
    "no-content-range": ({"headers": {"Content-Range": None}}, 3),
    "another-place": ({"headers": {"Content-Range": f"bytes 5-{SIZE - 1}/{SIZE}"}}, 3),
    "another-size": ({"headers": {"Content-Range": f"bytes {SIZE // 2}-{SIZE - 1}/{SIZE + 9}"}}, 3),
    "another-length": ({"extra_bytes": -5}, 3),
    "encoded": ({"encoding": "gzip"}, 3),
    "416": ({"status": 416}, 3),
    "400": ({"status": 400}, 3),
}


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("step", WAYS)
async def test_20_odd_rest(step: str, rest: str) -> None:
    """What answers a Range wrongly is not believed: the blob comes from its start, into the same upload."""
    options, requests = RESTS[rest]
    async with blobs(step) as b:
        b.fail(step, cut_at=SIZE // 2)
        b.fail(step, nth=2, **options)
        success(b, "", await b.copy())

        assert one_upload(b)
        assert b.count("Gb") == requests
        assert ranges(b)[1] == f"bytes={SIZE // 2}-{SIZE - 1}"
        assert ranges(b)[2:] == [""] * (requests - 2)


# Row 21


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"corrupt_at": 0}, id="Gb-first-byte"),
        pytest.param({"corrupt_at": SIZE // 2}, id="Gb-middle-byte"),
        pytest.param({"corrupt_at": SIZE - 1}, id="Gb-last-byte"),
        pytest.param({"extra_bytes": 1, "chunked": True}, id="Gb-one-more"),
        pytest.param({"extra_bytes": 1, "close_delimited": True}, id="Gb-one-more-until-the-end"),
    ],
)
@pytest.mark.parametrize("times", [1, None], ids=["once", "for-ever"])
async def test_21_wrong_bytes(wrong: dict[str, Any], times: int | None) -> None:
    """Bytes that are wrong never complete an upload; they are read once more, then the image is refused."""
    async with blobs("Gb") as b:
        fault = b.fail("Gb", times=times, **wrong)
        found = await b.copy()

        bodies = b.target.ledger.select(Phase.UPLOAD_BODY)
        assert sum(r.status == 201 for r in bodies) == (1 if times == 1 else 0)
        assert all(r.bytes_in < SIZE for r in bodies if r.status != 201)
        if times == 1:
            success(b, "", found)
            assert (b.count("I"), b.count("Gb")) == (2, 2)
            return
        error = failure(found)
        assert (type(error), error.temporary, fault.hits) == (DigestMismatch, False, 2)
        assert error.side == "source"
        assert LAYER not in b.target.blobs[TARGET]
        assert b.untouched()


async def test_21_wrong_small_blob() -> None:
    """[Gb] A small blob is verified before an upload is begun at all."""
    image = images.image(seed="small", layers=(50,))
    async with bench(source={"redirect_blobs": False}, image=image) as b:
        fault = b.fail("Gb", corrupt_at=9, times=None)
        assert failure(await b.copy()).reason == "digest_mismatch"
        assert fault.hits >= 2
        assert b.count("U") == 0


# Row 22


@pytest.mark.parametrize("step", ["Gm", "Gb"])
async def test_22_encoded(step: str) -> None:
    """What comes compressed although nobody asked is decoded: the digest is that of the content."""
    async with blobs("Gb") as b:
        b.fail(step, encoding="gzip", times=None)
        success(b, "", await b.copy())


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
@pytest.mark.parametrize("step", ["Gm", "Gb"])
async def test_22_unknown_coding(step: str, coding: str) -> None:
    """A coding that cannot be undone is named, for good."""
    async with blobs("Gb") as b:
        b.fail(step, headers={"Content-Encoding": coding}, times=None)
        error = failure(await b.copy())

        assert (type(error), error.temporary) == (Unsupported, False)
        assert coding.split(",", maxsplit=1)[0] in str(error)
        assert b.untouched()


@pytest.mark.parametrize("step", ["Gm", "Gb"])
async def test_22_not_what_it_says(step: str) -> None:
    """A body that is not compressed as its header says is no answer."""
    async with blobs("Gb") as b:
        b.fail(step, headers={"Content-Encoding": "gzip"})
        success(b, "", await b.copy())


# Row 23


@pytest.mark.parametrize("status", [400, 401, 403, 410])
async def test_23_signed_url_refused(status: int) -> None:
    """[Rd] A store that refuses a signed URL is asked again with a fresh one."""
    async with bench() as b:
        b.fail("Rd", status=status, body=b"<Error><Code>AccessDenied</Code></Error>")
        success(b, "", await b.copy())

        first, second = (r.query for r in b.source.ledger.select(Phase.REDIRECT))
        assert first != second
        assert b.count("Gb") == 2


async def test_23_signed_url_has_run_out() -> None:
    """[Rd] A blob that breaks off after its URL ran out is read on through the registry."""
    async with bench() as b:
        b.fail("Rd", cut_at=SIZE // 2)
        b.fail("Gb", nth=2, run=lambda _: _skip(b, 2 * b.source.core.url_lifetime))
        success(b, "", await b.copy())

        assert b.count("Rd") == 2
        assert [r.status for r in b.source.ledger.select(Phase.REDIRECT)] == [200, 206]


# Row 24


async def test_24_another_host() -> None:
    """[Gb] Neither the login nor a cookie leaves the registry's origin, and no byte of the query changes."""
    profile = replace(PROFILES["distribution"], cookies=True)
    async with bench(source={"profile": profile}) as b:
        success(b, "", await b.copy())

        seen = b.source.ledger.select(Phase.REDIRECT)
        assert [(r.authorized, "Cookie" in r.headers) for r in seen] == [(False, False)]
        assert all(r.query in b.source.core.signatures for r in seen)
        assert {"%2F", "%2B", "%40", "%20", "+"} <= {
            part for part in ("%2F", "%2B", "%40", "%20", "+") if part in seen[0].query
        }


async def test_24_another_port_of_the_same_host() -> None:
    """[Gb] Nor where the store is another port of the registry's host: there a browser would send its cookies."""
    profile = replace(PROFILES["distribution"], cookies=True)
    name = "registry.example"

    def named(source: Registry, target: Registry) -> str:
        hosts = [f"{name}:{source.port}", f"{name}:{source.cdn.rpartition(':')[2]}"]
        return ",".join([*hosts, target.address])

    async with bench(
        source={"profile": profile}, resolver=Names(name), insecure_registries=named
    ) as b:
        b.source.core.cdn = f"http://{name}:{b.source.cdn.rpartition(':')[2]}"
        success(b, "", await b.copy(host=f"{name}:{b.source.port}"))

        assert b.count("Rd") == 1
        assert not [r.path for r in b.source.requests if "Cookie" in r.headers]


# Row 25


@contextmanager
def trap() -> Iterator[socket.socket]:
    """A port where nobody may call."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def redirected(b: Bench, step: str, location: str) -> Fault:
    """The step's requests are redirected there."""
    return b.fail(step, status=307, headers={"Location": location}, times=None)


@pytest.mark.parametrize("step", ["Gb", "I"])
async def test_25_circle(step: str) -> None:
    """A redirect to itself ends after ten hops, for good."""
    async with bench() as b:
        fault = b.fail(step, status=307, headers={"Location": "?again"}, times=None)
        error = failure(await b.copy())

        assert (type(error), error.reason, error.temporary) == (Unavailable, "redirect_loop", False)
        assert fault.hits == 11
        assert b.untouched()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "169.254.169.254",
        "[::1]",
        "10.1.2.3",
        "localhost",
        "metadata",
        "0x7f.1",
        "a.svc",
    ],
)
@pytest.mark.parametrize("step", ["Gb", "I"])
async def test_25_forbidden_host(step: str, host: str) -> None:
    """A redirect to this machine, the cluster or the cloud's metadata is not followed."""
    with trap() as listener:
        async with bench() as b:
            redirected(b, step, f"http://{host}:{listener.getsockname()[1]}/latest/meta-data")
            found = await b.copy()

            assert (found.state, found.reason) == ("denied", "host_not_allowed")
            assert host.strip("[]") in found.message
            assert b.untouched()


@pytest.mark.parametrize("step", ["Gb", "I"])
async def test_25_no_downgrade(step: str) -> None:
    """A redirect from TLS to none is not followed."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    side: dict[str, Any] = {"source" if step == "Gb" else "target": {"ssl_context": server}}
    with trap() as listener:
        async with bench(**side, ssl_context=client) as b:
            redirected(b, step, f"http://127.0.0.1:{listener.getsockname()[1]}/x")
            found = await b.copy()

            assert (found.state, found.reason) == ("denied", "downgrade")
            assert b.untouched()


# Row 31


@pytest.mark.parametrize("step", ["Gb", "U"])
async def test_31_pause(step: str) -> None:
    """A source that stalls twice within the time that an upload may be kept waiting: one upload."""
    async with bench(request_timeout="120ms", source={"redirect_blobs": False}) as b:
        b.fail("Gb", stall_at=SIZE // 3, run=lambda _: _skip(b, 20))
        b.fail("Gb", nth=2, stall_at=SIZE // 3, run=lambda _: _skip(b, 20))
        success(b, "", await b.copy())

        assert one_upload(b)
        assert b.count(step) == {"Gb": 3, "U": 1}[step]


async def test_31_too_long_in_all() -> None:
    """[Gb U] The 45 seconds are those of all pauses together, whatever arrives between them."""
    async with bench(request_timeout="120ms", source={"redirect_blobs": False}) as b:
        b.fail("Gb", stall_at=SIZE // 5)
        for nth in (2, 3, 4):
            b.fail("Gb", nth=nth, stall_at=SIZE // 5, run=lambda _: _skip(b, 20))
        success(b, "", await b.copy())

        assert (b.count("I"), b.count("Gb")) == (2, 5)
        assert ranges(b)[-1] == ""  # the second upload reads it from its start


@pytest.mark.parametrize("step", ["Gb", "U"])
async def test_31_too_long(step: str) -> None:
    """Over 45 seconds in all the upload is given up with the source, and begun anew, three times at most."""
    image = images.image(seed="large", layers=(3_000_000,))
    large = max(image.blobs, key=lambda digest: len(image.blobs[digest]))
    async with bench(
        image=image,
        source={"redirect_blobs": False},
        request_timeout="60ms",
        registry_retry_attempts=9,
    ) as b:
        rest: dict[str, Any] = {"times": None, "run": lambda _: _skip(b, 16)}
        b.fail(
            "Gb",
            stall_at=2_000_000,
            match=lambda r: r.reference == large and "Range" not in r.headers,
            **rest,
        )
        b.fail("Gb", stall_at=0, match=lambda r: "Range" in r.headers, **rest)
        error = failure(await b.copy())

        assert (type(error), error.side, error.temporary) == (Unavailable, "source", True)
        config = 1
        assert b.count(step) == config + {"Gb": 3 * 4, "U": 3}[step]
        assert large not in b.target.blobs[TARGET]
        assert b.untouched()


def _skip(b: Bench, seconds: float) -> None:
    b.time.skipped += seconds
