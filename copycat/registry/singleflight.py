"""One caller works, the others wait for what it finds: for pings and tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio

from copycat.errors import CopycatError

__all__ = ["SingleFlight"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Flight(Generic[V]):
    landed: anyio.Event = field(default_factory=anyio.Event)
    value: list[V] = field(default_factory=list)
    error: CopycatError | None = None


class SingleFlight(Generic[K, V]):
    """Runs at most one call per key at a time. Who joins a call gets its result or its error."""

    def __init__(self) -> None:
        """Nothing under way."""
        self._flights: dict[K, _Flight[V]] = {}

    async def do(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """The result of `work()`, run by this caller or by one that came first.

        A caller that is cancelled hands the work to one that waits.
        """
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.error is not None:
                raise flight.error
            if flight.value:
                return flight.value[0]
        flight = self._flights[key] = _Flight()
        try:
            result = await work()
        except CopycatError as error:
            flight.error = error
            raise
        else:
            flight.value.append(result)
            return result
        finally:
            del self._flights[key]
            flight.landed.set()
