"""The server's life: ports, switching off and on, TLS, what the ledger knows, and a process of its own."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import anyio
import pytest
import trustme
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from copycat.sandbox.store import StoredManifest, sniff
from tests.sandbox.driver import driving

ROOT = Path(__file__).parents[2]


async def test_switched_off_and_on() -> None:
    """After `stop` nothing answers; after `start` the same port serves the same content."""
    registry = Registry()
    async with driving(registry) as driver:
        image = registry.add_image("a", "1", layers=(10,))
        address, cdn = registry.address, registry.cdn
        await registry.stop()
        await registry.stop()
        assert (registry.open_connections, registry.running) == (0, False)
        with pytest.raises(aiohttp.ClientConnectorError):
            await driver.manifest("a", "1")
        await registry.start()

        assert (address, cdn) == (registry.address, registry.cdn)
        assert image.data == (await driver.manifest("a", "1")).body


async def test_stop_breaks_what_is_under_way() -> None:
    """Requests that are being answered end with the server."""
    registry = Registry()
    image = registry.add_image("a", "1", layers=(10,))
    fault = registry.fail(Phase.GET_BLOB, times=None, stall_at=1)
    async with driving(registry) as driver:
        url = f"{registry.url}/v2/a/blobs/{next(iter(image.blobs))}"
        async with driver.session.get(url, headers={"Accept-Encoding": "identity"}) as response:
            await fault.reached.wait()
            assert registry.open_connections == 1
            await registry.stop()
            with pytest.raises(aiohttp.ClientError):
                await response.read()

        assert (registry.ledger.active, registry.open_connections) == (0, 0)


async def test_tls() -> None:
    """With a context both origins speak TLS, and say so in URLs and challenges."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    registry = Registry(ssl_context=context, redirect_blobs=True, auth="token", anonymous=True)
    digest = registry.put_blob("a", b"0123456789")
    token = registry.authority.issue("", ("a", "pull"))
    headers = {"Accept-Encoding": "identity"}
    async with registry, aiohttp.ClientSession() as session:
        async with session.get(f"{registry.url}/v2/", ssl=trust) as response:
            challenge = response.headers["WWW-Authenticate"]
        registry.fail(Phase.REDIRECT, cut_at=5, reset=True, times=1)
        url = f"{registry.url}/v2/a/blobs/{digest}"
        bearer = {**headers, "Authorization": f"Bearer {token}"}
        async with session.get(url, headers=bearer, ssl=trust, allow_redirects=False) as response:
            location = response.headers["Location"]

        assert f'realm="https://127.0.0.1:{registry.port}/token"' in challenge
        assert location.startswith("https://")
        assert registry.violations == []


async def test_putting_and_reading_the_store() -> None:
    """A test can fill the store by hand and read it back."""
    registry = Registry()
    manifest = registry.put_manifest("a", b'{"manifests": []}', tag="1")
    digest = registry.put_blob("a", b"x", "sha512")

    assert manifest.media_type == images.OCI_INDEX
    assert manifest == registry.manifests["a"][registry.tags["a"]["1"]]
    assert digest.startswith("sha512:")
    assert {digest: b"x"} == registry.blobs["a"]
    assert registry.store.unique_blob_bytes("b") == 0


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"{", ""),
        (b"[]", ""),
        (b"{}", ""),
        (b'{"mediaType": "x/y"}', "x/y"),
        (b'{"config": {}}', images.OCI_MANIFEST),
    ],
    ids=["broken", "list", "empty", "named", "structure"],
)
def test_sniffing(data: bytes, kind: str) -> None:
    """A manifest's type is what its body says, or what it looks like."""
    assert kind == sniff(data)


def test_a_manifest_that_is_no_object_has_no_body() -> None:
    """Broken bytes can be stored, to serve them to a client."""
    assert StoredManifest.of(b"{").body == {}
    assert StoredManifest.of(b"[]").body == {}


async def test_ledger_counts_connections_and_concurrency() -> None:
    """The ledger knows which requests shared a connection and how many ran at once; clearing keeps what runs."""
    registry = Registry()
    digest = registry.put_blob("a", b"x")
    async with driving(registry) as driver:
        path = f"/v2/a/blobs/{digest}"
        await driver.call("HEAD", path)
        await driver.call("HEAD", path)
        assert [request.reused for request in registry.requests] == [False, True]
        assert (registry.ledger.connections, registry.ledger.count("head_blob")) == (1, 2)

        gate = anyio.Event()
        registry.fail(Phase.HEAD_BLOB, times=None, hold=gate)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(driver.call, "HEAD", path)
            await registry.wait_for(lambda request: not request.done, count=3)
            assert registry.ledger.max_concurrent[Phase.HEAD_BLOB] == 3
            registry.ledger.clear()
            assert (registry.ledger.count(), registry.ledger.active) == (3, 3)
            gate.set()
        assert registry.ledger.max_concurrent[Phase.HEAD_BLOB] == 3
        await registry.wait_for(lambda request: request.done, count=3)
        registry.ledger.clear()
        assert (registry.requests, registry.ledger.max_concurrent[Phase.HEAD_BLOB]) == ([], 0)


@asynccontextmanager
async def process(
    *arguments: str, stdin: int = subprocess.PIPE, env: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Process, dict[str, str]]]:
    """The sandbox as a process, with what it said about itself; it does not outlive the block."""
    command = [sys.executable, "-m", "copycat.sandbox", *arguments]
    async with await anyio.open_process(
        command, cwd=ROOT, stdin=stdin, stderr=None, env=env
    ) as child:
        try:
            assert child.stdout is not None
            yield child, json.loads(await TextReceiveStream(child.stdout).receive())
        finally:
            if child.returncode is None:
                child.kill()


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["registry", "--images", "2"], {"kind", "address", "url", "cdn"}),
        (["kube-api", "--pods", "3", "--images", "2"], {"kind", "url"}),
    ],
    ids=["registry", "kube-api"],
)
@pytest.mark.parametrize("way", ["signal", "stdin"])
async def test_process(arguments: list[str], facts: set[str], way: str) -> None:
    """A process of its own says where it listens and ends when it is told to, or when its starter is gone."""
    async with process(*arguments) as (child, said):
        assert facts == set(said)
        if arguments[0] == "registry":
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{said['url']}/v2/library/image-1/tags/list") as response,
            ):
                assert (await response.json())["tags"] == ["1"]
        if way == "signal":
            child.send_signal(signal.SIGTERM)
        else:
            assert child.stdin is not None
            await child.stdin.send(b"\n")
            await child.stdin.aclose()
        assert await child.wait() == 0


async def test_process_without_a_pipe() -> None:
    """An input that is no pipe says nothing: only a signal ends it. The password comes from a variable."""
    options = ("registry", "--password-env", "PW")
    async with process(*options, stdin=subprocess.DEVNULL, env={"PW": "p"}) as (child, said):
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{said['url']}/v2/") as response:
                assert response.status == 401
            login = {"Authorization": aiohttp.encode_basic_auth("sandbox", "p")}
            async with session.get(f"{said['url']}/v2/", headers=login) as response:
                assert response.status == 200
        child.send_signal(signal.SIGINT)
        assert await child.wait() == 0
