"""A blob into a repository: sessions, Locations, commits, and the three forms of sending.

A session that has seen a byte is never used again: a new attempt is a new POST and a new body
(registry notes 2.3). The body's source holds its last chunk back until it is verified, so an upload
that is fed wrong bytes never becomes complete.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import anyio
import anyio.lowlevel
from yarl import URL

from copycat.errors import (
    CopycatError,
    DigestMismatch,
    RegistryError,
    Throttled,
    TooLarge,
    Unavailable,
    Unsupported,
    UploadRejected,
    one_error,
)
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor
from copycat.registry.answers import Place, Reply
from copycat.registry.auth import Login
from copycat.registry.calls import BodySpent, Call
from copycat.registry.endpoint import Form
from copycat.registry.limits import GATE_PATIENCE
from copycat.registry.location import next_location, with_digest
from copycat.registry.transport import Transport

__all__ = ["SMALL", "OpenBody", "Upload"]

OpenBody = Callable[[], AsyncIterator[bytes]]

#: Blobs up to here are read whole first and sent as bytes (they can then be sent again).
SMALL = 256 * 1024
ATTEMPTS = 3
#: Least piece that form D goes down to when a proxy answers 413 (bytes).
MIN_CHUNK = 512 * 1024
MAX_CHUNK = 1024 * 1024 * 1024
#: A token must last this long when a body begins (seconds).
MARGIN = 60.0
#: The answer to a body: 300 s and what storing takes at this rate (bytes per second).
COMMIT_WAIT, COMMIT_RATE = 300.0, 50_000_000

#: These say nothing about the form of an upload.
_FINAL_CODES = frozenset(
    {"DENIED", "NAME_INVALID", "NAME_UNKNOWN", "REPOSITORY_UNKNOWN", "UNAUTHORIZED"}
)

_OCTETS = "application/octet-stream"
#: A new session may succeed where these came (registry notes 2.3, 4).
_SESSION_CODES = frozenset(
    {
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DIGEST_INVALID",
        "RANGE_INVALID",
        "SIZE_INVALID",
    }
)
#: Old Artifactory and others do not know a PUT with a body (containerd#3533).
_FORM_STATUSES = frozenset({400, 404, 405})


class _Beat:
    """When the sink took its last chunk: one time stamp, looked at now and then, instead of a timer per chunk."""

    __slots__ = ("clock", "error", "finished", "on_bytes", "since")

    def __init__(self, clock: Callable[[], float], on_bytes: Callable[[int], None] | None) -> None:
        self.clock, self.on_bytes = clock, on_bytes
        #: Since when the sink holds a chunk; None while the source is waited for, and at the end.
        self.since: float | None = None
        #: What the body raised: aiohttp hides it behind an error of its own.
        self.error: Exception | None = None
        self.finished = False

    async def follow(self, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """The body's chunks, timed."""
        clock, on_bytes = self.clock, self.on_bytes
        try:
            async for chunk in body:
                self.since = clock()
                yield chunk
                self.since = None
                if on_bytes is not None:
                    on_bytes(len(chunk))
        except Exception as error:
            self.error = error
            raise
        self.finished = True


@dataclass(slots=True, eq=False)
class _Failed(Exception):
    """An attempt failed in a way that another one may cure."""

    error: CopycatError
    look: bool = False
    """The blob may be there all the same: ask before sending it again."""
    free: bool = False
    """Not one of the attempts: something was learnt that makes the next one different."""


