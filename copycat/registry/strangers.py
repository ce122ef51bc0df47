"""Hosts that no image names: token services, and the storage that redirects and Locations lead to.

What such a host asks for, or that it is dead, says nothing about the registry before it. So each has a gate
and a breaker of its own: a token service that hangs must not hold every worker for all of its tries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from yarl import URL

from copycat.errors import Throttled, Unavailable
from copycat.registry.answers import Place
from copycat.registry.hosts import netloc
from copycat.registry.limits import HostLimits

__all__ = ["MAX_STRANGERS", "Strangers"]

#: Hosts of which it is remembered that they asked for patience, or failed.
MAX_STRANGERS = 256


class Strangers:
    """Their limits, by `host:port`."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nobody is known."""
        self._clock = clock
        self._known: dict[str, HostLimits] = {}

    @contextmanager
    def asked(self, place: Place, url: URL) -> Iterator[None]:
        """Around a request to one of them. Raises Throttled or Unavailable instead, if it is to be left alone.

        Of a host whose breaker is open the request is the probe, once that is due.
        """
        limits = self._known.get(netloc(url))
        if limits is not None:
            self._admit(limits, place, url)
        with limits.breaker.probe() if limits and limits.breaker.is_open else nullcontext():
            yield

    @staticmethod
    def _admit(limits: HostLimits, place: Place, url: URL) -> None:
        if (wait := limits.gate.remaining()) > 0:
            raise place.error(
                Throttled,
                f"{place.who}: the storage {url.host} behind it asked to be left alone for another {wait:.0f} s.",
                retry_after=wait,
            )
        breaker = limits.breaker
        if (wait := breaker.wait()) > 0:
            raise place.error(
                Unavailable,
                f"{place.who}: {netloc(url)} behind it failed several times in a row ({breaker.why}); "
                f"it is asked again in {wait:.0f} s.",
                reason="breaker_open",
                retry_after=wait,
            )

    def failed(self, url: URL, thing: str, *, why: str) -> None:
        """It did not answer, or that it cannot. Args: as those of the breaker."""
        self._limits(netloc(url)).breaker.failure(thing, why=why)

    def answered(self, url: URL) -> None:
        """It is well."""
        if (limits := self._known.get(netloc(url))) is not None:
            limits.breaker.success()

    def leave_alone(self, url: URL, seconds: float) -> None:
        """It asked for patience."""
        self._limits(netloc(url)).gate.shut(seconds)

    def _limits(self, host: str) -> HostLimits:
        if host not in self._known and len(self._known) >= MAX_STRANGERS:
            self._known = {
                k: v for k, v in self._known.items() if v.gate.remaining() or v.breaker.is_open
            }
            while len(self._known) >= MAX_STRANGERS:
                del self._known[next(iter(self._known))]
        return self._known.setdefault(host, HostLimits(clock=self._clock))
