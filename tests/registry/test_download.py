"""Streams that break, stall, lie and are mended."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from aiohttp import web

from copycat.errors import DigestMismatch, NotFound, Throttled, Unavailable, Unsupported
from copycat.oci.manifest import Descriptor
from copycat.registry.download import Download
from copycat.registry.limits import RetryPolicy
from copycat.sandbox.faults import FaultOptions
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.registry.support import Options, World, blob, scripted, world

MIB = 1024 * 1024
DATA = bytes(range(256)) * 4096 * 3  # 3 MiB


async def read(here: World, address: str, wanted: Descriptor) -> bytes:
    """The whole blob, and a check that what `on_bytes` hears is what is new."""
    counted = 0

    def count(size: int) -> None:
        nonlocal counted
        counted += size

    chunks = [c async for c in here.source(address).read_blob(wanted, on_bytes=count)]
    assert counted == wanted.size
    return b"".join(chunks)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([{"cut_at": MIB}], id="cut"),
        pytest.param([{"cut_at": 0}], id="cut-before-the-first-byte"),
        pytest.param([{"cut_at": MIB, "reset": True}], id="reset"),
        pytest.param([{"cut_at": MIB, "close_delimited": True}], id="no-length"),
        pytest.param([{"cut_at": MIB, "chunked": True}], id="chunked"),
        pytest.param([{"cut_at": MIB}, {"nth": 2, "cut_at": MIB // 2}], id="twice"),
        pytest.param([{"cut_at": MIB}, {"nth": 2, "status": 503}], id="then-503"),
        pytest.param([{"cut_at": MIB}, {"nth": 2, "reset": True}], id="then-reset"),
        pytest.param([{"cut_at": MIB}, {"nth": 2, "status": 416}], id="then-416"),
        pytest.param([{"cut_at": MIB}, {"nth": 2, "status": 400}], id="then-400"),
        pytest.param([{"cut_at": MIB}, {"nth": 2, "ignore_range": True}], id="then-200"),
        pytest.param(
            [{"cut_at": MIB}, {"nth": 2, "headers": {"Content-Range": None}}], id="206-of-nothing"
        ),
        pytest.param(
            [
                {"cut_at": MIB},
                {"nth": 2, "headers": {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}},
            ],
            id="206-of-something-else",
        ),
    ],
)
async def test_mended(faults: list[FaultOptions]) -> None:
    """A stream that breaks goes on where it broke, whatever the source can do; the reader notices nothing."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        for fault in faults:
            a.fail(Phase.GET_BLOB, **fault)
        async with world(a.address) as here:
            assert await read(here, a.address, blob(DATA)) == DATA

        assert a.violations == []
        assert a.ledger.bytes_out(Phase.GET_BLOB) <= 2 * len(DATA) + MIB


async def test_resume_costs_no_byte_twice() -> None:
    """What arrived before the break is not sent again, and the request names the rest."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, cut_at=2 * MIB)
        async with world(a.address) as here:
            assert await read(here, a.address, blob(DATA)) == DATA

            assert (
                here.metric(
                    "k8s_copycat_registry_retries_total", registry=a.address, reason="connection"
                )
                == 1
            )
        first, second = a.ledger.select(Phase.GET_BLOB)
        assert "Range" not in first.headers
        assert second.headers["Range"] == f"bytes={2 * MIB}-{len(DATA) - 1}"
        assert a.ledger.bytes_out(Phase.GET_BLOB) == len(DATA)


@pytest.mark.parametrize(
    "limit",
    [Options(request_timeout=0.2), Options(request_timeout=0, watchdog=0.2)],
    ids=["requestTimeout", "watchdog"],
)
async def test_stall(limit: Options) -> None:
    """Silence for longer than requestTimeout is a break; where that is 0, silence of two minutes."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, stall_at=MIB)
        async with world(a.address, **limit) as here:
            assert await read(here, a.address, blob(DATA)) == DATA


async def test_resume_through_the_registry() -> None:
    """A signed URL is used once: the rest is asked for at the registry, which signs a fresh one."""
    async with Registry(redirect_blobs=True) as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.REDIRECT, cut_at=MIB)
        async with world(a.address) as here:
            assert await read(here, a.address, blob(DATA)) == DATA

        assert (a.ledger.count(Phase.GET_BLOB), a.ledger.count(Phase.REDIRECT)) == (2, 2)
        assert a.violations == []


