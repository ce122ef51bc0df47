"""Content addresses, and the check that streamed bytes are what their address promises.

A registry commits what it was sent as soon as the last byte is there. `Verifier` therefore holds one
chunk back until size and hash are known to be right: wrong content never becomes complete.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from copycat.errors import DigestMismatch, InvalidReference, printable

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Digest", "Verifier"]

#: Algorithms by the length of their hex form (image-spec, descriptor.md "Registered algorithms", and sha384).
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}

#: image-spec, descriptor.md "Digests".
_DIGEST = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([a-zA-Z0-9=_-]+)")
_LOWER_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm and the lower-case hex of its hash; `str()` gives `sha256:…`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest that `text` spells.

        Raises:
            InvalidReference: not `algorithm:hex`, an unknown algorithm, or a wrong length.
        """
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise _invalid(text, "write it as sha256:<64 hex digits>")

        algorithm, value = match.groups()
        length = _LENGTHS.get(algorithm)
        if length is None:
            raise _invalid(text, f"the algorithm is unknown (known: {', '.join(_LENGTHS)})")

        if len(value) != length:
            raise _invalid(text, f"{algorithm} has {length} hex digits, here are {len(value)}")

        if _LOWER_HEX.fullmatch(value) is None:
            raise _invalid(text, "only the digits 0-9 and a-f may follow the colon")

        return cls(algorithm, value)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of `data`."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    @classmethod
    def find(cls, text: str) -> Digest | None:
        """The digest at the end of `text` (`name@sha256:…`, or a bare `sha256:…`); `None` if there is none."""
        try:
            return cls.parse(text.rpartition("@")[2])
        except InvalidReference:
            return None

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def anchor(self) -> str:
        """The tag that keeps this content at the target: `digest-<hex>`, `digest-sha512-<first 64 of the hex>`."""
        if self.algorithm == "sha256":
            return f"digest-{self.hex}"

        # A tag has at most 128 characters, a whole sha512 does not fit.
        return f"digest-{self.algorithm}-{self.hex[:64]}"

    def hasher(self) -> _Hash:
        """A fresh hashlib object of this digest's algorithm."""
        return hashlib.new(self.algorithm)


def _invalid(text: str, remedy: str) -> InvalidReference:
    shown = printable(text, 160)
    return InvalidReference(f'"{shown}" is not a digest: {remedy}', reference=shown)


class Verifier:
    """Counts and hashes a stream, and passes on every chunk but the last until all is known to be right.

    Once it has raised it never releases anything again.
    """

    __slots__ = ("_digest", "_hash", "_held", "_size", "received")

    def __init__(self, digest: Digest, size: int | None = None) -> None:
        """Args: `size` in bytes, `None` if the descriptor is not known."""
        self._digest = digest
        self._size = size
        self._hash = digest.hasher()
        self._held = b""
        #: Bytes fed so far; where a broken transfer is to be resumed.
        self.received = 0

    def feed(self, chunk: bytes) -> bytes | None:
        """Take a chunk; give the one before it, or `None`.

        Raises:
            DigestMismatch: there are more bytes than the size says.
        """
        # An empty chunk must not push the last real one out.
        if not chunk:
            return None

        self.received += len(chunk)
        if self._size is not None and self.received > self._size:
            raise self._wrong_size("at least ")

        self._hash.update(chunk)
        held, self._held = self._held, chunk
        return held or None

    def finish(self) -> bytes:
        """The chunk that was held back (`b""` for no content at all), now that everything is known.

        Raises:
            DigestMismatch: the size or the hash is wrong.
        """
        if self._size is not None and self.received != self._size:
            raise self._wrong_size("")

        actual = self._hash.hexdigest()
        if actual != self._digest.hex:
            raise DigestMismatch(
                f"the {self.received} bytes of {self._digest} hash to {self._digest.algorithm}:{actual}",
                reference=str(self._digest),
            )

        held, self._held = self._held, b""
        return held

    async def wrap(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The same as a generator. Who made `chunks` closes it.

        Raises:
            DigestMismatch: instead of yielding the last chunk.
        """
        async for chunk in chunks:
            ready = self.feed(chunk)
            if ready is not None:
                yield ready

        last = self.finish()
        if last:
            yield last

    def _wrong_size(self, qualifier: str) -> DigestMismatch:
        return DigestMismatch(
            f"{self._digest} has {self._size} bytes, but {qualifier}{self.received} came",
            reference=str(self._digest),
        )
