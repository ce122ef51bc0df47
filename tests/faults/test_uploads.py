"""Rows 26 to 30, 32 to 38 and 43: sessions, Locations, mounts, bodies, commits, pieces, and two that want the same."""

from __future__ import annotations

import socket
import ssl
from dataclasses import replace
from typing import Any

import anyio
import pytest
import trustme

from copycat.errors import DigestMismatch, Unavailable, Unsupported
from copycat.mirror.request import MirrorResult
from copycat.oci.digest import Digest
from copycat.registry.endpoint import Form
from copycat.sandbox import images
from copycat.sandbox.exchange import LocationStyle
from copycat.sandbox.ledger import Phase, Request
from copycat.sandbox.profiles import PROFILES
from tests.faults.support import (
    EACH,
    IMAGE,
    LAYER,
    SOURCE,
    TAG,
    TARGET,
    Bench,
    Names,
    bench,
    engine_of,
    failure,
    success,
)

SIZE = len(IMAGE.blobs[LAYER])
#: A layer of some pieces.
LARGE = images.image(seed="large", layers=(3_000_000,))
LARGE_LAYER = max(LARGE.blobs, key=lambda digest: len(LARGE.blobs[digest]))
#: More than all buffers between two processes hold.
HUGE = images.image(seed="huge", layers=(24_000_000,))
PIECE = 1 << 20


def large_body(request: Request) -> bool:
    """Bodies of the large layer (the config's is small)."""
    return int(request.headers.get("Content-Length", 0)) > 100_000


# Row 26

STYLES: list[LocationStyle] = ["absolute", "relative", "lost-port", "lost-scheme", "other-host"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("step", "form"), [("I", Form.WHOLE), ("U", Form.CHUNKED)], ids=["I", "U"])
async def test_26_locations(step: str, form: Form, style: LocationStyle) -> None:
    """However a Location is written, every byte of it is kept, and the login stays at the registry."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    options: dict[str, Any] = {"location_style": style}
    if style == "lost-scheme":
        options["ssl_context"] = server
    async with bench(target=options, ssl_context=client) as b:
        b.endpoint.form, b.endpoint.chunk = form, 100_000
        success(b, "", await b.copy())

        bodies = b.target.ledger.select(Phase.UPLOAD_BODY, Phase.COMMIT)
        assert len(bodies) == (1 if step == "I" else 5)
        assert "&digest=sha256%3A" in bodies[-1].query
        if style == "other-host":
            assert not any(r.authorized for r in bodies)


@pytest.mark.parametrize(("step", "form"), [("I", Form.WHOLE), ("U", Form.CHUNKED)], ids=["I", "U"])
async def test_26_no_tls_on_another_host(step: str, form: Form) -> None:
    """A Location that leads from TLS to another host without it is refused; nobody is contacted there."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"store.example:{listener.getsockname()[1]}"
        async with bench(
            target={"ssl_context": server},
            ssl_context=client,
            resolver=Names("store.example"),
            registries=[{"host": host}],
        ) as b:
            b.endpoint.form, b.endpoint.chunk = form, 100_000
            b.fail(step, after=True, status=202, headers={"Location": f"http://{host}/v2/x?a=b"})
            found = await b.copy()

            assert (found.state, found.reason) == ("denied", "downgrade")
            assert b.untouched()
            b.sessions_left = b.target.sessions
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


# Row 27


@pytest.mark.parametrize(
    ("mount", "posts", "bodies", "mounted"),
    [
        pytest.param("yes", 1, 0, True, id="I-201"),
        pytest.param("202", 1, 1, False, id="I-202"),
        pytest.param("401", 3, 1, False, id="I-401"),
        pytest.param("404", 2, 1, False, id="I-404"),
        pytest.param("405", 2, 1, False, id="I-405"),
    ],
)
async def test_27_mount(mount: str, posts: int, bodies: int, mounted: bool) -> None:
    """A blob that another repository has is mounted; a session that opens instead is used; else it is uploaded."""
    profile = replace(PROFILES["distribution"], mount=mount)  # type: ignore[arg-type] # parametrised
    async with bench(target={"profile": profile}) as b:
        b.source.add("team/other", IMAGE, TAG)
        success(b, "", await b.copy())
        before = b.counts()
        found = await b.copy(f"team/other:{TAG}")

        assert found.state == "protected"
        assert b.target.has("mirror/team/other", IMAGE, TAG)
        # of both its blobs
        assert b.count("I") - before["I"] == 2 * posts
        assert b.count("U") - before["U"] == 2 * bodies
        assert (found.moved.mounted > 0) is mounted


