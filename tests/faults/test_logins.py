"""Rows 6 to 11: tokens that run out, logins that are refused, token services that are odd or hostile."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import anyio
import pytest
import trustme

from copycat.errors import Denied, HostNotAllowed, Unauthorized, Unavailable
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor
from copycat.sandbox.ledger import Phase
from tests.faults.support import STEPS, TAG, Bench, Names, bench, failure, success

MANY = 50
DATA = [f"blob {number}".encode() for number in range(MANY)]


def described(data: bytes) -> Descriptor:
    """The descriptor of some bytes."""
    return Descriptor(media_type="application/octet-stream", digest=Digest.of(data), size=len(data))


# Row 6

Call = Callable[[Bench, int], Coroutine[Any, Any, object]]


async def read_manifest(b: Bench, number: int) -> object:
    """GET of a manifest by a tag of its own."""
    return await b.from_source().get_manifest(f"t{number}")


async def read_blob(b: Bench, number: int) -> object:
    """GET of a blob of its own."""
    return await b.from_source().get_blob(described(DATA[number]))


async def write_blob(b: Bench, number: int) -> None:
    """POST and PUT of a blob of its own."""

    async def body() -> AsyncIterator[bytes]:
        yield DATA[number]

    await b.to_target().upload_blob(described(DATA[number]), body)


async def write_manifest(b: Bench, number: int) -> None:
    """PUT of the manifest under a tag of its own."""
    await b.to_target().put_manifest(b.image.document, f"t{number}")


AT_ONCE: dict[str, tuple[str, Call]] = {
    "Gm": ("source", read_manifest),
    "Gb": ("source", read_blob),
    "I": ("target", write_blob),
    "U": ("target", write_blob),
    "C": ("target", write_blob),
    "M": ("target", write_manifest),
}


@pytest.mark.parametrize("step", AT_ONCE)
async def test_06_one_refresh_for_fifty(step: str) -> None:
    """Fifty requests that all meet an expired token make one token request, and all succeed."""
    side, call = AT_ONCE[step]
    async with bench() as b:
        registry, phase = b.side(side), STEPS[step].phase
        for number, data in enumerate(DATA):
            b.source.put_blob("team/app", data)
            b.source.tags["team/app"][f"t{number}"] = b.image.digest
        success(b, step, await b.copy())
        tokens = registry.ledger.count(Phase.TOKEN)
        # the first one goes through, and its token is the last good one
        registry.fail(phase, run=lambda _: registry.authority.expire_tokens())
        async with anyio.create_task_group() as tasks:
            for number in range(MANY):
                tasks.start_soon(call, b, number)

        assert registry.ledger.count(Phase.TOKEN) - tokens == 1


@pytest.mark.parametrize("step", AT_ONCE)
async def test_06_in_the_middle(step: str) -> None:
    """A token that ends at a step of a copy is renewed once and the copy completes."""
    async with bench() as b:
        b.fail(step, status=401)
        success(b, step, await b.copy())

        side = AT_ONCE[step][0]
        assert b.count(f"T-{side}") == 2
        assert b.time.naps == []


# Row 7


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Unauthorized), (403, Denied)], ids=["401", "403"]
)
@pytest.mark.parametrize("step", [s for s in STEPS if s[0] not in "PT" and s != "Rd"])
async def test_07_refused(step: str, status: int, kind: type[Exception]) -> None:
    """Who is refused asks once with a fresh token, and then not again; that is for good."""
    async with bench() as b:
        fault = b.fail(step, status=status, times=None)
        if step == "Hm":
            b.target.fail(Phase.GET_MANIFEST, status=status, times=None)
        if step == "R":  # and the fallback tag
            b.source.fail(Phase.HEAD_MANIFEST, status=status, times=None)
            b.source.fail(Phase.GET_MANIFEST, status=status, times=None)
        error = failure(await b.act(step))

        assert (type(error), error.temporary) == (kind, False)
        assert "missing or we have no access" in str(error)
        assert b.untouched()
        assert fault.hits <= 2
        side = STEPS[step].side
        assert b.count(f"T-{side}") <= 2
        assert b.metric("registry_auth_failures_total", registry=b.side(side).address) >= 1
        assert b.time.naps == []


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Unauthorized), (403, Unauthorized)], ids=["401", "403"]
)
@pytest.mark.parametrize("step", ["T-source", "T-target"])
async def test_07_no_token(step: str, status: int, kind: type[Exception]) -> None:
    """A token service that refuses ends it: one request."""
    async with bench() as b:
        fault = b.fail(step, status=status, times=None)
        error = failure(await b.act(step))

        assert (type(error), error.temporary) == (kind, False)
        assert "The token service" in str(error)
        assert "pw-of-me" not in str(error)
        assert fault.hits == (2 if step == "T-target" else 1)
        assert b.untouched()


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("step", ["P-source", "P-target"])
async def test_07_ping_refused(step: str, status: int) -> None:
    """A ping that is refused without a challenge proves nothing: the requests themselves decide."""
    async with bench() as b:
        b.fail(step, status=status, times=None, headers={"WWW-Authenticate": None})
        success(b, step, await b.act(step))


@pytest.mark.parametrize("status", [401, 403])
async def test_07_store_refuses(status: int) -> None:
    """[Rd] A store that refuses for ever is asked through the registry each time, as often as the tries say."""
    async with bench() as b:
        fault = b.fail("Rd", status=status, times=None)
        error = failure(await b.copy())

        assert (type(error), error.side, fault.hits) == (Unavailable, "source", 3)
        assert b.untouched()


# Row 8


@pytest.mark.parametrize("profile", ["ecr", "ecr-public"])
@pytest.mark.parametrize("step", ["Gm", "I", "U", "M"])
async def test_08_amazon(step: str, profile: str) -> None:
    """Amazon's ways to say that a login ran out are understood: one refresh, success."""
    status = 403 if profile == "ecr" else 400
    body = b'{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}'
    async with bench() as b:
        fault = b.fail(step, status=status, body=body)
        success(b, step, await b.copy())

        assert fault.hits == 1
        assert b.count("T-source") + b.count("T-target") == 3


