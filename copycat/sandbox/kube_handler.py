"""The HTTP side of the sandbox's Kubernetes API: paths to verbs, verbs to the store."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import msgspec
from aiohttp import web

from copycat.sandbox.kube_rules import Access, Fault, Faults, Refusal
from copycat.sandbox.kube_store import RESOURCES, Collection, Key, Object, Store, Stored
from copycat.sandbox.kube_view import View
from copycat.sandbox.kube_watch import Watch, WatchSettings

__all__ = ["Handler", "Request", "merge_patch"]

_PATH = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+)/v1)(?:/namespaces/(?P<ns>[^/]+))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>status))?$"
)
_NAMESPACES = re.compile(r"^/api/v1/namespaces(?:/(?P<name>[^/]+))?$")
_PATCHES = frozenset({"application/merge-patch+json", "application/strategic-merge-patch+json"})
_LIST_FAULTS = frozenset({Fault.LIST_429, Fault.LIST_500, Fault.LIST_ABORT, Fault.LIST_HTML})
#: Groups that serve a plural under a second name.
_ALIASES = {("events.k8s.io", "events")}


@dataclass(slots=True, kw_only=True)
class Request:
    """One line of the ledger."""

    method: str
    path: str
    query: Mapping[str, str]
    verb: str = ""
    """What permissions call it: get, list, watch, create, update, patch, delete; "" for paths outside the resources."""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    status: int = 0
    """The answer's status; 0 while there is none, or if the connection was broken instead."""
    authorized: bool = False
    """Whether the request brought an Authorization header."""


@dataclass(slots=True)
class _Snapshot:
    version: int
    view: View
    items: list[Stored]


