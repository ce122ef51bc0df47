"""The way to a registry: one ping, redirects, TLS, retries, gates, breakers, permits."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from structlog.testing import capture_logs
from trustme import CA
from yarl import URL

from copycat.errors import (
    CopycatError,
    HostNotAllowed,
    NotFound,
    RegistryError,
    Throttled,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from copycat.metrics import Metrics
from copycat.registry.hosts import (
    AddressRefused,
    FilteringResolver,
    HostConfig,
    HostPolicy,
    Proxies,
)
from copycat.registry.keychain import Access, Credentials
from copycat.registry.limits import SMALL_LANE, RetryPolicy
from copycat.registry.strangers import MAX_STRANGERS
from copycat.registry.tokens import basic
from copycat.registry.transport import Transport
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.registry.support import Keys, Seen, World, blob, closed_port, scripted, sent, world
from tests.registry.test_hosts import Known

DATA = b"some bytes"


async def ask(here: World, address: str, name: str = "team/app") -> None:
    """One small request."""
    await here.source(address, name).get_blob(blob(DATA))


def answers(*replies: web.Response | None) -> Callable[[Seen], web.Response]:
    """These one after the other, then (or for None) the blob."""
    left = list(replies)

    def answer(_seen: Seen) -> web.Response:
        reply = left.pop(0) if left else None
        return reply if reply is not None else web.Response(body=DATA)

    return answer


# Ping and scheme


async def test_one_ping() -> None:
    """However many ask at once, a host is pinged once."""
    async with scripted(answers()) as script, world(script.address) as here:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask, here, script.address)

        assert sum(s.target == "/v2/" for s in script.seen) == 1


async def test_user_agent_and_encoding() -> None:
    """Every request says who we are, and asks for bytes as they are."""
    async with scripted(answers()) as script, world(script.address) as here:
        await ask(here, script.address)

        assert {s.headers["Accept-Encoding"] for s in script.seen} == {"identity"}
        assert all(s.headers["User-Agent"].startswith("k8s-copycat/") for s in script.seen)
        assert all("Cookie" not in s.headers for s in script.seen)


@pytest.mark.parametrize("status", [200, 301, 404, 405])
async def test_odd_pings(status: int) -> None:
    """A ping that is neither 200 nor 401 says nothing about the rest."""

    def answer(seen: Seen) -> web.Response:
        return (
            web.Response(status=status, headers={"Location": "/elsewhere"})
            if seen.target == "/v2/"
            else web.Response(body=DATA)
        )

    async with scripted(answer, pings=True) as script, world(script.address) as here:
        await ask(here, script.address)

        assert len(script.seen) == 2


async def test_a_page_for_people() -> None:
    """A ping that is answered by a huge page is a ping."""

    def answer(seen: Seen) -> web.Response:
        return (
            web.Response(text="<html>" * 50_000)
            if seen.target == "/v2/"
            else web.Response(body=DATA)
        )

    async with scripted(answer, pings=True) as script, world(script.address) as here:
        await ask(here, script.address)


async def test_ping_is_retried() -> None:
    """A registry that is just starting is waited for."""

    pings = iter([503, 429, 200])

    def answer(seen: Seen) -> web.Response:
        return (
            web.Response(status=next(pings)) if seen.target == "/v2/" else web.Response(body=DATA)
        )

    async with scripted(answer, pings=True) as script, world(script.address) as here:
        await ask(here, script.address)


@pytest.fixture
def ca(tmp_path: Path) -> CA:
    """An authority that nobody knows; its certificate stands in ca.pem."""
    ca = CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return ca


def server_context(ca: CA, *, client: bool = False) -> ssl.SSLContext:
    """TLS for a server on loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    if client:
        context.verify_mode = ssl.CERT_REQUIRED
        ca.configure_trust(context)
    return context


async def test_unknown_authority(ca: CA) -> None:
    """A certificate that is not trusted ends it at once, with the remedy."""
    async with scripted(answers(), tls=server_context(ca)) as script, world() as here:
        with pytest.raises(Unavailable, match=r"not trusted.*registryCAFile") as caught:
            await ask(here, script.address)

        assert (caught.value.temporary, caught.value.reason) == (False, "certificate")
        assert script.seen == []


@pytest.mark.parametrize("where", ["everywhere", "host", "context"])
async def test_own_authority(ca: CA, tmp_path: Path, where: str) -> None:
    """An own authority is trusted beside the system's, for all or for one host."""
    file = str(tmp_path / "ca.pem")
    context = ssl.create_default_context(cafile=file)
    async with scripted(answers(), tls=server_context(ca)) as script:
        hosts = (
            {script.address: HostConfig(host=script.address, ca_file=file)}
            if where == "host"
            else {}
        )
        options = {"ca_file": file} if where == "everywhere" else {}
        if where == "context":
            async with world(hosts=hosts, ssl_context=context) as here:
                await ask(here, script.address)
        else:
            async with world(hosts=hosts, **options) as here:  # type: ignore[arg-type] # one of its keys
                await ask(here, script.address)


