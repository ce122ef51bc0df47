"""Manifests and tags of one repository."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web

from copycat.errors import (
    Denied,
    DigestMismatch,
    InvalidManifest,
    NotFound,
    RegistryError,
    TooLarge,
    Unsupported,
    UploadRejected,
)
from copycat.oci.digest import Digest
from copycat.oci.manifest import (
    ACCEPT,
    MAX_PULL,
    MAX_PUSH,
    OCI_MANIFEST,
    Manifest,
    parse_document,
)
from copycat.registry.answers import ERROR_LIMIT
from copycat.sandbox import images
from copycat.sandbox.faults import FaultOptions
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.registry.support import Seen, blob, scripted, sent, world

ZERO = f"sha256:{'0' * 64}"
IMAGE = images.image()
DIGEST = Digest.parse(IMAGE.digest)


async def test_head_and_get() -> None:
    """HEAD tells type, digest and size; GET gives the bytes; both ask for every type that we know."""
    async with Registry() as a:
        a.add("team/app", IMAGE, "1.0")
        async with world(a.address) as here:
            source = here.source(a.address)
            by_tag, by_digest = (
                await source.head_manifest("1.0"),
                await source.head_manifest(DIGEST),
            )
            document = await source.get_manifest("1.0")

        assert by_tag == by_digest == document.descriptor
        assert document.raw == IMAGE.data
        assert {r.headers["Accept"] for r in a.requests[1:]} == {ACCEPT}


async def test_not_there() -> None:
    """HEAD of what is missing is None and one request; GET is an error that names it."""
    async with Registry() as a, world(a.address) as here:
        source = here.source(a.address)
        assert await source.head_manifest("1.0") is None
        assert len(a.requests) == 2
        with pytest.raises(
            NotFound,
            match=f"source registry {a.address}: manifest {a.address}/team/app:1.0 .*; check the name, or give credentials for {a.address} ",
        ) as caught:
            await source.get_manifest("1.0")

        assert caught.value.reference == f"{a.address}/team/app:1.0"


@pytest.mark.parametrize(
    ("fault", "gets"),
    [
        pytest.param({"status": 405}, 2, id="405-remembered"),
        pytest.param({"status": 501}, 2, id="501-remembered"),
        pytest.param({"status": 403}, 1, id="refused"),
        pytest.param({"headers": {"Docker-Content-Digest": None}}, 1, id="no-digest"),
        pytest.param({"headers": {"Docker-Content-Digest": "sha256:abc"}}, 1, id="bad-digest"),
        pytest.param({"headers": {"Content-Encoding": "gzip"}}, 1, id="encoded"),
    ],
)
async def test_head_is_of_no_use(fault: FaultOptions, gets: int) -> None:
    """Where HEAD is of no use, GET says the same; what is not supported is not asked again."""
    async with Registry() as a:
        a.add("team/app", IMAGE, "1.0")
        a.fail(Phase.HEAD_MANIFEST, **fault)
        async with world(a.address) as here:
            source = here.source(a.address)
            for _ in range(2):
                found = await source.head_manifest("1.0")
                assert found is not None
                assert found.digest == DIGEST

        assert a.ledger.count(Phase.GET_MANIFEST) == gets


async def test_head_by_digest() -> None:
    """By digest the header is not needed, and one of another content is not believed."""
    async with Registry() as a:
        a.add("team/app", IMAGE)
        a.fail(Phase.HEAD_MANIFEST, headers={"Docker-Content-Digest": None})
        a.fail(Phase.HEAD_MANIFEST, nth=2, headers={"Docker-Content-Digest": ZERO})
        async with world(a.address) as here:
            source = here.source(a.address)
            for gets in (0, 1):
                found = await source.head_manifest(DIGEST)
                assert found is not None
                assert found.digest == DIGEST
                assert a.ledger.count(Phase.GET_MANIFEST) == gets


async def test_head_refused_and_missing() -> None:
    """HEAD refused and GET without a find: not there; both refused: the error of GET."""
    async with Registry() as a:
        a.fail(Phase.HEAD_MANIFEST, status=403, times=None)
        a.fail(Phase.GET_MANIFEST, nth=2, status=403)
        async with world(a.address) as here:
            assert await here.source(a.address).head_manifest("1.0") is None
            with pytest.raises(Denied):
                await here.source(a.address).head_manifest("1.0")


@pytest.mark.parametrize(
    ("told", "gets"),
    [
        pytest.param(None, 1, id="absent"),
        pytest.param(ZERO, 2, id="wrong"),
        pytest.param(f"sha512:{'0' * 128}", 1, id="other-algorithm"),
    ],
)
async def test_digest_header_of_a_tag(told: str | None, gets: int) -> None:
    """A tag's digest is that of its bytes; a header that differs costs one GET by the computed digest."""
    async with Registry() as a:
        a.add("team/app", IMAGE, "1.0")
        a.fail(Phase.GET_MANIFEST, headers={"Docker-Content-Digest": told})
        async with world(a.address) as here:
            assert (await here.source(a.address).get_manifest("1.0")).digest == DIGEST

        assert a.ledger.count(Phase.GET_MANIFEST) == gets


