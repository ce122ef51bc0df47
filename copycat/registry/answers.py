"""What registries answer, and the one place that turns it into the error tree.

Answers are JSON errors, HTML from proxies, plain text or nothing; they are read up to a limit, cut
and made printable before they get into a message (registry notes 4).
"""

from __future__ import annotations

import re
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec
from multidict import CIMultiDictProxy
from yarl import URL

from copycat.decoding import UNREADABLE
from copycat.errors import (
    Denied,
    HostNotAllowed,
    NotFound,
    RegistryError,
    Side,
    Throttled,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unsupported,
    UploadRejected,
    printable,
)
from copycat.registry.hosts import AddressRefused

__all__ = [
    "ERROR_LIMIT",
    "NETWORK_ERRORS",
    "SLOW_RATE",
    "SLOW_WINDOW",
    "TRANSIENT",
    "Decoder",
    "Pace",
    "Place",
    "Reply",
    "decoded",
    "decoder",
    "network_error",
    "read_body",
    "registry_code",
    "status_error",
]

E = TypeVar("E", bound=RegistryError)

#: An error's body is read up to here (bytes).
ERROR_LIMIT = 64 * 1024
#: Statuses that the same request may outlive (registry notes 4; 520-524 are Cloudflare's, 499 nginx's).
TRANSIENT = frozenset({408, 425, 429, 499, 500, 502, 503, 504, 520, 521, 522, 523, 524})
#: What aiohttp and the sockets raise when there is no (whole) answer.
NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)
#: A body that brings less than this (bytes per second) over the window (seconds) is not waited for any longer
#: (registry notes 3.2). So little that a narrow line, or `maxBandwidth`, which many transfers share, is not meant.
SLOW_RATE, SLOW_WINDOW = 1_000, 300.0