async def test_client_certificate(ca: CA, tmp_path: Path) -> None:
    """A host that wants a certificate of ours gets it."""
    client = ca.issue_cert("robot@example.com")
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "c.pem"))
    client.private_key_pem.write_to_path(str(tmp_path / "k.pem"))
    async with scripted(answers(), tls=server_context(ca, client=True)) as script:
        config = HostConfig(
            host=script.address,
            ca_file=str(tmp_path / "ca.pem"),
            client_cert_file=str(tmp_path / "c.pem"),
            client_key_file=str(tmp_path / "k.pem"),
        )
        async with world(hosts={script.address: config}) as here:
            await ask(here, script.address)


async def test_insecure_tls(ca: CA) -> None:
    """An insecure host that speaks TLS is spoken to in TLS, unverified."""
    async with scripted(answers(), tls=server_context(ca)) as script, world(script.address) as here:
        await ask(here, script.address)

        assert here.transport.endpoint(script.address).scheme == "https"


@asynccontextmanager
async def raw(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:  # fmt: skip
    """A server that is written byte by byte; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            await talk(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()


async def test_plain_http_that_waits() -> None:
    """A host without TLS that waits for the rest of a TLS greeting is spoken to in plain HTTP, if it may be."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    async with raw(talk) as address, world(address, request_timeout=0.3) as here:
        assert not await here.source(address).has_blob(blob(DATA).digest)
        assert here.transport.endpoint(address).scheme == "http"


@pytest.mark.parametrize(
    "plain",
    ["400 Bad Request", "426 Upgrade Required", "301 Moved\r\nLocation: HTTPS://r.example/v2/"],
)
async def test_tls_that_starts_badly(ca: CA, plain: str) -> None:
    """One broken handshake does not make plain HTTP of an insecure host that speaks TLS, for as long as the process lives."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            return
        if connections > 2:
            await writer.start_tls(server_context(ca))
        while await reader.readuntil(b"\r\n\r\n"):
            status = plain if connections == 2 else "404 Not Found"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()

    async with raw(talk) as address, world(address) as here:
        assert not await here.source(address).has_blob(blob(DATA).digest)
        assert here.transport.endpoint(address).scheme == "https"


async def test_no_tls_without_permission() -> None:
    """A host that is not insecure is never spoken to without TLS."""
    async with scripted(answers()) as script, world() as here:
        with pytest.raises(Unavailable, match="insecureRegistries"):
            await ask(here, script.address)

        assert script.seen == []


async def test_nobody_listens() -> None:
    """A refused connection is temporary, names the host, and was tried as often as configured."""
    address = closed_port()
    async with world(address) as here:
        with pytest.raises(Unavailable, match=address) as caught:
            await ask(here, address)

        assert caught.value.temporary
        assert (
            here.metric("k8s_copycat_registry_retries_total", registry=address, reason="connection")
            == 3
        )


async def test_silent_host() -> None:
    """A host that does not answer is given up after requestTimeout."""
    async with Registry() as a:
        a.fail(Phase.PING, delay=20, times=None)
        async with world(a.address, request_timeout=0.1, retry=RetryPolicy(attempts=1)) as here:
            with pytest.raises(Unavailable, match="no answer in time"):
                await ask(here, a.address)


async def test_no_limit() -> None:
    """With requestTimeout 0 an answer's head is waited for as long as it takes; a transfer that stands is still noticed."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        a.fail(Phase.PING, delay=0.5)
        async with world(a.address, request_timeout=0, watchdog=0.1) as here:
            await ask(here, a.address)
        assert Transport(keychain=here.keys, metrics=here.metrics, policy=HostPolicy(named=frozenset()), request_timeout=0).silence == 120  # fmt: skip


async def test_not_open() -> None:
    """A transport that was not entered says so."""
    async with world() as here:
        transport = here.transport
    with pytest.raises(RuntimeError, match="not open"):
        await ask(World(transport, here.metrics, here.keys), "127.0.0.1:1")


# Redirects


def redirect(to: str, status: int = 307) -> web.Response:
    """Elsewhere."""
    return web.Response(status=status, headers={"Location": to})


KEY = Keys(Credentials(username="u", password="pw"))


async def test_redirect() -> None:
    """Another origin gets the query byte by byte, and no credentials."""
    query = "X-Sig=a%2Fb%3D%40+c&x=%7E&y=a%20b"
    async with scripted(answers()) as cdn:

        def answer(seen: Seen) -> web.Response:
            if "Authorization" not in seen.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
            return redirect(f"{cdn.url}/bucket/key?{query}")

        async with scripted(answer, pings=True) as script, world(script.address, keys=KEY) as here:
            await ask(here, script.address)

        (seen,) = cdn.seen
        assert seen.target == f"/bucket/key?{query}"
        assert "Authorization" not in seen.headers


async def test_redirect_with_a_login() -> None:
    """Who sends us somewhere has no login for us: ours goes along at home, and none elsewhere."""
    async with scripted(answers()) as cdn, scripted(answers(), pings=True) as script:
        moved = [f"http://u:p@{script.address}/v2/moved", f"http://u:p@{cdn.address}/v2/moved"]

        def answer(seen: Seen) -> web.Response:
            if "Authorization" not in seen.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
            return redirect(moved.pop(0)) if seen.target != "/v2/" else web.Response()

        script.handler = answer
        async with world(script.address, keys=KEY) as here:
            await ask(here, script.address)

    # the ping is asked without one; the blob, and the place at home that it moved to, with ours
    logins = [seen.headers.get("Authorization") for seen in script.seen]
    assert logins == [None, basic("u", "pw"), basic("u", "pw")]
    assert ["Authorization" in seen.headers for seen in cdn.seen] == [False]


async def test_redirect_within_the_registry() -> None:
    """The same origin keeps the login; relative Locations work."""

    def answer(seen: Seen) -> web.Response:
        if "Authorization" not in seen.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
        return web.Response(body=DATA) if seen.target == "/else" else redirect("/else", 302)

    async with scripted(answer, pings=True) as script, world(script.address, keys=KEY) as here:
        await ask(here, script.address)


async def test_redirect_loop() -> None:
    """Ten hops are followed, more are an error for good."""
    async with (
        scripted(lambda seen: redirect(seen.target)) as script,
        world(script.address) as here,
    ):
        with pytest.raises(Unavailable, match="redirects more than 10 times") as caught:
            await ask(here, script.address)

        assert len(script.targets()) == 11
        assert not caught.value.temporary


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://localhost/x",
        "http://kubernetes.default.svc/api",
        "https://10.0.0.1/x",
    ],
)
async def test_redirect_to_a_forbidden_place(location: str) -> None:
    """A redirect may lead nowhere that the configuration does not name."""
    async with scripted(lambda _: redirect(location)) as script, world(script.address) as here:
        with pytest.raises(HostNotAllowed):
            await ask(here, script.address)


