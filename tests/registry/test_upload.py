"""Sessions, Locations, commits, the three forms of sending, and targets that stop or lie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import anyio
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from copycat.errors import (
    Denied,
    DigestMismatch,
    HostNotAllowed,
    NotFound,
    RegistryError,
    Throttled,
    TooLarge,
    Unauthorized,
    Unavailable,
    UploadRejected,
)
from copycat.oci.digest import Digest
from copycat.registry import upload
from copycat.registry.endpoint import Form
from copycat.registry.keychain import Credentials
from copycat.registry.limits import SMALL_LANE
from copycat.registry.location import resolve_location, with_digest
from copycat.sandbox.exchange import LocationStyle
from copycat.sandbox.faults import FaultOptions
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.registry.support import Keys, Options, Seen, blob, scripted, sent, world

MIB = 1024 * 1024
LARGE = bytes(range(256)) * 4096 * 2  # 2 MiB
SMALL = b"small " * 100
BODIES = [pytest.param(LARGE, id="large"), pytest.param(SMALL, id="small")]


@pytest.mark.parametrize(
    ("base", "location", "expected"),
    [
        pytest.param(
            "https://r/v2/x/",
            "/v2/x/1?_state=a%2Fb",
            "https://r/v2/x/1?_state=a%2Fb",
            id="relative",
        ),
        pytest.param("https://r/v2/x/", "1", "https://r/v2/x/1", id="relative-to-the-path"),
        pytest.param(
            "https://r/v2/", "https://r/v2/1?a=%40+b", "https://r/v2/1?a=%40+b", id="absolute"
        ),
        pytest.param("https://r/v2/", "/v2/1?a=%2F#b", "https://r/v2/1?a=%2F", id="fragment"),
        pytest.param("https://r/v2/", "http://r/v2/1", "https://r/v2/1", id="lost-tls"),
        pytest.param(
            "https://r:5000/v2/", "https://r/v2/1?a=1", "https://r:5000/v2/1?a=1", id="lost-port"
        ),
        pytest.param("http://r:5000/v2/", "http://R/v2/1", "http://r:5000/v2/1", id="other-case"),
        pytest.param("https://r/v2/", "http://r:80/v2/1", "https://r/v2/1", id="inner-port"),
        pytest.param("http://r:1/v2/", "http://r:2/v2/1", "http://r:2/v2/1", id="another-port"),
        pytest.param(
            "https://r/v2/",
            "https://s3.example/x?X-Sig=%2F%3D",
            "https://s3.example/x?X-Sig=%2F%3D",
            id="other-host",
        ),
        pytest.param(
            "https://[::1]:5000/v2/", "https://[::1]/v2/1", "https://[::1]:5000/v2/1", id="ipv6"
        ),
    ],
)
def test_resolve_location(base: str, location: str, expected: str) -> None:
    """A Location is relative or absolute; a lost scheme or port is put back, every other byte stays."""
    assert str(resolve_location(URL(base), location)) == expected


@pytest.mark.parametrize(
    "location",
    [
        "",
        "#here",
        "ftp://r/x",
        "http://[::1",
        "mailto:a@b",
        "http://r:99999/x",
        "http://r.default\u3002svc/x",
        "http://\uff11\uff10.0.0.1/x",
    ],
)
def test_no_location(location: str) -> None:
    """What is no URL of HTTP is refused."""
    with pytest.raises(ValueError, match=r"."):
        resolve_location(URL("http://r/"), location)


@given(st.text(st.sampled_from("abc%2F+=&~_-.40"), max_size=40))
def test_digest_is_appended_raw(state: str) -> None:
    """Whatever a state looks like, `digest=` follows it and not a byte of it changes."""
    location = URL(f"https://r/v2/x?_state={state}", encoded=True)

    done = with_digest(location, Digest("sha256", "0" * 64))

    assert str(done) == f"https://r/v2/x?_state={state}&digest=sha256%3A{'0' * 64}"


def test_digest_is_the_first_parameter() -> None:
    """Without a query it begins one."""
    assert str(with_digest(URL("https://r/v2/x"), Digest("sha256", "0" * 64))).startswith(
        "https://r/v2/x?digest=sha256%3A0"
    )


@pytest.mark.parametrize("data", BODIES)
@pytest.mark.parametrize(
    "style", ["absolute", "relative", "lost-port", "other-host", "lost-scheme"]
)
async def test_locations(style: LocationStyle, data: bytes) -> None:
    """However a registry writes its Locations, the blob arrives and credentials go to nobody else."""
    async with Registry(location_style=style, auth="basic", username="u", password="pw") as b:
        async with world(b.address, keys=Keys(Credentials(username="u", password="pw"))) as here:
            await here.target(b.address).upload_blob(blob(data), sent(data))

        assert b.blobs["copy/app"] == {str(blob(data).digest): data}
        assert b.violations == []


@pytest.mark.parametrize("data", BODIES)
@pytest.mark.parametrize(
    ("phase", "fault", "posts"),
    [
        pytest.param(Phase.START_UPLOAD, {"status": 503}, 2, id="post-503"),
        pytest.param(Phase.START_UPLOAD, {"reset": True}, 2, id="post-reset"),
        pytest.param(Phase.COMMIT, {"status": 500}, 2, id="commit-500"),
        pytest.param(Phase.COMMIT, {"status": 429}, 2, id="commit-429"),
        pytest.param(
            Phase.COMMIT, {"status": 400, "code": "DIGEST_INVALID"}, 2, id="digest-invalid"
        ),
        pytest.param(
            Phase.COMMIT, {"status": 404, "code": "BLOB_UPLOAD_UNKNOWN"}, 2, id="session-unknown"
        ),
        pytest.param(
            Phase.COMMIT, {"status": 404, "code": "BLOB_UPLOAD_INVALID"}, 2, id="session-invalid"
        ),
        pytest.param(Phase.COMMIT, {"status": 409}, 2, id="409"),
        pytest.param(Phase.COMMIT, {"status": 416}, 2, id="416"),
        pytest.param(Phase.COMMIT, {"reset": True, "after": True}, 1, id="reply-lost"),
        pytest.param(Phase.COMMIT, {"status": 500, "after": True}, 1, id="500-but-stored"),
        pytest.param(Phase.COMMIT, {"status": 409, "after": True}, 1, id="409-but-stored"),
        pytest.param(
            Phase.COMMIT,
            {"status": 400, "code": "BLOB_UPLOAD_INVALID", "after": True},
            1,
            id="400-but-stored",
        ),
        pytest.param(
            Phase.COMMIT,
            {"headers": {"Docker-Content-Digest": f"sha256:{'0' * 64}"}},
            1,
            id="stored-as-something-else",
        ),
    ],
)
async def test_new_session(phase: Phase, fault: FaultOptions, posts: int, data: bytes) -> None:
    """A failed attempt is looked into: what is there is not sent again, what is not gets a session of its own."""
    async with Registry() as b:
        b.fail(phase, **fault)
        async with world(b.address) as here:
            await here.target(b.address).upload_blob(blob(data), sent(data))

        assert b.blobs["copy/app"] == {str(blob(data).digest): data}
        assert b.ledger.count(Phase.START_UPLOAD) == posts
        assert b.violations == []


@pytest.mark.parametrize("cut", [0, 1, MIB, len(LARGE) - 1])
async def test_broken_body(cut: int) -> None:
    """A connection that breaks in a body costs a new session and a new body, never the same session."""
    bodies = 0

    def body() -> AsyncIterator[bytes]:
        nonlocal bodies
        bodies += 1
        return sent(LARGE)()

    async with Registry() as b:
        b.fail(Phase.UPLOAD_BODY, cut_at=cut, reset=True)
        async with world(b.address) as here:
            await here.target(b.address).upload_blob(blob(LARGE), body)

        assert b.blobs["copy/app"] == {str(blob(LARGE).digest): LARGE}
        assert (bodies, b.ledger.count(Phase.START_UPLOAD)) == (2, 2)
        assert b.violations == []


async def test_three_attempts() -> None:
    """A target that breaks every body is unavailable after three of them; each was its own session."""
    async with Registry() as b:
        b.fail(Phase.UPLOAD_BODY, cut_at=MIB, reset=True, times=None)
        async with world(b.address, target_registries=frozenset({b.address})) as here:
            with pytest.raises(Unavailable) as caught:
                await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

            retries = here.metric(
                "k8s_copycat_registry_retries_total", registry=b.address, reason="connection"
            )
        assert (caught.value.side, retries) == ("target", 2)
        assert b.ledger.count(Phase.START_UPLOAD) == 3
        assert b.blobs.get("copy/app", {}) == {}


@pytest.mark.parametrize("data", BODIES)
@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        pytest.param(403, "DENIED", Denied, id="denied"),
        pytest.param(404, "NAME_UNKNOWN", NotFound, id="no-repository"),
        pytest.param(400, "NAME_INVALID", UploadRejected, id="name"),
    ],
)
@pytest.mark.parametrize("phase", [Phase.START_UPLOAD, Phase.COMMIT])
async def test_refused(
    phase: Phase, status: int, code: str, error: type[Exception], data: bytes
) -> None:
    """A refusal that no repetition cures is raised at once, with the registry's code."""
    async with Registry() as b:
        b.fail(phase, status=status, code=code, times=None)
        async with world(b.address) as here:
            with pytest.raises(error) as caught:
                await here.target(b.address).upload_blob(blob(data), sent(data))

        assert getattr(caught.value, "code", "") == code
        assert b.ledger.count(phase) == 1