_NOT_FOUND = re.compile(r"(?i)\bnot found\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What was asked, and of whom: the parts of every message."""

    registry: str
    what: str
    """`manifest ghcr.io/team/app:1.2`."""
    reference: str = ""
    side: Side = ""
    writing: bool = False

    @property
    def who(self) -> str:
        """`source registry ghcr.io`."""
        return f"{self.side} registry {self.registry}".strip()

    def error(
        self,
        kind: type[E],
        message: str,
        *,
        reason: str = "",
        temporary: bool | None = None,
        retry_after: float | None = None,
        status: int = 0,
        code: str = "",
    ) -> E:
        """An error of that kind about this. Args: as those of the error."""
        return kind(
            message,
            side=self.side,
            reference=self.reference,
            registry=self.registry,
            reason=reason,
            temporary=temporary,
            retry_after=retry_after,
            status=status,
            code=code,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer that was read whole."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    url: URL
    """Where it came from, after redirects: Locations are relative to it."""
    foreign: bool = False
    """Whether a redirect led to another origin."""


def _errors(body: bytes) -> tuple[str, str]:
    """The first error's code and message of an error body; ("", text) if it is no JSON of that shape."""
    try:
        document: Any = msgspec.json.decode(body)
        rows = document.get("errors") or [document]
        first = rows[0]
        code, message = first.get("code"), first.get("message") or first.get("details")
    except (*UNREADABLE, AttributeError, LookupError, TypeError):
        text = body[:4096].decode("utf-8", "replace")
        return "", re.sub(r"(?s)<(script|style)\b.*?</\1>|<[^>]*>", " ", text)
    return (code if isinstance(code, str) else ""), (message if isinstance(message, str) else "")


def registry_code(body: bytes) -> str:
    """The registry's error code (`MANIFEST_UNKNOWN`), printable; empty if the body has none."""
    return printable(_errors(body)[0], 64)


def status_error(place: Place, reply: Reply, *, retry_after: float | None = None) -> RegistryError:
    """The error for an answer that is no success."""
    code, message = _errors(reply.body)
    code, message = printable(code, 64), printable(message)
    answer = " ".join(filter(None, (f"HTTP {reply.status}", code))) + (
        f": {message}" if message else ""
    )
    kind, text, temporary = _kind(place, reply, code, message)
    return place.error(
        kind,
        f"{place.who}: {text} ({answer}).",
        status=reply.status,
        code=code,
        retry_after=retry_after,
        temporary=temporary,
    )


def _kind(
    place: Place, reply: Reply, code: str, message: str
) -> tuple[type[RegistryError], str, bool | None]:
    status, what = reply.status, place.what
    if status == 429 or (code == "TOOMANYREQUESTS" and status != 200):
        return Throttled, f"it asks for patience at {what}", None
    if status in TRANSIENT:
        return Unavailable, f"no usable answer for {what}", None
    if reply.foreign and "blob" in what and status in {400, 401, 403, 410}:
        # A signed URL that has run out: the way back through the registry gives a fresh one.
        return Unavailable, f"the storage that it redirects to refused {what}", None
    if status == 401:
        return Unauthorized, f"{what} is missing or we have no access; {_remedy(place)}", None
    if status == 403:
        return Denied, f"{what} is missing or we have no access; {_remedy(place)}", None
    if status == 404 or (code == "UNKNOWN" and _NOT_FOUND.search(message)):
        return NotFound, f"{what} is missing or we have no access; {_remedy(place)}", None
    if status == 413:
        return TooLarge, f"{what} is larger than it, or a proxy before it, accepts", None
    if status in {405, 501} or code == "UNSUPPORTED":
        return Unsupported, f"it cannot do what {what} needs", None
    if status >= 500:
        return Unavailable, f"no usable answer for {what}", None
    if place.writing:
        return UploadRejected, f"it refused {what}", None
    return RegistryError, f"it refused the request for {what}", False


def _remedy(place: Place) -> str:
    if place.side == "target":
        return "check that the project exists and that the target's credentials may write there"
    return f"check the name, or give credentials for {place.registry} in registryCredentials"


def network_error(place: Place, error: BaseException, *, host: str) -> RegistryError:
    """The error for a request that got no (whole) answer. `host` is the one that was talked to."""
    kind: type[RegistryError] = Unavailable
    temporary: bool | None = None
    inner = getattr(error, "os_error", None)
    if isinstance(inner, AddressRefused):
        kind, reason, temporary = HostNotAllowed, "host_not_allowed", False
        text = f"{inner}; list the host in registries or allowedRegistries if it is meant"
    elif isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason, temporary = "certificate", False
        text = f"its certificate is not trusted ({error.certificate_error}); see registryCAFile and caFile"
    elif isinstance(error, ValueError):
        # a label of 64 characters, say: no name at all, and neither will it be one the next time
        reason, text, temporary = "dns", f"{host} is no name that can be looked up", False
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        reason, text = "dns", f"the name {host} does not resolve"
    elif isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        reason, text = (
            "tls",
            "the TLS handshake failed; a host without TLS belongs into insecureRegistries",
        )
    elif isinstance(error, TimeoutError):
        reason, text = "timeout", "no answer in time"
    else:
        reason, text = "connection", f"the connection failed ({type(error).__name__}: {error})"
    return place.error(
        kind,
        f"{place.who}: {place.what}: {printable(text)} (host {host}).",
        reason=reason,
        temporary=temporary,
    )


class Decoder:
    """Undoes one Content-Encoding piece by piece (registries were asked for none; some encode anyway)."""

    #: Pieces that leave are at most this large, so that a tiny body cannot become a huge one in memory.
    PIECE = 1 << 20

    def __init__(self, wbits: int) -> None:
        """Args: zlib's `wbits`."""
        self._wbits = wbits
        self._zlib = zlib.decompressobj(wbits)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes out for this piece, no more of it at a time than is taken. Raises zlib.error."""
        while data:
            if self._zlib.eof:  # gzip: one member after another (RFC 1952, section 2.2)
                self._zlib = zlib.decompressobj(self._wbits)
            piece = self._zlib.decompress(data, self.PIECE)
            if piece:
                yield piece
            data = self._zlib.unconsumed_tail or self._zlib.unused_data


_WBITS: dict[str, int] = {"gzip": 31, "x-gzip": 31, "deflate": 47}


def decoder(place: Place, coding: str | None) -> Decoder | None:
    """For a Content-Encoding header: how to undo it, None if nothing is encoded. Raises Unsupported."""
    name = (coding or "identity").strip().lower()
    if name in {"identity", ""}:
        return None
    if name not in _WBITS:
        raise place.error(
            Unsupported,
            f"{place.who}: {place.what} came with the Content-Encoding {printable(name, 40)}, which cannot be undone.",
        )
    return Decoder(_WBITS[name])


class Pace:
    """Whether a body arrives at all; only the time that is spent waiting for it counts."""

    __slots__ = ("_clock", "_place", "_since", "_taken", "_waited")

    def __init__(self, place: Place, clock: Callable[[], float]) -> None:
        """Args: `place` is for the error; `clock` in seconds."""
        self._place, self._clock = place, clock
        self._taken, self._waited, self._since = 0, 0.0, clock()

    def wait(self) -> None:
        """The next bytes are waited for from now on."""
        self._since = self._clock()

    def took(self, count: int) -> None:
        """Bytes arrived. Raises Unavailable (reason `slow`) if they were too few for too long."""
        self._waited += self._clock() - self._since
        self._taken += count
        if self._waited < SLOW_WINDOW:
            return
        if self._taken < SLOW_RATE * self._waited:
            place = self._place
            raise place.error(
                Unavailable,
                f"{place.who}: {place.what}: hardly anything moves.",
                reason="slow",
            )
        self._taken, self._waited = 0, 0.0


async def read_body(
    response: aiohttp.ClientResponse,
    place: Place,
    limit: int,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> bytes:
    """The body of an answer, decoded.

    An error's body is cut at the limit, and left where it cannot be decoded: the status counts. Raises TooLarge
    for a success that is longer, Unsupported for an unknown coding, Unavailable if it hardly arrives, and what
    the network raises.
    """
    try:
        return await _read_body(response, place, limit, Pace(place, clock))
    except (Unsupported, Unavailable):
        if response.status < 300:
            raise
        return b""


async def _read_body(
    response: aiohttp.ClientResponse, place: Place, limit: int, pace: Pace
) -> bytes:
    decode = decoder(place, response.headers.get("Content-Encoding"))
    parts: list[bytes] = []
    left = limit
    async for chunk in response.content.iter_any():
        pace.took(len(chunk))
        pace.wait()
        for piece in (chunk,) if decode is None else decoded(place, decode, chunk):
            parts.append(piece[:left])
            left -= len(piece)
            if left >= 0:
                continue
            if response.status >= 300:
                return b"".join(parts)
            raise place.error(
                TooLarge,
                f"{place.who}: {place.what} has more than the {limit} bytes that are read.",
            )
    return b"".join(parts)


def decoded(place: Place, decode: Decoder, chunk: bytes) -> Iterator[bytes]:
    """What a chunk decodes to. Raises Unavailable if it is not encoded as the header says."""
    try:
        yield from decode.feed(chunk)
    except zlib.error as error:
        raise place.error(
            Unavailable,
            f"{place.who}: {place.what} came with a Content-Encoding that it does not have.",
            reason="encoding",
        ) from error