class Upload:
    """One blob to one repository, until it is there or the attempts are used up."""

    def __init__(
        self,
        transport: Transport,
        login: Login,
        descriptor: Descriptor,
        *,
        place: Place,
        exists: Callable[[], Awaitable[bool]],
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """Args: `exists` asks whether the blob is there; `on_bytes` is told what the target took."""
        self._transport, self._login, self._descriptor = transport, login, descriptor
        self._place, self._exists, self._on_bytes = place, exists, on_bytes
        self._endpoint = transport.endpoint(place.registry)
        self._form, self._chunk = self._endpoint.form, self._endpoint.chunk
        self._least_chunk = 0
        self._data: bytes | None = None
        self._mismatches = self._logins = 0
        self._session: URL | None = None

    async def send(self, open_body: OpenBody, location: URL | None = None) -> None:
        """Upload the blob.

        Args: `location` is a session that a refused mount opened; it serves the first attempt.
        Raises: the target's errors, the body's errors as they were raised.
        """
        attempts = 0
        while True:
            try:
                await self._attempt(open_body, location)
            except _Failed as failure:
                if failure.free or self._form is not Form.WHOLE:
                    await self._cancel()
                if failure.look and await self._exists():
                    return
                location = None
                attempts += not failure.free
                if attempts >= ATTEMPTS or (failure.error.retry_after or 0) > GATE_PATIENCE:
                    raise failure.error from failure.error.__cause__
                await self._pause(failure, attempts)
            except CopycatError:
                if self._form is not Form.WHOLE:
                    await self._cancel()
                raise
            else:
                self._endpoint.form, self._endpoint.chunk = self._form, self._chunk
                return

    async def _pause(self, failure: _Failed, attempts: int) -> None:
        transport = self._transport
        transport.metrics.retries.labels(self._endpoint.label, failure.error.reason).inc()
        if not failure.free and not failure.error.retry_after:
            await transport.sleep(transport.retry.delay(attempts, transport.jitter))

    async def _attempt(self, open_body: OpenBody, location: URL | None) -> None:
        """One session. Raises _Failed where another may do better."""
        if self._descriptor.size <= SMALL and self._data is None:
            self._data = await _whole(open_body())
        location = location or await self._start()
        self._session = location
        if self._data is not None and self._form is not Form.CHUNKED:
            await self._send_bytes(location, self._data)
            return
        beat = _Beat(self._transport.clock, self._on_bytes)
        body = open_body()
        followed = beat.follow(body)
        try:
            await self._send_stream(location, followed, beat)
        finally:
            with anyio.CancelScope(shield=True):
                await _close(followed)
                await _close(body)

    async def _start(self) -> URL:
        reply = await self._transport.fetch(
            self._place.registry,
            self._call("POST", path="blobs/uploads/", headers={"Content-Length": "0"}, retry=True),
        )
        least = reply.headers.get("OCI-Chunk-Min-Length", "")
        self._least_chunk = (
            min(int(least), MAX_CHUNK) if least.isdecimal() and len(least) < 12 else 0
        )
        return next_location(self._place, reply)

    async def _cancel(self) -> None:
        """Give up a session, once and without caring for the answer: most registries clear up by themselves."""
        session, self._session = self._session, None
        if session is not None:
            call = self._call("DELETE", url=session, headers={}, accept=frozenset(range(300, 600)))
            with suppress(RegistryError):
                await self._transport.fetch(self._place.registry, call)

    # Bodies

    async def _send_bytes(self, location: URL, data: bytes) -> None:
        """A blob in memory, in form B or C."""
        try:
            if self._form is Form.PATCHED:
                location = await self._patch(location, data, {})
                await self._commit(location)
            else:
                await self._put(with_digest(location, self._descriptor.digest), body=data)
        except RegistryError as error:
            raise self._judged(error, sent=True) from error
        if self._on_bytes is not None:
            self._on_bytes(len(data))

    async def _send_stream(self, location: URL, body: AsyncGenerator[bytes], beat: _Beat) -> None:
        """A blob that flows through. A stalled sink is cut off, a failed source is told from a failed sink."""
        failure: RegistryError | None = None
        done = False
        with one_error():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, beat, tasks.cancel_scope)
                try:
                    await self._sent(location, body)
                    done = True
                except RegistryError as error:
                    failure = error
                except CopycatError as error:
                    # The body's own, in the form that reads it without aiohttp between.
                    beat.error = error
                tasks.cancel_scope.cancel()
        if beat.error is not None:
            raise self._source_failed(beat.error) from beat.error
        if failure is not None:
            raise self._judged(failure, sent=beat.finished) from failure
        if not done:
            raise _Failed(self._unavailable("it stopped reading", "stalled"))

    async def _sent(self, location: URL, body: AsyncGenerator[bytes]) -> None:
        size = self._descriptor.size
        if self._form is Form.WHOLE:
            await self._put(with_digest(location, self._descriptor.digest), stream=body)
            return
        if self._form is Form.PATCHED:
            location = await self._patch(location, body, {})
        else:
            chunk = max(self._chunk, self._least_chunk)
            at, held = 0, bytearray()
            async for piece in body:
                held += piece
                while len(held) >= chunk:
                    location = await self._patch_range(location, bytes(held[:chunk]), at)
                    at += chunk
                    del held[:chunk]
            if held or size == 0:
                location = await self._patch_range(location, bytes(held), at)
        await self._commit(location)

    async def _patch_range(self, location: URL, piece: bytes, at: int) -> URL:
        """A piece in form D: `start-end` and nothing else (ACR rejects a unit, GHCR limits the size)."""
        return await self._patch(
            location, piece, {"Content-Range": f"{at}-{at + len(piece) - 1}"} if piece else {}
        )

    async def _patch(
        self, location: URL, body: bytes | AsyncGenerator[bytes], headers: dict[str, str]
    ) -> URL:
        length = len(body) if isinstance(body, bytes) else self._descriptor.size
        reply = await self._transport.fetch(
            self._place.registry,
            self._call(
                "PATCH",
                url=location,
                headers={"Content-Type": _OCTETS, "Content-Length": str(length), **headers},
                body=body if isinstance(body, bytes) else None,
                stream=None if isinstance(body, bytes) else body,
                silence=self._commit_wait(),
            ),
        )
        # The Range of the answer is not looked at: our own count is right, ECR's is stale (registry notes 2.2).
        self._session = next_location(self._place, reply)
        return self._session

    async def _commit(self, location: URL) -> None:
        await self._put(with_digest(location, self._descriptor.digest), body=b"")

    async def _put(
        self, url: URL, *, body: bytes | None = None, stream: AsyncGenerator[bytes] | None = None
    ) -> None:
        length = self._descriptor.size if body is None else len(body)
        reply = await self._transport.fetch(
            self._place.registry,
            self._call(
                "PUT",
                url=url,
                headers={"Content-Type": _OCTETS, "Content-Length": str(length)},
                body=body,
                stream=stream,
                silence=self._commit_wait(),
            ),
        )
        self._check(reply)

    def _check(self, reply: Reply) -> None:
        stored = reply.headers.get("Docker-Content-Digest", "")
        digest = self._descriptor.digest
        if stored.startswith(f"{digest.algorithm}:") and stored != str(digest):
            raise UploadRejected(
                f"{self._place.who}: {self._place.what} was stored as {Digest.find(stored) or 'something else'}.",
                side=self._place.side,
                reference=self._place.reference,
                registry=self._place.registry,
                status=reply.status,
                code="DIGEST_INVALID",
            )

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
            small=stream is None,
        )

    def _commit_wait(self) -> float:
        """Seconds that the answer to a body may take (product notes 5)."""
        return max(
            self._transport.request_timeout, COMMIT_WAIT + self._descriptor.size / COMMIT_RATE
        )

    async def _watch(self, beat: _Beat, scope: anyio.CancelScope) -> None:
        """Cut an upload whose sink takes nothing any more: no timer of aiohttp does (registry notes 3.2)."""
        limit = self._transport.silence
        while True:
            await anyio.sleep(limit / 4)
            if beat.since is not None and beat.clock() - beat.since >= limit:
                scope.cancel()
                return

    # Failures

    def _source_failed(self, error: Exception) -> Exception:
        """Another attempt may read the source whole: once for wrong bytes, or if its stream broke midway."""
        if isinstance(error, DigestMismatch):
            self._mismatches += 1
            return _Failed(error, free=True) if self._mismatches == 1 else error
        if isinstance(error, Unavailable) and error.temporary and error.reason != "breaker_open":
            return _Failed(error)
        return error

    def _judged(self, error: RegistryError, *, sent: bool) -> Exception:
        """What to do about the target's answer (registry notes 2.1, 2.3, 4). Args: `sent`: it had the whole body."""
        if isinstance(error, BodySpent):
            self._logins += 1
            return _Failed(error, free=self._logins == 1)
        if isinstance(error, Throttled | Unavailable):
            return _Failed(error, look=sent or error.status > 0) if error.temporary else error
        if isinstance(error, TooLarge) and error.status == 413:
            return self._smaller(error)
        if self._descriptor.size == 0 and error.status in {400, 405}:
            return Unsupported(
                f"{self._place.who} does not store empty blobs, which {self._place.what} is: {error}",
                side=self._place.side,
                reference=self._place.reference,
                registry=self._place.registry,
                status=error.status,
                code=error.code,
                reason="empty_blob",
            )
        if error.code in _SESSION_CODES or error.status in {409, 416}:
            return _Failed(error, look=True)
        unknown = error.status in _FORM_STATUSES and error.code not in _FINAL_CODES
        if unknown and self._form is Form.WHOLE:
            self._form = Form.PATCHED
            return _Failed(error, look=True, free=True)
        return error

    def _smaller(self, error: TooLarge) -> Exception:
        """A proxy limits bodies: go on in pieces, and in smaller ones."""
        if self._form is not Form.CHUNKED:
            self._form = Form.CHUNKED
            return _Failed(error, free=True)
        if self._chunk // 2 < max(MIN_CHUNK, self._least_chunk):
            return error
        self._chunk //= 2
        return _Failed(error, free=True)

    def _unavailable(self, text: str, reason: str) -> Unavailable:
        return Unavailable(
            f"{self._place.who}: {self._place.what}: {text}.",
            side=self._place.side,
            reference=self._place.reference,
            registry=self._place.registry,
            reason=reason,
        )


async def _whole(body: AsyncIterator[bytes]) -> bytes:
    try:
        return b"".join([chunk async for chunk in body])
    finally:
        await _close(body)


async def _close(body: AsyncIterator[bytes]) -> None:
    """Close a generator whose last reader, a task of aiohttp's, may still be on its way out."""
    if not isinstance(body, AsyncGenerator):
        return
    for _ in range(100):
        with suppress(RuntimeError):  # "asynchronous generator is already running"
            await body.aclose()
            return
        await anyio.lowlevel.checkpoint()
