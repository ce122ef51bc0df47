"""Answers that mean harm: bombs, endless drips, brackets without end, headers that are slow to read."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from copycat.errors import DigestMismatch, NotFound, RegistryError, TooLarge, Unavailable
from copycat.registry.answers import Reply
from copycat.registry.challenge import parse_challenges
from copycat.registry.lists import next_page
from tests.registry.support import blob, scripted, world

MIB = 1024 * 1024


# What unfolds


def bomb(size: int) -> bytes:
    """Zeros, a thousandth as long."""
    squeezer = zlib.compressobj(9, wbits=31)
    return b"".join(squeezer.compress(bytes(MIB)) for _ in range(size // MIB)) + squeezer.flush()


@pytest.mark.parametrize(
    ("status", "error"),
    [pytest.param(200, TooLarge, id="success"), pytest.param(404, NotFound, id="error")],
)
async def test_bomb_in_an_answer(status: int, error: type[RegistryError]) -> None:
    """A small body that unfolds to a huge one takes no memory: it is left at the limit."""
    body = bomb(96 * MIB)

    def answer(_seen: object) -> web.Response:
        return web.Response(status=status, body=body, headers={"Content-Encoding": "gzip"})

    async with scripted(answer) as script, world(script.address) as here:
        source = here.source(script.address)
        tracemalloc.start()
        try:
            with pytest.raises(error):
                await source.get_manifest("latest")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak < 32 * MIB


async def test_bomb_in_a_blob() -> None:
    """A blob is decoded no further than its size."""
    body = bomb(96 * MIB)

    def answer(_seen: object) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async with scripted(answer) as script, world(script.address) as here:
        chunks = here.source(script.address).read_blob(blob(bytes(3 * MIB)))
        tracemalloc.start()
        try:
            with pytest.raises(DigestMismatch):
                [len(chunk) async for chunk in chunks]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak < 24 * MIB


# What never ends


@asynccontextmanager
async def dripping(head: bytes, drop: bytes) -> AsyncIterator[str]:
    """A registry that begins an answer and goes on with it byte by byte; pings are answered at once."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            if (request := await stream.receive()).startswith(b"\x16"):
                return  # TLS, which it does not speak
            while b" /v2/ " in request:
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                request = await stream.receive()
            await stream.send(head)
            while True:
                await stream.send(drop)
                await anyio.sleep(0.005)

    async def handle(stream: anyio.abc.SocketStream) -> None:
        try:
            await serve(stream)
        except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
            return  # it went away

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield f"127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


async def test_dripping_head() -> None:
    """The head of an answer has to come whole within the time: one that drips is never silent."""
    async with (
        dripping(b"HTTP/1.1 200 OK\r\nX-Long: ", b"a") as address,
        world(address, request_timeout=0.05) as here,
    ):
        with anyio.fail_after(10), pytest.raises(Unavailable, match="no answer in time"):
            await here.source(address).get_manifest("latest")


BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n"


async def test_dripping_body() -> None:
    """A manifest and a blob that hardly arrive are given up, though they never stand still."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 10.0
        return now

    async with dripping(BODY, b"a") as address, world(address, clock=clock) as here:
        source = here.source(address)
        with anyio.fail_after(10):
            with pytest.raises(Unavailable) as raised:
                await source.get_manifest("latest")
            assert raised.value.reason == "slow"
            with pytest.raises(Unavailable) as raised:
                async for _ in source.read_blob(blob(bytes(8_000_000))):
                    pass

    assert raised.value.reason == "slow"
    assert raised.value.side == "source"


async def test_moving_body() -> None:
    """What moves is never cut, however long it takes; the time that the reader takes does not count."""
    now = 0.0
    data = bytes(range(256)) * 16384

    def clock() -> float:
        nonlocal now
        now += 20.0
        return now

    def answer(_seen: object) -> web.Response:
        return web.Response(body=data)

    async with scripted(answer) as script, world(script.address, clock=clock) as here:
        read = 0
        async for chunk in here.source(script.address).read_blob(blob(data)):
            now += 1000.0
            read += len(chunk)

    assert read == len(data)


# What is slow, or too deep, to read


DEEP = b"[" * 60_000


async def test_brackets_without_end() -> None:
    """JSON that is too deep for a parser is an answer like any other that says nothing."""

    def answer(seen: object) -> web.Response:
        return web.Response(status=404, body=DEEP)

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(NotFound):
            await here.source(script.address).get_manifest("latest")
        assert not (await here.source(script.address).referrers(blob(b"x").digest)).descriptors


@pytest.mark.parametrize(("status", "requests"), [(503, 4), (404, 1)])
@pytest.mark.parametrize("coding", ["br", "gzip"])
async def test_error_that_cannot_be_decoded(coding: str, status: int, requests: int) -> None:
    """The status of an error counts, whatever coding its page has: a 503 stays one that passes."""

    def answer(_seen: object) -> web.Response:
        return web.Response(status=status, body=b"no", headers={"Content-Encoding": coding})

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(RegistryError) as raised:
            await here.source(script.address).get_manifest("latest")

        assert raised.value.status == status
        assert raised.value.temporary == (status == 503)
        assert len(script.targets()) == requests


def reply(*links: str, url: str = "https://a.io:5000/v2/x/tags/list") -> Reply:
    """A page with these Link headers."""
    headers = CIMultiDict(("Link", link) for link in links)
    return Reply(status=200, headers=CIMultiDictProxy(headers), body=b"", url=URL(url))


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        pytest.param(['</n?last=b%2F>; rel="next"'], "https://a.io:5000/n?last=b%2F", id="plain"),
        pytest.param(["</n>;rel=next"], "https://a.io:5000/n", id="bare"),
        pytest.param(
            ['</p>; rel="prev", </n>; title="x"; rel="next"'], "https://a.io:5000/n", id="second"
        ),
        pytest.param(["</p>; rel=prev", "</n>; rel=next"], "https://a.io:5000/n", id="headers"),
        pytest.param(['</p>, rel="next"'], None, id="of-nothing"),
        pytest.param(['</p> rel="next"'], None, id="no-parameter"),
        # distribution#2225: behind a proxy that ends TLS
        pytest.param(["<http://a.io/n>; rel=next"], "https://a.io:5000/n", id="lost-scheme"),
    ],
)
def test_next_page(links: list[str], expected: str | None) -> None:
    """The link to the next page, among others, on the origin that the page came from."""
    assert next_page(reply(*links)) == (URL(expected, encoded=True) if expected else None)


@pytest.mark.parametrize("text", ["<", "<>;", "<> ", "<a>; rel=", ' rel="'])
def test_links_cost_no_time(text: str) -> None:
    """A hostile header is read in one go: the event loop does not stand still for it."""
    begun = time.process_time()
    assert next_page(reply(text * (32_000 // len(text)))) is None
    assert time.process_time() - begun < 0.5


def test_challenges_cost_no_time() -> None:
    """Nobody needs more than a few challenges."""
    begun = time.process_time()
    assert parse_challenges(['Basic realm="x"', *["a " * 16_000] * 128])[0].scheme == "basic"
    assert time.process_time() - begun < 1.0