@pytest.mark.parametrize("answer_at", [0, MIB])
async def test_early_refusal(answer_at: int) -> None:
    """An answer that comes while the body still flows ends it; nothing hangs, the body is closed."""
    closed = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            async for chunk in sent(LARGE * 8)():
                yield chunk
        finally:
            closed = True

    async with Registry() as b:
        b.fail(Phase.UPLOAD_BODY, status=403, code="DENIED", answer_at=answer_at)
        async with world(b.address) as here:
            with pytest.raises(Denied):
                await here.target(b.address).upload_blob(blob(LARGE * 8), body)
    assert closed


async def test_a_store_that_asks_for_patience() -> None:
    """A host that a Location leads to, and that wants three seconds, has them before the next attempt."""
    slept: list[float] = []
    body = LARGE[: MIB // 2]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    refusals = [web.Response(status=503, headers={"Retry-After": "3"})]

    def store(seen: Seen) -> web.Response:
        return refusals.pop() if refusals and seen.method == "PUT" else web.Response(status=201)

    def answer(seen: Seen) -> web.Response:
        if seen.method != "POST":
            return web.Response(status=404)
        return web.Response(status=202, headers={"Location": f"{other.url}/upload"})

    async with (
        scripted(store) as other,
        scripted(answer) as script,
        world(script.address, sleep=sleep, clock=lambda: 50.0 + sum(slept)) as here,
    ):
        await here.target(script.address).upload_blob(blob(body), sent(body))

    assert [s for s in slept if s] == [3]


async def test_throttled_for_long() -> None:
    """A target that asks for more patience than a worker has gets it: the error says how long."""
    async with Registry() as b:
        b.fail(Phase.COMMIT, status=429, headers={"Retry-After": "120"})
        async with world(b.address, clock=lambda: 50.0) as here:
            with pytest.raises(Throttled, match=r"left alone|patience") as caught:
                await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

    assert caught.value.retry_after == 120


@pytest.mark.parametrize(
    "limit",
    [Options(request_timeout=0.4), Options(request_timeout=0, watchdog=0.4)],
    ids=["requestTimeout", "watchdog"],
)
async def test_stops_reading(limit: Options) -> None:
    """A target that takes no byte for requestTimeout is cut off and tried again; where that is 0, after two minutes."""
    data = LARGE * 16  # more than the buffers of both sides hold
    async with Registry() as b:
        fault = b.fail(Phase.UPLOAD_BODY, stall_at=MIB)
        async with world(b.address, **limit) as here:
            await here.target(b.address).upload_blob(blob(data), sent(data))

            stalls = here.metric(
                "k8s_copycat_registry_retries_total", registry=b.address, reason="stalled"
            )
        assert (fault.hits, stalls) == (1, 1)
        assert b.blobs["copy/app"][str(blob(data).digest)] == data


async def test_slow_commit() -> None:
    """Storing may take longer than requestTimeout."""
    async with Registry() as b:
        b.fail(Phase.COMMIT, delay=0.6)
        async with world(b.address, request_timeout=0.2) as here:
            await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

        assert b.ledger.count(Phase.COMMIT) == 1


async def test_cancelled() -> None:
    """A cancelled upload closes its body at once and commits nothing; the same can be sent afterwards."""
    closed = anyio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            async for chunk in sent(LARGE)():
                yield chunk
            await anyio.sleep_forever()
        finally:
            closed.set()

    async with Registry() as b, world(b.address) as here:
        target = here.target(b.address)
        more = blob(LARGE + b"never comes")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(target.upload_blob, more, body)
            await b.wait_for(lambda r: Phase.UPLOAD_BODY in r.phases)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert closed.is_set()
        assert b.blobs.get("copy/app", {}) == {}
        await target.upload_blob(blob(LARGE), sent(LARGE))


# The body's own errors


def failing(*errors: Exception | None) -> Callable[[], AsyncIterator[bytes]]:
    """Bodies that break in the middle with these errors, one after the other; None is a whole one."""
    left = list(errors)

    async def body() -> AsyncIterator[bytes]:
        error = left.pop(0)
        async for chunk in sent(LARGE)():
            yield chunk
            if error is not None:
                raise error

    return body


@pytest.mark.parametrize("form", list(Form))
async def test_source_is_wrong_once(form: Form) -> None:
    """Wrong bytes from the source are asked for once more; the first session commits nothing."""
    async with Registry() as b, world(b.address) as here:
        here.transport.endpoint(b.address).form = form
        await here.target(b.address).upload_blob(blob(LARGE), failing(DigestMismatch("no"), None))

        assert b.blobs["copy/app"] == {str(blob(LARGE).digest): LARGE}
        assert b.violations == []


@pytest.mark.parametrize("form", list(Form))
async def test_source_is_wrong_for_good(form: Form) -> None:
    """Wrong bytes twice are raised as the source's error; the target has nothing."""
    async with Registry() as b, world(b.address) as here:
        here.transport.endpoint(b.address).form = form
        with pytest.raises(DigestMismatch, match="no"):
            await here.target(b.address).upload_blob(
                blob(LARGE), failing(DigestMismatch("no"), DigestMismatch("no"))
            )

        assert b.blobs.get("copy/app", {}) == {}


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        pytest.param(Unavailable("gone", side="source"), True, id="source-away"),
        pytest.param(
            Unavailable("gone", side="source", reason="breaker_open"), False, id="breaker"
        ),
        pytest.param(NotFound("gone", side="source"), False, id="not-found"),
        pytest.param(ValueError("a bug"), False, id="bug"),
    ],
)
async def test_source_fails(error: Exception, retried: bool) -> None:
    """The source's own error comes out as it is, after another try if that may help."""
    async with Registry() as b, world(b.address) as here:
        upload = here.target(b.address).upload_blob(blob(LARGE), failing(error, None))
        if retried:
            await upload
        else:
            with pytest.raises(type(error)) as caught:
                await upload
            assert caught.value is error
        assert bool(b.blobs.get("copy/app")) is retried