async def test_no_downgrade_in_a_list(ca: CA, tmp_path: Path) -> None:
    """The next page of a list is not fetched without TLS either."""
    async with scripted(answers()) as plain:

        def answer(_seen: Seen) -> web.Response:
            link = f'<{plain.url}/v2/x>; rel="next"'.replace("127.0.0.1", "localhost")
            return web.Response(body=b'{"tags":["a"]}', headers={"Link": link})

        named = HostPolicy(named=frozenset({"127.0.0.1", "localhost"}))
        async with (
            scripted(answer, tls=server_context(ca)) as script,
            world(policy=named, ca_file=str(tmp_path / "ca.pem")) as here,
        ):
            with pytest.raises(HostNotAllowed) as raised:
                await here.source(script.address).list_tags()

    assert raised.value.reason == "downgrade"
    assert not plain.seen


async def test_no_downgrade(ca: CA, tmp_path: Path) -> None:
    """From TLS nothing leads to plain HTTP."""
    async with (
        scripted(answers()) as plain,
        scripted(lambda _: redirect(f"{plain.url}/x"), tls=server_context(ca)) as script,
        world(ca_file=str(tmp_path / "ca.pem")) as here,
    ):
        with pytest.raises(HostNotAllowed, match="redirects from TLS") as caught:
            await ask(here, script.address)

        assert caught.value.reason == "downgrade"
        assert plain.seen == []


async def test_own_authority_of_the_storage(ca: CA, tmp_path: Path) -> None:
    """A redirect's host is verified by its own row."""
    async with (
        scripted(answers(), tls=server_context(ca)) as cdn,
        scripted(lambda _: redirect(f"{cdn.url}/x")) as script,
    ):
        hosts = {cdn.address: HostConfig(host=cdn.address, ca_file=str(tmp_path / "ca.pem"))}
        async with world(script.address, hosts=hosts) as here:
            await ask(here, script.address)


async def test_an_authority_that_is_none(tmp_path: Path) -> None:
    """A bundle for all hosts that cannot be used is told at the start, not with the first image."""
    (tmp_path / "ca.pem").write_text("no certificate")

    with pytest.raises(Unavailable, match="registryCAFile"):
        async with world(ca_file=str(tmp_path / "ca.pem")):
            pass


@pytest.mark.parametrize(
    "location",
    [
        None,
        "ftp://x/",
        "http://[::1",
        "mailto:x",
        "http://a.example:99999/",
        "http://a.default\u3002svc/",
        "http://\uff11\uff10.0.0.1/",
    ],
)
async def test_redirect_to_nowhere(location: str | None) -> None:
    """A redirect without a usable Location is no success."""

    def answer(_seen: Seen) -> web.Response:
        return web.Response(status=307, headers={"Location": location} if location else {})

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(RegistryError, match="307"):
            await ask(here, script.address)


async def test_connect_time_filter() -> None:
    """A public name that resolves to this machine is refused when the connection is made."""
    metrics, policy = Metrics(version="test"), HostPolicy(named=frozenset())
    async with Transport(
        keychain=Keys(),
        metrics=metrics,
        policy=policy,
        resolver=Known("127.0.0.1"),
        proxies=Proxies({}),
    ) as transport:
        here = World(transport, metrics, Keys())
        with pytest.raises(HostNotAllowed, match=r"resolves to 127.0.0.1"):
            await ask(here, "evil.example")


# Retries and errors


@pytest.mark.parametrize("status", [408, 425, 429, 499, 500, 502, 503, 504, 520, 524])
async def test_transient(status: int) -> None:
    """What may pass is tried again; one extra request, and it is counted."""
    async with (
        scripted(answers(web.Response(status=status))) as script,
        world(script.address) as here,
    ):
        await ask(here, script.address)

        assert len(script.targets()) == 2
        assert (
            here.metric(
                "k8s_copycat_registry_requests_total",
                registry=script.address,
                method="GET",
                code=str(status),
            )
            == 1
        )


