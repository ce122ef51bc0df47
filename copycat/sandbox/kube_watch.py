"""One watch of the sandbox's Kubernetes API, from its request to its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import anyio
import msgspec
from aiohttp import web

from copycat.sandbox.kube_rules import Fault, Faults, Refusal, status_object
from copycat.sandbox.kube_store import Collection, Object, Store, Stored
from copycat.sandbox.kube_view import View

__all__ = ["Watch", "WatchSettings"]

_INITIAL_END = {"k8s.io/initial-events-end": "true"}
_OPEN = frozenset(
    {
        Fault.ABORT,
        Fault.END,
        Fault.ERROR_410,
        Fault.ERROR_500,
        Fault.ERROR_504,
        Fault.GARBAGE,
        Fault.STALL,
        Fault.TRUNCATE,
        Fault.UNKNOWN_EVENT,
    }
)
_ANSWERS = frozenset(
    {
        *(Fault.WATCH_400, Fault.WATCH_410, Fault.WATCH_429, Fault.WATCH_500, Fault.WATCH_504),
        Fault.WATCH_ABORT,
    }
)


@dataclass(slots=True, kw_only=True)
class WatchSettings:
    """How the server treats watches; may be changed while it runs."""

    watch_list: bool = True
    """Whether `sendInitialEvents` is served; if not it is refused with 422, as with the gate off."""
    ignore_watch_list: bool = False
    """Behave like a server that does not know the parameter: no bookmark ends the initial events."""
    bookmark_every: float = 60.0
    """Seconds between bookmarks."""
    default_timeout: float = 1800.0
    """Seconds after which a watch ends that names no timeoutSeconds."""


class Watch:
    """The request for one watch and the position that it has reached."""

    def __init__(
        self,
        store: Store,
        collection: Collection,
        view: View,
        *,
        query: Mapping[str, str],
        faults: Faults,
        settings: WatchSettings,
    ) -> None:
        """Args: `query` is the request's; raises Refusal if the request cannot be served."""
        self._store = store
        self._collection = collection
        self._view = view
        self._faults = faults
        self._settings = settings
        self._bookmarks = query.get("allowWatchBookmarks") in {"true", "1"}
        self._timeout = float(query.get("timeoutSeconds") or settings.default_timeout)
        self._initial = query.get("sendInitialEvents") == "true" and not settings.ignore_watch_list
        version = query.get("resourceVersion", "")
        self._check(query, version)
        self._from_now = self._initial or version in {"", "0"}
        self._position = store.version if self._from_now else int(version)

    def _check(self, query: Mapping[str, str], version: str) -> None:
        if "sendInitialEvents" in query and not self._settings.watch_list:
            message = (
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless"
                " the WatchList feature gate is enabled"
            )
            raise Refusal(422, message)
        match = query.get("resourceVersionMatch")
        if self._initial and match != "NotOlderThan":
            raise Refusal(422, "sendInitialEvents requires resourceVersionMatch=NotOlderThan")
        if match and "sendInitialEvents" not in query:
            raise Refusal(422, "resourceVersionMatch is forbidden for watch")
        if version and not version.isdigit():
            raise Refusal(400, f"Invalid value: {version!r}: resourceVersion")

    def refuse(self, request: web.Request) -> None:
        """Let a fault answer in the watch's place; raises Refusal or breaks the connection."""
        match self._faults.take(_ANSWERS, self._collection.resource.plural):
            case Fault.WATCH_400:
                raise Refusal(400, "resourceVersion: Invalid value")
            case Fault.WATCH_410:
                raise Refusal(410, "too old resource version")
            case Fault.WATCH_429:
                message = "storage is (re)initializing"
                raise Refusal(429, message, headers={"Retry-After": "1"})
            case Fault.WATCH_500:
                raise Refusal(500, "etcdserver: leader changed")
            case Fault.WATCH_504:
                raise Refusal(504, "Too large resource version: 9999999, current: 1")
            case Fault.WATCH_ABORT:
                _abort(request)
            case _:
                pass

    async def run(self, request: web.Request) -> web.StreamResponse:
        """Stream until the watch ends."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        if self._position < self._collection.floor:
            await response.write(self._expired())
            return response
        if self._from_now:
            await self._send_initial(response)
        with anyio.move_on_after(self._timeout):
            if not await self._follow(request, response):
                return response
        if self._bookmarks and self._position <= self._store.version:
            await response.write(self._bookmark(self._store.version))
        return response

    async def _send_initial(self, response: web.StreamResponse) -> None:
        self._position = self._store.version
        seen = [item for item in self._collection.sorted() if self._view.matches(item)]
        for start in range(0, len(seen), 100):
            await response.write(_lines(("ADDED", item) for item in seen[start : start + 100]))
        if self._initial:
            await response.write(self._bookmark(self._position, annotations=_INITIAL_END))

    async def _follow(self, request: web.Request, response: web.StreamResponse) -> bool:
        """Send changes for ever; False if a fault or lost history ended the watch."""
        due = anyio.current_time() + self._settings.bookmark_every
        while True:
            fault = self._faults.take(_OPEN, self._collection.resource.plural)
            if fault is Fault.UNKNOWN_EVENT:
                await response.write(self._bookmark(self._store.version, kind="NOVELTY"))
            elif fault is not None:
                return await self._fail(fault, request, response)
            if self._position < self._collection.lost:
                await response.write(self._expired())
                return False
            if changes := self._collection.since(self._position):
                self._position = changes[-1].version
                events = [e for change in changes if (e := self._view.event(change))]
                if events:
                    await response.write(_lines(events))
                continue
            if self._bookmarks and anyio.current_time() >= due:
                due = anyio.current_time() + self._settings.bookmark_every
                if self._position <= self._store.version:
                    await response.write(self._bookmark(self._store.version))
                continue
            with anyio.CancelScope(deadline=due if self._bookmarks else math.inf):
                await self._collection.changed()

    async def _fail(self, fault: Fault, request: web.Request, response: web.StreamResponse) -> bool:
        match fault:
            case Fault.STALL:
                await anyio.sleep_forever()
            case Fault.TRUNCATE:
                await response.write(b'{"type":"ADDED","object":{"kind":"Po')
                _abort(request)
            case Fault.GARBAGE:
                await response.write(b'{"type":"ADDED","object":\n')
            case Fault.ABORT:
                _abort(request)
            case Fault.ERROR_410:
                await response.write(self._expired())
            case Fault.ERROR_500:
                message = "etcd event received with PrevKv=nil"
                await response.write(_event("ERROR", status_object(500, message)))
            case Fault.ERROR_504:
                message = "Too large resource version: 9999999, current: 1"
                await response.write(_event("ERROR", status_object(504, message)))
            case _:
                pass
        return False

    def _expired(self) -> bytes:
        message = f"too old resource version: {self._position} ({self._collection.floor})"
        return _event("ERROR", status_object(410, message))

    def _bookmark(
        self,
        version: int,
        *,
        annotations: Mapping[str, str] | None = None,
        kind: str = "BOOKMARK",
    ) -> bytes:
        resource = self._collection.resource
        metadata: Object = {"resourceVersion": str(version), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        item = {"kind": resource.kind, "apiVersion": resource.version, "metadata": metadata}
        return _event(kind, item)


def _event(kind: str, item: Object) -> bytes:
    return msgspec.json.encode({"type": kind, "object": item}) + b"\n"


def _lines(events: Iterable[tuple[str, Stored]]) -> bytes:
    return b"".join(
        b'{"type":"%s","object":%s}\n' % (kind.encode(), item.data) for kind, item in events
    )


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