async def test_a_source_out_of_reach_costs_no_session() -> None:
    """Whatever keeps the source from being read, the target hears that the upload is given up."""
    errors = [Unavailable("gone", side="source", reason="timeout") for _ in range(3)]
    async with Registry() as b, world(b.address) as here:
        with pytest.raises(Unavailable, match="gone"):
            await here.target(b.address).upload_blob(blob(LARGE), failing(*errors))

        assert (b.ledger.count(Phase.START_UPLOAD), b.sessions) == (3, 0)


async def test_small_source_is_read_once() -> None:
    """A small blob that the target did not take is not asked for again."""
    bodies = 0

    def body() -> AsyncIterator[bytes]:
        nonlocal bodies
        bodies += 1
        return sent(SMALL)()

    async with Registry() as b, world(b.address) as here:
        b.fail(Phase.COMMIT, status=500, times=2)
        await here.target(b.address).upload_blob(blob(SMALL), body)

        assert (bodies, b.ledger.count(Phase.START_UPLOAD)) == (1, 3)
        assert b.blobs["copy/app"] == {str(blob(SMALL).digest): SMALL}


async def test_small_source_fails() -> None:
    """A small blob that cannot be read costs the target no request."""

    async def body() -> AsyncIterator[bytes]:
        yield b"s"
        raise NotFound("gone", side="source")

    async with Registry() as b, world(b.address) as here:
        with pytest.raises(NotFound):
            await here.target(b.address).upload_blob(blob(SMALL), body)

        assert b.requests == []