@pytest.mark.parametrize(
    ("status", "error", "temporary"),
    [
        (400, RegistryError, False),
        (403, RegistryError, False),
        (404, NotFound, False),
        (405, Unsupported, False),
        (413, TooLarge, False),
        (418, RegistryError, False),
        (429, Throttled, True),
        (501, Unsupported, False),
        (503, Unavailable, True),
        (507, Unavailable, True),
    ],
)
async def test_error_classes(status: int, error: type[RegistryError], temporary: bool) -> None:
    """Each answer has its class, and says side, registry, reference and status."""

    def answer(_seen: Seen) -> web.Response:
        return web.json_response(
            {"errors": [{"code": "SOME_CODE", "message": "a word"}]}, status=status
        )

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(error) as caught:
            await ask(here, script.address)

    found = caught.value
    assert type(found) is error or error is RegistryError
    assert (found.side, found.registry, found.status, found.code) == (
        "source",
        script.address,
        status,
        "SOME_CODE",
    )
    assert found.temporary is temporary
    assert found.reference.startswith(f"{script.address}/team/app@sha256:")
    assert "a word" in str(found)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(
            b'{"errors":[{"code":"DENIED","message":"no\\u0007 way"}]}', "DENIED: no way", id="json"
        ),
        pytest.param(
            b"<html><style>p{}</style><p>Bad   Gateway</p></html>", "418: Bad Gateway", id="html"
        ),
        pytest.param(b'{"details":"slow down"}', "418: slow down", id="old-hub"),
        pytest.param(b"", "(HTTP 418)", id="empty"),
        pytest.param(b"\xff\xfe", "418", id="bytes"),
        pytest.param(b'{"errors":[]}', "418", id="no-errors"),
        pytest.param(b'{"errors":["x"]}', "418", id="odd-errors"),
        pytest.param(b'{"errors":[{"code":5,"message":{}}]}', "(HTTP 418)", id="odd-types"),
        pytest.param(b"x" * 10_000_000, "xxx", id="huge"),
        pytest.param(b"Bearer abcdefghijklmnop", "Bearer ***", id="secret"),
    ],
)
async def test_error_texts(body: bytes, said: str) -> None:
    """Whatever an error's body is, the message is short, printable and without secrets."""
    async with (
        scripted(lambda _: web.Response(status=418, body=body)) as script,
        world(script.address) as here,
    ):
        with pytest.raises(RegistryError) as caught:
            await ask(here, script.address)

    assert said in str(caught.value)
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()


async def test_not_found_in_other_words() -> None:
    """UNKNOWN "not found" of a registry is a 404 (registry.redhat.io, Harbor)."""

    def answer(_seen: Seen) -> web.Response:
        return web.json_response(
            {"errors": [{"code": "UNKNOWN", "message": "Not Found"}]}, status=400
        )

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(NotFound):
            await ask(here, script.address)


async def test_throttled_by_code() -> None:
    """TOOMANYREQUESTS is a request for patience under any status."""

    def answer(_seen: Seen) -> web.Response:
        return web.json_response({"errors": [{"code": "TOOMANYREQUESTS"}]}, status=403)

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(Throttled):
            await ask(here, script.address)


async def test_backoff() -> None:
    """Between tries there is a jittered, doubling delay."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    bad = [web.Response(status=500) for _ in range(4)]
    async with (
        scripted(answers(*bad)) as script,
        world(script.address, retry=RetryPolicy(), sleep=sleep, jitter=lambda: 0.5) as here,
    ):
        await ask(here, script.address)

    assert slept == [0.5, 1, 2, 4]


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_holds_the_host(status: int) -> None:
    """A Retry-After is waited for by every request of the host, and counted."""
    now = 0.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    patience = web.Response(status=status, headers={"Retry-After": "2"})
    async with (
        scripted(answers(patience)) as script,
        world(script.address, clock=lambda: now, sleep=sleep) as here,
    ):
        await ask(here, script.address)

        assert (
            here.metric("k8s_copycat_registry_throttled_seconds_total", registry=script.address)
            == 2
        )
    assert [s for s in slept if s] == [2]


async def test_long_patience_frees_the_worker() -> None:
    """More than a worker's patience is an error that says how long, at once and for everybody of that host alone."""
    patience = web.Response(status=429, headers={"Retry-After": "86400"})
    async with scripted(answers(patience)) as script, scripted(answers()) as other:
        async with world(script.address, other.address) as here:
            for _ in range(2):
                with pytest.raises(Throttled) as caught:
                    await ask(here, script.address)
                assert caught.value.retry_after == pytest.approx(900, abs=5)
            await ask(here, other.address)

        assert len(script.targets()) == 1


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [(429, {"Retry-After": "86400"}, "throttled"), (503, {}, "breaker_open")],
)
async def test_who_waits_for_the_lane_hears_of_it(
    status: int, headers: dict[str, str], reason: str
) -> None:
    """Requests that wait for their turn are not sent to a host that shut its gate, or proved dead, meanwhile."""
    full = anyio.Event()

    async def answer(_: Seen) -> web.Response:
        if len(script.targets()) >= SMALL_LANE:
            full.set()
        await full.wait()
        return web.Response(status=status, headers=headers)

    reasons: list[str] = []

    async def look(here: World, number: int) -> None:
        with pytest.raises((Throttled, Unavailable)) as caught:
            await here.source(script.address, f"team/app{number}").has_blob(blob(DATA).digest)
        reasons.append(caught.value.reason)

    async with scripted(answer) as script, world(script.address) as here:
        async with anyio.create_task_group() as tasks:
            for number in range(10 * SMALL_LANE):
                tasks.start_soon(look, here, number)

        assert reasons.count(reason) >= 9 * SMALL_LANE
        assert len(script.targets()) < 2 * SMALL_LANE


