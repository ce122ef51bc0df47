"""Scripted trouble: at which phase, at which request of it, and at which byte a server breaks its promise."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypedDict, Unpack

import anyio

from copycat.sandbox.ledger import Phase, Request

__all__ = ["Fault", "FaultInjector", "FaultOptions"]


class _Event(Protocol):
    async def wait(self) -> object: ...


class FaultOptions(TypedDict, total=False):
    """What `FaultInjector.add` takes: the fields of Fault that a test sets, explained there."""

    nth: int
    times: int | None
    match: Callable[[Request], bool] | None
    status: int | None
    code: str
    headers: Mapping[str, str | None]
    body: bytes | None
    after: bool
    answer_at: int | None
    run: Callable[[Request], object] | None
    hold: _Event | None
    delay: float
    down: bool
    reset: bool
    cut_at: int | None
    stall_at: int | None
    corrupt_at: int | None
    extra_bytes: int
    chunked: bool
    close_delimited: bool
    ignore_range: bool
    encoding: str


@dataclass(slots=True, kw_only=True, eq=False)
class Fault:
    """One kind of trouble; what is not set stays as the server would do it."""

    phase: Phase
    nth: int = 1
    """The first matching request that it spoils, counted from when the fault was added."""
    times: int | None = 1
    """How many it spoils from there on; None for ever."""
    match: Callable[[Request], bool] | None = None
    """Which requests of the phase count; all by default."""
    status: int | None = None
    """Answer this instead of acting; an upload's body is read first. A 401 gets the challenge by itself."""
    code: str = ""
    """Of the error body, `MANIFEST_BLOB_UNKNOWN`."""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Into the answer; None takes a header out."""
    body: bytes | None = None
    """The answer's body, with `status` or in the server's own answer."""
    after: bool = False
    """Act first (a blob is stored), then answer `status` or reset: the reply that is lost."""
    answer_at: int | None = None
    """For uploads: answer `status` when so many bytes of the body were read, 0 before any."""
    run: Callable[[Request], object] | None = None
    """Called when its turn has come, before anything else: a tag moves, tokens run out."""
    down: bool = False
    """The machine goes off at this request: nobody listens any more and every connection breaks (`Registry.start` brings it back)."""
    hold: _Event | None = None
    """Wait for it before anything else (at `stall_at`, if that is set)."""
    delay: float = 0.0
    """Seconds to wait before anything else."""
    reset: bool = False
    """TCP reset: at once, at `cut_at`, or `after` acting."""
    cut_at: int | None = None
    """Close after so many bytes of the answer's body; of the request's body in an upload."""
    stall_at: int | None = None
    """Stop there until `release()`, `hold` or the client's end."""
    corrupt_at: int | None = None
    """Flip a bit of this byte of the answer."""
    extra_bytes: int = 0
    """Append bytes, or cut them off if negative; Content-Length says the new length."""
    chunked: bool = False
    """Chunked transfer-encoding instead of Content-Length."""
    close_delimited: bool = False
    """Neither: the end of the connection is the end of the body."""
    ignore_range: bool = False
    """The whole blob with 200, whatever Range says."""
    encoding: str = ""
    """"gzip": compress the answer and say so."""
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
        if self.hold is not None and self.stall_at is None:
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

    def add(self, phase: Phase | str, **options: Unpack[FaultOptions]) -> Fault:
        """Spoils the `nth` matching request from now on and those after it, `times` in all. The options are Fault's fields."""
        fault = Fault(phase=Phase(phase), **options)
        self._faults.append(fault)
        return fault

    def take(self, phase: Phase, request: Request) -> Fault | None:
        """The fault whose turn it is, if any. Every fault of the phase counts the request."""
        due = [fault for fault in self._faults if fault.phase is phase and fault.wants(request)]
        if not due:
            return None
        if due[0].run is not None:
            due[0].run(request)
        return due[0]

    def clear(self) -> None:
        """Lets go what is stalled and forgets all faults."""
        for fault in self._faults:
            fault.release()
        self._faults.clear()