# Logins that run out


@pytest.mark.parametrize("data", BODIES)
async def test_token_runs_out(data: bytes) -> None:
    """A 401 at the body means a fresh token and a new session; it is not one of the attempts."""
    keys = Keys(Credentials(username="u", password="pw"))
    async with Registry(auth="token", username="u", password="pw") as b:
        b.fail(Phase.UPLOAD_BODY, status=401)
        async with world(b.address, keys=keys) as here:
            await here.target(b.address).upload_blob(blob(data), sent(data))

        assert b.blobs["copy/app"] == {str(blob(data).digest): data}
        assert b.ledger.count(Phase.TOKEN) == 2


async def test_never_authorised() -> None:
    """A target that refuses every token is given up soon."""
    keys = Keys(Credentials(username="u", password="pw"))
    async with Registry(auth="token", username="u", password="pw") as b:
        b.fail(Phase.UPLOAD_BODY, status=401, times=None)
        async with world(b.address, keys=keys) as here:
            with pytest.raises((Unauthorized, Unavailable)):
                await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

        assert b.ledger.count(Phase.START_UPLOAD) <= 4


# Forms


@pytest.mark.parametrize("data", BODIES)
async def test_body_in_a_patch(data: bytes) -> None:
    """A registry that knows no PUT with a body gets one PATCH, at once from the second blob on."""
    async with Registry(profile="artifactory-old", auth="none") as b:
        async with world(b.address) as here:
            target = here.target(b.address)
            await target.upload_blob(blob(data), sent(data))
            first = b.ledger.count(Phase.START_UPLOAD)
            await target.upload_blob(blob(data + b"!"), sent(data + b"!"))

            assert here.transport.endpoint(b.address).form is Form.PATCHED
        assert len(b.blobs["copy/app"]) == 2
        assert (first, b.ledger.count(Phase.START_UPLOAD)) == (2, 3)
        assert b.violations == []


async def test_pieces() -> None:
    """A proxy that limits bodies gets pieces, smaller until they pass; the size is remembered."""
    async with Registry(profile="body-limit") as b:
        async with world(b.address) as here:
            await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

            endpoint = here.transport.endpoint(b.address)
            assert (endpoint.form, endpoint.chunk) == (Form.CHUNKED, MIB)
            patches = sum(r.method == "PATCH" for r in b.requests)
            await here.target(b.address).upload_blob(blob(LARGE + b"!"), sent(LARGE + b"!"))
        assert sum(r.method == "PATCH" for r in b.requests) - patches == 3
        assert len(b.blobs["copy/app"]) == 2
        assert (b.violations, b.sessions) == ([], 0)