# Row 9


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        pytest.param({"expires_in": None}, 1, id="no-lifetime"),
        pytest.param({"expires_in": 0}, 1, id="no-time-at-all"),
        pytest.param({"field": "access_token"}, 1, id="access-token"),
        pytest.param({"field": "both"}, 1, id="both"),
        pytest.param({"extra": {"issued_at": "2001-01-01T00:00:00Z"}}, 1, id="clock-behind"),
        pytest.param({"extra": {"issued_at": "2199-01-01T00:00:00Z"}}, 1, id="clock-ahead"),
        pytest.param({"extra": {"expires_in": "300"}}, 1, id="text"),
    ],
)
async def test_09_odd_tokens(side: str, answer: dict[str, Any], tokens: int) -> None:
    """[T] What a token's answer leaves out or gets wrong is no obstacle; the token serves the whole copy."""
    async with bench() as b:
        authority = b.side(side).authority
        authority.token_field = answer.get("field", "token")
        authority.extra = answer.get("extra", {})
        if "expires_in" in answer:
            authority.extra = {"expires_in": answer["expires_in"]}
        success(b, "", await b.copy())

        assert b.count(f"T-{side}") == tokens


@pytest.mark.parametrize("side", ["source", "target"])
async def test_09_sixty_seconds(side: str) -> None:
    """[T] A token that tells no lifetime is used for a minute and not longer."""
    async with bench() as b:
        b.side(side).authority.expires_in = None
        success(b, "", await b.copy())
        for skip, tokens in ((50.0, 1), (20.0, 2)):
            b.time.skipped += skip
            await (b.from_source() if side == "source" else b.to_target()).head_manifest(TAG)
            assert b.count(f"T-{side}") == tokens
        # not one was shown that had run out
        pinged = [r.phase for r in b.side(side).requests if r.status == 401]
        assert pinged == [Phase.PING]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("side", ["source", "target"])