@dataclass(slots=True)
class Handler:
    """Everything that answers a request needs."""

    store: Store
    access: Access
    faults: Faults
    watch_settings: WatchSettings
    requests: list[Request] = field(default_factory=list)
    open: list[Request] = field(default_factory=list)
    """The watches that are open now."""
    snapshots: dict[int, _Snapshot] = field(default_factory=dict)
    """What continue tokens continue; clear it to let them expire."""
    answering: anyio.Event | None = None
    """While this is an event that is not set, no request is answered."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The one aiohttp handler."""
        entry = Request(method=request.method, path=request.path, query=dict(request.query))
        entry.authorized = "Authorization" in request.headers
        self.requests.append(entry)
        try:
            if self.answering is not None:
                await self.answering.wait()
            response = await self._answer(request, entry)
        except Refusal as refusal:
            response = refusal.response()
        entry.status = response.status
        return response

    async def _answer(self, request: web.Request, entry: Request) -> web.StreamResponse:
        if request.path in {"/readyz", "/livez", "/healthz"}:
            return web.Response(text="ok")
        self.access.check_token(request.headers.get("Authorization", ""))
        if request.path.rstrip("/") == "/version":
            return _json({"major": "1", "minor": "34", "gitVersion": "v1.34.1"})
        if request.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return await self._review(request)
        collection = self.store[_route(request.path, entry)]
        entry.verb = _verb(request, entry.name)
        self.access.check(entry.verb, entry.resource, entry.namespace, entry.name)
        if entry.verb in {"create", "update", "patch", "delete"}:
            self._conflict(entry)
        elif entry.verb in {"get", "list"} and self.faults.take({Fault.NO_JSON}, entry.resource):
            return web.Response(text="<h1>Log in</h1>")
        match entry.verb:
            case "watch":
                return await self._watch(request, collection, entry)
            case "list":
                return self._list(request, collection, entry)
            case "create":
                return await self._create(request, collection, entry)
            case _:
                return await self._one(request, collection, entry)

    def _conflict(self, entry: Request) -> None:
        if self.faults.take({Fault.CONFLICT}, entry.resource):
            raise Refusal(409, f'Operation cannot be fulfilled on {entry.resource} "{entry.name}"')

    async def _review(self, request: web.Request) -> web.Response:
        review = await _body(request)
        asked = review["spec"]["resourceAttributes"]
        allowed = self.access.allowed(
            asked.get("verb", ""),
            asked.get("resource", ""),
            asked.get("namespace", ""),
            asked.get("name", ""),
        )
        return _json({**review, "status": {"allowed": allowed}}, status=201)

    async def _watch(
        self, request: web.Request, collection: Collection, entry: Request
    ) -> web.StreamResponse:
        view = View.of(entry.namespace, request.query)
        if entry.name:
            view = View(entry.namespace, (*view.conditions, ("name", True, entry.name)))
        watch = Watch(
            self.store,
            collection,
            view,
            query=request.query,
            faults=self.faults,
            settings=self.watch_settings,
        )
        watch.refuse(request)
        self.open.append(entry)
        try:
            return await watch.run(request)
        except ConnectionError:
            return web.Response()
        finally:
            self.open.remove(entry)

    def _list(self, request: web.Request, collection: Collection, entry: Request) -> web.Response:
        plural = collection.resource.plural
        match self.faults.take(_LIST_FAULTS, plural):
            case Fault.LIST_429:
                raise Refusal(429, "too many requests", headers={"Retry-After": "1"})
            case Fault.LIST_500:
                raise Refusal(500, "etcdserver: request timed out")
            case Fault.LIST_HTML:  # as a proxy between says it
                return web.Response(status=502, text="<h1>Bad gateway</h1>")
            case Fault.LIST_ABORT if request.transport is not None:
                request.transport.abort()
            case _:
                pass
        token = request.query.get("continue", "")
        if token and self.faults.take({Fault.CONTINUE_410}, plural):
            self.snapshots.clear()
        limit = int(request.query.get("limit") or 0)
        number, start = self._snapshot(request, collection, entry, token)
        snapshot = self.snapshots[number]
        end = start + limit if limit else len(snapshot.items)
        rest = len(snapshot.items) - end
        metadata: Object = {"resourceVersion": str(snapshot.version)}
        if rest > 0:
            metadata["continue"] = base64.urlsafe_b64encode(b"%d:%d" % (number, end)).decode()
            metadata["remainingItemCount"] = rest
        else:
            del self.snapshots[number]
        return _list_body(collection, snapshot.items[start:end], metadata)

    def _snapshot(
        self, request: web.Request, collection: Collection, entry: Request, token: str
    ) -> tuple[int, int]:
        """The snapshot to read and where to begin; a new one if there is no continue token."""
        if token:
            if request.query.get("resourceVersion") or request.query.get("resourceVersionMatch"):
                message = "specifying resource version is not allowed when using continue"
                raise Refusal(400, message)
            number, start = _read_token(token)
            if number not in self.snapshots:
                message = (
                    "The provided continue parameter is too old to display a consistent list"
                    " result."
                )
                raise Refusal(410, message)
            return number, start
        wanted = request.query.get("resourceVersion") or "0"
        if request.query.get("resourceVersionMatch") and int(wanted) > self.store.version:
            message = f"Too large resource version: {wanted}, current: {self.store.version}"
            raise Refusal(504, message)
        view = View.of(entry.namespace, request.query)
        items = [item for item in collection.sorted() if view.matches(item)]
        number = len(self.requests)
        self.snapshots[number] = _Snapshot(self.store.version, view, items)
        return number, 0

    async def _create(
        self, request: web.Request, collection: Collection, entry: Request
    ) -> web.Response:
        item = await _body(request)
        metadata = item.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = f"{metadata['generateName']}{self.store.version:05x}"
        entry.name = _required_name(metadata)
        _check_namespace(metadata, entry, collection)
        plural = collection.resource.plural
        if Key(entry.namespace, entry.name) in collection.objects:
            message = f'{plural} "{entry.name}" already exists'
            raise Refusal(409, message, reason="AlreadyExists")
        return _json_bytes(self.store.create(plural, item).data, status=201)

    async def _one(
        self, request: web.Request, collection: Collection, entry: Request
    ) -> web.Response:
        """GET, PUT, PATCH and DELETE of one object. The body is read first: what follows is one step."""
        plural = collection.resource.plural
        body = await _body(request) if entry.verb in {"update", "patch"} else {}
        current = collection.objects.get(Key(entry.namespace, entry.name))
        if current is None:
            raise Refusal(404, f'{plural} "{entry.name}" not found')
        if entry.verb == "get":
            return _json_bytes(current.data)
        if entry.verb == "delete":
            return _json_bytes(self.store.delete(plural, current).data)
        if entry.verb == "patch":
            if request.content_type not in _PATCHES:
                raise Refusal(
                    415, f"the body of the request was in an unknown format: {request.content_type}"
                )
            item = merge_patch(current.decode(), body)
        else:
            item = body
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted and wanted != str(current.version):
            message = (
                f'Operation cannot be fulfilled on {plural} "{entry.name}": the object has been'
                " modified; please apply your changes to the latest version and try again"
            )
            raise Refusal(409, message)
        if _required_name(item.get("metadata", {})) != entry.name:
            raise Refusal(400, "the name of the object does not match the name on the URL")
        _check_namespace(item["metadata"], entry, collection)
        return _json_bytes(self.store.replace(plural, current, item).data)