async def test_expired_url() -> None:
    """A storage that refuses a signed URL is asked again by way of the registry."""
    async with Registry(redirect_blobs=True) as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.REDIRECT, status=403)
        async with world(a.address) as here:
            assert await read(here, a.address, blob(DATA)) == DATA

        assert a.ledger.count(Phase.GET_BLOB) == 2


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"corrupt_at": 17}, id="flipped-byte"),
        pytest.param({"corrupt_at": len(DATA) - 1}, id="flipped-last-byte"),
        pytest.param({"extra_bytes": 1}, id="one-byte-more"),
        pytest.param({"extra_bytes": -1}, id="one-byte-less"),
        pytest.param({"extra_bytes": 1, "close_delimited": True}, id="more-without-length"),
    ],
)
async def test_wrong_bytes(fault: FaultOptions) -> None:
    """Wrong bytes end in an error before the last chunk is passed on."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, **fault)
        async with world(a.address) as here:
            stream = here.source(a.address).read_blob(blob(DATA))
            passed = 0
            while True:
                try:
                    passed += len(await anext(stream))
                except DigestMismatch:
                    break
            assert passed < len(DATA)


async def test_gives_up() -> None:
    """A source that breaks again and again without a new byte is unavailable after the configured attempts."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, cut_at=MIB)
        a.fail(Phase.GET_BLOB, nth=2, cut_at=0, times=None)
        async with world(a.address) as here:
            with pytest.raises(Unavailable) as caught:
                await read(here, a.address, blob(DATA))

        assert (caught.value.side, caught.value.temporary) == ("source", True)
        assert a.ledger.count(Phase.GET_BLOB) == 4


async def test_progress_counts() -> None:
    """Every new byte resets the attempts; only twenty breaks in all end it."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, cut_at=100_000, times=None)
        async with world(a.address) as here:
            with pytest.raises(Unavailable):
                await read(here, a.address, blob(DATA))

        assert a.ledger.count(Phase.GET_BLOB) == 21


async def test_budget() -> None:
    """Resuming may take 45 seconds in all, because an upload that is fed from it would idle out."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, cut_at=MIB)
        a.fail(Phase.GET_BLOB, nth=2, status=503, times=None)
        patient = RetryPolicy(attempts=100, backoff=8.0)
        async with world(
            a.address, clock=lambda: now, sleep=sleep, jitter=lambda: 1.0, retry=patient
        ) as here:
            with pytest.raises(Unavailable):
                await read(here, a.address, blob(DATA))

    assert now == 45.0


async def test_throttled_in_the_middle() -> None:
    """A Retry-After that the budget does not cover frees the worker."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, cut_at=MIB)
        a.fail(Phase.GET_BLOB, nth=2, status=429, headers={"Retry-After": "60"})
        async with world(a.address) as here:
            with pytest.raises(Throttled) as caught:
                await read(here, a.address, blob(DATA))

    assert caught.value.retry_after == 60


async def test_gone_in_the_middle() -> None:
    """A blob that is deleted while it is read is not found."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, cut_at=MIB)
        a.fail(Phase.GET_BLOB, nth=2, status=404)
        async with world(a.address) as here:
            with pytest.raises(NotFound):
                await read(here, a.address, blob(DATA))


async def test_stalled_resume() -> None:
    """A resume that is not answered is cut off with the budget and not with requestTimeout."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += 44.9

    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, cut_at=MIB)
        fault = a.fail(Phase.GET_BLOB, nth=2, delay=20, times=None)
        async with world(a.address, clock=clock, sleep=sleep) as here:
            with pytest.raises(Unavailable, match="resumed in time"):
                await read(here, a.address, blob(DATA))

        assert fault.hits == 1


async def test_discarding_is_bounded() -> None:
    """A source that sends everything again from the start is borne with twice for a large blob."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.GET_BLOB, cut_at=2 * MIB)
        for nth in range(2, 6):
            a.fail(Phase.GET_BLOB, nth=nth, ignore_range=True, cut_at=2 * MIB + nth * 1000)
        async with world(a.address) as here:
            call = here.source(a.address).blob_call(blob(DATA))
            download = Download(here.transport, call, blob(DATA), discard_limit=MIB)
            with pytest.raises(Unavailable, match="cannot resume"):
                b"".join([chunk async for chunk in download.chunks()])

        assert a.ledger.count(Phase.GET_BLOB) == 4


