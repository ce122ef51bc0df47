"""From settings to objects."""

from __future__ import annotations

import io
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from moto.server import ThreadedMotoServer

from copycat.app.oneshot import mirror
from copycat.app.wiring import open_engine
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.errors import ConfigError, CopycatError
from copycat.metrics import Metrics
from copycat.progress import Lines
from copycat.registry.answers import SLOW_RATE
from copycat.registry.repository import Repository
from copycat.sandbox.registry import Registry
from tests.app.support import World

ACCOUNT, REGION = "123456789012", "eu-central-1"
HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without any AWS credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def moto(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An AWS on loopback, with keys for it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    yield
    server.stop()


def ecr(**flags: object) -> Settings:
    """Settings with ECR as the target."""
    return load(
        path="/nonexistent/copycat.yaml",
        environ={},
        flags={
            "target_kind": "ecr",
            "ecr.account_id": ACCOUNT,
            "ecr.region": REGION,
            "ecr.repo_prefix": "mirror",
            **{key.replace("__", "."): value for key, value in flags.items()},
        },
    )


async def built(settings: Settings) -> str:
    """The target's registry of an engine of these settings."""
    async with open_engine(settings, metrics=Metrics(version="test")) as engine:
        return engine.target.registry


async def test_ecr_tells_its_host(moto: None) -> None:
    """The host is what AWS says, or follows from account and region."""
    found = await built(ecr())
    assert ACCOUNT in found
    assert ".dkr.ecr." in found


async def test_ecr_without_credentials_is_built_all_the_same(no_aws: None) -> None:
    """If AWS may not be asked, the host that follows from account and region is used."""
    assert await built(ecr()) == HOST


@pytest.mark.parametrize(
    ("flags", "host"),
    [
        pytest.param({"dry_run": True, "dry_pull": True}, HOST, id="nobody-is-asked"),
        pytest.param({"ecr__endpoint": "ecr.example"}, "ecr.example", id="endpoint"),
    ],
)
async def test_ecr_asks_nobody(no_aws: None, flags: dict[str, object], host: str) -> None:
    """With an endpoint, or when nothing may be asked, no request is needed for the host."""
    assert await built(ecr(**flags)) == host


async def test_ecr_settings_that_cannot_be_used(no_aws: None) -> None:
    """What ECR would refuse is a ConfigError before anything runs."""
    settings = ecr()
    broken = settings.ecr.model_copy(
        update={"tag_mutability": "IMMUTABLE_WITH_EXCLUSION", "mutability_exclusions": ()}
    )
    with pytest.raises(ConfigError, match="exclusion"):
        await built(settings.model_copy(update={"ecr": broken}))


async def test_ecr_warns_of_a_dangerous_lifecycle_policy(
    no_aws: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lifecycle policy that would delete mirrored images is warned of at the start."""
    policy = (
        '{"rules":[{"rulePriority":1,"selection":{"tagStatus":"any",'
        '"countType":"imageCountMoreThan","countNumber":5},"action":{"type":"expire"}}]}'
    )
    await built(ecr(ecr__lifecycle_policy=policy, dry_run=True, dry_pull=True))
    assert "lifecycle policy" in capsys.readouterr().out


async def test_a_login_and_rules_of_the_file(world: World) -> None:
    """Logins of both sides, hosts and path rules of the file reach what copies: the image is where the rule says."""
    file = anyio.Path(world.folder / "config.yaml")
    async with (
        Registry(username="me", password="secret") as target,
        Registry(username="you", password="other") as source,
    ):
        content = source.add_image("a/x", "1", seed="x")
        await file.write_text(
            f"""\
targetKind: docker
docker: {{registry: "{target.address}", insecure: true, username: me}}
registries: [{{host: "{source.address}", insecure: true}}, {{host: two.example}}]
registryCredentials: [{{registry: "{source.address}", username: you, passwordFile: "{world.folder}/password"}}]
pathMap: [{{from: a/, to: b/}}]
mirrorPlatforms: [linux/amd64]
"""
        )
        await anyio.Path(world.folder / "password").write_text("other\n")
        settings = await anyio.to_thread.run_sync(
            lambda: load(path=str(file), environ={"TARGET_PASSWORD": "secret"}, flags={})
        )
        out = io.StringIO()
        reference = f"{source.address}/a/x:1"
        assert await mirror(settings, references=[reference], manifests=[], reporter=Lines(out))
        assert target.has("b/x", content, "1")


async def test_bandwidth_of_the_file_reaches_the_copies(world: World) -> None:
    """`maxBandwidth` slows what is copied."""
    world.source.add_image("team/app", "1", layers=[400_000])
    out = io.StringIO()
    begun = time.monotonic()
    settings = world.settings(max_bandwidth="1M")
    reference = world.image("team/app:1")
    assert await mirror(settings, references=[reference], manifests=[], reporter=Lines(out))
    assert 0.25 < time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("limit", "most"), [("0", SLOW_RATE), ("50Mi", SLOW_RATE), ("10Ki", 10 * 1024 / 16 / 2)]
)
async def test_a_low_limit_makes_no_upload_slow(world: World, limit: str, most: float) -> None:
    """What `maxBandwidth` leaves to each of many transfers is enough for all of them."""
    settings = world.settings(max_bandwidth=limit)
    assert settings.max_transfers == 16
    async with open_engine(settings, metrics=Metrics(version="test"), environ={}) as engine:
        assert 0 < engine.transport.slow_rate <= most


class Search(AbstractResolver):
    """A pod's resolver: notes the names that it is asked for, finds none."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.add(host)
        raise OSError("Name or service not known")

    async def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("environ", "name"),
    [({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "kubernetes.default."), ({}, "kubernetes.default")],
)
async def test_a_pod_resolves_whole_names(environ: dict[str, str], name: str) -> None:
    """In a pod, the host of an image is not completed by search domains."""
    settings = load(
        path="/nonexistent/copycat.yaml",
        environ={},
        flags={"target_kind": "docker", "docker.registry": "registry.example"},
    )
    found = Search()

    async def at_once(seconds: float) -> None:
        await anyio.lowlevel.checkpoint()

    async with open_engine(
        settings,
        metrics=Metrics(version="test"),
        resolver=found,
        environ=environ,
        sleep=at_once,
    ) as engine:
        with pytest.raises(CopycatError):
            await Repository(engine.transport, "kubernetes.default", "apis").head_manifest("1")
    assert found.asked == {name}


async def test_what_is_not_needed_is_not_imported() -> None:
    """A target that is no cloud's costs no cloud's modules: they take half a second of the start."""
    code = """
import sys, anyio
from copycat.app.wiring import open_engine
from copycat.config.sources import load
from copycat.metrics import Metrics

async def main():
    environ = {"TARGET_KIND": "docker", "TARGET_REGISTRY": "registry.example"}
    settings = load(path="/nonexistent/copycat.yaml", environ=environ)
    async with open_engine(settings, metrics=Metrics(version="test")):
        heavy = ("aiobotocore", "botocore", "copycat.registry.cloud")
        print([name for name in heavy if name in sys.modules])

anyio.run(main)
"""
    done = await anyio.run_process([sys.executable, "-c", code])
    assert done.stdout.decode().strip() == "[]"