@pytest.mark.parametrize("times", [1, None])
async def test_wrong_bytes(times: int | None) -> None:
    """By digest the bytes decide: wrong once is asked again, wrong twice is the source's fault."""
    async with Registry() as a:
        a.add("team/app", IMAGE)
        a.fail(Phase.GET_MANIFEST, corrupt_at=5, times=times)
        async with world(a.address) as here:
            source = here.source(a.address)
            if times == 1:
                assert (await source.get_manifest(DIGEST)).raw == IMAGE.data
            else:
                with pytest.raises(DigestMismatch) as caught:
                    await source.get_manifest(DIGEST)
                assert (caught.value.side, caught.value.temporary) == ("source", False)

        assert a.ledger.count(Phase.GET_MANIFEST) == 2


async def test_size_of_a_child() -> None:
    """A child's size is what its index says."""
    async with Registry() as a:
        a.add("team/app", IMAGE)
        async with world(a.address) as here:
            source = here.source(a.address)
            assert (await source.get_manifest(DIGEST, size=len(IMAGE.data))).digest == DIGEST
            with pytest.raises(DigestMismatch, match="should have 3 bytes"):
                await source.get_manifest(DIGEST, size=3)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"encoding": "gzip"}, id="gzip"),
        pytest.param({"cut_at": 100}, id="cut"),
        pytest.param({"status": 503}, id="503"),
        pytest.param({"chunked": True}, id="chunked"),
        pytest.param({"headers": {"Content-Type": "text/plain"}}, id="generic-type"),
    ],
)
async def test_get_survives(fault: FaultOptions) -> None:
    """Encodings are undone, breaks are retried, generic types are resolved from the body."""
    async with Registry() as a:
        a.add("team/app", IMAGE, "1.0")
        a.fail(Phase.GET_MANIFEST, **fault)
        async with world(a.address) as here:
            document = await here.source(a.address).get_manifest("1.0")

    assert (document.raw, document.media_type) == (IMAGE.data, OCI_MANIFEST)


async def test_schema1() -> None:
    """Docker's first schema has its own message."""
    async with Registry() as a:
        a.add("team/app", images.schema1(), "1.0")
        async with world(a.address) as here:
            with pytest.raises(InvalidManifest) as caught:
                await here.source(a.address).get_manifest("1.0")

    assert caught.value.reason == "schema1"


@pytest.mark.parametrize("length", [True, False])
async def test_too_large_to_pull(length: bool) -> None:
    """More than 8 MiB are not read, with or without a length."""

    async def answer(seen: Seen) -> web.Response:
        body = b" " * (MAX_PULL + 1)
        if length:
            return web.Response(body=body)

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        return web.Response(body=chunks())

    async with scripted(answer) as script, world(script.address) as here:
        with pytest.raises(TooLarge, match=str(MAX_PULL)):
            await here.source(script.address).get_manifest("1.0")


def large(size: int) -> Manifest:
    """A manifest of this many bytes."""
    body = {**json.loads(IMAGE.data), "annotations": {"x": ""}}
    padding = size - len(json.dumps(body).encode())
    body["annotations"]["x"] = "x" * padding
    document = parse_document(json.dumps(body).encode())
    assert isinstance(document, Manifest)
    return document


async def test_too_large_to_push() -> None:
    """What registries need not take is not sent; at the limit it is."""
    async with Registry() as b:
        for digest, data in IMAGE.blobs.items():
            b.blobs["copy/app"][digest] = data
        async with world(b.address) as here:
            target = here.target(b.address)
            most = large(MAX_PUSH)
            await target.put_manifest(most, most.digest)
            with pytest.raises(TooLarge):
                await target.put_manifest(large(MAX_PUSH + 1), "1.0")

        assert b.ledger.count(Phase.PUT_MANIFEST) == 1


DOCUMENT = parse_document(IMAGE.data)


