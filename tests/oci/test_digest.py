from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat.errors import DigestMismatch, InvalidReference
from copycat.oci.digest import Digest, Verifier
from tests.oci.strategies import chunked, digests

A = "a" * 64


@given(digests)
def test_a_digest_survives_being_written(digest: Digest) -> None:
    """What `str` writes, `parse` reads as the same value."""
    assert Digest.parse(str(digest)) == digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "write it as", id="empty"),
        pytest.param(A, "write it as", id="no algorithm"),
        pytest.param("sha256:", "write it as", id="no hex"),
        pytest.param(f"sha256:{A} ", "write it as", id="trailing space"),
        pytest.param(f"sha256:{A}\n", "write it as", id="trailing newline"),
        pytest.param(f"SHA256:{A}", "write it as", id="upper-case algorithm"),
        pytest.param(f"md5:{'a' * 32}", "unknown", id="unknown algorithm"),
        pytest.param("sha256:aa", "64 hex digits, here are 2", id="too short"),
        pytest.param(f"sha512:{A}", "128 hex digits, here are 64", id="sha512 too short"),
        pytest.param(f"sha256:{'A' * 64}", "0-9 and a-f", id="upper-case hex"),
        pytest.param(f"sha256:{'g' * 64}", "0-9 and a-f", id="no hex digits"),
    ],
)
def test_what_is_no_digest_is_refused(text: str, message: str) -> None:
    """The message says what is wrong with the text."""
    with pytest.raises(InvalidReference, match=message):
        Digest.parse(text)


@given(st.text() | st.from_regex(r"sha(256|384|512):[0-9a-zA-Z]*"))
def test_any_text_is_a_digest_or_invalid(text: str) -> None:
    """No text makes `parse` fail in another way, and `find` never fails."""
    try:
        digest: Digest | None = Digest.parse(text)
    except InvalidReference:
        digest = None

    assert digest is None or str(digest) == text
    Digest.find(text)


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_of_hashes_with_the_algorithm(algorithm: str) -> None:
    """`of` and `hasher` use the algorithm that the digest names."""
    digest = Digest.of(b"content", algorithm)
    hasher = digest.hasher()
    hasher.update(b"content")

    assert digest.hex == hashlib.new(algorithm, b"content").hexdigest() == hasher.hexdigest()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"docker-pullable://alpine@sha256:{A}", f"sha256:{A}", id="docker-pullable"),
        pytest.param(f"ghcr.io/x/y:1@sha256:{A}", f"sha256:{A}", id="reference"),
        pytest.param(f"sha256:{A}", f"sha256:{A}", id="bare"),
        pytest.param("alpine:3", None, id="none"),
        pytest.param("alpine@sha256:12", None, id="cut"),
        pytest.param("", None, id="empty"),
    ],
)
def test_find_takes_the_digest_from_the_end(text: str, expected: str | None) -> None:
    """Image IDs in any spelling give their digest, other texts none."""
    found = Digest.find(text)

    assert expected == (str(found) if found else None)


@pytest.mark.parametrize(
    ("digest", "anchor"),
    [
        pytest.param(Digest("sha256", A), f"digest-{A}", id="sha256"),
        pytest.param(Digest("sha512", "b" * 128), f"digest-sha512-{'b' * 64}", id="sha512"),
        pytest.param(Digest("sha384", "c" * 96), f"digest-sha384-{'c' * 64}", id="sha384"),
    ],
)
def test_the_anchor_is_a_tag(digest: Digest, anchor: str) -> None:
    """The anchor carries 64 hex digits and fits into a tag."""
    assert anchor == digest.anchor
    assert len(anchor) <= 128


def drain(verifier: Verifier, chunks: Iterable[bytes], released: list[bytes]) -> None:
    """Feed everything and finish; what comes out goes to `released`, also before an error."""
    for chunk in chunks:
        ready = verifier.feed(chunk)
        if ready is not None:
            released.append(ready)

    released.append(verifier.finish())


@given(st.data(), st.binary(max_size=64), st.booleans(), st.sampled_from(["sha256", "sha512"]))
def test_right_content_passes_in_any_cut(
    data: st.DataObject, content: bytes, sized: bool, algorithm: str
) -> None:
    """Whatever the chunks, the same bytes come out."""
    released: list[bytes] = []
    verifier = Verifier(Digest.of(content, algorithm), len(content) if sized else None)
    drain(verifier, data.draw(chunked(content)), released)

    assert b"".join(released) == content
    assert verifier.received == len(content)


def flipped(content: bytes, at: int) -> bytes:
    """One bit is another."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def extended(content: bytes, at: int) -> bytes:
    """One byte is too many."""
    return content[:at] + b"x" + content[at:]


def shortened(content: bytes, at: int) -> bytes:
    """One byte is missing."""
    return content[:at] + content[at + 1 :]


@pytest.mark.parametrize("damage", [flipped, extended, shortened])
@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
@given(data=st.data(), content=st.binary(min_size=1, max_size=64))
def test_wrong_content_never_becomes_complete(
    data: st.DataObject, content: bytes, damage: Callable[[bytes, int], bytes], sized: bool
) -> None:
    """A flipped, extra or missing byte raises while the last chunk is still held back, and again when asked again."""
    wrong = damage(content, data.draw(st.integers(0, len(content) - 1)))
    chunks = data.draw(chunked(wrong))
    released: list[bytes] = []
    verifier = Verifier(Digest.of(content), len(content) if sized else None)

    with pytest.raises(DigestMismatch) as caught:
        drain(verifier, chunks, released)

    last = next((c for c in reversed(chunks) if c), b"")
    assert len(b"".join(released)) <= len(wrong) - len(last)
    assert str(Digest.of(content)) in str(caught.value)
    with pytest.raises(DigestMismatch):
        verifier.finish()


async def _stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@given(data=st.data(), content=st.binary(max_size=64))
async def test_the_generator_form_gives_the_same_bytes(data: st.DataObject, content: bytes) -> None:
    """`wrap` passes right content on, without empty chunks."""
    verifier = Verifier(Digest.of(content), len(content))
    released = [c async for c in verifier.wrap(_stream(data.draw(chunked(content))))]

    assert b"".join(released) == content
    assert all(released)


async def test_the_generator_form_holds_the_last_chunk_back() -> None:
    """`wrap` raises instead of yielding the end of wrong content."""
    chunks = Verifier(Digest.of(b"abcd")).wrap(_stream([b"ab", b"cx"]))

    assert await anext(chunks) == b"ab"
    with pytest.raises(DigestMismatch, match="hash to"):
        await anext(chunks)


def test_sizes_in_messages() -> None:
    """An error about a size says both sizes."""
    with pytest.raises(DigestMismatch, match=r"has 3 bytes, but at least 4 came"):
        Verifier(Digest.of(b"abc"), 3).feed(b"abcd")

    short = Verifier(Digest.of(b"abc"), 3)
    short.feed(b"ab")
    with pytest.raises(DigestMismatch, match=r"has 3 bytes, but 2 came"):
        short.finish()