async def broken(here: World, registry: str) -> None:
    """Ask for two things that the host fails at, until its breaker is open."""
    for name in ("team/one", "team/other"):
        with pytest.raises(Unavailable):
            await ask(here, registry, name)


async def test_a_probe_keeps_to_what_the_host_asked_for() -> None:
    """A host that answers the probe with 429 has the time that it wants: nobody else probes it before."""
    now = 0.0
    pings: list[web.Response] = []

    def answer(seen: Seen) -> web.Response:
        if seen.target == "/v2/":
            return pings.pop() if pings else web.Response()
        return web.Response(status=503)

    async with (
        scripted(answer, pings=True) as script,
        world(script.address, clock=lambda: now) as here,
    ):
        await broken(here, script.address)
        asked = len(script.seen)
        now += 5
        pings.append(web.Response(status=429, headers={"Retry-After": "600"}))
        for later in (0, 0, 30):
            now += later
            with pytest.raises(Throttled):
                await ask(here, script.address)

        assert len(script.seen) == asked + 1


async def test_a_probe_without_patience() -> None:
    """A probe that meets a 429 without any word of time has failed like every other: the time doubles."""
    now, busy = 0.0, False

    def answer(seen: Seen) -> web.Response:
        if seen.target == "/v2/":
            return web.Response(status=429 if busy else 200)
        return web.Response(status=503)

    async with (
        scripted(answer, pings=True) as script,
        world(script.address, clock=lambda: now) as here,
    ):
        await broken(here, script.address)
        now, busy = 5.0, True
        with pytest.raises(Throttled):
            await ask(here, script.address)
        now += 5
        with pytest.raises(Unavailable) as caught:
            await ask(here, script.address)

        assert (caught.value.reason, caught.value.retry_after) == ("breaker_open", 5)


async def test_breaker() -> None:
    """A dead host is asked five times, then left alone; one probe finds it alive. Other hosts notice nothing."""
    now = 0.0
    dead = True

    def answer(seen: Seen) -> web.Response:
        if dead:
            return web.Response(status=503)
        return web.Response(body=b"" if seen.target == "/v2/" else DATA)

    async with (
        scripted(answer, pings=True) as script,
        scripted(answers()) as other,
        world(script.address, other.address, clock=lambda: now) as here,
    ):
        for _ in range(2):
            with pytest.raises(Unavailable):
                await ask(here, script.address)
        asked = len(script.seen)
        with pytest.raises(Unavailable) as caught:
            await ask(here, script.address)
        assert (caught.value.reason, caught.value.retry_after) == ("breaker_open", 5)
        assert "failed several times in a row (HTTP 503); it is asked again in 5 s" in str(
            caught.value
        )
        assert len(script.seen) == asked == 5
        await ask(here, other.address)

        now += 5
        with pytest.raises(Unavailable):
            await ask(here, script.address)
        assert len(script.seen) == asked + 1
        with pytest.raises(Unavailable) as caught:
            await ask(here, script.address)
        assert caught.value.retry_after == 10

        now += 10
        dead = False
        await ask(here, script.address)
        await ask(here, script.address)


async def test_one_probe() -> None:
    """While one probes, the others are sent away."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        hold = anyio.Event()
        async with world(a.address) as here:
            await ask(here, a.address)
            breaker = here.transport.endpoint(a.address).limits.breaker
            breaker._opened_until = 0.0
            fault = a.fail(Phase.PING, hold=hold)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, here, a.address)
                await fault.reached.wait()
                with pytest.raises(Unavailable, match="asked again in 1 s"):
                    await ask(here, a.address)
                hold.set()
            assert not breaker.is_open


async def test_one_broken_object_does_not_stop_a_host() -> None:
    """500 for one blob for ever leaves the host's other blobs alone."""

    def answer(seen: Seen) -> web.Response:
        return web.Response(status=500) if "broken" in seen.target else web.Response(body=DATA)

    async with scripted(answer) as script, world(script.address) as here:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await ask(here, script.address, "team/broken")
        await ask(here, script.address)


async def test_one_tag_of_many_repositories_is_many_objects() -> None:
    """A host that fails at `latest` of every repository is a host that fails."""
    async with (
        scripted(lambda _: web.Response(status=500)) as script,
        world(script.address) as here,
    ):
        for name in ("team/a", "team/b"):
            with pytest.raises(Unavailable):
                await here.source(script.address, name).get_manifest("latest")
        with pytest.raises(Unavailable) as caught:
            await here.source(script.address, "team/c").get_manifest("latest")

        assert caught.value.reason == "breaker_open"
        assert len(script.targets()) == 5


