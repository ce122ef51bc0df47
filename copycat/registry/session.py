"""One upload session: begun by a POST, fed by PATCH or PUT, asked for its offset, given up by DELETE.

Always with its newest Location, because a registry keeps the offset in there (registry notes 2.2).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from yarl import URL

from copycat.errors import RegistryError, TooLarge, UploadRejected
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor
from copycat.registry.answers import Place, Reply, registry_code
from copycat.registry.auth import Login
from copycat.registry.calls import Call
from copycat.registry.location import next_location, with_digest
from copycat.registry.transport import Transport

__all__ = ["SMALL", "OffsetDiffers", "Opened", "Session"]

#: Blobs up to here are read whole first and sent as bytes (they can then be sent again).
SMALL = 256 * 1024

MAX_CHUNK = 1024 * 1024 * 1024
#: A token must last this long when a body begins (seconds).
MARGIN = 60.0
#: The answer to a body: 300 s and what storing takes at this rate (bytes per second).
COMMIT_WAIT, COMMIT_RATE = 300.0, 50_000_000

_OCTETS = "application/octet-stream"
#: Answers to DELETE of a registry that will not do it the next time either. A 404 means this session alone.
_NO_CANCEL = frozenset({401, 403, 405, 501})
#: `0-<last>`; olareg says `0--1` of nothing.
_RANGE = re.compile(r"(?:bytes=)?0-(-?\d+)")


class OffsetDiffers(UploadRejected):
    """416: the session has another number of bytes than the piece begins with."""

    def __init__(self, message: str, *, held: int | None, place: Place) -> None:
        """Args: `held` is what the answer said, if it said it."""
        super().__init__(
            message,
            side=place.side,
            reference=place.reference,
            registry=place.registry,
            status=416,
            code="RANGE_INVALID",
        )
        self.held = held


class Opened(NamedTuple):
    """What an answer says that opens a session: the POST's, or a mount's that came to nothing."""

    location: URL
    least_chunk: int
    """`OCI-Chunk-Min-Length`: bytes that every piece but the last must have."""

    @classmethod
    def by(cls, place: Place, reply: Reply) -> Opened:
        """Raises UploadRejected or HostNotAllowed if the answer has no Location that can be used."""
        least = reply.headers.get("OCI-Chunk-Min-Length", "")
        known = least.isdecimal() and len(least) < 12
        return cls(next_location(place, reply), min(int(least), MAX_CHUNK) if known else 0)


class Session:
    """One session for one blob."""

    def __init__(
        self,
        transport: Transport,
        login: Login,
        descriptor: Descriptor,
        *,
        place: Place,
        opened: Opened | None = None,
        renew: bool = True,
    ) -> None:
        """Args: `opened`: it is open already; `renew`: whether a body that is refused may have another login."""
        self._transport, self._login, self._descriptor = transport, login, descriptor
        self._place, self._renew = place, renew
        self._location: URL | None = None
        self.least_chunk = 0
        """Bytes that every piece but the last must have."""
        if opened is not None:
            self._location, self.least_chunk = opened

    async def open(self) -> None:
        """Begin it, unless it was given."""
        if self._location is not None:
            return
        reply = await self._transport.fetch(
            self._place.registry,
            self._call("POST", path="blobs/uploads/", headers={"Content-Length": "0"}, retry=True),
        )
        self._location, self.least_chunk = Opened.by(self._place, reply)

    async def patch(
        self,
        body: bytes | AsyncGenerator[bytes],
        *,
        at: int | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> None:
        """More bytes. Args: `at` is where a piece begins, None: the body is everything; `on_sent` is told what goes out.

        Raises OffsetDiffers, TooLarge of a piece, and the registry errors.
        """
        length = len(body) if isinstance(body, bytes) else self._descriptor.size
        headers = {"Content-Type": _OCTETS, "Content-Length": str(length)}
        if at is not None and length:
            # `start-end` and nothing else: ACR rejects a unit (dotnet/sdk-container-builds#258).
            headers["Content-Range"] = f"{at}-{at + length - 1}"
        reply = await self._send(
            "PATCH", self._url, headers, body, accept=frozenset({416}), on_sent=on_sent
        )
        if reply.status == 416:
            raise self._differs(reply)
        # The Range of the answer is not looked at: our own count is right, ECR's is stale (registry notes 2.2).
        if "Location" in reply.headers:  # else it stays where it was, as regclient has it
            self._location = next_location(self._place, reply)

    def _differs(self, reply: Reply) -> RegistryError:
        if registry_code(reply.body) == "REQUESTED_RANGE_NOT_SATISFIABLE":
            # GHCR of a piece over 4 MiB (oras-project/rust-oci-client#35).
            return self._place.error(
                TooLarge,
                f"{self._place.who}: pieces of {self._place.what} may not be as large as they are (HTTP 416).",
                status=416,
            )
        held = _held(reply)
        if held is not None and "Location" in reply.headers:
            self._location = next_location(self._place, reply)
        return OffsetDiffers(
            f"{self._place.who}: it does not take {self._place.what} from here (HTTP 416).",
            held=held,
            place=self._place,
        )

    async def commit(self, body: bytes | AsyncGenerator[bytes] = b"") -> None:
        """The end. Args: `body` is the whole blob in the form that has one request for it."""
        length = len(body) if isinstance(body, bytes) else self._descriptor.size
        headers = {"Content-Type": _OCTETS, "Content-Length": str(length)}
        reply = await self._send(
            "PUT", with_digest(self._url, self._descriptor.digest), headers, body
        )
        self._location = None
        stored = reply.headers.get("Docker-Content-Digest", "")
        digest = self._descriptor.digest
        if stored.startswith(f"{digest.algorithm}:") and stored != str(digest):
            raise self._place.error(
                UploadRejected,
                f"{self._place.who}: {self._place.what} was stored as {Digest.find(stored) or 'something else'}.",
                status=reply.status,
                code="DIGEST_INVALID",
            )

    async def offset(self) -> int | None:
        """How many bytes it has; None if the registry cannot say so, or lost them."""
        # A registry that keeps the offset in the Location answers an older one with 416 and the newest.
        call = self._call("GET", url=self._url, headers={}, accept=frozenset({416}))
        try:
            reply = await self._transport.fetch(self._place.registry, call)
            held = _held(reply)
            if held is not None and "Location" in reply.headers:
                self._location = next_location(self._place, reply)
        except RegistryError:
            return None
        return held

    async def cancel(self) -> None:
        """Give it up, once and without caring for the answer: what nobody cancels is kept for days."""
        location, self._location = self._location, None
        endpoint = self._transport.endpoint(self._place.registry)
        if location is None or endpoint.no_cancel:
            return
        # A login of its own: distribution wants a scope for this that nothing else needs.
        call = replace(
            self._call(
                "DELETE",
                url=location,
                headers={},
                accept=frozenset(range(300, 600)),
            ),
            login=replace(self._login, start={}, exchanged=set()),
        )
        with suppress(RegistryError):
            reply = await self._transport.fetch(self._place.registry, call)
            endpoint.no_cancel = reply.status in _NO_CANCEL

    @property
    def _url(self) -> URL:
        if self._location is None:
            raise RuntimeError("the session is not open")
        return self._location

    async def _send(
        self,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: bytes | AsyncGenerator[bytes],
        *,
        accept: frozenset[int] = frozenset(),
        on_sent: Callable[[int], None] | None = None,
    ) -> Reply:
        call = self._call(
            method,
            url=url,
            headers=headers,
            body=body if isinstance(body, bytes) else None,
            stream=None if isinstance(body, bytes) else body,
            silence=self._commit_wait(),
            accept=accept,
        )
        call = replace(call, on_sent=on_sent)
        return await self._transport.fetch(self._place.registry, call)

    def _call(
        self,
        method: str,
        *,
        path: str = "",
        url: URL | None = None,
        headers: dict[str, str],
        body: bytes | None = None,
        stream: AsyncGenerator[bytes] | None = None,
        silence: float | None = None,
        retry: bool = False,
        accept: frozenset[int] = frozenset(),
    ) -> Call:
        return Call(
            method=method,
            repository=self._login.repository,
            path=path,
            url=url,
            place=self._place,
            login=self._login,
            headers=headers,
            body=body,
            stream=stream,
            silence=silence,
            retry=retry,
            accept=accept,
            margin=MARGIN,
            renew=stream is None or self._renew,
            # a large blob's pieces, and the commit that stores it, take their time: the transfer has a permit of its own
            small=method not in {"PATCH", "PUT"} or self._descriptor.size <= SMALL,
        )

    def _commit_wait(self) -> float:
        """Seconds that the answer to a body may take (product notes 5)."""
        return max(
            self._transport.request_timeout, COMMIT_WAIT + self._descriptor.size / COMMIT_RATE
        )


def _held(reply: Reply) -> int | None:
    match = _RANGE.fullmatch(reply.headers.get("Range", "").strip())
    return None if match is None else max(int(match[1]) + 1, 0)