async def test_stops_reading_a_piece() -> None:
    """A target that stops reading a piece, the last one too, is cut off and asked how far it got."""
    data = LARGE * 16  # more than the buffers of both sides hold
    async with Registry() as b:
        fault = b.fail(Phase.UPLOAD_BODY, stall_at=MIB)
        async with world(b.address, request_timeout=0.3) as here:
            endpoint = here.transport.endpoint(b.address)
            endpoint.form, endpoint.chunk = Form.CHUNKED, 2 * len(data)
            with anyio.fail_after(20):
                await here.target(b.address).upload_blob(blob(data), sent(data))

        assert fault.hits == 1
        assert b.blobs["copy/app"][str(blob(data).digest)] == data


async def test_a_piece_on_a_narrow_line() -> None:
    """A piece that takes longer than requestTimeout, but moves, is not cut."""
    data = LARGE * 4
    pieces: list[int] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.method == "PATCH":
            read = 0
            while chunk := await request.content.readany():
                read += len(chunk)
                await anyio.sleep(len(chunk) / (8 * MIB))
            pieces.append(read)
        status = {"GET": 200, "POST": 202, "PATCH": 202, "PUT": 201}.get(request.method, 404)
        return web.Response(status=status, headers={"Location": "/v2/copy/app/blobs/uploads/1"})

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = "{}:{}".format(*runner.addresses[0][:2])
    try:
        async with world(address, request_timeout=0.4) as here:
            endpoint = here.transport.endpoint(address)
            endpoint.form, endpoint.chunk = Form.CHUNKED, len(data) - MIB
            await here.target(address).upload_blob(blob(data), sent(data))
    finally:
        await runner.cleanup()

    assert pieces == [len(data) - MIB, MIB]


@pytest.mark.parametrize(
    ("form", "phase"),
    [
        (Form.CHUNKED, Phase.UPLOAD_BODY),
        (Form.CHUNKED, Phase.COMMIT),
        (Form.PATCHED, Phase.COMMIT),
    ],
)
async def test_large_blobs_leave_the_lane_free(form: Form, phase: Phase) -> None:
    """However many large blobs are on their way in pieces, or being stored, what is small goes on."""
    hold, full = anyio.Event(), anyio.Event()
    bodies = [bytes([number]) * MIB for number in range(SMALL_LANE)]
    held: list[object] = []

    def arrives(request: object) -> None:
        held.append(request)
        if len(held) == len(bodies):
            full.set()

    async with Registry() as b, world(b.address) as here:
        endpoint = here.transport.endpoint(b.address)
        endpoint.form = form
        b.fail(phase, hold=hold, times=None, run=arrives)
        async with anyio.create_task_group() as tasks:
            for body in bodies:
                tasks.start_soon(here.target(b.address).upload_blob, blob(body), sent(body))
            with anyio.fail_after(5):
                await full.wait()
                assert not await here.target(b.address).has_blob(blob(SMALL).digest)
            hold.set()


async def test_too_large_for_every_piece() -> None:
    """A limit under the least piece is an error that says what it is."""
    async with Registry() as b:
        b.fail(Phase.UPLOAD_BODY, status=413, times=None)
        async with world(b.address) as here:
            with pytest.raises(TooLarge, match="413"):
                await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

        assert b.sessions == 0


@pytest.mark.parametrize("profile", ["ecr", "ghcr", "quay", "harbor", "acr", "hub"])
async def test_pieces_everywhere(profile: str) -> None:
    """Pieces work wherever they are allowed: stale Ranges, 201 for 202, caps and minima are no obstacle."""
    keys = Keys(Credentials(username="u", password="pw"))
    async with Registry(profile=profile, auth="none") as b:
        b.create_repository("copy/app")
        async with world(b.address, keys=keys) as here:
            endpoint = here.transport.endpoint(b.address)
            endpoint.form, endpoint.chunk = Form.CHUNKED, MIB
            await here.target(b.address).upload_blob(blob(LARGE + b"tail"), sent(LARGE + b"tail"))

        assert b.blobs["copy/app"] == {str(blob(LARGE + b"tail").digest): LARGE + b"tail"}
        assert b.violations == []


async def test_empty_in_pieces() -> None:
    """No bytes in no pieces: the session is committed as it is."""
    async with Registry() as b, world(b.address) as here:
        here.transport.endpoint(b.address).form = Form.CHUNKED
        await here.target(b.address).upload_blob(blob(b""), sent(b""))

        assert b.blobs["copy/app"] == {str(blob(b"").digest): b""}


async def test_small_in_pieces() -> None:
    """Where only pieces get through, a small blob that is longer than one is cut too."""
    async with Registry() as b, world(b.address) as here:
        endpoint = here.transport.endpoint(b.address)
        endpoint.form, endpoint.chunk = Form.CHUNKED, len(SMALL) // 2
        await here.target(b.address).upload_blob(blob(SMALL), sent(SMALL))

        assert sum(r.method == "PATCH" for r in b.requests) == 2
        assert b.blobs["copy/app"] == {str(blob(SMALL).digest): SMALL}