async def test_breaker_says_why() -> None:
    """Who meets an open breaker and nothing else hears what the host did: here nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    async with world(address) as here:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await ask(here, address)
        with pytest.raises(Unavailable) as caught:
            await ask(here, address)

    assert caught.value.reason == "breaker_open"
    assert "failed several times in a row (the connection failed (" in str(caught.value)
    assert f"(host {address}))" in str(caught.value)


async def test_a_dead_token_service() -> None:
    """It is asked five times, then left alone until one request finds it alive; the registry itself is not what is dead."""
    now, dead = 0.0, True

    def tokens(_: Seen) -> web.Response:
        return web.Response(status=503) if dead else web.json_response({"token": "good"})

    def answer(seen: Seen) -> web.Response:
        if seen.headers.get("Authorization"):
            return web.Response(body=DATA)
        realm = f'Bearer realm="{service.url}/token"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    async with (
        scripted(tokens) as service,
        scripted(answer, pings=True) as script,
        world(script.address, clock=lambda: now) as here,
    ):
        await broken(here, script.address)
        with pytest.raises(Unavailable, match="behind it failed several times") as caught:
            await ask(here, script.address, "team/third")
        assert (caught.value.reason, caught.value.retry_after) == ("breaker_open", 5)
        assert len(service.seen) == 5
        assert not here.transport.endpoint(script.address).limits.breaker.is_open

        now += 5
        with pytest.raises(Unavailable):
            await ask(here, script.address)
        with pytest.raises(Unavailable) as caught:
            await ask(here, script.address)
        assert (len(service.seen), caught.value.retry_after) == (6, 10)

        now, dead = now + 10, False
        await ask(here, script.address)
        await ask(here, script.address, "team/third")


async def test_one_token_that_fails_does_not_stop_a_token_service() -> None:
    """500 for one repository's token for ever leaves the others their tokens."""

    def answer(seen: Seen) -> web.Response:
        if seen.headers.get("Authorization"):
            return web.Response(body=DATA)
        realm = f'Bearer realm="{service.url}/token"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    def tokens(seen: Seen) -> web.Response:
        bad = "broken" in seen.target
        return web.Response(status=500) if bad else web.json_response({"token": "good"})

    async with (
        scripted(tokens) as service,
        scripted(answer, pings=True) as script,
        world(script.address) as here,
    ):
        for _ in range(3):
            with pytest.raises(Unavailable):
                await ask(here, script.address, "team/broken")
        await ask(here, script.address)


async def test_a_dead_store() -> None:
    """What lies in a storage that does not answer is asked for five times; what else the registry has goes on."""
    store = closed_port()

    def answer(seen: Seen) -> web.Response:
        if seen.method == "HEAD":
            return web.Response()
        return web.Response(status=307, headers={"Location": f"http://{store}{seen.target}"})

    async with scripted(answer) as script, world(script.address, clock=lambda: 0.0) as here:
        await broken(here, script.address)
        with pytest.raises(Unavailable) as caught:
            await ask(here, script.address)
        assert (caught.value.reason, caught.value.retry_after) == ("breaker_open", 5)
        assert store in str(caught.value)
        assert await here.source(script.address).has_blob(blob(DATA).digest)


# Endpoints


async def test_endpoints_in_order() -> None:
    """The first endpoint that has the content serves it, with the prefix before the name; the host itself is not asked."""
    lacks = lambda _seen: web.Response(status=404)  # noqa: E731 -- short
    async with scripted(lacks) as first, scripted(answers()) as second:
        endpoints = (f"http://{first.address}", f"http://{second.address}/hub")
        hosts = {"quay.io": HostConfig(host="quay.io", endpoints=endpoints)}
        async with world(hosts=hosts) as here:
            await ask(here, "quay.io")

        path = f"/team/app/blobs/{blob(DATA).digest}"
        assert first.targets() == [f"GET /v2{path}"]
        assert second.targets() == [f"GET /v2/hub{path}"]


@pytest.mark.parametrize("status", [None, 503, 429])
async def test_endpoint_away(status: int | None) -> None:
    """An endpoint that does not answer is passed over soon."""
    async with (
        scripted(lambda _: web.Response(status=status or 500)) as first,
        scripted(answers()) as second,
    ):
        address = closed_port() if status is None else first.address
        endpoints = (f"http://{address}", f"http://{second.address}")
        async with world(
            hosts={"quay.io": HostConfig(host="quay.io", endpoints=endpoints)}
        ) as here:
            await ask(here, "quay.io")

        assert len(first.targets()) <= 2


async def test_endpoints_speak_for_all() -> None:
    """The last endpoint's answer is the answer, 404 included."""
    async with Registry() as a, Registry() as b:
        endpoints = (f"http://{a.address}", f"http://{b.address}")
        async with world(
            hosts={"quay.io": HostConfig(host="quay.io", endpoints=endpoints)}
        ) as here:
            assert await here.source("quay.io").head_manifest("1") is None

        assert (a.ledger.count(Phase.HEAD_MANIFEST), b.ledger.count(Phase.HEAD_MANIFEST)) == (1, 1)


async def test_credentials_of_the_host() -> None:
    """An endpoint is shown the credentials of the host it stands for."""
    asked: list[str] = []

    class Asked(Keys):
        async def resolve(
            self, registry: str, repository: str, access: Access
        ) -> list[Credentials]:
            asked.append(f"{registry}/{repository}")
            return []

    async with scripted(answers()) as first:
        hosts = {"quay.io": HostConfig(host="quay.io", endpoints=(f"http://{first.address}/hub",))}
        async with world(hosts=hosts, keys=Asked()) as here:
            await ask(here, "quay.io")

    assert asked == ["quay.io/team/app"]


