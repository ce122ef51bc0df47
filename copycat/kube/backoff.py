"""How long to wait after a failure: the constants of client-go's reflector."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """0.8 s doubling to 30 s, each times 1 to 2, back to the beginning after two minutes without a failure.

    Source: client-go `tools/cache/reflector.go` (`NewReflectorWithOptions`).
    """

    def __init__(
        self,
        *,
        base: float = 0.8,
        cap: float = 30.0,
        reset: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Args: `base`, `cap` and `reset` are in seconds; `jitter` gives numbers from 0 to 1."""
        self._base = base
        self._cap = cap
        self._reset = reset
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        self._last = clock()

    def next(self) -> float:
        """Count a failure; the seconds to wait for it."""
        return self._wait(self._count())

    def soon(self) -> float:
        """Count a failure whose first retry may be quick: 0 to `base` seconds, then as `next`."""
        before = self._count()
        return self._wait(before) if before else self._base * self._jitter()

    def _wait(self, before: int) -> float:
        return min(self._cap, self._base * 2.0 ** min(before, 16)) * (1 + self._jitter())

    def _count(self) -> int:
        """Count one; how many there were before it."""
        now = self._clock()
        before = 0 if now - self._last > self._reset else self._failures
        self._failures = before + 1
        self._last = now
        return before
