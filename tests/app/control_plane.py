"""AWS for the whole program: moto's server, with what moto does not model put before it, and everything counted.

moto keeps repositories, their settings and policies, and answers STS. Its login tokens neither differ nor end, it has
no account settings, and the layers are in the sandbox's registry and not with moto: these answers are made here.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web
from moto.ecr.models import ecr_backends

ACCOUNT, REGION = "123456789012", "eu-central-1"
HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"

_LIFE = 12 * 3600
_PASSED_ON = ("Content-Type", "X-Amz-Target", "X-Amz-Date", "Authorization")


class ControlPlane:
    """One AWS endpoint. `refuse` scripts the next answers of an operation."""

    def __init__(self, moto: str, *, wall: Callable[[], float]) -> None:
        """Args: `moto` is the URL of its server; `wall` tells Unix time."""
        self._moto = moto
        self._wall = wall
        self.calls: Counter[str] = Counter()
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.mounting = "DISABLED"
        self.layers: Callable[[str], Mapping[str, object]] = lambda _repository: {}
        self.new_password: Callable[[str], None] = lambda _password: None
        self.first: Callable[[str, dict[str, Any]], Awaitable[None]] | None = None
        self._refusals: dict[str, list[tuple[int, str]]] = {}
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Listens; the URL."""
        app = web.Application()
        app.router.add_post("/", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession() as self._session:
            async with self._session.post(f"{self._moto}/moto-api/reset") as answer:
                assert answer.status == 200
            yield f"http://{host}:{port}"
        await runner.cleanup()

    def refuse(self, operation: str, code: str, *, status: int = 400, times: int = 1) -> None:
        """The next `times` answers of `operation` are this error."""
        self._refusals.setdefault(operation, []).extend([(status, code)] * times)

    def asked(self, operation: str) -> list[dict[str, Any]]:
        """The bodies of all requests of that operation."""
        return [body for name, body in self.bodies if name == operation]

    def repository(self, name: str) -> Any:
        """moto's own record of a repository; KeyError if there is none."""
        return ecr_backends[ACCOUNT][REGION].repositories[name]

    def exists(self, name: str) -> bool:
        """Whether the account has the repository."""
        return name in ecr_backends[ACCOUNT][REGION].repositories

    def make(self, name: str) -> None:
        """A repository that somebody else makes."""
        ecr_backends[ACCOUNT][REGION].create_repository(
            repository_name=name,
            registry_id=None,
            encryption_config={"encryptionType": "AES256"},
            image_scan_config=None,
            image_tag_mutability="MUTABLE",
            image_tag_mutability_exclusion_filters=None,
            tags=[],
        )

    async def _answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        target = request.headers.get("X-Amz-Target", "")
        operation = target.rpartition(".")[2] or parse_qs(text)["Action"][0]
        body: dict[str, Any] = json.loads(text) if target else {}
        self.calls[operation] += 1
        self.bodies.append((operation, body))
        if self.first is not None:
            await self.first(operation, body)
        if refusals := self._refusals.get(operation):
            status, code = refusals.pop(0)
            return web.json_response({"__type": code, "message": "no"}, status=status)
        if operation == "GetAccountSetting":
            return web.json_response({"name": body["name"], "value": self.mounting})
        return await self._from_moto(request, operation, body, text)

    async def _from_moto(
        self, request: web.Request, operation: str, body: dict[str, Any], text: str
    ) -> web.Response:
        assert self._session is not None
        headers = {k: v for k in _PASSED_ON if (v := request.headers.get(k))}
        async with self._session.post(self._moto, data=text, headers=headers) as answer:
            raw, status, kind = await answer.read(), answer.status, answer.content_type
        if status == 200 and operation == "GetAuthorizationToken":
            raw = self._token(json.loads(raw))
        if status == 200 and operation == "BatchCheckLayerAvailability":
            raw = self._availability(body)
        return web.Response(status=status, body=raw, content_type=kind)

    def _token(self, answer: dict[str, Any]) -> bytes:
        password = f"password-{self.calls['GetAuthorizationToken']}"
        self.new_password(password)
        answer["authorizationData"][0] |= {
            "authorizationToken": base64.b64encode(f"AWS:{password}".encode()).decode(),
            "expiresAt": self._wall() + _LIFE,
        }
        return json.dumps(answer).encode()

    def _availability(self, body: dict[str, Any]) -> bytes:
        there = self.layers(body["repositoryName"])
        layers = [
            {"layerDigest": d, "layerAvailability": "AVAILABLE" if d in there else "UNAVAILABLE"}
            for d in body["layerDigests"]
        ]
        return json.dumps({"layers": layers, "failures": []}).encode()
