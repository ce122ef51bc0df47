"""Row 48: a target that wants its repositories made first, and somebody who makes them at the same time."""

from __future__ import annotations

import importlib
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import trustme

from copycat.app.wiring import Engine, open_engine
from copycat.config.sources import load
from copycat.metrics import Metrics
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.oci.reference import Reference
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.faults.support import IMAGE, SOURCE, TAG, TARGET, Time, check_tags
from tests.registry.ecr.fake_aws import ACCOUNT, REGION, FakeAws
from tests.resolving import OneHost

HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
_MISSING = b'{"errors":[{"code":"NAME_UNKNOWN","message":"The repository with name \'x\' does not exist in the registry"}]}'


#: The engine imports it when it is asked for ECR; the AWS client reads files, which counts as blocking.
importlib.import_module("copycat.registry.ecr.target")


@pytest.fixture
async def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FakeAws]:
    """An AWS that does as it is told, and an environment that knows no other."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    async with FakeAws() as fake:
        monkeypatch.setenv("AWS_ENDPOINT_URL", fake.url)
        yield fake


@dataclass(slots=True)
class World:
    """A source, ECR, and the engine between them."""

    source: Registry
    target: Registry
    engine: Engine
    aws: FakeAws

    async def copy(self, tag: str = TAG) -> MirrorResult:
        """One attempt."""
        source = Reference.parse(f"{self.source.address}/{SOURCE}:{tag}")
        with anyio.fail_after(20):
            return await self.engine.mirror.run(MirrorRequest(source, TARGET), Need())


@pytest.fixture
async def world(aws: FakeAws) -> AsyncIterator[World]:
    """Nothing is at the target yet."""
    authority, clock = trustme.CA(), Time()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(HOST).configure_cert(server)
    authority.configure_trust(client)
    aws.available = lambda _digest: False
    async with (
        Registry() as source,
        Registry(
            profile="ecr",
            ssl_context=server,
            username="AWS",
            password="password-1",
            repository_exists=aws.repositories.__contains__,
        ) as target,
    ):
        source.add(SOURCE, IMAGE, TAG)
        aws.on_password = lambda password: target.authority.set_password("AWS", password)
        flags = {
            "target_kind": "ecr",
            "ecr.account_id": ACCOUNT,
            "ecr.region": REGION,
            "ecr.repo_prefix": "mirror",
            "insecure_registries": source.address,
        }
        settings = await anyio.to_thread.run_sync(
            lambda: load(path="/nonexistent/copycat.yaml", environ={}, flags=flags)
        )
        async with open_engine(
            settings,
            metrics=Metrics(version="test"),
            resolver=OneHost(HOST, target.port),
            ssl_context=client,
            clock=clock,
            sleep=clock.sleep,
        ) as engine:
            yield World(source, target, engine, aws)
        check_tags(target)
        assert (source.violations, target.violations) == ([], [])


def arrived(world: World) -> bool:
    """The image is there, whole."""
    return world.target.has(TARGET, IMAGE, TAG)


async def test_48_made_once(world: World) -> None:
    """[I] The first refused upload has the repository made; ten images at once make one."""
    for number in range(10):
        world.source.tags[SOURCE][f"t{number}"] = IMAGE.digest
    found: list[MirrorResult] = []

    async def worker(tag: str) -> None:
        found.append(await world.copy(tag))

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(worker, f"t{number}")

    assert [r.state for r in found] == ["protected"] * 10
    assert world.aws.calls["CreateRepository"] == 1


async def test_48_somebody_else_was_faster(world: World) -> None:
    """[I] AlreadyExists is as good as made."""
    world.aws.refuse("CreateRepository", "RepositoryAlreadyExistsException")
    world.target.fail(
        Phase.START_UPLOAD,
        status=404,
        body=_MISSING,
        run=lambda _: world.aws.repositories.add(TARGET),
    )
    found = await world.copy()

    assert (found.state, found.reason) == ("protected", ""), found.message
    assert world.aws.calls["CreateRepository"] == 1
    assert arrived(world)


async def test_48_gone_before_the_manifest(world: World) -> None:
    """[M] A repository that vanishes before the manifest is made again, and everything sent."""
    world.aws.repositories.add(TARGET)
    world.target.fail(
        Phase.PUT_MANIFEST,
        status=404,
        body=_MISSING,
        run=lambda _: world.target.blobs[TARGET].clear(),
    )
    found = await world.copy()

    assert found.state == "protected", found.message
    assert world.aws.calls["CreateRepository"] == 1
    assert arrived(world)


async def test_48_not_seen_at_once(world: World) -> None:
    """[I] A repository that was made and is not seen yet is tried again, a second apart."""
    world.target.fail(Phase.START_UPLOAD, status=404, body=_MISSING, times=4)
    found = await world.copy()

    assert found.state == "protected", found.message
    assert world.aws.calls["CreateRepository"] == 1


@pytest.mark.parametrize("code", ["InvalidTagParameterException", "AccessDeniedException"])
async def test_48_may_not_be_made(world: World, code: str) -> None:
    """[I] What AWS refuses is a failure of the target, for good, and nothing is written."""
    world.aws.refuse("CreateRepository", code, times=20)
    found = await world.copy()

    assert found.state == "failed"
    assert found.error is not None
    assert (found.error.side, found.error.temporary) == ("target", False)
    assert not world.target.tags.get(TARGET)
