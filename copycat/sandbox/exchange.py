"""One request on its way through the server: what it asks for, its ledger entry, the faults that it meets."""

from __future__ import annotations

import inspect
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web
from multidict import MultiMapping

from copycat.sandbox.faults import Fault, FaultInjector
from copycat.sandbox.ledger import Ledger, Phase, Request
from copycat.sandbox.profiles import Profile
from copycat.sandbox.reply import Aborted, Answered, Reply, close, refusal
from copycat.sandbox.store import Store
from copycat.sandbox.tokens import Authority, Scope

__all__ = [
    "Core",
    "Exchange",
    "Kind",
    "Route",
    "needed_scopes",
    "open_exchange",
    "phases_of",
    "route_of",
]

Kind = Literal[
    "ping", "token", "manifest", "blob", "uploads", "session", "tags", "referrers", "other"
]
LocationStyle = Literal["absolute", "relative", "lost-scheme", "lost-port", "other-host"]

_PATH = re.compile(
    r"/v2/(?P<name>.+?)/(?:"
    r"(?P<manifest>manifests)/(?P<reference>[^/]+)"
    r"|(?P<uploads>blobs/uploads)/?"
    r"|(?P<session>blobs/uploads)/(?P<id>[^/]+)"
    r"|(?P<blob>blobs)/(?P<digest>[^/]+)"
    r"|(?P<tags>tags/list)"
    r"|(?P<referrers>referrers)/(?P<subject>[^/]+))"
)
_READS: Mapping[tuple[str, str], Phase] = {
    ("manifest", "HEAD"): Phase.HEAD_MANIFEST,
    ("manifest", "GET"): Phase.GET_MANIFEST,
    ("manifest", "PUT"): Phase.PUT_MANIFEST,
    ("manifest", "DELETE"): Phase.DELETE,
    ("blob", "HEAD"): Phase.HEAD_BLOB,
    ("blob", "GET"): Phase.GET_BLOB,
    ("blob", "DELETE"): Phase.DELETE,
    ("session", "GET"): Phase.UPLOAD_STATUS,
    ("session", "DELETE"): Phase.CANCEL_UPLOAD,
    ("session", "PATCH"): Phase.UPLOAD_BODY,
    ("tags", "GET"): Phase.TAGS,
    ("referrers", "GET"): Phase.REFERRERS,
}


@dataclass(frozen=True, slots=True)
class Route:
    """What a path names."""

    kind: Kind
    repository: str = ""
    reference: str = ""


@dataclass(slots=True, kw_only=True)
class Core:
    """What all handlers of one server share."""

    store: Store
    ledger: Ledger
    faults: FaultInjector
    authority: Authority
    profile: Profile
    violations: list[str]
    clock: Callable[[], float]
    scheme: str = "http"
    cdn: str = ""
    """The second origin, `http://127.0.0.1:port`."""
    redirect_blobs: bool = False
    redirect_manifests: bool = False
    url_lifetime: float = 300.0
    """Seconds for which a signed URL of the second origin is good."""
    referrers_page: int | None = None
    pulls: int = 0
    """Manifest GETs counted against the profile's rate limit."""
    location_style: LocationStyle = "absolute"
    exists: Callable[[str], bool | Awaitable[bool]] | None = None
    immutable_tags: bool = False
    switch_off: Callable[[], None] = lambda: None
    """Breaks every connection of the server and refuses new ones."""

    signatures: dict[str, float] = field(default_factory=dict)
    """Query of each signed URL → end of its life."""

    def sign(self, path: str) -> str:
        """A URL of the second origin, with a query that does not survive being decoded and encoded again."""
        scope = f"20240101%2Flocal%2Fs3{path.replace('/', '%2F')}"
        query = f"X-Sig={secrets.token_hex(8)}+%2B%3D%3D&X-Scope={scope}&X-Who=a%40b%20c"
        self.signatures[query] = self.clock() + self.url_lifetime
        return f"{self.cdn}{path}?{query}"

    def signed(self, query: str) -> Literal["good", "expired", "altered"]:
        """What the query of a request to the second origin is worth."""
        until = self.signatures.get(query)
        if until is None:
            return "altered"
        return "good" if self.clock() < until else "expired"

    async def repository_exists(self, name: str) -> bool:
        """Made by a push, by the test, or known to the hook."""
        if name in self.store.repositories:
            return True
        if self.exists is None:
            return False
        answer = self.exists(name)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    def violation(self, request: web.BaseRequest, text: str) -> None:
        """The client broke a rule."""
        self.violations.append(f"{request.method} {request.path}: {text}")


