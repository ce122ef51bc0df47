"""Form D: a blob in pieces, each acknowledged before the next, so that a break costs a piece and not the blob.

After a break the registry is asked how much it has, and the rest of the piece, which is still in
memory, goes on from there (registry notes 2.3). Where it cannot say so the session is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from copycat.errors import RegistryError, Throttled, Unavailable
from copycat.registry.limits import GATE_PATIENCE
from copycat.registry.session import OffsetDiffers, Session
from copycat.registry.transport import Transport

__all__ = ["Pieces"]


class Pieces:
    """Sends one body into one session."""

    def __init__(
        self,
        transport: Transport,
        session: Session,
        *,
        chunk: int,
        label: str,
        on_sent: Callable[[int], None] | None = None,
    ) -> None:
        """Args: `chunk` bytes make a piece; `label` is the registry's in metrics; `on_sent` is told what goes out."""
        self._on_sent = on_sent
        self._transport, self._session = transport, session
        self._chunk, self._label = chunk, label

    async def send(self, body: AsyncIterator[bytes]) -> None:
        """All of it; the commit is the caller's. Raises the registry's errors, and the body's."""
        at, held = 0, bytearray()
        async for piece in body:
            held += piece
            while len(held) >= self._chunk:
                await self._piece(bytes(held[: self._chunk]), at)
                at += self._chunk
                del held[: self._chunk]
        if held:
            await self._piece(bytes(held), at)

    async def _piece(self, piece: bytes, at: int) -> None:
        """One piece, through breaks: a break that brought bytes is not counted."""
        end, failures = at + len(piece), 0
        while True:
            try:
                rest = piece[len(piece) - (end - at) :]
                await self._session.patch(rest, at=at, on_sent=self._on_sent)
            except RegistryError as error:
                failures += 1
                if failures >= self._transport.retry.attempts or not _resumable(error):
                    raise
                held = await self._held(error)
                if held == 1 and at == 0:
                    held = 0  # distribution says 0-0 of one byte and of none
                if held is None or not at <= held <= end:
                    raise
                failures = 0 if held > at else failures
                at = held
                await self._pause(error, failures)
                if at == end:
                    return
            else:
                return

    async def _held(self, error: RegistryError) -> int | None:
        if isinstance(error, OffsetDiffers) and error.held is not None:
            return error.held
        return await self._session.offset()

    async def _pause(self, error: RegistryError, failures: int) -> None:
        transport = self._transport
        transport.metrics.retries.labels(self._label, error.reason).inc()
        await transport.rest(error.registry, error, max(failures, 1))


def _resumable(error: RegistryError) -> bool:
    if isinstance(error, OffsetDiffers):
        return True
    return (
        isinstance(error, Throttled | Unavailable)
        and error.temporary
        and (error.retry_after or 0) <= GATE_PATIENCE
    )
