"""A local copy of one kind of objects that follows the API server: list, watch, and what to do when either fails.

The recipe is that of client-go's reflector (`tools/cache/reflector.go`):

1. The first state comes as a watch that begins with the existing objects (WatchList); where the
   server does not serve that, as a list in pages. The copy is replaced when the state is complete.
2. The watch goes on from the version that was reached. It ends every few minutes, which is no
   error, and begins again at the same version; so do streams that break or fall silent.
3. Only a version that the server has forgotten (410), one that it has not reached (its etcd was
   restored), or an error that says that events may be lost, makes it list again.

Changes are told to a plain function that is never awaited: a watch that is read slowly is cut by the
server. One kind that is forbidden does not disturb the others: it says so and tries again.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Generic

import anyio
import msgspec

from copycat.errors import KubeDenied, KubeError, KubeExpired, KubeUnavailable
from copycat.kube.backoff import Backoff
from copycat.kube.cache import Cache, Key, Share, T
from copycat.kube.client import KubeClient
from copycat.kube.refusal import SILENCE, nobody_there, refusal
from copycat.kube.wire import EVENT, HEAD, INITIAL_END, PAGE, Head, Lines, Page, collector_paused
from copycat.logs import get_logger
from copycat.metrics import Metrics

__all__ = ["Informer"]


#: An answer of that many "Too large resource version" in a row means that etcd was restored.
_TOO_LARGE_LIMIT = 3
#: A watch that ends sooner without an event is a failure (client-go's VeryShortWatchError).
_SHORT = 1.0
_NO_WATCH_LIST = "watch_list"
_TYPES = ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR")

_log = get_logger(__name__)


class _EventError(Exception):
    """An ERROR event: unlike the refusal of a request it may mean that events are lost."""

    def __init__(self, error: KubeError) -> None:
        super().__init__(str(error))
        self.error = error


class Informer(Generic[T]):
    """Keeps `store` equal to what the server has, and says what changed."""

    def __init__(
        self,
        client: KubeClient,
        *,
        resource: str,
        path: str,
        project: Callable[[bytes], T | None],
        on_change: Callable[[T | None, T | None], None],
        metrics: Metrics,
        field_selector: str = "",
        page: int = 250,
        watch_list: bool | None = None,
        watch_timeout: tuple[float, float] = (300.0, 600.0),
        silence: float = 150.0,
        guard: float = 60.0,
        resync: tuple[float, float] = (6 * 3600.0, 12 * 3600.0),
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is sent before `run`.

        Args:
            resource: the kind's plural, as metrics and messages call it.
            path: of the collection, `/apis/apps/v1/deployments` or one namespace's.
            project: an object's JSON (items of lists have no `kind`) to what is kept, or None if
                it is of no interest; it may raise msgspec.DecodeError.
            on_change: is given what was kept and what is kept now, if they differ; None is nothing.
                It must return at once.
            page: objects per page of a list.
            watch_list: False never tries the list by watch; otherwise it is tried once.
            watch_timeout: seconds after which the server shall end a watch, between these two.
            silence: the longest time without a byte from an open watch, in seconds; the server sends
                a bookmark about every minute.
            guard: the longest wait for the next initial event, in seconds: a server that does not
                know about them never says that they are complete.
            resync: seconds between lists that only look for drift, between these two.
            jitter: numbers from 0 to 1.
        """
        self.resource = resource
        self.synced = False
        """Whether the first state is complete. It stays true."""
        self.denied = False
        """Whether the API refuses this kind now (403)."""
        self.missing = False
        """Whether the API does not know this kind (404)."""
        self.last_contact = clock()
        """When the API last sent anything, by `clock`."""
        self._client = client
        self._path = path
        self._cache = Cache(
            resource=resource, project=project, on_change=on_change, metrics=metrics, sleep=sleep
        )
        self._metrics = metrics
        self._selector = {"fieldSelector": field_selector} if field_selector else {}
        self._page = page
        self._watch_list = watch_list is not False
        self._watch_timeout = watch_timeout
        self._silence = silence
        self._guard = guard
        self._resync = resync
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._backoff = backoff or Backoff(clock=clock, jitter=jitter)
        self._settled = anyio.Event()
        self._version: str | None = None
        self._cause = "start"
        self._resync_at = math.inf
        self._too_large = 0
        self._outage = False
        self._lines_seen = 0
        self._failing = ""
        self._synced_gauge = Share(metrics.watch_synced.labels(resource))
        self._denied_gauge = Share(metrics.rbac_denied.labels(resource))
        self._contact_gauge = metrics.watch_contact.labels(resource)
        self._event_counters = {t: metrics.watch_events.labels(resource, t) for t in _TYPES}

    @property
    def store(self) -> Mapping[Key, T]:
        """What is kept, by namespace and name. Read it only."""
        return self._cache.objects

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for: the first state is complete, or refused."""
        return self._settled.is_set()

    async def wait_settled(self) -> None:
        """Wait for `settled`."""
        await self._settled.wait()

    async def run(self) -> None:
        """Follow the server until cancelled."""
        try:
            while True:
                delay = await self._attempt()
                await self._sleep(delay)
        finally:
            self._cache.withdraw()
            self._synced_gauge.set(0)
            self._denied_gauge.set(0)

    async def _attempt(self) -> float:
        """One list or one watch; the seconds to wait before the next."""
        if self._clock() >= self._resync_at:
            self._forget("resync")
        try:
            if self._outage and self._version is not None:
                await self._ask_for_version(self._version)
            if self._version is not None or self._watch_list:
                return await self._watch()
            await self._list()
        except _EventError as failure:
            return self._after(failure.error, event=True)
        except KubeError as error:
            return self._after(error, event=False)
        return 0.0

    async def _ask_for_version(self, version: str) -> None:
        """After an outage the server may have less than we saw: its etcd was restored from a copy.

        A watch from a version that is still to come is accepted, and says nothing. A list does not: it is
        "Too large resource version". One object is asked for, once for each outage.
        """
        params = {
            **self._selector,
            "limit": "1",
            "resourceVersion": version,
            "resourceVersionMatch": "NotOlderThan",
        }
        with suppress(KubeDenied):  # who may watch but not list must do without
            await self._client.request("GET", self._path, params=params)
        self._outage = False

    # The first state, and every later one

    async def _list(self) -> None:
        """In pages; if their version expires in between, once more in one piece (client-go `tools/pager`)."""
        found: dict[Key, T] = {}
        token, limit = "", self._page
        while True:
            try:
                page = await self._get_page(token, limit)
            except KubeExpired:
                if not token or not limit:
                    raise
                found, token, limit = {}, "", 0
                continue
            with collector_paused():
                for item in page.items or ():
                    self._cache.collect(item, found)
            token = page.metadata.continue_token
            if not token:
                break
            await self._sleep(0)
        await self._replace(found, page.metadata.resource_version)

    async def _get_page(self, token: str, limit: int) -> Page:
        params = dict(self._selector)
        if limit:
            params["limit"] = str(limit)
        if token:
            params["continue"] = token
        body = await self._client.request("GET", self._path, params=params, timeout=60.0)
        self._touch(answered=True)
        try:
            return PAGE.decode(body)
        except msgspec.DecodeError as error:
            raise self._unreadable(error) from error

    async def _replace(self, found: dict[Key, T], version: str) -> None:
        """Make a complete state the store, and its version the one to go on from."""
        changes = await self._cache.replace(found)
        if self._cause == "resync" and changes:
            _log.warning("watch had missed changes", resource=self.resource, objects=changes)
        self._metrics.watch_relists.labels(self.resource, self._cause).inc()
        self._version = version
        self._resync_at = self._clock() + self._between(*self._resync)
        self.synced = True
        self._synced_gauge.set(1)
        self._settled.set()

    # Watching

    async def _watch(self) -> float:
        """One stream, which begins with the existing objects if there is no version to go on from."""
        begin, seen = self._clock(), self._lines_seen
        pending: dict[Key, T] | None = {} if self._version is None else None
        stream = self._client.stream(self._path, params=self._watch_params(), silence=self._silence)
        async with stream as chunks:
            self._touch(answered=True)
            lines = Lines()
            while chunk := await self._next(chunks, initial=pending is not None):
                self._touch()
                for line in lines.feed(chunk):
                    pending = await self._take(line, pending)
        if pending is not None:
            raise _no_watch_list("it ended without an end of the initial events")
        if self._lines_seen == seen and self._clock() - begin < _SHORT:
            self._metrics.watch_errors.labels(self.resource, "short").inc()
            return self._backoff.next()
        self._too_large = 0
        return 0.0

    def _watch_params(self) -> dict[str, str]:
        params = {
            **self._selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, int(self._between(*self._watch_timeout)))),
        }
        if self._version is not None:
            params["resourceVersion"] = self._version
        else:
            params["sendInitialEvents"] = "true"
            params["resourceVersionMatch"] = "NotOlderThan"
        return params

    async def _next(self, chunks: AsyncGenerator[bytes], *, initial: bool) -> bytes:
        """The next bytes, empty at the end."""
        if not initial:
            return await anext(chunks, b"")
        with anyio.move_on_after(self._guard):
            return await anext(chunks, b"")
        raise _no_watch_list(f"no end of the initial events within {self._guard:g} s")

    async def _take(self, line: bytes, pending: dict[Key, T] | None) -> dict[Key, T] | None:
        """Handle one event. Initial ones are gathered in `pending`, which is None once they are complete."""
        self._lines_seen += 1
        kind, head, data = self._decode(line)
        if kind not in self._event_counters:
            _log.warning("unknown watch event", resource=self.resource, type=kind[:20])
            return pending
        self._event_counters[kind].inc()
        metadata = head.metadata
        key = (metadata.namespace, metadata.name)
        if kind == "BOOKMARK":
            if pending is not None:
                if (metadata.annotations or {}).get(INITIAL_END) != "true":
                    raise _no_watch_list("a bookmark came before the end of the initial events")
                await self._replace(pending, metadata.resource_version)
        elif pending is not None:
            # They come in no order, so their versions say nothing about what has been seen.
            pending.pop(key, None)
            if kind != "DELETED":
                self._cache.collect(data, pending)
            return pending
        else:
            self._cache.apply(key, None if kind == "DELETED" else data)
        self._version = metadata.resource_version
        self._too_large = 0
        return None

    def _decode(self, line: bytes) -> tuple[str, Head, msgspec.Raw]:
        try:
            event = EVENT.decode(line)
            if event.type != "ERROR":
                return event.type, HEAD.decode(event.object), event.object
        except msgspec.DecodeError as error:
            raise self._unreadable(error) from error
        self._event_counters["ERROR"].inc()
        raise _EventError(refusal(f"watch {self._path}", 0, bytes(event.object), event=True))

    # Failures

    def _after(self, error: KubeError, *, event: bool) -> float:
        """What follows from a failure; the seconds to wait. `event` tells an ERROR event from a refused request."""
        self._count(error)
        self._outage = self._outage or nobody_there(error)
        starting = self._version is None
        if isinstance(error, KubeExpired):
            self._forget("expired")
            return self._backoff.soon()
        if error.reason == _NO_WATCH_LIST or (
            starting and self._watch_list and error.status in {400, 422}
        ):
            self._watch_list = False
            return 0.0
        if error.reason == SILENCE and not starting:
            return 0.0
        if error.status == 504:
            self._too_large += 1
            if self._too_large >= _TOO_LARGE_LIMIT:
                self._too_large = 0
                self._forget("version")
        elif error.status in {403, 404}:
            self._set_refused(denied=error.status == 403, missing=error.status == 404)
        elif error.status not in {401, 429} and (event or 400 <= error.status < 500):
            self._forget("error")
        return max(error.retry_after or 0.0, self._backoff.next())

    def _forget(self, cause: str) -> None:
        """List again. The store stays as it is until the new state is complete."""
        if self._version is not None:
            self._version = None
            self._cause = cause

    def _count(self, error: KubeError) -> None:
        reason = str(error.status) if error.status else error.reason
        self._metrics.watch_errors.labels(self.resource, reason).inc()
        # An outage is told once, not at each attempt; what is part of every watch's life is not told.
        usual = error.reason == SILENCE or isinstance(error, KubeExpired)
        log = _log.debug if usual or reason == self._failing else _log.warning
        log("watch failed", resource=self.resource, path=self._path, error=str(error))
        if not usual:
            self._failing = reason

    def _set_refused(self, *, denied: bool = False, missing: bool = False) -> None:
        self.denied, self.missing = denied, missing
        self._denied_gauge.set(int(denied))
        if denied or missing:
            self._settled.set()

    def _touch(self, *, answered: bool = False) -> None:
        """The API sent something; `answered` if it accepted a request."""
        self.last_contact = self._clock()
        self._contact_gauge.set_to_current_time()
        if answered:
            self._set_refused()
            if self._failing:
                _log.info("watch works again", resource=self.resource, path=self._path)
                self._failing = ""

    def _unreadable(self, error: msgspec.DecodeError) -> KubeUnavailable:
        message = f"The Kubernetes API sent what is no answer about {self.resource}: {error}"
        return KubeUnavailable(message, reason="decode")

    def _between(self, low: float, high: float) -> float:
        return low + (high - low) * self._jitter()


def _no_watch_list(detail: str) -> KubeUnavailable:
    message = f"The Kubernetes API does not serve initial events in a watch: {detail}"
    return KubeUnavailable(message, reason=_NO_WATCH_LIST)
