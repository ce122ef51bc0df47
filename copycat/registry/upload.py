"""A blob into a repository: the ladder of forms, and what each refusal means for the next attempt.

A session that has seen a byte is never used again, but for form D that asks it where it is: a new
attempt is a new POST and a new body (registry notes 2.3). The body's source holds its last chunk back
until it is verified, so an upload that is fed wrong bytes never becomes complete.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import anyio

from copycat.errors import (
    CopycatError,
    DigestMismatch,
    RegistryError,
    Throttled,
    TooLarge,
    Unavailable,
    Unsupported,
    one_error,
)
from copycat.oci.manifest import Descriptor
from copycat.registry.answers import Place
from copycat.registry.auth import Login
from copycat.registry.body import Beat, close, whole
from copycat.registry.calls import BodySpent
from copycat.registry.endpoint import Form
from copycat.registry.limits import GATE_PATIENCE
from copycat.registry.pieces import Pieces
from copycat.registry.session import SMALL, Opened, Session
from copycat.registry.transport import Transport

__all__ = ["OpenBody", "Upload"]

OpenBody = Callable[[], AsyncIterator[bytes]]

ATTEMPTS = 3
#: Least piece that form D goes down to when a proxy answers 413 (bytes).
MIN_CHUNK = 512 * 1024
#: A session is given up within this time (seconds), by a cancelled task too.
PARTING = 2.0
#: Two bodies cut as near to each other as this (bytes; seconds, where it took long) were cut by a limit,
#: which a third one would meet as well.
SAME_BYTES, SAME_SECONDS, LONG_SECONDS = 1 << 20, 2.0, 30.0
#: One body cut after so many seconds and bytes is taken for that, too (go-containerregistry#2084).
LIMIT_SECONDS, LIMIT_BYTES = 300.0, 1 << 30

#: These say nothing about the form of an upload.
_FINAL_CODES = frozenset(
    {"DENIED", "NAME_INVALID", "NAME_UNKNOWN", "REPOSITORY_UNKNOWN", "UNAUTHORIZED"}
)
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
_OUT_OF_REACH = frozenset(
    {"breaker_open", "certificate", "dns", "downgrade", "host_not_allowed", "timeout", "tls"}
)
#: Old Artifactory and others do not know a PUT with a body (containerd#3533).
_FORM_STATUSES = frozenset({400, 404, 405})


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
        self._mismatches = 0
        self._renewed = False
        self._cuts: list[tuple[int, float]] = []
        self._why_pieces: RegistryError | None = None

    async def send(self, open_body: OpenBody, opened: Opened | None = None) -> None:
        """Upload the blob.

        Args: `opened` is a session that a refused mount opened; it serves the first attempt.
        Raises: the target's errors, the body's errors as they were raised.
        """
        attempts = 0
        while True:
            try:
                await self._attempt(open_body, opened)
            except _Failed as failure:
                if failure.look and await self._exists():
                    return
                opened = None
                attempts += not failure.free
                if attempts >= ATTEMPTS or (failure.error.retry_after or 0) > GATE_PATIENCE:
                    raise failure.error from failure.error.__cause__
                await self._pause(failure, attempts)
            else:
                self._endpoint.form, self._endpoint.chunk = self._form, self._chunk
                return

    async def _pause(self, failure: _Failed, attempts: int) -> None:
        transport = self._transport
        transport.metrics.retries.labels(self._endpoint.label, failure.error.reason).inc()
        if not failure.free:
            await transport.rest(self._place.registry, failure.error, attempts)

    async def _attempt(self, open_body: OpenBody, opened: Opened | None) -> None:
        """One session, which does not outlive a failure. Raises _Failed where another may do better."""
        session = Session(
            self._transport,
            self._login,
            self._descriptor,
            place=self._place,
            opened=opened,
            renew=not self._renewed,
        )
        try:
            await self._fill(session, open_body)
        except BaseException as failure:
            error = failure.error if isinstance(failure, _Failed) else failure
            if not _out_of_reach(error):
                # Others that fail at the same time cancel this task: that must not cost the DELETE.
                with anyio.CancelScope(shield=True), anyio.move_on_after(PARTING):
                    await session.cancel()
            raise

    async def _fill(self, session: Session, open_body: OpenBody) -> None:
        if self._descriptor.size <= SMALL and self._data is None:
            self._data = await whole(open_body())
        await session.open()
        self._least_chunk = session.least_chunk
        if self._data is not None and self._form is not Form.CHUNKED:
            await self._send_bytes(session, self._data)
            return
        beat = Beat(self._transport.clock, self._on_bytes)
        body = open_body()
        followed = beat.follow(body)
        try:
            await self._send_stream(session, followed, beat)
        finally:
            with anyio.CancelScope(shield=True):
                await close(followed)
                await close(body)

    # Bodies

    async def _send_bytes(self, session: Session, data: bytes) -> None:
        """A blob in memory, in form B or C."""
        try:
            if self._form is Form.PATCHED:
                await session.patch(data)
                await session.commit()
            else:
                await session.commit(data)
        except RegistryError as error:
            raise self._judged(error, sent=True) from error
        if self._on_bytes is not None:
            self._on_bytes(len(data))

    async def _send_stream(self, session: Session, body: AsyncGenerator[bytes], beat: Beat) -> None:
        """A blob that flows through. A stalled sink is cut off, a failed source is told from a failed sink."""
        failure: RegistryError | None = None
        cut = ""
        with one_error():
            async with anyio.create_task_group() as tasks:

                async def watch() -> None:
                    nonlocal cut
                    cut = await beat.watch(self._transport.silence, self._transport.slow_rate)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(watch)
                try:
                    await self._sent(session, body, beat)
                    cut = ""
                except RegistryError as error:
                    failure = error
                except CopycatError as error:
                    # The body's own, in the form that reads it without aiohttp between.
                    beat.error = error
                tasks.cancel_scope.cancel()
        if beat.error is not None:
            midway = beat.taken > 0
            raise self._source_failed(beat.error, midway=midway) from beat.error
        if failure is not None:
            self._note_cut(failure, beat)
            raise self._judged(failure, sent=beat.finished) from failure
        if cut == "slow":
            raise _Failed(self._unavailable("hardly anything moves", "slow"))
        if cut:
            raise _Failed(self._unavailable("it stopped reading", "stalled"))

    async def _sent(self, session: Session, body: AsyncGenerator[bytes], beat: Beat) -> None:
        if self._form is Form.WHOLE:
            await session.commit(body)
            return
        if self._form is Form.PATCHED:
            await session.patch(body)
        else:
            chunk = max(self._chunk, self._least_chunk)
            label = self._endpoint.label
            pieces = Pieces(self._transport, session, chunk=chunk, label=label, on_sent=beat.moves)
            await pieces.send(body)
        await session.commit()

    # Failures

    def _source_failed(self, error: Exception, *, midway: bool) -> Exception:
        """Another attempt may read the source whole: once for wrong bytes, or if its stream broke midway."""
        if isinstance(error, DigestMismatch):
            self._mismatches += 1
            return _Failed(error, free=True) if self._mismatches == 1 else error
        if not isinstance(error, Unavailable) or not error.temporary:
            return error
        # A source that could not even be opened has been tried as often as it may be.
        return _Failed(error) if midway and error.reason != "breaker_open" else error

    def _judged(self, error: RegistryError, *, sent: bool) -> Exception:
        """What to do about the target's answer (registry notes 2.1, 2.3, 4). Args: `sent`: it had the whole body."""
        if isinstance(error, BodySpent):
            self._renewed = True  # a body that is refused once more is refused for good
            return _Failed(error, free=True)
        if isinstance(error, Throttled | Unavailable):
            return _Failed(error, look=sent or error.status > 0) if error.temporary else error
        if isinstance(error, TooLarge) and error.status:
            return self._smaller(error)
        if self._descriptor.size == 0 and error.status in {400, 405}:
            return self._place.error(
                Unsupported,
                f"{self._place.who} does not store empty blobs, which {self._place.what} is: {error}",
                status=error.status,
                code=error.code,
                reason="empty_blob",
            )
        if error.code in _SESSION_CODES or error.status in {409, 416}:
            return _Failed(error, look=True)
        return self._judged_form(error)

    def _judged_form(self, error: RegistryError) -> Exception:
        """An answer that may be about the form and not about the blob."""
        if error.status not in _FORM_STATUSES or error.code in _FINAL_CODES:
            return error
        if self._form is Form.WHOLE:
            self._form = Form.PATCHED
            return _Failed(error, look=True, free=True)
        if self._form is Form.CHUNKED and self._why_pieces is not None:
            # It takes no pieces either (GAR): what led here is what is wrong.
            return self._why_pieces
        return error

    def _note_cut(self, error: RegistryError, beat: Beat) -> None:
        """Bodies that break at the same place meet a limit: go on in pieces (registry notes 2.1, 2.3)."""
        if self._form is Form.CHUNKED or self._descriptor.size <= self._chunk:
            return
        if error.status or not error.temporary or not beat.taken:
            return
        taken, lasted = beat.taken, beat.clock() - beat.begun
        alike = any(
            abs(taken - before) <= SAME_BYTES
            or (lasted >= LONG_SECONDS and abs(lasted - earlier) <= SAME_SECONDS)
            for before, earlier in self._cuts
        )
        self._cuts.append((taken, lasted))
        if alike or (lasted >= LIMIT_SECONDS and taken >= LIMIT_BYTES):
            self._form, self._why_pieces = Form.CHUNKED, error

    def _smaller(self, error: TooLarge) -> Exception:
        """A proxy limits bodies: go on in pieces, and in smaller ones."""
        if self._form is not Form.CHUNKED:
            self._form, self._why_pieces = Form.CHUNKED, error
            return _Failed(error, free=True)
        if self._chunk // 2 < max(MIN_CHUNK, self._least_chunk):
            return error
        self._chunk //= 2
        return _Failed(error, free=True)

    def _unavailable(self, text: str, reason: str) -> Unavailable:
        return self._place.error(
            Unavailable,
            f"{self._place.who}: {self._place.what}: {text}.",
            reason=reason,
        )


def _out_of_reach(error: BaseException) -> bool:
    """Whether the target would not hear of a cancelled session either."""
    return (
        isinstance(error, RegistryError)
        and error.side != "source"
        and error.reason in _OUT_OF_REACH
    )
