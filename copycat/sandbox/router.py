"""Which handler answers a request, what it must prove before, and what is noted when the answer is out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from secrets import token_hex
from urllib.parse import parse_qsl

from aiohttp import web

from copycat.sandbox.exchange import Core, Exchange, needed_scopes, open_exchange
from copycat.sandbox.ledger import Phase
from copycat.sandbox.pulls import Pulls, ranged
from copycat.sandbox.pushes import Pushes
from copycat.sandbox.reply import Aborted, Answered, Reply, deliver, refusal
from copycat.sandbox.uploads import Uploads

__all__ = ["Router"]

#: Phases that their handlers enter by themselves, when a body is about to be read or has been.
_OWN = {Phase.PING, Phase.START_UPLOAD, Phase.UPLOAD_BODY, Phase.COMMIT, Phase.PUT_MANIFEST}


class Router:
    """The handlers of a registry and of its second origin."""

    def __init__(self, core: Core) -> None:
        """Nothing was asked yet."""
        self._core = core
        self._pulls = Pulls()
        self.uploads = Uploads()
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
            ("uploads", "POST"): self.uploads.start,
            ("session", "PATCH"): self.uploads.patch,
            ("session", "PUT"): self.uploads.put,
            ("session", "GET"): self.uploads.status,
            ("session", "DELETE"): self.uploads.cancel,
            ("tags", "GET"): self._pulls.tags,
            ("referrers", "GET"): self._pulls.referrers,
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._serve(open_exchange(self._core, request), self._handle)

    async def answer_foreign(self, request: web.BaseRequest) -> web.StreamResponse:
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
        refused = self._core.authority.decide(header, scopes, x.origin, ping=phase is Phase.PING)
        if refused is not None:
            return refused
        if self._core.profile.cookies and "Cookie" in x.request.headers:
            x.violation("a cookie sent back")
        reply = await self._dispatch(x, phase)
        if self._core.profile.cookies:
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
            return self._core.authority.get_token(header, x.query)
        if x.method != "POST":
            return refusal(405)
        data = bytearray()
        await x.read_body(data.extend)
        form = dict(parse_qsl(data.decode(), keep_blank_values=True))
        return self._core.authority.post_token(form)

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
        data = self._core.store.blob(x.repository, x.reference)
        return refusal(404) if data is None else ranged(x, data, {})


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
