"""`/healthz` and `/readyz`, in the form of the Kubernetes API server's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from copycat.errors import printable

__all__ = ["Check", "Health", "health_application"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at. It is well if `error` is empty."""

    name: str
    error: str = ""


class Health(Protocol):
    """Says how the program is. Must be quick: the probe shares the event loop with the work, on purpose."""

    def live(self) -> Sequence[Check]:
        """What only a restart cures."""
        ...

    def ready(self) -> Sequence[Check]:
        """Whether the program does, or stands by to do, its work. Not whether registries answer."""
        ...


def health_application(health: Health) -> web.Application:
    """The application of the health listener; it never asks for a token."""

    async def healthz(request: web.Request) -> web.Response:
        return _answer("healthz", health.live(), verbose="verbose" in request.query)

    async def readyz(request: web.Request) -> web.Response:
        return _answer("readyz", health.ready(), verbose="verbose" in request.query)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


def _answer(name: str, checks: Sequence[Check], *, verbose: bool) -> web.Response:
    good = not any(check.error for check in checks)
    if good and not verbose:
        return web.Response(text="ok")
    lines = [
        f"[-]{c.name} failed: {printable(c.error)}" if c.error else f"[+]{c.name} ok"
        for c in checks
    ]
    lines.append(f"{name} check {'passed' if good else 'failed'}\n")
    return web.Response(text="\n".join(lines), status=200 if good else 500)