async def test_writes_go_to_the_first() -> None:
    """Nothing is written to a second choice."""
    async with Registry() as a, Registry() as b:
        endpoints = (f"http://{a.address}", f"http://{b.address}")
        a.fail(Phase.START_UPLOAD, status=403, times=None)
        async with world(
            hosts={"quay.io": HostConfig(host="quay.io", endpoints=endpoints)}
        ) as here:
            with pytest.raises(RegistryError):
                await here.target("quay.io").upload_blob(blob(DATA), sent(DATA))

        assert b.requests == []


# Permits


async def test_streams_in_a_circle() -> None:
    """With one stream per host, copies from A to B and from B to A wait for each other and finish."""
    done = 0

    async def copy(here: World, *registries: str) -> None:
        nonlocal done
        for _ in range(50):
            async with here.transport.streams(*registries):
                await anyio.lowlevel.checkpoint()
        done += 1

    async with world(concurrency=1) as here:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for pair in (("a.io", "b.io"), ("b.io", "a.io"), ("a.io", "a.io")):
                    tasks.start_soon(copy, here, *pair)
    assert done == 3


@pytest.mark.parametrize("slow", ["a.io", "z.io"])
async def test_waiting_for_one_host_holds_no_other(slow: str) -> None:
    """Copies that wait for a source whose streams stand still leave the target's to other sources."""
    stuck, done = anyio.Event(), anyio.Event()
    hosts = {slow: HostConfig(host=slow, concurrency=1)}

    async def stands(here: World) -> None:
        async with here.transport.streams(slow, "m.io"):
            stuck.set()
            await done.wait()

    async with world(hosts=hosts, concurrency=2) as here, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(stands, here)
        await stuck.wait()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            async with here.transport.streams("other.io", "m.io"):
                done.set()


async def test_cancelled_while_waiting_for_streams() -> None:
    """Who is cancelled while it waits holds nothing afterwards."""
    async with world(concurrency=1) as here:
        for busy in ("a.io", "b.io"):
            async with here.transport.streams(busy):
                with anyio.move_on_after(0.01) as waiting:
                    async with here.transport.streams("a.io", "b.io"):
                        pytest.fail("it is busy")
                assert waiting.cancelled_caught
        with anyio.fail_after(5):
            async with here.transport.streams("a.io", "b.io"):
                pass


@pytest.mark.parametrize(("registry", "most"), [("docker.io", 4), ("quay.io", 16), ("own.io", 2)])
async def test_streams_per_host(registry: str, most: int) -> None:
    """Docker Hub has four streams, others the general figure or their own."""
    hosts = {"own.io": HostConfig(host="own.io", concurrency=2)}
    now = peak = 0

    async def copy(here: World) -> None:
        nonlocal now, peak
        async with here.transport.streams(registry):
            now += 1
            peak = max(peak, now)
            await anyio.sleep(0.01)
            now -= 1

    async with world(hosts=hosts) as here, anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(copy, here)
    assert peak == most


async def test_small_lane() -> None:
    """At most eight small requests are under way at a host."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        hold = anyio.Event()
        a.fail(Phase.GET_BLOB, hold=hold, times=None)
        async with world(a.address) as here, anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask, here, a.address)
            await a.wait_for(lambda r: r.phase is Phase.GET_BLOB, count=8)
            await anyio.wait_all_tasks_blocked()
            assert a.ledger.count(Phase.GET_BLOB) == 8
            hold.set()

        assert a.ledger.count(Phase.GET_BLOB) == 20


async def test_sides() -> None:
    """Registries that are written to are the target side, in every error."""
    async with world(target_registries=frozenset({"own.io"})) as here:
        assert here.transport.side("own.io") == "target"
        assert here.transport.side("ghcr.io") == "source"


async def test_quota() -> None:
    """What Docker Hub says about its quota is kept, with its window, and shown in metrics."""
    heads = [
        {"ratelimit-remaining": "76;w=21600", "ratelimit-limit": "100;w=21600"},
        {"ratelimit-remaining": "75"},
        {"ratelimit-remaining": "many"},
    ]
    replies = [web.Response(body=DATA, headers=h) for h in heads]
    async with scripted(answers(*replies)) as script, world(script.address) as here:
        assert here.transport.quota(script.address) is None
        await ask(here, script.address)
        first = here.transport.quota(script.address)
        await ask(here, script.address)
        await ask(here, script.address)
        last = here.transport.quota(script.address)

        assert first is not None
        assert last is not None
        assert (first.remaining, first.limit, first.window) == (76, 100, 21600)
        assert (last.remaining, last.limit, last.window) == (75, None, None)
        assert (
            here.metric("k8s_copycat_registry_pull_quota_remaining", registry=script.address) == 75
        )


async def test_cancelled_requests_leave_nothing() -> None:
    """A request that is cancelled gives back its place in the lane and its connection."""
    async with Registry() as a:
        a.put_blob("team/app", DATA)
        fault = a.fail(Phase.GET_BLOB, delay=30, times=8)
        async with world(a.address) as here:
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(ask, here, a.address)
                await a.wait_for(lambda r: r.phase is Phase.GET_BLOB, count=8)
                tasks.cancel_scope.cancel()
            assert fault.hits == 8
            await ask(here, a.address)


async def test_through_a_proxy() -> None:
    """HTTP_PROXY is used, and its host needs no other name."""
    seen: list[str] = []

    def answer(request: Seen) -> web.Response:
        seen.append(request.headers["Host"])
        return web.Response(body=b"" if request.target.endswith("/v2/") else DATA)

    async with scripted(answer, pings=True) as proxy:
        proxies = Proxies({"HTTP_PROXY": proxy.url})
        hosts = {"far.example": HostConfig(host="far.example", endpoints=("http://far.example",))}
        async with world(
            proxies=proxies, hosts=hosts, policy=HostPolicy(named=frozenset())
        ) as here:
            await ask(here, "far.example")

    assert seen == ["far.example", "far.example"]


async def test_a_proxy_gives_no_other_name() -> None:
    """Only the proxy itself may live on this machine: what else does is not to be had by its name."""
    proxied = Proxies({"HTTPS_PROXY": "http://127.0.0.1:3128", "NO_PROXY": "127.0.0.1"})
    async with (
        scripted(answers(), pings=True) as inner,
        world(proxies=proxied, policy=HostPolicy(named=frozenset())) as here,
    ):
        with pytest.raises(HostNotAllowed):
            await ask(here, inner.address)
        assert not inner.seen


async def test_a_proxy_on_this_machine_by_name() -> None:
    """The proxy's own name may mean this machine; at another port it may not."""
    proxies = frozenset({"proxy.example:3128"})
    resolver = FilteringResolver(Known("127.0.0.1"), HostPolicy(named=frozenset()), proxies=proxies)
    assert await resolver.resolve("proxy.example", 3128)
    with pytest.raises(AddressRefused):
        await resolver.resolve("proxy.example", 443)


