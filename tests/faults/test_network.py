"""Rows 1 to 4 and 50: hosts that are away, connections that break, servers that stumble, and what their errors say."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from copycat.errors import CopycatError, Unavailable
from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from tests.faults.support import EACH, LAYER, STEPS, Bench, Names, bench, failure, success


async def test_00_clean() -> None:
    """The copy that all rows spoil: each step as often as the table of steps says, and nothing waits."""
    async with bench() as b:
        success(b, "", await b.copy())
        await b.act("R")

        assert b.counts() == {str(step): step.clean for step in STEPS.values()}
        assert b.time.naps == []


# Row 1

#: Requests without an answer: 3 tries, after the one ping by TLS that every host here fails (the source's
#: is the second host's). A ping is two requests, by TLS and without. Where the source fails, the body of an
#: upload does, too. A broken body is followed by a DELETE, and by the POST of a new session.
UNANSWERED = {
    "P-source": 1 + 6,
    "P-target": 6,
    "T-source": 2 + 3,
    "T-target": 1 + 3,
    "Hm": 1 + 3,
    "Gm": 2 + 3,
    "Gb": 2 + 1 + 3,
    "Rd": 2 + 1 + 3,
    "I": 2 + 3,
    "U": 2 + 1 + 1 + 3,
    "C": 2 + 1 + 1 + 3,
    "M": 2 + 3,
    "R": 1 + 3,
}


@pytest.mark.parametrize("step", EACH)
async def test_01_refused(step: str) -> None:
    """A host that goes off at a step is asked a bounded number of times; when it is back the copy completes."""
    async with bench() as b:
        host = b.side(STEPS[step].side)
        b.fail(step, down=True)
        error = failure(await b.act(step))

        assert (type(error), error.temporary) == (Unavailable, True)
        assert error.reason in {"connection", "breaker_open"}
        assert error.side == STEPS[step].side
        assert host.address in str(error)
        assert b.untouched() or step == "R"
        breaker = b.engine.transport._limits_of(host.address).breaker
        # what the store behind the source fails is not the source's
        assert breaker.is_open or breaker._failures >= (2 if step == "Rd" else 3)
        # two blobs are asked for at once, and the fifth failure opens the breaker
        assert b.unanswered() in ({5, 6, 7, 8} if step == "Hb" else {UNANSWERED[step]})
        b.sessions_left = step in "UC"  # nobody was there to cancel it

        await host.stop()
        await host.start()
        b.time.skipped += 600
        success(b, step, await b.act(step))


#: The steps at which a host is met for the first time.
NEW_HOSTS = [pytest.param(step, id=step) for step in ("P-source", "P-target", "T", "Rd", "U")]


async def meet(b: Bench, step: str, host: str) -> CopycatError:
    """A copy that comes upon a host that is not there."""
    match step:
        case "T":
            b.source.authority.realm = f"https://{host}/token"
        case "Rd":
            b.source.core.cdn = f"https://{host}"
        case "U":
            b.target.core.cdn = f"https://{host}"
            b.target.core.location_style = "other-host"
            b.sessions_left = 3
        case _:
            pass
    return failure(await b.copy(host=host if step == "P-source" else ""))


@pytest.mark.parametrize("step", NEW_HOSTS)
async def test_01_no_such_name(step: str) -> None:
    """A name that does not resolve is a temporary failure that says which."""
    nobody, host = Names(), "gone.example"
    target: dict[str, Any] = {"docker__registry": host} if step == "P-target" else {}
    async with bench(resolver=nobody, **target) as b:
        error = await meet(b, step, host)

        assert (type(error), error.reason, error.temporary) == (Unavailable, "dns", True)
        assert f"the name {host} does not resolve" in str(error)
        assert nobody.asked == [host] * 3
        assert b.untouched()


#: Others that get no answer: tries at TLS of hosts that have none, and an upload that is fed by nobody.
TLS_PINGS = {"P-source": 1, "P-target": 0, "T": 2, "Rd": 3, "U": 2}


@pytest.mark.parametrize("step", NEW_HOSTS)
async def test_01_tls_never_answers(step: str) -> None:
    """A host that takes the connection and never speaks TLS is given up after the tries, each in time."""

    with socket.create_server(("127.0.0.1", 0)) as listener:
        # the kernel takes the connections, nobody reads from them
        host = f"silent.example:{listener.getsockname()[1]}"
        flags: dict[str, Any] = {}
        if step == "P-target":
            flags = {"docker__registry": host, "docker__insecure": False}
        async with bench(
            resolver=Names("silent.example"),
            registries=[{"host": host}],
            request_timeout="60ms",
            registry_retry_attempts=2,
            **flags,
        ) as b:
            error = await meet(b, step, host)

            assert (type(error), error.reason, error.temporary) == (Unavailable, "timeout", True)
            assert host in str(error)
            assert b.unanswered() == TLS_PINGS[step] + (3 if step == "U" else 2)
            assert b.untouched()


# Rows 2 to 4

#: What a step that fails once costs, besides itself: the way to the store leads through the registry; a body
#: costs the question whether the blob is there, a session, and another reading of the source.
EXTRA: dict[str, dict[str, int]] = {
    "Rd": {"Gb": 1},
    "U": {"Hb": 1, "I": 1, "C": 1, "Gb": 1, "Rd": 1},
    "C": {"Hb": 1, "I": 1, "U": 1, "Gb": 1, "Rd": 1},
}


def expected(step: str, times: int = 1, **others: int) -> dict[str, int]:
    """The requests of a copy in which a step failed so many times."""
    counts = {str(found): found.clean for found in STEPS.values()}
    if step != "R":
        counts["R"] = 0
    else:
        counts = dict.fromkeys(counts, 0) | {"P-source": 1, "T-source": 1, "R": 1}
    for key, count in ({step: 1} | EXTRA.get(step, {}) | others).items():
        counts[key] += times * count
    return counts


@pytest.mark.parametrize("step", EACH)
async def test_02_reset_before_an_answer(step: str) -> None:
    """A connection that was kept and is reset at the next request is no failure: the request is made again."""
    async with bench() as b:
        fault = b.fail(step, reset=True, match=reused(step))
        success(b, step, await b.act(step))

        assert fault.hits == 1
        # a GET that got no answer is made again by the HTTP client itself, where it was
        direct = {"Gb": 0} if step == "Rd" else {}
        assert b.counts() == expected(step, **direct)


async def test_02_reset_before_an_answer_to_bytes() -> None:
    """[U C] A small body that could be sent again goes into a new session all the same: nobody knows what the old one has."""
    image = images.image(seed="small", layers=(9_000,))
    async with bench(image=image) as b:
        fault = b.fail("U", reset=True, match=lambda request: request.reused)
        success(b, "", await b.copy())

        assert fault.hits == 1
        used = [r.reference for r in b.target.ledger.select(Phase.UPLOAD_BODY)]
        assert len(used) == len(set(used)) == 3  # config and layer, one of them twice


def reused(step: str) -> Any:
    """Requests on a connection that had others before; pings have none before them."""
    if step.startswith("P"):
        return None
    if step == "Hb":
        return lambda request: request.reused and request.reference == LAYER
    return lambda request: request.reused or request.phase is Phase.REDIRECT


@pytest.mark.parametrize(
    ("step", "status"),
    [
        pytest.param(step, status, id=f"{step}-{status}")
        for number, step in enumerate(STEPS)
        for status in ((500, 502, 503, 504) if step in {"Gm", "U"} else (502 + number % 3,))
    ],
)
async def test_03_stumbles(step: str, status: int) -> None:
    """A server that stumbles once costs one request more, after a pause."""
    async with bench() as b:
        b.fail(step, status=status)
        success(b, step, await b.act(step))

        assert b.counts() == expected(step)
        assert b.time.naps == [1.0]


#: How often a step is tried: as the configuration says, bodies in 3 sessions.
TRIES = 3


@pytest.mark.parametrize("step", EACH)
async def test_04_for_ever(step: str) -> None:
    """A server that stumbles for ever fails the attempt after the tries, for now; no tag is written."""
    async with bench() as b:
        fault = b.fail(step, status=503, times=None)
        error = failure(await b.act(step))

        assert (type(error), error.reason, error.temporary) == (Unavailable, "unavailable", True)
        assert "HTTP 503" in str(error)
        assert fault.hits == TRIES
        assert b.untouched()
        assert b.time.naps == [1.0, 2.0]


# Row 50

BODIES: dict[str, tuple[bytes, str]] = {
    "html": (b"<html><head><title>502</title></head><body>Bad <b>gateway</b></body></html>", "Bad gateway"),
    "empty": (b"", "HTTP 502"),
    "endless": (b"x" * 3_000_000, "xxx"),
    "secret": (
        b'{"errors":[{"code":"DENIED","message":"see https://s3.example/x?X-Sig=SECRET1 with Bearer SECRET2SECRET2, password=SECRET3"}]}',
        "see https://s3.example/x?",
    ),
    "binary": (b"\x00\xff\x1b[31mred\x07" * 20, "red"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        pytest.param(step, kind, id=f"{step}-{kind}")
        for number, step in enumerate(s for s in STEPS if s not in {"Hm", "Hb"})
        for kind in sorted(BODIES if step in {"Gm", "M"} else {"secret", list(BODIES)[number % 5]})
    ],
)
async def test_50_error_bodies(step: str, kind: str) -> None:
    """Whatever an error brings with it, little is read and the message can be shown to anybody."""
    body, said = BODIES[kind]
    async with bench(registry_retry_attempts=1) as b:
        fault = b.fail(step, status=502, times=None, body=body)
        error = failure(await b.act(step))

        assert (type(error), error.temporary) == (Unavailable, True)
        assert "HTTP 502" in str(error)
        assert said in str(error) or step[0] == "T"
        assert "SECRET" not in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 1000
        assert fault.hits == (3 if step in "UC" else 1)


@pytest.mark.parametrize("step", ["Hm", "Hb"])
async def test_50_no_body(step: str) -> None:
    """An answer to HEAD has no body to read."""
    async with bench(registry_retry_attempts=1) as b:
        b.fail(step, status=502, times=None)
        assert "HTTP 502" in str(failure(await b.act(step)))


async def test_50_not_read_to_its_end() -> None:
    """[Gm] Of an endless error not more is read than the message needs and the sockets hold."""
    async with bench(registry_retry_attempts=1) as b:
        b.fail("Gm", status=502, body=b"x" * 100_000_000)
        failure(await b.copy())

        served = [r.bytes_out for r in b.source.ledger.select(Phase.GET_MANIFEST)]
        assert served[0] < 20_000_000