@dataclass(slots=True, kw_only=True)
class Exchange:
    """A request that is being answered."""

    core: Core
    request: web.BaseRequest
    route: Route
    entry: Request
    fault: Fault | None = None
    """The last one met; it spoils the answer."""
    _entered: set[Phase] = field(default_factory=set)

    @property
    def method(self) -> str:
        """GET, …"""
        return self.request.method

    @property
    def repository(self) -> str:
        """The repository that the path names."""
        return self.route.repository

    @property
    def reference(self) -> str:
        """Tag, digest or session that the path names."""
        return self.route.reference

    @property
    def authorization(self) -> str:
        """The header, "" without one."""
        return self.request.headers.get("Authorization", "")

    @property
    def query(self) -> MultiMapping[str]:
        """Decoded."""
        return self.request.query

    @property
    def origin(self) -> str:
        """This server, as the client names it."""
        return f"{self.core.scheme}://{self.request.host}"

    def violation(self, text: str) -> None:
        """The client broke a rule."""
        self.core.violation(self.request, text)

    async def enter(self, phase: Phase) -> None:
        """Meets the phase's fault, if its turn has come.

        Raises:
            Answered: the fault answers instead of the server.
            Aborted: the fault broke the connection.
        """
        fault = self.core.faults.take(phase, self.entry)
        if fault is None:
            return
        self.fault = fault
        if fault.down:
            self.core.switch_off()
            raise Aborted
        await fault.pause()
        if fault.reset and fault.cut_at is None and not fault.after:
            self.abort(reset=True)
        if fault.replaces:
            if phase is Phase.UPLOAD_BODY:
                await self.read_body(lambda _chunk: None)
            raise Answered(self.reply_of(fault))

    def reply_of(self, fault: Fault) -> Reply:
        """The answer that a fault with a status gives."""
        status = fault.status or 200
        reply = Reply(status=status) if status < 400 else refusal(status, fault.code)
        if status == 401:
            scopes = needed_scopes(self.route, self.method)
            reply.headers["WWW-Authenticate"] = self.core.authority.challenge(self.origin, scopes)
        if fault.body is not None:
            reply.body = fault.body
        return reply

    def abort(self, *, reset: bool) -> None:
        """Breaks the connection."""
        close(self.request.transport, reset=reset)
        raise Aborted

    async def read_body(self, feed: Callable[[bytes], None]) -> None:
        """All of the request's body, piece by piece.

        Raises:
            Answered, Aborted: by the fault of the phase.
        """
        fault = self.fault
        if fault is not None and fault.phase is not Phase.UPLOAD_BODY:
            fault = None
        if fault is None or all(
            at is None for at in (fault.cut_at, fault.stall_at, fault.answer_at)
        ):
            async for chunk in self.request.content.iter_any():
                self._take(chunk, feed)
            return
        await self._read_with(fault, feed)

    async def _read_with(self, fault: Fault, feed: Callable[[bytes], None]) -> None:
        stops = [fault.stall_at, fault.cut_at, fault.answer_at]
        for stop in sorted({at for at in stops if at is not None}):
            while self.entry.bytes_in < stop:
                chunk = await self.request.content.read(stop - self.entry.bytes_in)
                if not chunk:
                    return
                self._take(chunk, feed)
            if stop == fault.stall_at:
                await fault.stall()
            if stop == fault.answer_at:
                raise Answered(self.reply_of(fault))
            if stop == fault.cut_at:
                self.abort(reset=fault.reset)
        async for chunk in self.request.content.iter_any():
            self._take(chunk, feed)

    def _take(self, chunk: bytes, feed: Callable[[bytes], None]) -> None:
        self.entry.bytes_in += len(chunk)
        feed(chunk)


def open_exchange(core: Core, request: web.BaseRequest, *, foreign: bool = False) -> Exchange:
    """Records the request and says what it asks for. `foreign`: it came to the second origin."""
    route = route_of(request.path)
    phases = (Phase.REDIRECT,) if foreign and request.method == "GET" else phases_of(route, request)
    peer = request.transport.get_extra_info("peername") if request.transport else None
    path, _, query = request.raw_path.partition("?")
    entry = Request(
        method=request.method,
        path=path,
        query=query,
        phases=phases,
        repository=route.repository,
        reference=route.reference,
        authorized="Authorization" in request.headers,
        host=request.host,
        headers=request.headers,
        at=core.clock(),
        connection=f"{peer[0]}:{peer[1]}" if peer else "",
    )
    return Exchange(core=core, request=request, route=route, entry=core.ledger.begin(entry))


def route_of(path: str) -> Route:
    """What the path names."""
    if path in ("/v2", "/v2/"):
        return Route("ping")
    if path == "/token":
        return Route("token")
    found = _PATH.fullmatch(path)
    if found is None:
        return Route("other")
    name = found["name"]
    if found["manifest"]:
        return Route("manifest", name, found["reference"])
    if found["uploads"]:
        return Route("uploads", name)
    if found["session"]:
        return Route("session", name, found["id"])
    if found["blob"]:
        return Route("blob", name, found["digest"])
    if found["tags"]:
        return Route("tags", name)
    return Route("referrers", name, found["subject"])


def phases_of(route: Route, request: web.BaseRequest) -> tuple[Phase, ...]:
    """The steps that the request takes at once: a PUT with a whole blob is a body and a commit."""
    if route.kind in ("ping", "token"):
        return (Phase(route.kind),)
    has_body = request.body_exists and request.content_length != 0
    commits = "digest" in request.query
    if route.kind == "uploads" and request.method == "POST":
        single = (Phase.UPLOAD_BODY, Phase.COMMIT) if has_body and commits else ()
        return (Phase.START_UPLOAD, *single)
    if route.kind == "session" and request.method == "PUT":
        return (Phase.UPLOAD_BODY, Phase.COMMIT) if has_body else (Phase.COMMIT,)
    return (_READS.get((route.kind, request.method), Phase.OTHER),)


def needed_scopes(route: Route, method: str) -> list[Scope]:
    """What a token must allow for the request. The source of a mount is looked at by the mount itself."""
    if not route.repository:
        return []
    if method in ("GET", "HEAD") and route.kind != "session":
        return [(route.repository, "pull")]
    if method == "DELETE" and route.kind != "session":
        return [(route.repository, "delete")]
    return [(route.repository, "pull"), (route.repository, "push")]