async def test_a_host_that_takes_no_pieces_any_more() -> None:
    """Pieces were learnt earlier, and are refused: the refusal is told."""
    async with Registry(profile=replace(PROFILES["distribution"], patch=405)) as b:
        async with world(b.address) as here:
            endpoint = here.transport.endpoint(b.address)
            endpoint.form, endpoint.chunk = Form.CHUNKED, MIB
            with pytest.raises(RegistryError) as caught:
                await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

        assert caught.value.status == 405


async def test_answers_at_the_same_place_are_no_cuts() -> None:
    """A target that answers 503 in the middle, twice at one place, is not one that limits bodies."""
    async with Registry() as b, world(b.address) as here:
        b.fail(Phase.UPLOAD_BODY, status=503, answer_at=MIB, times=2)
        endpoint = here.transport.endpoint(b.address)
        endpoint.chunk = MIB
        await here.target(b.address).upload_blob(blob(LARGE * 4), sent(LARGE * 4))

        assert endpoint.form is Form.WHOLE
        assert b.ledger.count(Phase.START_UPLOAD) == 3


async def test_an_empty_blob_that_may_not_be_stored() -> None:
    """A refusal of an empty blob that is not about its size is told as what it is."""
    async with Registry() as b, world(b.address) as here:
        b.fail(Phase.COMMIT, status=403, code="DENIED", times=None)
        with pytest.raises(Denied):
            await here.target(b.address).upload_blob(blob(b""), sent(b""))


async def test_least_piece() -> None:
    """`OCI-Chunk-Min-Length` raises the size of pieces."""
    async with Registry() as b:
        b.fail(Phase.START_UPLOAD, headers={"OCI-Chunk-Min-Length": str(MIB)}, times=None)
        async with world(b.address) as here:
            endpoint = here.transport.endpoint(b.address)
            endpoint.form, endpoint.chunk = Form.CHUNKED, 1000
            await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

        assert sum(r.method == "PATCH" for r in b.requests) == 2


@pytest.mark.parametrize("least", ["", "-1", "many", "9" * 5000], ids=len)
async def test_a_least_piece_that_is_no_number(least: str) -> None:
    """What no piece can have is not heeded, however many digits it has."""
    async with Registry() as b:
        b.fail(Phase.START_UPLOAD, headers={"OCI-Chunk-Min-Length": least}, times=None)
        async with world(b.address) as here:
            endpoint = here.transport.endpoint(b.address)
            endpoint.form, endpoint.chunk = Form.CHUNKED, MIB
            await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

        assert sum(r.method == "PATCH" for r in b.requests) == 2


async def test_a_piece_that_shall_wait_for_an_hour() -> None:
    """A target that wants that long between two pieces is left, as it would be for a whole body."""
    async with Registry() as b:
        b.fail(Phase.UPLOAD_BODY, nth=2, status=429, headers={"Retry-After": "3600"})
        async with world(b.address, clock=lambda: 50.0) as here:
            endpoint = here.transport.endpoint(b.address)
            endpoint.form, endpoint.chunk = Form.CHUNKED, MIB
            with pytest.raises(Throttled) as caught:
                await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

        assert caught.value.retry_after == 900  # the longest that is believed
        assert (b.ledger.count(Phase.UPLOAD_BODY), b.ledger.count(Phase.UPLOAD_STATUS)) == (2, 0)


async def test_a_status_without_a_location() -> None:
    """A registry that says how much it has, and not where to, means where it was."""
    async with Registry() as b:
        b.fail(Phase.UPLOAD_BODY, nth=2, cut_at=1000)
        b.fail(Phase.UPLOAD_STATUS, headers={"Location": None})
        async with world(b.address) as here:
            endpoint = here.transport.endpoint(b.address)
            endpoint.form, endpoint.chunk = Form.CHUNKED, MIB
            await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

        assert b.blobs["copy/app"] == {str(blob(LARGE).digest): LARGE}
        assert b.ledger.count(Phase.START_UPLOAD) == 1


async def test_least_piece_of_a_mount_that_came_to_nothing() -> None:
    """The session that a refused mount opened says it, too."""
    profile = replace(PROFILES["distribution"], mount="202", chunk_minimum=MIB)
    async with Registry(profile=profile) as b, world(b.address) as here:
        endpoint = here.transport.endpoint(b.address)
        endpoint.form, endpoint.chunk = Form.CHUNKED, 1000
        target = here.target(b.address)
        assert not await target.mount_blob(blob(LARGE), "base/os")
        await target.upload_blob(blob(LARGE), sent(LARGE))

        assert [r.method for r in b.requests] == ["GET", "POST", "PATCH", "PATCH", "PUT"]
        assert b.violations == []