def merge_patch(target: Object, patch: Object) -> Object:
    """RFC 7396. A strategic merge patch is taken for one, so its lists replace."""
    merged = dict(target)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            old = merged.get(name)
            merged[name] = merge_patch(old if isinstance(old, dict) else {}, value)
        else:
            merged[name] = value
    return merged


def _route(path: str, entry: Request) -> str:
    """Fill in resource, namespace and name; raises Refusal 404 for what is not served."""
    if match := _NAMESPACES.match(path):
        entry.resource, entry.name = "namespaces", match["name"] or ""
        return entry.resource
    match = _PATH.match(path)
    resource = RESOURCES.get(match["plural"]) if match else None
    if match is None or resource is None:
        raise Refusal(404, "the server could not find the requested resource")
    group = match["group"] or ""
    if group != resource.group and (group, resource.plural) not in _ALIASES:
        raise Refusal(404, "the server could not find the requested resource")
    entry.resource = resource.plural
    entry.namespace, entry.name = match["ns"] or "", match["name"] or ""
    return entry.resource


def _verb(request: web.Request, name: str) -> str:
    if request.method == "GET":
        if request.query.get("watch") in {"true", "1"}:
            return "watch"
        return "get" if name else "list"
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    verb = verbs.get(request.method, "")
    if not verb or (verb == "create") is bool(name):
        raise Refusal(405, f"the server does not allow {request.method} on the requested resource")
    return verb


async def _body(request: web.Request) -> Object:
    try:
        item = msgspec.json.decode(await request.read())
    except msgspec.DecodeError as error:
        raise Refusal(400, f"the object provided is unrecognized: {error}") from error
    if not isinstance(item, dict):
        raise Refusal(400, "the object provided is unrecognized: not an object")
    return cast("Object", item)


def _required_name(metadata: Mapping[str, Any]) -> str:
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise Refusal(422, "metadata.name: Required value: name or generateName is required")
    return name


def _check_namespace(metadata: Object, entry: Request, collection: Collection) -> None:
    if not collection.resource.namespaced:
        return
    if metadata.setdefault("namespace", entry.namespace) != entry.namespace:
        raise Refusal(400, "the namespace of the object does not match the namespace on the URL")


def _read_token(token: str) -> tuple[int, int]:
    try:
        number, _, start = base64.urlsafe_b64decode(token).partition(b":")
        return int(number), int(start)
    except ValueError as error:
        raise Refusal(400, "continue key is not valid") from error


def _list_body(collection: Collection, items: list[Stored], metadata: Object) -> web.Response:
    resource = collection.resource
    prefix = resource.type_prefix
    head = b'{"kind":"%sList","apiVersion":"%s","metadata":%s,"items":[' % (
        resource.kind.encode(),
        resource.version.encode(),
        msgspec.json.encode(metadata),
    )
    parts = [b"{" + item.data.removeprefix(prefix) for item in items]
    return _json_bytes(head + b",".join(parts) + b"]}\n")


def _json(item: object, *, status: int = 200) -> web.Response:
    return _json_bytes(msgspec.json.encode(item), status=status)


def _json_bytes(body: bytes, *, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")