async def test_09_stumbles(side: str, status: int) -> None:
    """[T] A token service that stumbles is asked again after a back-off."""
    async with bench() as b:
        b.fail(f"T-{side}", status=status, times=2)
        success(b, "", await b.copy())

        assert b.count(f"T-{side}") == 3
        assert b.time.naps == [1.0, 2.0]


@pytest.mark.parametrize("side", ["source", "target"])
async def test_09_html(side: str) -> None:
    """[T] A page with 200 is no token: the error says what came, and that it may pass."""
    async with bench() as b:
        fault = b.fail(f"T-{side}", status=200, body=b"<html>Please log in</html>", times=None)
        error = failure(await b.copy())

        assert (type(error), error.reason, error.temporary) == (
            Unavailable,
            "token_unreadable",
            True,
        )
        assert "Please log in" in str(error)
        assert fault.hits == 3


# Row 10


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
    "realm",
    ["http://169.254.169.254/latest/meta-data", "http://10.0.0.1/token", "https://localhost/token",
     "http://[fd00:ec2::254]/token", "https://metadata/token", "http://2130706433/token"],
)  # fmt: skip
async def test_10_realm_on_a_forbidden_host(side: str, realm: str) -> None:
    """[T] A registry that sends us elsewhere for a token gets nothing: no connection, no credentials."""
    async with bench() as b:
        b.side(side).authority.realm = realm
        found = await b.copy()

        assert (found.state, found.reason) == ("denied", "host_not_allowed")
        assert isinstance(found.error, HostNotAllowed)
        assert b.count(f"T-{side}") == 0
        assert b.unanswered() == (2 if side == "source" else 1)  # the pings by TLS


async def test_10_realm_at_an_address_behind_a_name() -> None:
    """[T] A name that resolves to this machine is refused when the connection is made."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with bench(resolver=Names("evil.example")) as b:
            b.source.authority.realm = f"http://evil.example:{listener.getsockname()[1]}/token"
            found = await b.copy()

            assert (found.state, found.reason) == ("denied", "host_not_allowed")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_10_no_token_without_tls() -> None:
    """[T] A registry with TLS that wants its token fetched without it is refused before anything is sent."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with bench(source={"ssl_context": server}, ssl_context=client) as b:
            b.source.authority.realm = f"http://127.0.0.1:{listener.getsockname()[1]}/token"
            found = await b.copy()

            assert (found.state, found.reason) == ("denied", "host_not_allowed")
            assert "without TLS" in found.message
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


# Row 11


@pytest.mark.parametrize("kept", ["first", "last"])
async def test_11_one_scope(kept: str) -> None:
    """[T] Services that look at one scope alone are no obstacle: no token asks for more than one repository."""
    async with bench() as b:
        for registry in (b.source, b.target):
            registry.authority.profile = replace(registry.profile, scopes=kept)  # type: ignore[arg-type] # parametrised
        success(b, "", await b.copy())

        asked = [r.query for side in (b.source, b.target) for r in side.ledger.select(Phase.TOKEN)]
        assert [query.count("scope=") for query in asked] == [1, 1]


@pytest.mark.parametrize(
    ("kept", "mounted"),
    [("all", True), ("first", False), ("last", False)],
    ids=["all", "first", "last"],
)
async def test_11_mount(kept: str, mounted: bool) -> None:
    """[I] A mount needs two scopes in one token; where only one is granted the blob is uploaded instead."""
    async with bench() as b:
        b.target.authority.profile = replace(b.target.profile, scopes=kept, mount_unseen="401")  # type: ignore[arg-type] # parametrised
        b.source.add("team/other", b.image, TAG)
        success(b, "", await b.copy())
        uploads = b.count("U")
        found = await b.copy(f"team/other:{TAG}")

        assert found.state == "protected"
        assert b.target.has("mirror/team/other", b.image, TAG)
        assert (found.moved.mounted > 0) is mounted
        assert (b.count("U") == uploads) is mounted