@pytest.mark.parametrize("form", [Form.PATCHED, Form.CHUNKED])
async def test_pieces_without_a_location(form: Form) -> None:
    """A registry that tells no new Location after a PATCH means the old one."""
    received = bytearray()

    def answer(seen: Seen) -> web.Response:
        if seen.method == "PATCH":
            received.extend(seen.body)
            return web.Response(status=202)
        if seen.method == "POST":
            return web.Response(status=202, headers={"Location": "/v2/x/blobs/uploads/1?a=%2F"})
        return web.Response(status=201 if seen.method == "PUT" else 404)

    async with scripted(answer) as script, world(script.address) as here:
        endpoint = here.transport.endpoint(script.address)
        endpoint.form, endpoint.chunk = form, MIB
        await here.target(script.address).upload_blob(blob(LARGE), sent(LARGE))

        assert bytes(received) == LARGE
        commit = script.seen[-1].target
        assert commit.startswith("/v2/x/blobs/uploads/1?a=%2F&digest=")


# Locations that cannot be used


@pytest.mark.parametrize(
    "headers", [pytest.param({}, id="none"), pytest.param({"Location": "ftp://x/"}, id="no-http")]
)
async def test_no_session(headers: dict[str, str]) -> None:
    """A session without a usable address is a refusal with its own reason."""

    def answer(_seen: Seen) -> web.Response:
        return web.Response(status=202, headers=headers)

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(UploadRejected) as caught:
            await here.target(script.address).upload_blob(blob(SMALL), sent(SMALL))

    assert caught.value.reason == "no_location"


async def test_location_on_a_forbidden_host() -> None:
    """A Location may not lead to an address that no configuration names."""

    def answer(_seen: Seen) -> web.Response:
        return web.Response(status=202, headers={"Location": "http://169.254.169.254/latest"})

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(HostNotAllowed):
            await here.target(script.address).upload_blob(blob(SMALL), sent(SMALL))


# Mounts


async def test_mount() -> None:
    """A blob of another repository of the same registry costs one request."""
    async with Registry() as b:
        b.put_blob("base/os", SMALL)
        async with world(b.address) as here:
            assert await here.target(b.address).mount_blob(blob(SMALL), "base/os")

        assert b.blobs["copy/app"] == {str(blob(SMALL).digest): SMALL}
        assert [r.method for r in b.requests] == ["GET", "POST"]
        assert b.violations == []


async def test_mount_opens_a_session() -> None:
    """A refused mount's session is used for the upload that follows."""
    async with Registry(profile="ecr", auth="none") as b:
        b.create_repository("copy/app")
        async with world(b.address) as here:
            target = here.target(b.address)
            assert not await target.mount_blob(blob(LARGE), "base/os")
            await target.upload_blob(blob(LARGE), sent(LARGE))

        assert [r.method for r in b.requests] == ["GET", "POST", "PUT"]
        assert (b.violations, b.sessions) == ([], 0)


@pytest.mark.parametrize(
    ("status", "remembered"), [(401, True), (403, True), (405, True), (404, False)]
)
async def test_mount_refused(status: int, remembered: bool) -> None:
    """A refusal is no error; it is remembered for that source, unless it may be about the target repository."""
    async with Registry() as b:
        b.fail(Phase.START_UPLOAD, status=status, times=None)
        async with world(b.address) as here:
            target = here.target(b.address)
            assert not await target.mount_blob(blob(SMALL), "base/os")
            asked = len(b.requests)
            assert not await target.mount_blob(blob(SMALL), "base/os")

        assert (len(b.requests) == asked) is remembered


@pytest.mark.parametrize("profile", ["hub", "gitlab", "harbor", "quay", "acr"])
async def test_mount_with_tokens(profile: str) -> None:
    """The token of a mount covers both repositories, the target first; what a registry makes of it spoils no upload."""
    keys = Keys(Credentials(username="u", password="pw"))
    async with Registry(profile=profile, username="u", password="pw") as b:
        b.create_repository("copy/app")
        b.put_blob("base/os", SMALL)
        async with world(b.address, keys=keys) as here:
            target = here.target(b.address)
            if not await target.mount_blob(blob(SMALL), "base/os"):
                await target.upload_blob(blob(SMALL), sent(SMALL))

        assert b.blobs["copy/app"] == {str(blob(SMALL).digest): SMALL}
        assert b.violations == []


# Limits on the way