async def test_no_name_at_all() -> None:
    """A host whose name cannot even be looked up (a label of 64 characters) is the image's failure, for good."""
    async with world(policy=HostPolicy(named=frozenset())) as here:
        with pytest.raises(Unavailable, match="is no name") as raised:
            await ask(here, "a" * 64 + ".example")
    assert not raised.value.temporary


async def test_login_error_is_shared() -> None:
    """Who waits for a token that is refused hears the same refusal, without a request of its own."""
    failures: list[CopycatError] = []

    async def refused(here: World, address: str) -> None:
        try:
            await ask(here, address)
        except Unauthorized as error:
            failures.append(error)

    async with Registry(auth="token") as a, world(a.address) as here:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(refused, here, a.address)

        assert len(failures) == 5
        assert a.ledger.count(Phase.TOKEN) < 5


async def test_warnings() -> None:
    """A registry's warning for people is logged, each text once."""
    warned = {"Warning": '299 - "this tag goes away"'}
    replies = [web.Response(body=DATA, headers=warned) for _ in range(3)]
    replies.append(web.Response(body=DATA, headers={"Warning": '199 - "not for us"'}))
    with capture_logs() as logs:
        async with scripted(answers(*replies)) as script, world(script.address) as here:
            for _ in range(4):
                await ask(here, script.address)

    assert [row["warning"] for row in logs] == ['299 - "this tag goes away"']


async def test_the_same_warning_of_two_registries() -> None:
    """What one registry said is no news of another: each is told once."""
    warned = {"Warning": '299 - "this tag goes away"'}
    answer = lambda _: web.Response(body=DATA, headers=warned)  # noqa: E731 -- short
    with capture_logs() as logs:
        async with (
            scripted(answer) as one,
            scripted(answer) as other,
            world(one.address, other.address) as here,
        ):
            for script in (one, other, one, other):
                await ask(here, script.address)

    assert [row["registry"] for row in logs] == [one.address, other.address]


async def test_long_patience_of_a_token_service() -> None:
    """A token service that asks for a little patience gets it."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds))

    refusals = [web.Response(status=429, headers={"Retry-After": "3"})]

    def answer(seen: Seen) -> web.Response:
        if seen.target.startswith("/token"):
            return refusals.pop() if refusals else web.json_response({"token": "good"})
        if seen.headers.get("Authorization") == "Bearer good":
            return web.Response(body=DATA)
        realm = f'Bearer realm="http://{seen.headers["Host"]}/token"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    async with (
        scripted(answer, pings=True) as script,
        world(script.address, sleep=sleep, clock=lambda: 100.0 + sum(slept)) as here,
    ):
        await ask(here, script.address)

    assert [seconds for seconds in slept if seconds] == [3]


async def test_stores_that_are_left_alone_are_forgotten() -> None:
    """However many stores ask for patience, no more are remembered than still want it, or a few hundred."""
    now = 0.0
    async with world(clock=lambda: now) as here:
        strangers = here.transport._wire._strangers
        for number in range(3 * MAX_STRANGERS):
            now += 1.0
            strangers.leave_alone(URL(f"https://store-{number}.example/"), 10.0)

        assert len(strangers._known) <= MAX_STRANGERS
        last = strangers._known[f"store-{3 * MAX_STRANGERS - 1}.example"]
        assert last.gate.remaining() == 10.0
