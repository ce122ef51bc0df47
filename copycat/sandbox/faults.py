"""Scripted trouble: at which phase, at which request of it, and at which byte a server breaks its promise."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from copycat.sandbox.ledger import Phase, Request

__all__ = ["Fault", "FaultInjector"]


class _Event(Protocol):
    async def wait(self) -> object: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Fault:
    """One kind of trouble. What is None stays as the server would do it; see `FaultInjector.add`."""

    phase: Phase
    nth: int = 1
    times: int | None = 1
    match: Callable[[Request], bool] | None = None
    status: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes | None = None
    after: bool = False
    answer_at: int | None = None
    hold: _Event | None = None
    delay: float = 0.0
    reset: bool = False
    cut_at: int | None = None
    stall_at: int | None = None
    corrupt_at: int | None = None
    extra_bytes: int = 0
    chunked: bool = False
    close_delimited: bool = False
    ignore_range: bool = False
    encoding: str = ""
    seen: int = 0
    """Requests that matched so far, those included that it let pass."""
    hits: int = 0
    """Requests that it spoiled."""
    reached: anyio.Event = field(default_factory=anyio.Event)
    """Set when a request waits at the fault's `hold` or `stall_at`."""
    _released: anyio.Event = field(default_factory=anyio.Event)

    def wants(self, request: Request) -> bool:
        """Counts the request if it matches; says whether its turn has come."""
        if self.match is not None and not self.match(request):
            return False
        self.seen += 1
        if self.seen < self.nth or (self.times is not None and self.seen >= self.nth + self.times):
            return False
        self.hits += 1
        return True

    @property
    def replaces(self) -> bool:
        """The server's own answer is not even computed."""
        return self.status is not None and not self.after and self.answer_at is None

    def release(self) -> None:
        """Lets the stalled requests go on."""
        self._released.set()

    async def pause(self) -> None:
        """Before the server acts: waits for `hold`, then `delay` seconds."""
        if self.hold is not None:
            self.reached.set()
            await self.hold.wait()
        if self.delay:
            await anyio.sleep(self.delay)

    async def stall(self) -> None:
        """At `stall_at`: until `release()`, or `hold` when there is one, or the client hangs up."""
        self.reached.set()
        await (self.hold or self._released).wait()

    def spoil(self, body: bytes) -> bytes:
        """The answer's body with one flipped byte, with bytes too many (or too few, if negative), compressed."""
        if self.corrupt_at is not None and self.corrupt_at < len(body):
            at = self.corrupt_at
            body = b"%b%c%b" % (body[:at], body[at] ^ 0x01, body[at + 1 :])
        if self.extra_bytes > 0:
            body = bytes(body) + b"\x00" * self.extra_bytes
        elif self.extra_bytes < 0:
            body = body[: self.extra_bytes]
        return gzip.compress(body, mtime=0) if self.encoding == "gzip" else body


class FaultInjector:
    """The faults of one server, asked at each phase of each request (after authentication, except ping and token)."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(
        self,
        phase: Phase | str,
        *,
        nth: int = 1,
        times: int | None = 1,
        match: Callable[[Request], bool] | None = None,
        status: int | None = None,
        headers: Mapping[str, str | None] | None = None,
        body: bytes | None = None,
        after: bool = False,
        answer_at: int | None = None,
        hold: _Event | None = None,
        delay: float = 0.0,
        reset: bool = False,
        cut_at: int | None = None,
        stall_at: int | None = None,
        corrupt_at: int | None = None,
        extra_bytes: int = 0,
        chunked: bool = False,
        close_delimited: bool = False,
        ignore_range: bool = False,
        encoding: str = "",
    ) -> Fault:
        """Spoils the `nth` matching request from now on, and those after it, `times` in all (None: for ever).

        Args:
            match: which requests count; all of the phase by default.
            status: answer this instead of acting (a 401 gets the challenge by itself, an error status an OCI error body).
            headers: into the answer; a value of None takes the header out.
            body: the answer's body.
            after: act first (a blob is stored, a body read), then answer `status` or reset: the reply that is lost.
            answer_at: for uploads: answer `status` when so many body bytes were read; 0 is before the body.
            hold, delay: wait for the event, or so many seconds, before anything else.
            reset: TCP reset: at once, at `cut_at`, or `after` acting.
            cut_at: close after so many bytes of this answer's body (of the request's body when it uploads).
            stall_at: stop there, until `release()`, `hold` or the client's end.
            corrupt_at: flip a bit of this byte of the answer.
            extra_bytes: append (or cut off, if negative) bytes; Content-Length says the new length.
            chunked, close_delimited: send the answer without Content-Length.
            ignore_range: answer the whole blob with 200.
            encoding: "gzip": compress the answer and say so.
        """
        fault = Fault(
            phase=Phase(phase),
            nth=nth,
            times=times,
            match=match,
            status=status,
            headers=headers or {},
            body=body,
            after=after,
            answer_at=answer_at,
            hold=hold,
            delay=delay,
            reset=reset,
            cut_at=cut_at,
            stall_at=stall_at,
            corrupt_at=corrupt_at,
            extra_bytes=extra_bytes,
            chunked=chunked,
            close_delimited=close_delimited,
            ignore_range=ignore_range,
            encoding=encoding,
        )
        self._faults.append(fault)
        return fault

    def take(self, phase: Phase, request: Request) -> Fault | None:
        """The fault whose turn it is, if any. Every fault of the phase counts the request."""
        due = [fault for fault in self._faults if fault.phase is phase and fault.wants(request)]
        return due[0] if due else None

    def clear(self) -> None:
        """Lets go what is stalled and forgets all faults."""
        for fault in self._faults:
            fault.release()
        self._faults.clear()