async def ready(b: Registry) -> None:
    """The blobs of IMAGE are there."""
    b.store.repositories.add("copy/app")
    for digest, data in IMAGE.blobs.items():
        b.blobs["copy/app"][digest] = data


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 200, "after": True}, id="200"),
        pytest.param({"status": 202, "after": True}, id="202"),
        pytest.param({"status": 503}, id="503"),
        pytest.param({"reset": True}, id="reset"),
        pytest.param({"headers": {"Location": None, "Docker-Content-Digest": None}}, id="bare"),
    ],
)
async def test_put(fault: FaultOptions) -> None:
    """Bytes and type are as they were; every 2xx is a success, and a failed PUT is sent again."""
    async with Registry() as b:
        await ready(b)
        b.fail(Phase.PUT_MANIFEST, **fault)
        async with world(b.address) as here:
            await here.target(b.address).put_manifest(DOCUMENT, "1.0")

        stored = b.store.manifest("copy/app", "1.0")
        assert stored is not None
        assert (stored.data, stored.media_type) == (IMAGE.data, OCI_MANIFEST)


@pytest.mark.parametrize("code", ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"])
@pytest.mark.parametrize("status", [400, 404])
async def test_something_is_missing(status: int, code: str) -> None:
    """A manifest whose parts are missing is rejected with that code, whatever the status."""
    async with Registry() as b:
        b.fail(Phase.PUT_MANIFEST, status=status, code=code)
        async with world(b.address) as here:
            with pytest.raises(UploadRejected) as caught:
                await here.target(b.address).put_manifest(DOCUMENT, DIGEST)

    assert caught.value.code == code


async def test_no_repository() -> None:
    """A repository that is missing is not found."""
    async with Registry() as b:
        b.fail(Phase.PUT_MANIFEST, status=404, code="NAME_UNKNOWN")
        async with world(b.address) as here:
            with pytest.raises(NotFound):
                await here.target(b.address).put_manifest(DOCUMENT, DIGEST)


async def test_stored_as_something_else() -> None:
    """A target that says that it stored something else is not believed to have it."""
    async with Registry() as b:
        await ready(b)
        b.fail(Phase.PUT_MANIFEST, headers={"Docker-Content-Digest": ZERO})
        async with world(b.address) as here:
            with pytest.raises(UploadRejected, match="was stored as"):
                await here.target(b.address).put_manifest(DOCUMENT, DIGEST)


@pytest.mark.parametrize(
    ("present", "reason"),
    [
        pytest.param("same", None, id="same"),
        pytest.param("other", "tag_immutable", id="other"),
        pytest.param("none", "tag_immutable", id="invisible"),
    ],
)
async def test_immutable_tag(present: str, reason: str | None) -> None:
    """A tag that cannot be moved is fine if it is what it should be, else an error that says what it is."""
    other = images.image(seed="other")
    async with Registry() as b:
        await ready(b)
        if present != "none":
            b.add("copy/app", IMAGE if present == "same" else other, "1.0")
        b.fail(
            Phase.PUT_MANIFEST,
            status=400,
            code="TAG_INVALID",
            body=b'{"errors":[{"code":"TAG_INVALID","message":"the tag is immutable"}]}',
        )
        async with world(b.address) as here:
            put = here.target(b.address).put_manifest(DOCUMENT, "1.0")
            if reason is None:
                await put
            else:
                with pytest.raises(UploadRejected, match="cannot be moved") as caught:
                    await put
                assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param({}, True, id="there"),
        pytest.param({"status": 404}, False, id="missing"),
        pytest.param({"status": 405}, False, id="no-head"),
        pytest.param(
            {"status": 307, "headers": {"Location": "https://storage.example/x"}},
            True,
            id="redirect",
        ),
        pytest.param({"status": 503}, True, id="retried"),
    ],
)
async def test_has_blob(fault: FaultOptions, expected: bool) -> None:
    """One HEAD; a redirect is an answer and is not followed."""
    async with Registry() as b:
        b.put_blob("copy/app", b"x")
        if fault:
            b.fail(Phase.HEAD_BLOB, **fault)
        async with world(b.address) as here:
            assert await here.target(b.address).has_blob(blob(b"x").digest) is expected


async def test_has_blob_is_refused() -> None:
    """A refusal is no answer."""
    async with Registry() as b:
        b.fail(Phase.HEAD_BLOB, status=403, times=None)
        async with world(b.address) as here:
            with pytest.raises(Denied):
                await here.target(b.address).has_blob(blob(b"x").digest)


# Lists


async def test_tags() -> None:
    """Every page is read."""
    async with Registry() as a:
        a.add("team/app", IMAGE, "t0")
        for number in range(2500):
            a.tags["team/app"][f"t{number:04}"] = IMAGE.digest
        async with world(a.address) as here:
            tags = await here.source(a.address).list_tags()

        assert sorted(tags) == sorted(a.tags["team/app"])
        assert a.ledger.count(Phase.TAGS) == 3
        assert a.violations == []


async def test_tags_of_nothing() -> None:
    """A repository that is missing is not found."""
    async with Registry() as a, world(a.address) as here:
        with pytest.raises(NotFound):
            await here.source(a.address).list_tags()


