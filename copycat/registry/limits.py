"""What protects a host from us and us from a host: retries, the shut gate, the breaker, permits.

One `HostLimits` belongs to one host and is shared by every request that goes there, so that a 429
for one image quiets all of them, and a dead host costs its own images only (registry notes 4).
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio

from copycat.errors import RegistryError

__all__ = [
    "CircuitBreaker",
    "HostGate",
    "HostLimits",
    "RetryPolicy",
    "parse_retry_after",
    "together",
]

#: Retry-After is believed between these (seconds).
RETRY_AFTER_MIN, RETRY_AFTER_MAX = 1.0, 900.0
#: A request waits this long at a shut gate; above, the worker is freed (seconds).
GATE_PATIENCE = 10.0
#: Requests without a large body that may be under way at one host.
SMALL_LANE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how far apart one request is tried. Defaults: registryRetryAttempts, registryRetryBackoff."""

    attempts: int = 5
    """Including the first."""
    backoff: float = 1.0
    """Upper bound of the first delay in seconds; it doubles."""
    cap: float = 30.0

    def delay(self, failures: int, jitter: Callable[[], float] = random.random) -> float:
        """Seconds to wait after so many failures in a row: full jitter (a uniform part of the bound)."""
        return jitter() * min(self.cap, self.backoff * 2.0 ** min(failures - 1, 32))


def parse_retry_after(value: str, *, now: Callable[[], float] = time.time) -> float | None:
    """Retry-After in seconds or as an HTTP date, clamped to 1 s … 15 min; None if it is neither."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        # Longer than any sensible number: int() of a huge text would be slow and float() would overflow.
        seconds = float(text[:12]) if len(text) <= 12 else RETRY_AFTER_MAX
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - now()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(max(seconds, RETRY_AFTER_MIN), RETRY_AFTER_MAX)


class HostGate:
    """'Not before': set by 429 and Retry-After, shared by all requests of the host."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Open."""
        self._clock = clock
        self._until = 0.0

    def shut(self, seconds: float) -> float:
        """Keep requests away for `seconds`; returns by how much that prolongs the wait."""
        now = self._clock()
        before = max(self._until, now)
        self._until = max(before, now + seconds)
        return self._until - before

    def remaining(self) -> float:
        """Seconds until it opens; 0 if it is open."""
        return max(0.0, self._until - self._clock())


class CircuitBreaker:
    """Opens after consecutive host-level failures, so that a dead host does not hold workers.

    A failure that belongs to one path (5xx for one object) opens it only together with failures
    elsewhere: one broken object is no broken host.
    """

    def __init__(
        self,
        *,
        threshold: int = 5,
        first: float = 5.0,
        longest: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: open for `first` seconds, doubled at each failed probe up to `longest`."""
        self._threshold, self._first, self._longest = threshold, first, longest
        self._clock = clock
        self._failures = 0
        self._paths: set[str] = set()
        self._opened_until: float | None = None
        self._length = first
        self.probing = False
        self.why = ""
        """What the last failure was, for people."""

    @property
    def is_open(self) -> bool:
        """Whether requests are held, a probe's answer pending or not."""
        return self._opened_until is not None

    def remaining(self) -> float:
        """Seconds until a probe is due; 0 if it is closed or due now."""
        return 0.0 if self._opened_until is None else max(0.0, self._opened_until - self._clock())

    def success(self) -> None:
        """The host answered sensibly: close."""
        self._failures, self._opened_until, self._length = 0, None, self._first
        self._paths.clear()

    def failure(self, path: str = "", *, why: str = "") -> None:
        """A host-level failure. Args: `path` is empty if there was no answer at all; `why` is for people."""
        self.why = why
        if self._opened_until is not None:
            return  # of a request from before: says nothing new
        self._failures += 1
        if len(self._paths) < self._threshold:
            self._paths.add(path)
        if self._failures >= self._threshold and ("" in self._paths or len(self._paths) > 1):
            self._opened_until = self._clock() + self._length

    def wait(self) -> float:
        """Seconds for which to leave the host alone; 0 if a request may go, which is the probe where it is open."""
        left = self.remaining()
        return max(left, 1.0) if left > 0 or (self.is_open and self.probing) else 0.0

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Around the request that finds out whether the host is back: only a good answer closes it."""
        self.probing = True
        try:
            yield
            self.reopen()
        except RegistryError:
            self.reopen()
            raise
        finally:
            self.probing = False

    def reopen(self) -> None:
        """A probe failed, whatever the answer: the next one is due after twice the time."""
        if self._opened_until is None:
            return  # the answer to a request from before was a good one
        self._length = min(self._length * 2, self._longest)
        self._opened_until = self._clock() + self._length


class HostLimits:
    """Everything that is counted for one host."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing counted yet."""
        self.gate = HostGate(clock=clock)
        self.breaker = CircuitBreaker(clock=clock)
        self.small = anyio.Semaphore(SMALL_LANE, fast_acquire=True)


@asynccontextmanager
async def together(permits: Sequence[anyio.Semaphore]) -> AsyncIterator[None]:
    """One of each, all or none: who waits for one of them holds none of the others.

    So nobody waits in a circle, and a host whose places are all taken by something slow keeps nobody from
    another one's (as regclient's AcquireMulti). Args: each semaphore once.
    """
    await _take(permits)
    try:
        yield
    finally:
        for permit in permits:
            permit.release()


async def _take(permits: Sequence[anyio.Semaphore]) -> None:
    lacking = permits[0]
    while True:
        await lacking.acquire()
        taken = [lacking]
        for permit in permits:
            if permit is lacking:
                continue
            try:
                permit.acquire_nowait()
            except anyio.WouldBlock:
                lacking = permit
                break
            taken.append(permit)
        else:
            return
        for permit in taken:
            permit.release()
