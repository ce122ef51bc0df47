"""A blob as a stream of verified bytes that survives a source that drops, stalls or forgets.

The last chunk is held back until size and hash are right (`Verifier`), so what is fed from here can
never become complete if it is wrong. A break in the middle is mended by a Range request, while
whoever reads sees nothing but a pause (registry notes 3.2).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import anyio

from copycat.errors import DigestMismatch, RegistryError, Unavailable
from copycat.oci.digest import Verifier
from copycat.oci.manifest import Descriptor
from copycat.registry.answers import (
    NETWORK_ERRORS,
    Decoder,
    Pace,
    decoded,
    decoder,
    network_error,
)
from copycat.registry.calls import Call
from copycat.registry.hosts import netloc
from copycat.registry.transport import Transport

__all__ = ["Download"]

#: Seconds that a stream may spend on resuming, in all: an upload that is fed from it must not idle out.
RESUME_BUDGET = 45.0
#: Breaks in one blob that are mended at most.
MAX_RESUMES = 20
#: What a source that ignores Range sends again may be thrown away up to here (bytes), or this often.
DISCARD_LIMIT, DISCARD_TIMES = 64 * 1024 * 1024, 2

#: Bytes that one read of a plain connection may take. asyncio's 256 KiB cost a tenth more CPU for each GiB.
RECEIVE = 512 * 1024

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(slots=True)
class _Source:
    """One response, how to decode it, and how many of its bytes were had before."""

    response: aiohttp.ClientResponse
    decode: Decoder | None = None
    skip: int = 0


class Download:
    """One reading of one blob; `chunks()` may be iterated once."""

    def __init__(
        self,
        transport: Transport,
        call: Call,
        descriptor: Descriptor,
        *,
        on_bytes: Callable[[int], None] | None = None,
        discard_limit: int = DISCARD_LIMIT,
    ) -> None:
        """Args: `call` is the GET; `on_bytes` is told the size of every chunk that is new."""
        self._transport, self._call, self._descriptor = transport, call, descriptor
        self._place = call.place
        self._on_bytes, self._discard_limit = on_bytes, discard_limit
        self._verifier = Verifier(descriptor.digest, descriptor.size)
        self._opened = False
        self._host = call.place.registry
        self._ranges = True
        self._discards = 0
        self._resumes = 0
        self._failures = 0  # since the last progress
        self._spent = 0.0
        self._broken_at: float | None = None

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The blob's bytes. Raises DigestMismatch in place of the last chunk, or a registry error."""
        size, verifier, feed = self._descriptor.size, self._verifier, self._verifier.feed
        pace = Pace(self._place, self._transport.clock)
        while verifier.received < size:
            async with AsyncExitStack() as stack:
                try:
                    source = await self._open(stack)
                    # Read in big pieces and with nothing more than the hash in between: this is the hot loop.
                    pace.wait()
                    async for chunk, _ in source.response.content.iter_chunks():
                        pace.took(len(chunk))
                        for piece in self._pieces(source, chunk):
                            held = feed(piece)
                            self._progress(len(piece))
                            if held is not None:
                                yield held
                        pace.wait()
                    if verifier.received < size:
                        # A body that ends with the connection ends early without any error.
                        raise self._unavailable("the stream ended early", "short")
                except DigestMismatch as error:
                    raise self._wrong(error) from error
                except NETWORK_ERRORS as error:
                    await self._break(network_error(self._place, error, host=self._host))
                except Unavailable as error:
                    if error.reason == "slow":
                        raise  # on the same way it would go on like this
                    await self._break(error)
        try:
            last = verifier.finish()
        except DigestMismatch as error:
            raise self._wrong(error) from error
        if last:
            yield last

    def _pieces(self, source: _Source, chunk: bytes) -> Iterable[bytes]:
        """A chunk decoded, without the bytes that were had before."""
        if source.decode is None and not source.skip:
            return (chunk,)
        if source.decode is None:
            return _rest(source, (chunk,))
        return _rest(source, decoded(self._place, source.decode, chunk))

    def _progress(self, count: int) -> None:
        if self._on_bytes is not None:
            self._on_bytes(count)
        if self._broken_at is not None:
            self._spent += self._transport.clock() - self._broken_at
            self._broken_at, self._failures = None, 0

    # Opening and opening again

    async def _open(self, stack: AsyncExitStack) -> _Source:
        """A response that goes on where the last one broke. Raises Unavailable if this try failed."""
        offset = self._verifier.received
        ranged = bool(offset) and self._ranges
        call = Call(
            method="GET",
            repository=self._call.repository,
            path=self._call.path,
            place=self._place,
            login=self._call.login,
            headers={"Range": f"bytes={offset}-{self._descriptor.size - 1}"} if ranged else {},
            accept=frozenset({400, 416}) if ranged else frozenset(),
            retry=self._resumes == 0,
            silence=self._transport.silence,
        )
        response = await self._enter(stack, call)
        _widen(response)
        self._opened, self._host = True, netloc(response.url)
        if response.status in {400, 416}:
            self._ranges = False
            raise self._unavailable("it does not serve the rest of a blob", "range")
        decode = decoder(self._place, response.headers.get("Content-Encoding"))
        if response.status == 206:
            self._check_range(response, offset, decode)
            return _Source(response)
        self._check_length(response, self._descriptor.size, decode)
        if offset:
            self._discard(offset)
        return _Source(response, decode, offset)

    async def _enter(self, stack: AsyncExitStack, call: Call) -> aiohttp.ClientResponse:
        opening = self._transport.open(self._place.registry, call)
        if self._broken_at is None:
            return await stack.enter_async_context(opening)
        try:
            with anyio.fail_after(max(0.0, RESUME_BUDGET - self._wasted())):
                return await stack.enter_async_context(opening)
        except TimeoutError as error:
            raise self._unavailable("the stream could not be resumed in time", "timeout") from error

    def _check_range(
        self, response: aiohttp.ClientResponse, offset: int, decode: Decoder | None
    ) -> None:
        """A 206 must say that it is exactly the rest (some CDNs send something else)."""
        size = self._descriptor.size
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        right = (
            offset > 0
            and decode is None
            and match is not None
            and int(match[1]) == offset
            and match[3] in {"*", str(size)}
            and response.content_length in {None, size - offset}
        )
        if not right:
            self._ranges = False
            raise self._unavailable(
                "its partial answer is not the part that was asked for", "range"
            )

    def _check_length(
        self, response: aiohttp.ClientResponse, size: int, decode: Decoder | None
    ) -> None:
        length = response.content_length
        if decode is None and length is not None and length != size:
            raise DigestMismatch(
                f"{self._place.who}: {self._place.what} should have {size} bytes, but it is served with {length}.",
                side=self._place.side,
                reference=self._place.reference,
            )

    def _discard(self, offset: int) -> None:
        """Everything comes again from the start. Bounded, because repeating it is quadratic."""
        self._ranges = False
        self._discards += 1
        if offset > self._discard_limit and self._discards > DISCARD_TIMES:
            error = self._unavailable("it cannot resume and the stream broke repeatedly", "range")
            self._resumes = MAX_RESUMES
            raise error

    async def _break(self, error: RegistryError) -> None:
        """A try failed: wait before the next one, or raise `error` if there is none left."""
        transport = self._transport
        if self._broken_at is None:
            self._broken_at = transport.clock()
        self._resumes += 1
        self._failures += 1
        left = RESUME_BUDGET - self._wasted()
        over = (
            self._resumes > MAX_RESUMES or self._failures >= transport.retry.attempts or left <= 0
        )
        if over or not self._opened or not error.temporary or (error.retry_after or 0) > left:
            raise error
        label = transport.metrics.registry_label(self._place.registry)
        transport.metrics.retries.labels(label, error.reason).inc()
        pause = error.retry_after or transport.retry.delay(self._failures, transport.jitter)
        await transport.sleep(min(left, pause))

    def _wasted(self) -> float:
        """Seconds spent on resuming so far."""
        now = 0.0 if self._broken_at is None else self._transport.clock() - self._broken_at
        return self._spent + now

    def _wrong(self, error: DigestMismatch) -> DigestMismatch:
        """The verifier's error with where the bytes came from."""
        return DigestMismatch(
            error.message if error.side else f"{self._place.who}: {self._place.what}: {error}",
            side=self._place.side,
            reference=self._place.reference,
        )

    def _unavailable(self, text: str, reason: str) -> Unavailable:
        return self._place.error(
            Unavailable,
            f"{self._place.who}: {self._place.what}: {text}.",
            reason=reason,
        )


def _widen(response: aiohttp.ClientResponse) -> None:
    """Let a connection take more at a time, where the event loop has that to set."""
    transport = response.connection.transport if response.connection else None
    if isinstance(getattr(transport, "max_size", None), int):
        transport.max_size = RECEIVE  # type: ignore[union-attr] # asyncio's selector transports have it


def _rest(source: _Source, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces without what is still to be skipped."""
    for piece in pieces:
        if source.skip >= len(piece):
            source.skip -= len(piece)
        else:
            yield piece[source.skip :]
            source.skip = 0