def pages(*links: str | None, body: bytes = b'{"tags":["a"]}') -> Callable[[Seen], web.Response]:
    """Answers with these Link headers."""
    left = list(links)

    def answer(_seen: Seen) -> web.Response:
        link = left.pop(0)
        return web.Response(body=body, headers={"Link": link} if link else {})

    return answer


@pytest.mark.parametrize(
    "link",
    [
        pytest.param('</v2/x/tags/list?last=a>; rel="next"', id="same-page-again"),
        pytest.param("<http://[::1>; rel=next", id="no-url"),
        pytest.param('</x>; rel="prev"', id="another-relation"),
    ],
)
async def test_pages_end(link: str) -> None:
    """A list that goes in circles, or leads nowhere, ends."""
    async with scripted(pages(link, link)) as script, world(script.address) as here:
        assert await here.source(script.address).list_tags() == ["a"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b'{"tags":null}', []), (b"{}", []), (b"<html>", None), (b"[" * 60_000, None)],
)
async def test_odd_tags(body: bytes, expected: list[str] | None) -> None:
    """No tags at all is a list; a page for people is none."""
    async with scripted(pages(None, body=body)) as script, world(script.address) as here:
        source = here.source(script.address)
        if expected is None:
            with pytest.raises(Unsupported):
                await source.list_tags()
        else:
            assert await source.list_tags() == expected


async def test_one_session_per_refused_mount() -> None:
    """Sessions of refused mounts are kept per digest."""
    async with Registry(profile="ecr", auth="none") as b:
        b.create_repository("copy/app")
        async with world(b.address) as here:
            target = here.target(b.address)
            for data in (b"1", b"2"):
                assert not await target.mount_blob(blob(data), f"base/{data.decode()}")
            for data in (b"2", b"1"):
                await target.upload_blob(blob(data), sent(data))

        assert (b.violations, b.sessions) == ([], 0)
        assert b.ledger.count(Phase.START_UPLOAD) == 2


UNKNOWN = b'{"errors":[{"code":"NAME_UNKNOWN"}]}'


@pytest.mark.parametrize(
    ("status", "body", "new", "asked"),
    [
        pytest.param(404, UNKNOWN, True, 2, id="no-such-repository"),
        pytest.param(200, b'{"name":"copy/app","tags":["1"]}', False, 2, id="there"),
        pytest.param(404, b"<html>not found</html>", False, 1, id="no-lists"),
        pytest.param(405, b"", False, 1, id="method"),
        pytest.param(403, b'{"errors":[{"code":"DENIED"}]}', False, 1, id="denied"),
        pytest.param(401, UNKNOWN, False, 1, id="unauthorized"),
        pytest.param(500, UNKNOWN, False, 1, id="broken"),
        pytest.param(429, UNKNOWN, False, 1, id="throttled"),
        pytest.param(200, b"x" * (ERROR_LIMIT + 1), False, 1, id="endless"),
    ],
)
async def test_whether_a_repository_is_new(status: int, body: bytes, new: bool, asked: int) -> None:
    """Only NAME_UNKNOWN says so; who has no answer is asked once, by one request, and no more."""

    def answer(_seen: Seen) -> web.Response:
        return web.Response(status=status, body=body)

    async with scripted(answer) as script, world(script.address) as here:
        for _ in range(2):
            target = here.target(script.address)
            await target.ask_if_new()
            assert target.new is new
    assert [r.target for r in script.seen].count("/v2/copy/app/tags/list?n=1") == asked


async def test_a_new_repository_gets_its_blobs_unasked() -> None:
    """The mount that is tried in place of the question is refused, and its session takes the blob."""
    async with Registry(profile="ecr", auth="none") as b:
        b.create_repository("copy/app")
        b.fail(Phase.TAGS, status=404, code="NAME_UNKNOWN")
        async with world(b.address) as here:
            target = here.target(b.address)
            await target.ask_if_new()
            assert not await target.claim_blob(blob(b"1"))
            await target.upload_blob(blob(b"1"), sent(b"1"))
        assert (b.violations, b.sessions) == ([], 0)
        assert b.ledger.count(Phase.HEAD_BLOB) == 0
        assert b.ledger.count(Phase.START_UPLOAD) == 1


async def test_errors_say_what_was_written() -> None:
    """A target's refusal of a tag that is not immutable is raised as it is."""
    async with Registry() as b:
        b.fail(Phase.PUT_MANIFEST, status=400, code="MANIFEST_INVALID")
        async with world(b.address, target_registries=frozenset({b.address})) as here:
            with pytest.raises(
                RegistryError, match=f"target registry {b.address}: it refused manifest"
            ) as caught:
                await here.target(b.address).put_manifest(DOCUMENT, "1.0")

    assert (type(caught.value), caught.value.code) == (UploadRejected, "MANIFEST_INVALID")
