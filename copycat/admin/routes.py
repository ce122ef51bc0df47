"""The application of the metrics and admin listeners: the same routes, guarded by where they are served."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio.to_thread
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from copycat.admin.actions import ActionRunner
from copycat.admin.api import Api, LogLevel, Message, Transfers, clean
from copycat.admin.auth import Guard, Refusal
from copycat.admin.static import ASSETS, INDEX
from copycat.decoding import UNREADABLE
from copycat.errors import ConfigError, printable
from copycat.logs import get_logger, level, set_level
from copycat.metrics import CONTENT_TYPE, Metrics

__all__ = ["Routes"]

_log = get_logger(__name__)
_encode = msgspec.json.Encoder().encode

#: The page loads its own script and style and talks to its own origin; nothing else is possible.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_Answer = Callable[[], Awaitable[tuple[int, msgspec.Struct]]]


class Routes:
    """Makes the application of one listener."""

    def __init__(
        self,
        *,
        guard: Guard,
        runner: ActionRunner,
        api: Api,
        metrics: Metrics,
        refresh: Callable[[], None],
    ) -> None:
        """Args: `refresh` runs before metrics are rendered."""
        self._guard = guard
        self._runner = runner
        self._api = api
        self._metrics = metrics
        self._refresh = refresh

    def application(self) -> web.Application:
        """The routes. What is not GET (or POST, for actions) is answered with 405."""
        app = web.Application(middlewares=[_harden])
        app.router.add_get("/metrics", self._render)
        for path, answer in (
            ("/reset-cooldown", self._runner.reset),
            ("/force-reconcile", self._runner.force),
        ):
            handler = self._action(answer)
            app.router.add_get(path, handler, allow_head=False)
            app.router.add_post(path, handler)
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/api/v1/images", self._images)
        app.router.add_get("/api/v1/transfers", self._transfers)
        app.router.add_get("/api/v1/loglevel", self._level)
        app.router.add_put("/api/v1/loglevel", self._set_level)
        app.router.add_get("/", self._page)
        for path in ASSETS:
            app.router.add_get(path, _asset)
        return app

    async def _render(self, _request: web.Request) -> web.Response:
        self._refresh()
        body = await anyio.to_thread.run_sync(self._metrics.render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    def _action(self, answer: _Answer) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            refusal = await self._guard.refuse(request.headers, action=True)
            if refusal is not None:
                response = _json(refusal)
            else:
                status, reply = await answer()
                response = _json(reply, status)
            _log.info(
                "action" if response.status == 200 else "action refused",
                path=request.path,
                method=request.method,
                peer=request.remote or "",
                status=response.status,
            )
            return response

        return handle

    async def _status(self, request: web.Request) -> web.Response:
        refusal = await self._guard.refuse(request.headers, action=False)
        return _json(refusal or self._api.status())

    async def _images(self, request: web.Request) -> web.Response:
        refusal = await self._guard.refuse(request.headers, action=False)
        if refusal is None and (message := self._runner.standby()):
            return _json(Message(message=message), 503)
        return _json(refusal or clean(self._api.images()))

    async def _transfers(self, request: web.Request) -> web.Response:
        refusal = await self._guard.refuse(request.headers, action=False)
        return _json(refusal or Transfers(transfers=self._api.transfers()))

    async def _level(self, request: web.Request) -> web.Response:
        refusal = await self._guard.refuse(request.headers, action=False)
        return _json(refusal or LogLevel(level=level()))

    async def _set_level(self, request: web.Request) -> web.Response:
        """The level until the next start, or until logLevel changes in the configuration."""
        refusal = await self._guard.refuse(request.headers, action=True)
        answer: msgspec.Struct | Refusal
        status, answer = (0, refusal) if refusal else await _new_level(request)
        response = _json(answer, status)
        _log.warning(
            "log level" if response.status == 200 else "log level refused",
            to=level(),
            peer=request.remote or "",
            status=response.status,
        )
        return response

    async def _page(self, request: web.Request) -> web.Response:
        """The page. With a 401 comes the same file: it asks for the token and has no data of its own."""
        refusal = await self._guard.refuse(request.headers, action=False)
        if refusal is not None and refusal.status == 403:
            return _json(refusal)
        response = web.Response(body=INDEX, content_type="text/html", charset="utf-8")
        if refusal is not None:
            response.set_status(refusal.status)
            response.headers["WWW-Authenticate"] = _CHALLENGE
        return response


_CHALLENGE: Final = 'Bearer realm="k8s-copycat"'


async def _new_level(request: web.Request) -> tuple[int, msgspec.Struct]:
    """Status and answer."""
    try:
        wanted = msgspec.json.decode(await request.read(), type=LogLevel)
        set_level(wanted.level)
    except UNREADABLE:
        return 400, Message(message='expected a JSON object like {"level": "debug"}')
    except ConfigError as error:
        return 400, Message(message=printable(error.problems[0].message))
    return 200, LogLevel(level=level())


async def _asset(request: web.Request) -> web.Response:
    body, content_type = ASSETS[request.path]
    return web.Response(body=body, content_type=content_type, charset="utf-8")


def _json(answer: msgspec.Struct | Refusal, status: int = 200) -> web.Response:
    headers = {}
    if isinstance(answer, Refusal):
        status = answer.status
        if status == 401:
            headers["WWW-Authenticate"] = _CHALLENGE
        answer = Message(message=answer.message)
    return web.Response(
        body=_encode(answer), status=status, content_type="application/json", headers=headers
    )


@web.middleware
async def _harden(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What keeps browsers from mischief, on every answer, refusals of the router included."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(_HEADERS)
        raise
    response.headers.update(_HEADERS)
    return response
