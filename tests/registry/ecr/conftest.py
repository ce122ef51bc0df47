"""Two AWS endpoints on loopback: moto's server, and one that does as it is told. The environment points to them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster
from moto.server import ThreadedMotoServer

from copycat.registry.ecr.aws import Aws
from tests.registry.ecr.fake_aws import REGION, FakeAws


@pytest.fixture(autouse=True)
def blockbuster(blockbuster: BlockBuster) -> BlockBuster:
    """The AWS client blocks a good deal, but in a thread, where its own little event loop has nothing else to do."""
    for function in blockbuster.functions.values():
        function.can_block_in("copycat/registry/ecr/aws.py", "_off_loop")

    return blockbuster


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that knows nothing of AWS, and no instance metadata to wait for."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def keys(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Access keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY-OF-ENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
async def fake(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeAws]:
    """An AWS that does as it is told."""
    async with FakeAws() as fake:
        monkeypatch.setenv("AWS_ENDPOINT_URL", fake.url)
        yield fake


@pytest.fixture
async def aws(fake: FakeAws, keys: None) -> AsyncIterator[Aws]:
    """Access to `fake`, with keys; a refused request is not repeated."""
    async with Aws(region=REGION, attempts=1) as aws:
        yield aws


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """moto's server, one for all tests: it takes seconds to start."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def moto(moto_url: str, keys: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """moto's ECR as the AWS of the test."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    return moto_url
