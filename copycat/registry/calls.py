"""One request as the protocol means it, and what comes back, before anything is sent."""

from __future__ import annotations

import io
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from copycat.errors import Unavailable
from copycat.registry.answers import ERROR_LIMIT, Place
from copycat.registry.auth import MARGIN, Login

__all__ = ["READ_BUFFER", "WATCHDOG", "Answer", "BodySpent", "Call", "payload"]

#: Bytes that a connection reads ahead; a body that has more goes out in pieces.
READ_BUFFER = 256 * 1024

#: Silence on a body is never allowed for longer, even with requestTimeout 0 (seconds).
WATCHDOG = 120.0


class BodySpent(Unavailable):
    """A streaming body met a refusal that a new login may cure: begin the upload again."""

    default_reason = "login_renewed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as the protocol means it."""

    method: str
    repository: str = ""
    path: str = ""
    """Below `/v2/<repository>/`."""
    url: URL | None = None
    """In place of repository and path: a Location."""
    place: Place
    login: Login | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    stream: AsyncIterable[bytes] | None = None
    """A body that can be sent once; `headers` must have its Content-Length."""
    on_sent: Callable[[int], None] | None = None
    """Told how many bytes of a large `body` went out, each time."""
    accept: frozenset[int] = frozenset()
    """Statuses besides 2xx that the caller handles."""
    limit: int = ERROR_LIMIT
    """Bytes of the answer that are read at most."""
    follow: bool = True
    retry: bool = True
    silence: float | None = None
    """Longest wait for the answer (seconds); None: the transport's."""
    margin: float = MARGIN
    """How long a token must still last."""
    counted: bool = False
    """The registry may count it against a pull quota."""
    renew: bool = True
    """After a refusal, try it with another login."""
    small: bool = True
    """Takes a place in the host's lane for small requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The head of an answer; the body too, if it had to be read to understand a refusal."""

    response: aiohttp.ClientResponse
    foreign: bool
    body: bytes | None = None


class _Counted(io.BytesIO):
    """Bytes that tell when they are taken: aiohttp has no timer for a body that nobody reads."""

    def __init__(self, data: bytes, taken: Callable[[int, int], None]) -> None:
        """Args: `taken` is told how many bytes are, and how many are left."""
        super().__init__(data)
        self._size, self._taken = len(data), taken

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self._taken(len(piece), self._size - self.tell())
        return piece


def payload(
    call: Call, taken: Callable[[int, int], None]
) -> bytes | io.BytesIO | AsyncIterable[bytes] | None:
    """What aiohttp is given for a call's body. Args: `taken` is told how many bytes of a large one are, and how many are left."""
    if call.stream is not None:
        return call.stream
    if call.method == "PUT" and not call.retry:
        # aiohttp sends what it can send again by itself, and nobody else decides about a used upload session.
        return _once(call.body or b"")
    # aiohttp writes large bytes in one piece, and warns about it.
    large = call.body is not None and len(call.body) > READ_BUFFER
    return _Counted(call.body or b"", taken) if large else call.body


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
