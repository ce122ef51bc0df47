"""Secrets of every kind, in a program that works and in one that is refused everywhere: none of them is seen anywhere."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from aiohttp import web

from copycat import logs
from copycat.app.process import Program
from copycat.config.settings import Settings
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.app.clouds import ACR, GAR, Clouds, open_clouds
from tests.app.support import fetch, named, program_of, until
from tests.registry.ecr.fake_aws import ACCOUNT, REGION, FakeAws
from tests.registry.helpers import install, keeps

ECR = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
#: Hosts whose logins stand in the configuration or in Docker's file, by what keeps the login.
PLAIN, ENV, FILE, LOGIN, IDENTITY, HELPER = (
    f"{name}.example" for name in ("plain", "env", "file", "login", "identity", "helper")
)
SOURCES = (PLAIN, ENV, FILE, LOGIN, IDENTITY, HELPER, GAR, ACR, ECR)
TARGET = "target.example"
AWS_KEY = "canary/of+aws/secret+access+key+0123456789"


def secret(host: str) -> str:
    """What opens a host."""
    return f"canary-of-{host.replace('.', '-')}-Zq81"


@dataclass(slots=True)
class Stage:
    """The servers, the program's surroundings, and what it let be seen."""

    clouds: Clouds
    api: KubeApi
    log: io.StringIO
    registries: dict[str, Registry] = field(default_factory=dict)
    passwords: set[str] = field(default_factory=set)

    def secrets(self) -> set[str]:
        """All that there are: given, issued, and as they travel."""
        found = {secret(host) for host in (*SOURCES, TARGET)} | {AWS_KEY}
        found |= self.clouds.secrets | self.passwords
        for registry in self.registries.values():
            authority = registry.authority
            found |= set(authority.tokens) | set(authority.identity_tokens)
            found |= {password for password, _ in authority.passwords.values()}
            for user, (password, _) in authority.passwords.items():
                found.add(base64.b64encode(f"{user}:{password}".encode()).decode().rstrip("="))
        return found

    def refuse(self, *hosts: str) -> None:
        """These registries say no, and repeat what they know of the login in every way that one may think of."""
        for host in hosts:
            registry, body = self.registries[host], refusal(host)
            for phase in (Phase.HEAD_MANIFEST, Phase.GET_MANIFEST, Phase.TOKEN):
                registry.fail(phase, status=403, body=body, times=1000)

    def environ(self) -> dict[str, str]:
        """Of the program."""
        folder = self.clouds.folder
        return {
            **self.clouds.federated(),
            **install(folder, "canary", keeps("me", secret(HELPER))),
            "DOCKER_CONFIG": str(folder / "docker"),
            "TOKEN_OF_ENV": secret(ENV),
        }

    async def settings(self) -> Settings:
        """With a login of every kind."""
        folder = anyio.Path(self.clouds.folder)
        await folder.joinpath("password").write_text(secret(FILE))
        await folder.joinpath("docker").mkdir(exist_ok=True)
        await folder.joinpath("docker", "config.json").write_text(json.dumps(docker_config()))
        rows = [
            {"registry": PLAIN, "username": "me", "password": secret(PLAIN)},
            {"registry": ENV, "tokenEnv": "TOKEN_OF_ENV"},
            {"registry": FILE, "username": "me", "passwordFile": str(folder / "password")},
        ]
        identities = ((GAR, "gcp"), (ACR, "azure"), (ECR, "ecr"))
        document = {
            "targetKind": "docker",
            "docker": {"registry": TARGET, "repoPrefix": "mirror/$registry", "username": "me"},
            "registryCredentials": rows,
            "registries": [{"host": host, "auth": auth} for host, auth in identities],
            "insecureRegistries": [LOGIN, IDENTITY, HELPER],
            "registryRetryAttempts": 1,
            "metricsAddr": "127.0.0.1:0",
            "adminAddr": "0",
            "healthAddr": "127.0.0.1:0",
            "leaderElect": False,
            "logLevel": "debug",
        }
        return await self.clouds.settings(json.dumps(document), TARGET_PASSWORD=secret(TARGET))


def docker_config() -> object:
    """What `docker login` left."""
    auth = base64.b64encode(f"me:{secret(LOGIN)}".encode()).decode()
    return {
        "auths": {LOGIN: {"auth": auth}, IDENTITY: {"identitytoken": secret(IDENTITY)}},
        "credHelpers": {HELPER: "canary"},
    }


