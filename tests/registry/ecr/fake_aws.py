"""An AWS endpoint that says what a test tells it to: tokens with a number, refusals, and a list of what was asked.

moto's server is the better imitation of ECR; this one is for what moto never does: throttle, deny, expire.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs

import anyio
from aiohttp import web

ACCOUNT = "123456789012"
REGION = "eu-central-1"


class FakeAws:
    """ECR, ECR Public and STS on one port. `refuse` scripts the next answers of an operation."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bodies: list[tuple[str, dict[str, object]]] = []
        self.signers: list[str] = []
        self.endpoint = f"https://{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
        self.now: Callable[[], float] = lambda: datetime.now(UTC).timestamp()
        self.life = 12 * 3600
        self.session_life = 3600
        self.settings = {"BLOB_MOUNTING": "ENABLED"}
        self.archived: set[str] = set()
        self.available: Callable[[str], bool] = lambda _digest: True
        self.hold: anyio.Event | None = None
        self.token: str | None = None
        self.on_password: Callable[[str], None] = lambda _password: None
        self.repositories: set[str] = set()
        self._refusals: dict[str, list[tuple[int, str, str]]] = {}
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    def refuse(
        self, operation: str, code: str, message: str = "no", *, status: int = 400, times: int = 1
    ) -> None:
        """The next `times` answers of `operation` are this error."""
        self._refusals.setdefault(operation, []).extend([(status, code, message)] * times)

    def asked(self, operation: str) -> list[dict[str, object]]:
        """The bodies of all requests of that operation."""
        return [body for name, body in self.bodies if name == operation]

    async def _answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        target = request.headers.get("X-Amz-Target")
        if target is not None:
            operation, body = target.rpartition(".")[2], json.loads(text)
        else:
            form = {key: values[0] for key, values in parse_qs(text).items()}
            operation, body = form["Action"], form

        public = target is not None and target.startswith("Spencer")
        operation = f"Public{operation}" if public else operation
        self.calls[operation] += 1
        self.bodies.append((operation, body))
        credential = request.headers.get("Authorization", "").partition("Credential=")[2]
        self.signers.append(credential.partition("/")[0])
        if self.hold is not None:
            await self.hold.wait()

        if refusals := self._refusals.get(operation):
            return self._refusal(*refusals.pop(0), json_protocol=target is not None)

        answer: web.Response = getattr(self, f"_{operation}")(body)
        return answer

    def _refusal(
        self, status: int, code: str, message: str, *, json_protocol: bool
    ) -> web.Response:
        if json_protocol:
            return web.json_response({"__type": code, "message": message}, status=status)

        return web.Response(
            status=status,
            text=f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>",
            content_type="text/xml",
        )

    def _token(self, name: str) -> dict[str, object]:
        number = self.calls[name]
        password = f"password-{number}"
        token = self.token or base64.b64encode(f"AWS:{password}".encode()).decode()
        self.on_password(password)
        return {"authorizationToken": token, "expiresAt": self.now() + self.life}

    def _GetAuthorizationToken(self, body: dict[str, object]) -> web.Response:  # noqa: N802 - the operation's name
        data = {**self._token("GetAuthorizationToken"), "proxyEndpoint": self.endpoint}
        return web.json_response({"authorizationData": [data]})

    def _PublicGetAuthorizationToken(self, body: dict[str, object]) -> web.Response:  # noqa: N802 - the operation's name
        return web.json_response({"authorizationData": self._token("PublicGetAuthorizationToken")})

    def _CreateRepository(self, body: dict[str, object]) -> web.Response:  # noqa: N802 - the operation's name
        self.repositories.add(str(body["repositoryName"]))
        return web.json_response({"repository": {"repositoryName": body["repositoryName"]}})

    def _PutLifecyclePolicy(self, body: dict[str, object]) -> web.Response:  # noqa: N802 - the operation's name
        return web.json_response({})

    def _SetRepositoryPolicy(self, body: dict[str, object]) -> web.Response:  # noqa: N802 - the operation's name
        return web.json_response({})

    def _GetAccountSetting(self, body: dict[str, str]) -> web.Response:  # noqa: N802 - the operation's name
        return web.json_response({"name": body["name"], "value": self.settings[body["name"]]})

    def _BatchCheckLayerAvailability(self, body: dict[str, list[str]]) -> web.Response:  # noqa: N802 - the operation's name
        def state(digest: str) -> str:
            if digest in self.archived:
                return "ARCHIVED"

            return "AVAILABLE" if self.available(digest) else "UNAVAILABLE"

        layers = [
            {"layerDigest": digest, "layerAvailability": state(digest)}
            for digest in body["layerDigests"]
        ]
        return web.json_response({"layers": layers, "failures": []})

    def _AssumeRole(self, body: dict[str, str]) -> web.Response:  # noqa: N802 - the operation's name
        return self._session("AssumeRole", body["RoleArn"])

    def _AssumeRoleWithWebIdentity(self, body: dict[str, str]) -> web.Response:  # noqa: N802 - the operation's name
        return self._session("AssumeRoleWithWebIdentity", body["RoleArn"])

    def _session(self, operation: str, role: str) -> web.Response:
        end = datetime.fromtimestamp(self.now(), UTC) + timedelta(seconds=self.session_life)
        name = role.rpartition("/")[2]
        return web.Response(
            content_type="text/xml",
            text=f"""<{operation}Response><{operation}Result>
              <AssumedRoleUser><Arn>arn:aws:sts::{ACCOUNT}:assumed-role/{name}/x</Arn><AssumedRoleId>r:x</AssumedRoleId></AssumedRoleUser>
              <Credentials><AccessKeyId>KEY-OF-{name}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>
              <SessionToken>session</SessionToken><Expiration>{end:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials>
              </{operation}Result></{operation}Response>""",
        )