@pytest.mark.parametrize(
    ("coding", "wbits"),
    [pytest.param("gzip", 31, id="gzip"), pytest.param("deflate", 15, id="deflate")],
)
@pytest.mark.parametrize("cut", [None, 2000])
async def test_encoded(coding: str, wbits: int, cut: int | None) -> None:
    """Bytes that a proxy encoded are decoded and verified as what they are; a break starts over and skips."""
    squeezer = zlib.compressobj(wbits=wbits)
    squeezed = squeezer.compress(DATA) + squeezer.flush()
    answers = 0

    def answer(_seen: object) -> web.Response:
        nonlocal answers
        answers += 1
        response = web.Response(body=squeezed, headers={"Content-Encoding": coding})
        if cut is not None and answers == 1:
            response = web.Response(body=squeezed[:cut], headers={"Content-Encoding": coding})
        return response

    async with scripted(answer) as script, world(script.address) as here:
        assert await read(here, script.address, blob(DATA)) == DATA
        assert answers == (1 if cut is None else 2)


@pytest.mark.parametrize("cut", [None, 1000])
async def test_encoded_in_members(cut: int | None) -> None:
    """gzip may come as one file after another, and members may end anywhere in what the network brings."""
    members = b"".join(gzip.compress(DATA[at : at + 700]) for at in range(0, len(DATA), 700))

    def answer(_seen: object) -> web.Response:
        return web.Response(body=members[:cut], headers={"Content-Encoding": "gzip"})

    async with scripted(answer) as script, world(script.address) as here:
        if cut is None:
            assert await read(here, script.address, blob(DATA)) == DATA
        else:
            with pytest.raises(Unavailable, match="ended early"):
                await read(here, script.address, blob(DATA))


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        pytest.param({"Content-Encoding": "br"}, Unsupported, id="unknown-coding"),
        pytest.param({"Content-Encoding": "gzip"}, Unavailable, id="not-what-it-says"),
    ],
)
async def test_encoding_that_cannot_be_undone(
    headers: dict[str, str], error: type[Exception]
) -> None:
    """An unknown coding, or one that the bytes do not have, is an error that says so."""

    def answer(_seen: object) -> web.Response:
        return web.Response(body=DATA, headers=headers)

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(error, match="Content-Encoding"):
            await read(here, script.address, blob(DATA))
        with pytest.raises(error, match="Content-Encoding"):
            await here.source(script.address).get_blob(blob(DATA))


async def test_embedded_data_needs_no_request() -> None:
    """A descriptor that carries its content is not fetched."""
    inline = Descriptor(media_type="x", digest=blob(b"{}").digest, size=2, data=b"{}")
    async with world("127.0.0.1:1") as here:
        source = here.source("127.0.0.1:1")
        assert [c async for c in source.read_blob(inline)] == [b"{}"]
        assert await source.get_blob(inline) == b"{}"


Small = Callable[[], FaultOptions]


@pytest.mark.parametrize(
    ("fault", "gets"),
    [
        pytest.param({"corrupt_at": 3}, 2, id="flipped"),
        pytest.param({"extra_bytes": 1}, 2, id="longer"),
        pytest.param({"extra_bytes": -1}, 2, id="shorter"),
        pytest.param({"cut_at": 5}, 2, id="cut"),
        pytest.param({"encoding": "gzip"}, 1, id="gzip"),
    ],
)
async def test_small_blob(fault: FaultOptions, gets: int) -> None:
    """A small blob is read whole; what went wrong once is asked for once more."""
    data = b"some configuration " * 20
    async with Registry() as a:
        a.put_blob("team/app", data)
        a.fail(Phase.GET_BLOB, **fault)
        async with world(a.address) as here:
            assert await here.source(a.address).get_blob(blob(data)) == data

        assert a.ledger.count(Phase.GET_BLOB) == gets


async def test_small_blob_wrong_for_good() -> None:
    """Wrong bytes twice are the source's fault, and terminal."""
    async with Registry() as a:
        a.put_blob("team/app", b"right")
        a.fail(Phase.GET_BLOB, corrupt_at=0, times=None)
        async with world(a.address) as here:
            with pytest.raises(DigestMismatch) as caught:
                await here.source(a.address).get_blob(blob(b"right"))

    assert not caught.value.temporary
    assert caught.value.side == "source"


async def test_empty_small_blob() -> None:
    """Nothing needs no request."""
    async with world("127.0.0.1:1") as here:
        assert await here.source("127.0.0.1:1").get_blob(blob(b"")) == b""
