"""Named fakes behind the HTTP side, and a way to run it on free ports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import anyio

from copycat.admin.actions import ForceResult, ResetResult, Standing
from copycat.admin.api import Image, Status, Transfer, User
from copycat.admin.health import Check
from copycat.admin.server import AdminServer
from copycat.errors import CopycatError
from copycat.metrics import Metrics

TOKEN = "a-token-of-32-characters-exactly"


@dataclass
class Controller:
    """Stands for the controller: counts what it is told, and waits where the test says so."""

    enabled: bool = True
    cleared: int = 2
    failure: str = ""
    error: CopycatError | None = None
    resets: int = 0
    passes: int = 0
    finished: int = 0
    entered: anyio.Event = field(default_factory=anyio.Event)
    gate: anyio.Event | None = None
    standing: Standing = field(default_factory=Standing)
    checks: list[Check] = field(default_factory=lambda: [Check(name="ping")])

    async def reset_cooldown(self) -> ResetResult:
        """One more reset."""
        self.resets += 1
        return ResetResult(enabled=self.enabled, cleared=self.cleared)

    async def force_reconcile(self) -> ForceResult:
        """One more pass."""
        self.passes += 1
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        self.finished += 1
        if self.error is not None:
            raise self.error
        return ForceResult(workloads=3, protected=5, failure=self.failure)

    def live(self) -> Sequence[Check]:
        """Always well."""
        return [Check(name="ping")]

    def ready(self) -> Sequence[Check]:
        """As the test says."""
        return self.checks

    def status(self) -> Status:
        """A fixed answer."""
        return Status(
            version="1.2.3",
            target="r.example.com/mirror",
            images={"protected": 1, "failed": 1},
            total=2,
            protected=1,
            leading=self.standing.leading,
            holder=self.standing.holder,
        )

    def images(self) -> Sequence[Image]:
        """A good one and a bad one, whose error quotes a secret."""
        return [
            Image(
                source="docker.io/library/alpine:3.19",
                target="r.example.com/mirror/library/alpine:3.19",
                digest="sha256:" + "a" * 64,
                state="protected",
                protected=True,
                users=[User(kind="Deployment", namespace="team-a", name="web")],
            ),
            Image(
                source="ghcr.io/a/b:1",
                target="r.example.com/mirror/a/b:1",
                state="failed",
                protected=False,
                reason="not_found",
                message="GET https://ghcr.io/x?sig=Canary9secret said: <script>alert(1)</script>",
                next_try=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            ),
        ]

    def transfers(self) -> Sequence[Transfer]:
        """One blob, half way."""
        return [
            Transfer(
                image="ghcr.io/a/b:1", digest="sha256:" + "b" * 64, size=10, pulled=6, pushed=5
            )
        ]


@dataclass
class Served:
    """A server that runs, and a client."""

    controller: Controller
    metrics: Metrics
    session: aiohttp.ClientSession
    addresses: dict[str, str]
    refreshed: list[int]

    async def call(
        self,
        path: str,
        *,
        on: str = "admin",
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, Any]:
        """Status, body (JSON where it is JSON) and headers of one request."""
        url = f"http://{self.addresses[on]}{path}"
        async with self.session.request(method, url, headers=headers) as response:
            json = response.content_type == "application/json"
            return (
                response.status,
                await (response.json() if json else response.text()),
                response.headers,
            )


def reachable(address: str) -> str:
    """An address to connect to, for a listener on every interface."""
    return address.replace("0.0.0.0", "127.0.0.1").replace("[::]", "127.0.0.1")


@asynccontextmanager
async def serve(controller: Controller | None = None, **options: Any) -> AsyncIterator[Served]:
    """The server on free ports: `metrics` on every interface, `admin` and `health` on loopback."""
    controller = controller or Controller()
    metrics = Metrics(version="1.2.3")
    refreshed: list[int] = []
    server = AdminServer(
        **{
            "metrics_address": "0.0.0.0:0",
            "admin_address": "127.0.0.1:0",
            "health_address": "127.0.0.1:0",
            "metrics": metrics,
            "health": controller,
            "actions": controller,
            "api": controller,
            "standing": lambda: controller.standing,
            "refresh": lambda: refreshed.append(1),
            **options,
        }
    )
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: server.run(task_status=task_status))
        addresses = {name: reachable(text) for name, text in server.addresses.items()}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
            yield Served(controller, metrics, session, addresses, refreshed)
        group.cancel_scope.cancel()
