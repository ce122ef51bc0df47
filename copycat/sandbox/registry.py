"""A registry in this process, over real sockets, for tests and the demonstration: strict about the protocol, odd where told to be.

```python
async with Registry() as registry:
    image = images.image(layers=(1024, 2048))
    registry.add("team/app", image, tag="1.0")
    …  # a client talks to registry.address
    assert registry.violations == []
    assert registry.ledger.count(Phase.GET_BLOB) == 3
```

A second origin on another port (`registry.cdn`) takes the place of the object store that blobs are redirected to.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from secrets import token_hex
from types import TracebackType
from typing import Self, Unpack
from urllib.parse import parse_qsl

import anyio
from aiohttp import web

from copycat.sandbox import images
from copycat.sandbox.exchange import Core, Exchange, LocationStyle, needed_scopes, open_exchange
from copycat.sandbox.faults import Fault, FaultInjector, FaultOptions
from copycat.sandbox.images import Image, ImageOptions
from copycat.sandbox.ledger import Ledger, Phase, Request
from copycat.sandbox.profiles import Auth, Profile, profile_of
from copycat.sandbox.pulls import Pulls, ranged
from copycat.sandbox.pushes import Pushes
from copycat.sandbox.reply import Aborted, Answered, Reply, deliver, refusal
from copycat.sandbox.store import Store, StoredManifest, digest_of
from copycat.sandbox.tokens import Allow, Authority
from copycat.sandbox.uploads import Uploads

__all__ = ["Registry"]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

#: Before this many seconds have passed, `stop()` cuts handlers that still run.
_GRACE = 0.5
#: Phases that their handlers enter by themselves, when a body is about to be read or has been.
_OWN = {Phase.PING, Phase.START_UPLOAD, Phase.UPLOAD_BODY, Phase.COMMIT, Phase.PUT_MANIFEST}


class Registry:
    """The server. `async with` starts and stops it; what it keeps outlives `stop()`, so that `start()` brings it back on the same port."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        auth: Auth | None = None,
        username: str = "",
        password: str = "",
        profile: str | Profile = "distribution",
        anonymous: bool = False,
        allow: Allow = lambda _user, _repository, _action: True,
        token_expires_in: float | None = 300,
        redirect_blobs: bool | None = None,
        location_style: LocationStyle = "absolute",
        repository_exists: Callable[[str], bool | Awaitable[bool]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is opened yet.

        Args:
            auth: "none", "basic" or "token". By default none; if a password is given or anonymous access is
                allowed, the profile's, or "basic" where it has none.
            username, password: the one account; more with `authority.set_password`.
            anonymous: without credentials one may pull (with "token": by an anonymous token).
            allow: (user, repository, action) → may it.
            token_expires_in: seconds; None leaves `expires_in` out.
            redirect_blobs: blob GETs go to the second origin; the profile's choice by default.
            location_style: how upload Locations are written; "other-host" means the second origin.
            repository_exists: asked when a profile without create-on-push does not know a repository.
            clock: of tokens, passwords and signed URLs, in seconds.
        """
        row = profile_of(profile)
        if auth is None:
            auth = _default_auth(row, asked=bool(password) or anonymous)
        self._host, self._port, self._cdn_port = host, port, 0
        self._ssl = ssl_context
        self._runners: list[web.ServerRunner] = []
        self._core = Core(
            store=Store(),
            ledger=Ledger(),
            faults=FaultInjector(),
            authority=Authority(
                mode=auth,
                profile=row,
                clock=clock,
                anonymous=anonymous,
                allow=allow,
                expires_in=token_expires_in,
            ),
            profile=row,
            violations=[],
            clock=clock,
            scheme="https" if ssl_context is not None else "http",
            redirect_blobs=row.redirects if redirect_blobs is None else redirect_blobs,
            location_style=location_style,
            exists=repository_exists,
        )
        if password:
            self.authority.set_password(username or row.basic_user, password)
        self._pulls = Pulls()
        self._uploads = Uploads()
        self._pushes = Pushes(self._pulls)
        self._handlers: Mapping[tuple[str, str], Callable[[Exchange], Awaitable[Reply]]] = {
            ("ping", "GET"): _pong,
            ("manifest", "HEAD"): self._pulls.manifest,
            ("manifest", "GET"): self._pulls.manifest,
            ("manifest", "PUT"): self._pushes.put,
            ("manifest", "DELETE"): self._pushes.delete,
            ("blob", "HEAD"): self._pulls.blob,
            ("blob", "GET"): self._pulls.blob,
            ("blob", "DELETE"): self._pushes.delete_blob,
            ("uploads", "POST"): self._uploads.start,
            ("session", "PATCH"): self._uploads.patch,
            ("session", "PUT"): self._uploads.put,
            ("session", "GET"): self._uploads.status,
            ("session", "DELETE"): self._uploads.cancel,
            ("tags", "GET"): self._pulls.tags,
            ("referrers", "GET"): self._pulls.referrers,
        }

    # Lifetime

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens; after a `stop()` on the same ports as before."""
        self._port = await self._listen(self._answer, self._port)
        self._cdn_port = await self._listen(self._answer_foreign, self._cdn_port)
        self._core.cdn = f"{self._core.scheme}://{self._host}:{self._cdn_port}"

    async def stop(self) -> None:
        """Stops listening and breaks all connections, as a machine that is switched off. Does nothing if it is not running."""
        runners, self._runners = self._runners, []
        with anyio.CancelScope(shield=True):
            for runner in runners:
                for site in list(runner.sites):
                    await site.stop()
                for connection in runner.server.connections if runner.server else []:
                    connection.force_close()
                await runner.cleanup()

    async def _listen(self, handler: Handler, port: int) -> int:
        server = web.Server(
            handler,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=64 * 1024,
            max_field_size=64 * 1024,
        )
        runner = web.ServerRunner(server, shutdown_timeout=_GRACE)
        await runner.setup()
        sock = socket.create_server((self._host, port), backlog=512, reuse_port=False)
        await web.SockSite(runner, sock, ssl_context=self._ssl).start()
        self._runners.append(runner)
        return int(sock.getsockname()[1])

    # What it is

    @property
    def running(self) -> bool:
        """Listening."""
        return bool(self._runners)

    @property
    def address(self) -> str:
        """`host:port`, the registry part of a reference."""
        return f"{self._host}:{self._port}"

    @property
    def port(self) -> int:
        """Of the registry."""
        return self._port

    @property
    def url(self) -> str:
        """`http://host:port`."""
        return f"{self._core.scheme}://{self.address}"

    @property
    def cdn(self) -> str:
        """The second origin, `http://host:port`."""
        return self._core.cdn

    @property
    def core(self) -> Core:
        """The switches that a test may turn while it runs (`location_style`, `redirect_blobs`, `immutable_tags`, …)."""
        return self._core

    @property
    def profile(self) -> Profile:
        """Its oddities."""
        return self._core.profile

    @property
    def authority(self) -> Authority:
        """Accounts and tokens."""
        return self._core.authority

    @property
    def faults(self) -> FaultInjector:
        """`faults.add(phase, …)`."""
        return self._core.faults

    @property
    def ledger(self) -> Ledger:
        """What it saw."""
        return self._core.ledger

    @property
    def requests(self) -> list[Request]:
        """What it saw, in order of arrival."""
        return self._core.ledger.requests

    @property
    def violations(self) -> list[str]:
        """Rules of the protocol that the client broke."""
        return self._core.violations

    @property
    def store(self) -> Store:
        """What it keeps."""
        return self._core.store

    @property
    def blobs(self) -> dict[str, dict[str, bytes]]:
        """Repository → digest → bytes."""
        return self._core.store.blobs

    @property
    def manifests(self) -> dict[str, dict[str, StoredManifest]]:
        """Repository → digest → manifest."""
        return self._core.store.manifests

    @property
    def tags(self) -> dict[str, dict[str, str]]:
        """Repository → tag → digest."""
        return self._core.store.tags

    @property
    def sessions(self) -> int:
        """Uploads that were begun and neither committed nor cancelled."""
        return len(self._uploads.sessions)

    @property
    def open_connections(self) -> int:
        """Connections that clients hold, to both origins."""
        servers = [runner.server for runner in self._runners]
        return sum(len(server.connections) for server in servers if server is not None)

    @property
    def unique_blob_bytes(self) -> int:
        """The sum of the sizes of different blobs."""
        return self._core.store.unique_blob_bytes()

    # Filling it

    def add(self, repository: str, image: Image, tag: str | None = None) -> Image:
        """Stores a whole image."""
        self.store.repositories.add(repository)
        self.blobs[repository].update(image.blobs)
        for manifest in image.manifests:
            self.store.put_manifest(repository, manifest)
        if tag is not None:
            self.tags[repository][tag] = image.digest
        return image

    def add_image(self, repository: str, tag: str, **options: Unpack[ImageOptions]) -> Image:
        """Makes and stores `images.image(**options)`."""
        return self.add(repository, images.image(**options), tag)

    def put_blob(self, repository: str, data: bytes, algorithm: str = "sha256") -> str:
        """Stores a blob; answers its digest."""
        return self.store.put_blob(repository, data, digest_of(data, algorithm))

    def put_manifest(
        self, repository: str, data: bytes, media_type: str = "", tag: str | None = None
    ) -> StoredManifest:
        """Stores a manifest without any check."""
        manifest = StoredManifest.of(data, media_type)
        self.store.put_manifest(repository, manifest, tag)
        return manifest

    def create_repository(self, name: str) -> None:
        """For profiles that do not make one on push."""
        self.store.repositories.add(name)

    def has(self, repository: str, image: Image, tag: str | None = None) -> bool:
        """The whole image is here, byte by byte, and the tag gives its root (tags resolve to sha256, whatever the root was pushed by)."""
        blobs, manifests = self.blobs.get(repository, {}), self.manifests.get(repository, {})
        return (
            all(blobs.get(digest) == data for digest, data in image.blobs.items())
            and all(manifests.get(m.digest) == m for m in image.manifests)
            and (tag is None or _data(self.store.manifest(repository, tag)) == image.data)
        )

    async def wait_for(self, predicate: Callable[[Request], bool], *, count: int = 1) -> Request:
        """See `Ledger.wait_for`."""
        return await self.ledger.wait_for(predicate, count=count)

    def fail(self, phase: Phase | str, **options: Unpack[FaultOptions]) -> Fault:
        """Short for `faults.add`."""
        return self.faults.add(phase, **options)

    # Answering

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._serve(open_exchange(self._core, request), self._handle)

    async def _answer_foreign(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = open_exchange(self._core, request, foreign=True)
        if exchange.entry.authorized:
            exchange.violation("credentials sent to another origin")
        return await self._serve(exchange, self._handle_foreign)

    async def _serve(
        self, x: Exchange, handle: Callable[[Exchange], Awaitable[Reply]]
    ) -> web.StreamResponse:
        try:
            reply = await _reply(x, handle)
            self._note(x, reply)
            return await deliver(x.request, x.entry, reply, x.fault)
        except Aborted:
            return web.Response()  # goes nowhere: the connection is closed
        finally:
            self._core.ledger.finish(x.entry)

    def _note(self, x: Exchange, reply: Reply) -> None:
        """The client now knows that the content is there."""
        known = (Phase.HEAD_BLOB, Phase.HEAD_MANIFEST, Phase.GET_MANIFEST, Phase.PUT_MANIFEST)
        if reply.status in (200, 201) and x.entry.phase in known:
            self._pushes.acknowledged.add((x.repository, x.reference))
        elif reply.status == 201 and x.route.kind in ("uploads", "session"):
            digest = x.query.get("digest") or x.query.get("mount", "")
            self._pushes.acknowledged.add((x.repository, digest))

    async def _handle(self, x: Exchange) -> Reply:
        phase = x.entry.phase
        if phase in (Phase.PING, Phase.TOKEN):
            await x.enter(phase)
        if phase is Phase.TOKEN:
            return await self._token(x)
        header = x.request.headers.get("Authorization", "")
        scopes = needed_scopes(x.route, x.method)
        refused = self.authority.decide(header, scopes, x.origin, ping=phase is Phase.PING)
        if refused is not None:
            return refused
        if self.profile.cookies and "Cookie" in x.request.headers:
            x.violation("a cookie sent back")
        reply = await self._dispatch(x, phase)
        if self.profile.cookies:
            reply.headers["Set-Cookie"] = f"sid={token_hex(8)}; Path=/; HttpOnly"
        return reply

    async def _dispatch(self, x: Exchange, phase: Phase) -> Reply:
        handler = self._handlers.get((x.route.kind, x.method))
        if handler is None:
            x.violation("nothing that the specification knows")
            return refusal(404, "UNSUPPORTED")
        if phase not in _OWN:
            await x.enter(phase)
        return await handler(x)

    async def _token(self, x: Exchange) -> Reply:
        if x.method == "GET":
            header = x.request.headers.get("Authorization", "")
            return self.authority.get_token(header, x.query)
        if x.method != "POST":
            return refusal(405)
        data = bytearray()
        await x.read_body(data.extend)
        form = dict(parse_qsl(data.decode(), keep_blank_values=True))
        return self.authority.post_token(form)

    async def _handle_foreign(self, x: Exchange) -> Reply:
        """The object store: signed URLs for reading, and sessions when Locations point here."""
        if x.route.kind == "session":
            return await self._dispatch(x, x.entry.phase)
        await x.enter(Phase.REDIRECT)
        if "Cookie" in x.request.headers:
            x.violation("a cookie sent to another origin")
        state = self._core.signed(x.entry.query)
        if state == "altered":
            x.violation("the signed URL was altered")
        if state != "good":
            page = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            return Reply(status=403, headers={"Content-Type": "application/xml"}, body=page)
        if x.route.kind == "manifest":
            return await self._pulls.manifest(x)
        data = self.store.blob(x.repository, x.reference)
        return refusal(404) if data is None else ranged(x, data, {})


def _data(manifest: StoredManifest | None) -> bytes:
    return b"" if manifest is None else manifest.data


def _default_auth(row: Profile, *, asked: bool) -> Auth:
    if not asked:
        return "none"
    return "basic" if row.auth == "none" else row.auth


async def _pong(_x: Exchange) -> Reply:
    headers = {
        "Content-Type": "application/json",
        "Docker-Distribution-API-Version": "registry/2.0",
    }
    return Reply(headers=headers, body=b"{}")


async def _reply(x: Exchange, handle: Callable[[Exchange], Awaitable[Reply]]) -> Reply:
    try:
        reply = await handle(x)
    except Answered as answered:
        return answered.reply
    fault = x.fault
    if fault is not None and fault.after:
        if fault.reset and fault.cut_at is None:
            x.abort(reset=True)
        if fault.status is not None:
            return x.reply_of(fault)
    return reply