# Row 28


@pytest.mark.parametrize("at", [0, 100_000], ids=["U-at-once", "U-later"])
@pytest.mark.parametrize("status", [401, 413])
async def test_28_early_refusal(status: int, at: int) -> None:
    """A refusal while the body is on its way ends it at once; the source is let go, and the next way is taken."""
    async with bench(image=HUGE) as b:
        b.fail("U", status=status, answer_at=at, match=large_body)
        success(b, "", await b.copy())

        assert b.endpoint.form is (Form.CHUNKED if status == 413 else Form.WHOLE)
        # of the first reading not much more than the buffers hold was taken
        first = b.source.ledger.select(Phase.REDIRECT)[0]
        assert first.bytes_out < 24_000_000
        assert b.count("T-target") == (2 if status == 401 else 1)


async def test_28_body_limit() -> None:
    """[U] A proxy with a limit gets pieces that fit, from then on at once."""
    async with bench(image=LARGE, target={"profile": "body-limit"}) as b:
        success(b, "", await b.copy())
        assert (b.endpoint.form, b.endpoint.chunk) == (Form.CHUNKED, PIECE)


# Row 29


@pytest.mark.parametrize("at", [0, 1, SIZE // 2, SIZE - 1])
@pytest.mark.parametrize("reset", [True, False], ids=["U-reset", "U-close"])
async def test_29_broken_body(at: int, reset: bool) -> None:
    """A body that breaks is begun anew, in a session of its own, from a new reading of the source."""
    async with bench() as b:
        b.fail("U", cut_at=at, reset=reset)
        success(b, "", await b.copy())

        assert (b.count("I"), b.count("U"), b.count("Gb")) == (2, 2, 2)
        used = [r.reference for r in b.target.ledger.select(Phase.UPLOAD_BODY)]
        assert len(set(used)) == 2


async def test_29_three_at_most() -> None:
    """[U] After three bodies it is enough; the sessions are given back."""
    async with bench() as b:
        fault = b.fail("U", cut_at=SIZE // 2, reset=True, times=None)
        error = failure(await b.copy())

        assert (type(error), error.side, error.temporary) == (Unavailable, "target", True)
        assert (fault.hits, b.count("I"), b.count("Gb")) == (3, 3, 3)
        assert b.target.ledger.count(Phase.CANCEL_UPLOAD) == 3
        assert b.untouched()


async def test_29_always_at_the_same_place() -> None:
    """[U] A path that cuts every body at the same place gets pieces, which are smaller than that."""
    async with bench(image=LARGE) as b:
        b.endpoint.chunk = PIECE
        fault = b.fail("U", cut_at=1_500_000, match=large_body, times=None)
        success(b, "", await b.copy())

        assert b.endpoint.form is Form.CHUNKED
        assert fault.hits == 2 + 3  # two that were cut, three pieces that were not


@pytest.mark.parametrize("status", [404, 405])
async def test_29_no_pieces(status: int) -> None:
    """[U] Where pieces are not taken either, the error is the cut, which may pass."""
    async with bench(image=LARGE) as b:
        b.endpoint.chunk = PIECE
        b.fail("U", cut_at=1_500_000, match=large_body, times=2)
        b.fail("U", status=status, match=lambda r: r.method == "PATCH", times=None)
        error = failure(await b.copy())

        assert (type(error), error.temporary) == (Unavailable, True)
        assert b.endpoint.form is Form.WHOLE


# Row 30


async def test_30_stops_reading() -> None:
    """[U] A target that takes nothing any more is cut off after requestTimeout and tried again."""
    async with bench(image=HUGE, request_timeout="150ms") as b:
        fault = b.fail("U", stall_at=PIECE, match=large_body)
        success(b, "", await b.copy())

        address = b.target.address
        assert fault.hits == 1
        assert b.metric("registry_retries_total", registry=address, reason="stalled") == 1


# Rows 32 to 34


@pytest.mark.parametrize("form", [Form.WHOLE, Form.PATCHED], ids=["C-whole", "C-patched"])
async def test_32_slow_commit(form: Form) -> None:
    """A commit may take longer than requestTimeout."""
    async with bench(request_timeout="100ms") as b:
        b.endpoint.form = form
        b.fail("C", delay=0.35)
        success(b, "", await b.copy())

        assert (b.count("I"), b.count("C")) == (1, 1)


@pytest.mark.parametrize(
    "lost", [{"reset": True}, {"status": 500}, {"status": 504}], ids=["C-reset", "C-500", "C-504"]
)
@pytest.mark.parametrize("form", list(Form), ids=["whole", "patched", "pieces"])
async def test_33_lost_answer(form: Form, lost: dict[str, Any]) -> None:
    """A commit whose answer was lost is looked for, found, and nothing is sent again."""
    async with bench() as b:
        b.endpoint.form = form
        b.fail("C", after=True, **lost)
        success(b, "", await b.copy())

        assert (b.count("I"), b.count("C"), b.count("Gb"), b.count("Hb")) == (1, 1, 1, 3)


REFUSALS = [
    pytest.param({"status": 400, "code": "DIGEST_INVALID"}, id="C-digest"),
    pytest.param({"status": 404, "code": "BLOB_UPLOAD_UNKNOWN"}, id="C-session"),
    pytest.param({"status": 400, "code": "BLOB_UPLOAD_INVALID"}, id="C-invalid"),
    pytest.param({"status": 409}, id="C-409"),
    pytest.param({"status": 416, "code": "RANGE_INVALID"}, id="C-416"),
]


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("stored", [False, True], ids=["not-stored", "stored"])
async def test_34_refused_commit(refusal: dict[str, Any], stored: bool) -> None:
    """A commit that is refused is looked into: what is there is not sent again, what is not gets a new session."""
    async with bench() as b:
        b.fail("C", after=stored, **refusal)
        success(b, "", await b.copy())

        sessions = 1 if stored else 2
        assert (b.count("I"), b.count("Hb")) == (sessions, 3)
        assert b.endpoint.form is Form.WHOLE  # nothing was said about the form


# Row 35


def ranges(b: Bench) -> list[str]:
    """The Content-Range of every piece."""
    return [r.headers.get("Content-Range", "") for r in b.target.ledger.select(Phase.UPLOAD_BODY)]


def in_pieces(b: Bench, size: int = 100_000) -> None:
    """The target takes pieces, as was learnt earlier."""
    b.endpoint.form, b.endpoint.chunk = Form.CHUNKED, size


@pytest.mark.parametrize(
    "profile", ["distribution", "ecr", "ecr-public", "ghcr", "hub", "quay", "harbor", "acr"]
)
async def test_35_pieces(profile: str) -> None:
    """[U] Pieces pass at every registry that takes them, whatever it answers."""
    async with bench(
        target={"profile": replace(PROFILES[profile], auth="token", zero_byte_blob=201)}
    ) as b:
        b.target.create_repository(TARGET)
        in_pieces(b)
        success(b, "", await b.copy())

        assert ranges(b) == ["0-99999", "100000-199999", "200000-299999", f"300000-{SIZE - 1}"]


async def test_35_least_piece() -> None:
    """[U] Pieces are at least as large as the registry says."""
    profile = replace(PROFILES["distribution"], chunk_minimum=150_000)
    async with bench(target={"profile": profile}) as b:
        in_pieces(b)
        success(b, "", await b.copy())

        assert ranges(b) == ["0-149999", "150000-299999", f"300000-{SIZE - 1}"]


#: Trouble at the second piece (its bytes 100,000 to 199,999), and where the next one begins.
BREAKS: dict[str, tuple[dict[str, Any], str]] = {
    "cut-at-0": ({"cut_at": 0, "reset": True}, "100000-199999"),
    "cut": ({"cut_at": 30_000}, "130000-199999"),
    "answer-lost": ({"after": True, "reset": True}, "200000-299999"),
    "503": ({"status": 503}, "100000-199999"),
    "503-stored": ({"status": 503, "after": True}, "200000-299999"),
    "416": ({"status": 416, "headers": {"Range": "0-99999"}}, "100000-199999"),
    "416-bare": ({"status": 416}, "100000-199999"),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"U-{kind}") for kind in BREAKS])
async def test_35_goes_on(kind: str) -> None:
    """After a break the registry says how much it has, and the next piece begins there; nothing is read again."""
    options, begins = BREAKS[kind]
    async with bench() as b:
        in_pieces(b)
        b.fail("U", nth=2, **options)
        success(b, "", await b.copy())

        assert ranges(b)[2] == begins
        assert (b.count("I"), b.count("Gb")) == (1, 1)
        asked = 0 if kind == "416" else 1
        assert b.target.ledger.count(Phase.UPLOAD_STATUS) == asked


@pytest.mark.parametrize("profile", ["ecr", "ecr-public", "acr", "quay"])
async def test_35_cannot_say(profile: str) -> None:
    """[U] A registry that cannot say where it is gets a new session and the blob from its start."""
    row = replace(PROFILES[profile], auth="token")
    async with bench(target={"profile": row}) as b:
        b.target.create_repository(TARGET)
        in_pieces(b)
        b.fail("U", nth=2, cut_at=30_000)
        success(b, "", await b.copy())

        assert (b.count("I"), b.count("Gb")) == (2, 2)
        assert ranges(b)[2] == "0-99999"
        b.sessions_left = 0 if profile == "acr" else 1  # none of them lets us cancel


@pytest.mark.parametrize("held", ["0-99", "0-299999", "0-8999999"], ids=["less", "more", "absurd"])
async def test_35_says_something_else(held: str) -> None:
    """[U] A registry that lost what it had acknowledged, or claims what nobody sent, gets a new session."""
    async with bench() as b:
        in_pieces(b)
        b.fail("U", nth=2, cut_at=10)
        b.target.fail(Phase.UPLOAD_STATUS, headers={"Range": held})
        success(b, "", await b.copy())

        assert (b.count("I"), b.count("Gb")) == (2, 2)


async def test_35_nothing_arrived() -> None:
    """[U] distribution says 0-0 of one byte and of none: a session whose first piece broke at once begins at 0."""
    async with bench() as b:
        in_pieces(b)
        b.fail("U", cut_at=0, reset=True)
        success(b, "", await b.copy())

        assert ranges(b)[:2] == ["0-99999", "0-99999"]
        assert (b.count("I"), b.count("Gb")) == (1, 1)


async def test_35_breaks_that_bring_bytes() -> None:
    """[U] A piece may break more often than there are tries, if each break has brought some of it."""
    async with bench() as b:
        in_pieces(b)
        b.fail("U", cut_at=20_000, times=4)
        success(b, "", await b.copy())

        assert ranges(b)[:5] == [f"{at}-99999" for at in range(0, 100_000, 20_000)]
        assert (b.count("I"), b.count("Gb")) == (1, 1)


async def test_35_never_goes_on() -> None:
    """[U] A piece that never passes is given up after the tries, three times."""
    async with bench() as b:
        in_pieces(b)
        b.fail(
            "U",
            status=503,
            times=None,
            match=lambda r: "100000-" in r.headers.get("Content-Range", ""),
        )
        error = failure(await b.copy())

        assert (type(error), error.temporary) == (Unavailable, True)
        assert ranges(b).count("100000-199999") == 3 * 3
        assert b.untouched()


# Row 36


async def test_36_no_content_range() -> None:
    """[U] A whole body over 4 MiB passes GHCR, because it names no range."""
    image = images.image(seed="ghcr", layers=(5 << 20,))
    async with bench(image=image, target={"profile": "ghcr"}) as b:
        success(b, "", await b.copy())
        assert ranges(b) == ["", ""]


async def test_36_smaller_pieces() -> None:
    """[U] Where GHCR gets pieces after all, they are made to fit."""
    image = images.image(seed="ghcr", layers=(9 << 20,))
    async with bench(image=image, target={"profile": "ghcr"}) as b:
        b.endpoint.form = Form.CHUNKED
        success(b, "", await b.copy())

        assert b.endpoint.chunk == 4 << 20


# Row 37

EMPTY = images.image(seed="empty", layers=(images.empty_layer(), 700))


@pytest.mark.parametrize(
    ("profile", "form"),
    [
        pytest.param("distribution", Form.WHOLE, id="I-whole"),
        pytest.param("distribution", Form.PATCHED, id="U-patched"),
        pytest.param("distribution", Form.CHUNKED, id="C-pieces"),
    ],
)
async def test_37_empty_blob(profile: str, form: Form) -> None:
    """A blob of no bytes is committed as it is, with a length of 0."""
    async with bench(image=EMPTY, target={"profile": profile}) as b:
        b.endpoint.form = form
        success(b, "", await b.copy())

        nothing = images.empty_layer().digest.replace(":", "%3A")
        commits = [r for r in b.target.ledger.select(Phase.COMMIT) if nothing in r.query]
        assert [r.headers.get("Content-Length") for r in commits] == ["0"]


@pytest.mark.parametrize("profile", ["ecr", "ecr-public"])
async def test_37_amazon(profile: str) -> None:
    """[C] ECR has no empty blobs: the error says so, for good."""
    row = replace(PROFILES[profile], auth="token")
    async with bench(image=EMPTY, target={"profile": row}) as b:
        error = failure(await b.copy())

        assert (type(error), error.reason, error.temporary) == (Unsupported, "empty_blob", False)
        assert "does not store empty blobs" in str(error)
        assert b.untouched()
        b.sessions_left = b.target.sessions  # ECR lets nobody cancel


async def test_37_harbor() -> None:
    """[C] Harbor stumbles over an empty blob: three sessions, then a failure like any other of its 500s."""
    async with bench(image=EMPTY, target={"profile": "harbor"}) as b:
        b.target.create_repository(TARGET)
        error = failure(await b.copy())

        assert (type(error), error.temporary) == (Unavailable, True)
        assert b.untouched()


# Row 38

STRONG = images.image(seed="strong", layers=(400_000,), algorithm="sha512")
STRONG_LAYER = max(STRONG.blobs, key=lambda digest: len(STRONG.blobs[digest]))


@pytest.mark.parametrize("step", EACH)
async def test_38_sha512(step: str) -> None:
    """An image in sha512 is copied under its own anchor, whatever stumbles on the way."""
    async with bench(image=STRONG) as b:
        options: dict[str, Any] = (
            {"match": lambda r: r.reference == STRONG_LAYER} if step == "Hb" else {}
        )
        fault = b.fail(step, status=503, **options)
        if step == "R":
            assert await b.act(step) == []
        found = await b.copy(f"{SOURCE}@{STRONG.digest}")

        assert (found.state, found.reason) == ("protected", ""), found.message
        assert fault.hits == 1
        anchor = Digest.parse(STRONG.digest).anchor
        assert anchor.startswith("digest-sha512-")
        assert b.target.has(TARGET, STRONG, anchor)


async def test_38_sha512_by_tag() -> None:
    """[Gm] By a tag the root is named by the sha256 of its bytes; what is in it keeps its names."""
    async with bench(image=STRONG) as b:
        found = await b.copy()

        assert found.state == "protected"
        assert b.target.store.manifest(TARGET, TAG).data == STRONG.data  # type: ignore[union-attr] # it is there
        assert set(STRONG.blobs) <= set(b.target.blobs[TARGET])


async def test_38_sha512_is_verified() -> None:
    """[Gb] One wrong bit in a sha512 layer is as fatal as in any other."""
    async with bench(image=STRONG, source={"redirect_blobs": False}) as b:
        b.fail("Gb", corrupt_at=200_000, match=lambda r: r.reference == STRONG_LAYER, times=None)
        assert type(failure(await b.copy())) is DigestMismatch


# Row 43


@pytest.mark.parametrize("step", ["I", "U", "C"])
async def test_43_one_process(step: str) -> None:
    """Two workers that need one blob in one repository make one upload of it, wherever the first one is."""
    async with bench() as b:
        b.source.tags[SOURCE]["2.0"] = b.image.digest
        gate = anyio.Event()
        fault = b.fail(step, hold=gate)
        found: list[MirrorResult] = []

        async def worker(tag: str) -> None:
            found.append(await b.copy(f"{SOURCE}:{tag}"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker, TAG)
            await fault.reached.wait()
            tasks.start_soon(worker, "2.0")
            await b.target.wait_for(lambda r: r.reference == "2.0" and r.done)
            gate.set()

        assert [r.state for r in found] == ["protected", "protected"]
        assert (b.count("I"), b.count("U"), b.count("C")) == (1, 1, 1)
        assert b.target.tags[TARGET]["2.0"] == b.image.digest


@pytest.mark.parametrize("profile", ["distribution", "nexus"])
@pytest.mark.parametrize("step", ["I", "U", "C"])
async def test_43_two_processes(step: str, profile: str) -> None:
    """Two processes that upload the same blob at once both succeed, whatever the registry says to the second."""
    row = replace(PROFILES[profile], visible_after=0)
    async with bench(
        target={"profile": row, "auth": "basic" if profile == "nexus" else "token"}
    ) as b:
        gate = anyio.Event()
        fault = b.fail(step, hold=gate)
        found: list[MirrorResult] = []

        async def first() -> None:
            found.append(await b.copy())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await fault.reached.wait()
            async with engine_of(b.source, b.target, clock=b.time) as other:
                second = replace_engine(b, other)
                found.append(await second.copy())
            gate.set()

        assert [r.state for r in found] == ["protected", "protected"]
        assert b.arrived()


def replace_engine(b: Bench, engine: Any) -> Bench:
    """The same registries, another process."""
    return Bench(source=b.source, target=b.target, engine=engine, time=b.time, image=b.image)
