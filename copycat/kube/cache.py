"""What an informer keeps of its kind, and how it tells what changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, Protocol, TypeAlias, TypeVar

import msgspec
from prometheus_client import Gauge

from copycat.logs import get_logger
from copycat.metrics import Metrics

__all__ = ["Cache", "Key", "Named", "Share", "T"]

#: After that many objects of a new state others get a turn.
_BATCH = 200

_log = get_logger(__name__)


class Named(Protocol):
    """What every projection has; a cluster-scoped object has the namespace ""."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)
Key: TypeAlias = tuple[str, str]


class Share:
    """One informer's part of a gauge: those of several namespaces add up under one resource."""

    def __init__(self, gauge: Gauge) -> None:
        """Args: `gauge` is the series of the resource."""
        self._gauge = gauge
        self._value = 0

    def set(self, value: int) -> None:
        """Change this part of the sum."""
        if value != self._value:
            self._gauge.inc(value - self._value)
            self._value = value


class Cache(Generic[T]):
    """Projections by namespace and name. Only the informer's own task changes it."""

    def __init__(
        self,
        *,
        resource: str,
        project: Callable[[bytes], T | None],
        on_change: Callable[[T | None, T | None], None],
        metrics: Metrics,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Args: as the informer's."""
        self._objects: dict[Key, T] = {}
        self._resource = resource
        self._project = project
        self._on_change = on_change
        self._errors = metrics.watch_errors
        self._size = Share(metrics.watch_objects.labels(resource))
        self._sleep = sleep

    @property
    def objects(self) -> Mapping[Key, T]:
        """All of them."""
        return self._objects

    def collect(self, data: bytes | msgspec.Raw, found: dict[Key, T]) -> None:
        """Add an object to a state that is not complete yet."""
        item = self._read(bytes(data))
        if item is not None:
            found[item.namespace, item.name] = item

    def apply(self, key: Key, data: bytes | msgspec.Raw | None) -> None:
        """Take up one event; None for an object that is gone."""
        self._put(key, self._read(bytes(data)) if data is not None else None)

    async def replace(self, found: Mapping[Key, T]) -> int:
        """Make a complete state the current one; how many objects that changed."""
        changes = 0
        gone = [key for key in self._objects if key not in found]
        for count, key in enumerate((*gone, *found), start=1):
            changes += self._put(key, found.get(key))
            if count % _BATCH == 0:
                await self._sleep(0)
        return changes

    def withdraw(self) -> None:
        """Take this cache's part out of the metrics."""
        self._size.set(0)

    def _read(self, data: bytes) -> T | None:
        """An object that cannot be read counts as absent: it must not stop the watch of all the others."""
        try:
            return self._project(data)
        except msgspec.DecodeError as error:
            self._errors.labels(self._resource, "object").inc()
            _log.warning("object could not be read", resource=self._resource, error=str(error))
            return None

    def _put(self, key: Key, new: T | None) -> bool:
        old = self._objects.get(key)
        if old == new:
            return False
        if new is None:
            del self._objects[key]
        else:
            self._objects[key] = new
        self._size.set(len(self._objects))
        self._on_change(old, new)
        return True