class Running:
    """A clock that every chunk of a body moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def late(self, data: bytes, seconds: float) -> Callable[[], AsyncIterator[bytes]]:
        """Bodies that begin so much later than they were asked for."""

        async def body() -> AsyncIterator[bytes]:
            self.now += seconds
            async for chunk in sent(data)():
                yield chunk

        return body


@pytest.mark.parametrize(
    ("seconds", "form"), [(40.0, Form.CHUNKED), (1.0, Form.WHOLE)], ids=["same-time", "any-time"]
)
async def test_cut_after_the_same_time(seconds: float, form: Form) -> None:
    """Bodies that break after the same long time meet a limit in time: the third goes in pieces."""
    clock = Running()
    data = LARGE * 3

    async with Registry() as b:
        b.fail(Phase.UPLOAD_BODY, cut_at=10_000, reset=True)
        b.fail(Phase.UPLOAD_BODY, nth=2, cut_at=4 * MIB, reset=True)
        async with world(b.address, clock=clock) as here:
            endpoint = here.transport.endpoint(b.address)
            endpoint.chunk = MIB
            await here.target(b.address).upload_blob(blob(data), clock.late(data, seconds))

            assert endpoint.form is form
        assert b.blobs["copy/app"] == {str(blob(data).digest): data}
        assert (b.violations, b.sessions) == ([], 0)


@pytest.mark.parametrize(
    ("seconds", "limit", "form"),
    [
        pytest.param(310.0, MIB, Form.CHUNKED, id="long-and-large"),
        pytest.param(290.0, MIB, Form.WHOLE, id="large"),
        pytest.param(310.0, 1 << 30, Form.WHOLE, id="long"),
    ],
)
async def test_cut_late_in_a_large_body(
    monkeypatch: pytest.MonkeyPatch, seconds: float, limit: int, form: Form
) -> None:
    """One cut is enough for pieces where the same again would cost minutes and a GiB (GHCR ends uploads after ten)."""
    monkeypatch.setattr(upload, "LIMIT_BYTES", limit)
    clock = Running()
    data = LARGE * 3

    async with Registry() as b:
        b.fail(Phase.UPLOAD_BODY, cut_at=4 * MIB, reset=True)
        async with world(b.address, clock=clock) as here:
            endpoint = here.transport.endpoint(b.address)
            endpoint.chunk = MIB
            await here.target(b.address).upload_blob(blob(data), clock.late(data, seconds))

            assert endpoint.form is form
        assert b.blobs["copy/app"] == {str(blob(data).digest): data}
        assert (b.violations, b.sessions) == ([], 0)


async def test_hardly_anything_moves() -> None:
    """A body that moves next to nothing for minutes is begun anew."""
    clock = Running()
    bodies = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal bodies
        bodies += 1
        slow = bodies == 1
        async for chunk in sent(LARGE)():
            yield chunk
            if slow:
                clock.now += 400.0
                await anyio.sleep_forever()

    async with Registry() as b:
        async with world(b.address, clock=clock, request_timeout=0.1) as here:
            await here.target(b.address).upload_blob(blob(LARGE), body)

            retries = here.metric(
                "k8s_copycat_registry_retries_total", registry=b.address, reason="slow"
            )
        assert (bodies, retries) == (2, 1)
        assert (b.violations, b.sessions) == ([], 0)


@pytest.mark.parametrize(("slow_rate", "expected"), [(1000.0, 2), (1.0, 1)])
async def test_how_little_is_hardly_anything(slow_rate: float, expected: int) -> None:
    """Where each has its small part of a limit, a body that moves at this rate is not cut off."""
    clock = Running()
    bodies = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal bodies
        bodies += 1
        gone = 0
        async for chunk in sent(LARGE, piece=1000)():
            yield chunk
            gone += 1
            if (bodies, gone) == (1, 10):
                clock.now += 400.0
                await anyio.sleep(0.2)

    async with Registry() as b:
        async with world(b.address, clock=clock, request_timeout=0.1, slow_rate=slow_rate) as here:
            await here.target(b.address).upload_blob(blob(LARGE), body)
        assert bodies == expected


@pytest.mark.parametrize(
    ("status", "asked"), [(405, 1), (404, 2)], ids=["never", "this-one-is-gone"]
)
async def test_cancelling_is_given_up(status: int, asked: int) -> None:
    """A registry that lets no upload be cancelled is not asked again; a session that is gone says nothing."""
    async with Registry() as b:
        b.fail(Phase.UPLOAD_BODY, status=503, times=2)
        b.fail(Phase.CANCEL_UPLOAD, status=status, times=None)
        async with world(b.address) as here:
            await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

        assert b.ledger.count(Phase.CANCEL_UPLOAD) == asked


async def test_cancelling_with_another_scope() -> None:
    """Distribution wants a scope for cancelling that nothing else needs: asking for it spoils no other request."""
    keys = Keys(Credentials(username="u", password="pw"))
    async with Registry(auth="token", username="u", password="pw") as b:
        b.fail(Phase.UPLOAD_BODY, status=503)
        b.fail(
            Phase.CANCEL_UPLOAD,
            status=401,
            times=None,
            headers={
                "WWW-Authenticate": f'Bearer realm="{b.url}/token",service="sandbox",scope="repository:copy/app:delete"'
            },
        )
        async with world(b.address, keys=keys) as here:
            await here.target(b.address).upload_blob(blob(LARGE), sent(LARGE))

            assert here.transport.endpoint(b.address).no_cancel
        assert [r.status for r in b.requests if r.status == 401 and r.method != "DELETE"] == [401]