def refusal(host: str) -> bytes:
    """An error that tells what it should not."""
    known = secret(host)
    header = base64.b64encode(f"me:{known}".encode()).decode()
    words = [
        "" if host in {GAR, ACR} else f"nobody here knows {known}",
        f"Authorization: Basic {header}",
        f"authorization=Bearer {known}",
        f"you sent Bearer {known}",
        f"see https://me:{known}@{host}/login?token={known}",
        f"password={known}",
        f'{{"identitytoken": "{known}", "refresh_token": "{known}"}}',
    ]
    errors = [{"code": "DENIED", "message": "; ".join(words), "detail": {"token": known}}]
    return json.dumps({"errors": errors}).encode()


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Everything that is logged, at the level that says most, as JSON or (by a test's parameter) as text."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    stream = io.StringIO()
    logs.configure("debug", getattr(request, "param", "json"), stream=stream)
    yield stream
    root.setLevel(level)
    root.handlers[:] = handlers
    logs.unconfigure()


@pytest.fixture
async def stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> AsyncIterator[Stage]:
    """All servers, each with an image and a login of its own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY-OF-ENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", AWS_KEY)
    async with AsyncExitStack() as stack:
        clouds = await stack.enter_async_context(open_clouds(tmp_path))
        aws = await stack.enter_async_context(FakeAws())
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
        stage = Stage(clouds, await stack.enter_async_context(KubeApi()), log)
        for host in (PLAIN, ENV, FILE, LOGIN, IDENTITY, HELPER, TARGET):
            auth = "token" if host in {ENV, IDENTITY} else "basic"
            stage.registries[host] = await stack.enter_async_context(
                clouds.any(host, auth=auth, profile="acr", redirect_blobs=False)
            )
            stage.registries[host].authority.set_password("me", secret(host))
        stage.registries[ENV].authority.static_tokens[secret(ENV)] = "me"
        stage.registries[IDENTITY].authority.identity_tokens[secret(IDENTITY)] = "me"
        stage.registries[GAR] = await stack.enter_async_context(clouds.google(GAR))
        stage.registries[ACR] = await stack.enter_async_context(clouds.azure())
        ecr = await stack.enter_async_context(
            clouds.any(ECR, profile="ecr", auth="basic", redirect_blobs=False)
        )
        stage.registries[ECR] = ecr
        password = secret(ECR)
        aws.token = base64.b64encode(f"AWS:{password}".encode()).decode()
        stage.passwords.add(aws.token)
        ecr.authority.set_password("AWS", password)
        for host in SOURCES:
            stage.registries[host].add_image("team/app", "1", seed=host)
            spec = {"containers": [{"name": "main", "image": f"{host}/team/app:1"}]}
            metadata = named(host.split(".", maxsplit=1)[0])
            stage.api.create(
                "deployments", {"metadata": metadata, "spec": {"template": {"spec": spec}}}
            )
        yield stage


async def seen(stage: Stage, program: Program, settings: Settings) -> str:
    """All that the program shows to others, as one text."""
    parts = [repr(vars(program)), repr(settings)]
    for path in ("/metrics", "/api/v1/images", "/api/v1/status", "/api/v1/transfers", "/"):
        status, body = await fetch(program, "metrics", path)
        assert status == web.HTTPOk.status_code
        parts.append(body)
    parts += [json.dumps(event) for event in stage.api.objects("events")]
    return "\n".join(parts)


@asynccontextmanager
async def running(stage: Stage, settings: Settings) -> AsyncIterator[Program]:
    """The program, in this world."""
    async with program_of(
        settings,
        str(stage.api.kubeconfig(stage.clouds.folder / "kubeconfig")),
        resolver=stage.clouds.names,
        ssl_context=stage.clouds.trust(),
        environ=await anyio.to_thread.run_sync(stage.environ),
    ) as program:
        yield program


def tried(program: Program) -> bool:
    """Whether every image was tried and nothing is under way."""
    rows = program.facade.images()
    return len(rows) == len(SOURCES) and all(row.state != "pending" for row in rows)


async def check(
    stage: Stage, program: Program, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> str:
    """Search everything for every secret; what was searched."""
    printed = capsys.readouterr()
    text = "\n".join(
        [await seen(stage, program, settings), stage.log.getvalue(), printed.out, printed.err]
    )
    found = sorted(secret for secret in stage.secrets() if secret in text)

    assert found == []
    return text


async def test_a_program_that_works(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """With every kind of login at work, all images arrive and no secret is seen."""
    settings = await stage.settings()
    async with running(stage, settings) as program:
        await until(lambda: tried(program))
        rows = {row.source: row for row in program.facade.images()}
        assert {s: row.message for s, row in rows.items() if row.state != "protected"} == {}
        text = await check(stage, program, settings, capsys)

    assert all(f"{host}/team/app:1" in text for host in SOURCES)
    assert len(stage.secrets()) > 2 * len(SOURCES)


@pytest.mark.parametrize("log", ["json", "text"], indirect=True)
@pytest.mark.parametrize("hosts", [SOURCES, (TARGET,)], ids=["sources", "target"])
async def test_a_program_that_is_refused(
    stage: Stage, capsys: pytest.CaptureFixture[str], hosts: tuple[str, ...]
) -> None:
    """Registries that refuse every login and repeat it in their errors: what is shown of them holds no secret."""
    stage.refuse(*hosts)
    settings = await stage.settings()
    async with running(stage, settings) as program:
        await until(lambda: tried(program))
        rows = program.facade.images()
        assert {row.state for row in rows} == {"failed"}
        await until(lambda: bool(stage.api.objects("events")))
        text = await check(stage, program, settings, capsys)

    # the errors are there, and so is what they may say
    assert text.count("you sent Bearer ***") >= len(SOURCES)


async def test_identities_that_are_refused(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clouds, helpers and files in trouble are told without what they said or hold."""
    stage.clouds.status = 403
    settings = await stage.settings()
    environ = await anyio.to_thread.run_sync(stage.environ)
    helper = f"{keeps('me', secret(HELPER))}; exit 7"
    await anyio.to_thread.run_sync(install, stage.clouds.folder, "canary", helper)
    await anyio.Path(stage.clouds.folder / "docker" / "config.json").write_text(
        json.dumps(docker_config()).replace("{", "[", 1)
    )
    async with program_of(
        settings,
        str(stage.api.kubeconfig(stage.clouds.folder / "kubeconfig")),
        resolver=stage.clouds.names,
        ssl_context=stage.clouds.trust(),
        environ=environ,
    ) as program:
        await until(lambda: tried(program))
        text = await check(stage, program, settings, capsys)

    assert "registries[0].auth is gcp" in text
    assert "docker's logins cannot be used" in text
