"""What every test gets: one event loop implementation, and an alarm for code that blocks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

from copycat import logs
from tests.idle_loop import IdleLoop

# The first event imports structlog, which would undo what a test that captures events has set up.
logs.get_logger(__name__).bind()

# An example that takes long tells of the machine, not of the program.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The program runs on asyncio alone (aiohttp); the time that a test works is no part of any limit."""
    return "asyncio", {"loop_factory": IdleLoop}


@pytest.fixture(scope="session")
def no_docker_logins(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a config.json that holds no login."""
    folder = tmp_path_factory.mktemp("docker")
    (folder / "config.json").write_text("{}")
    return str(folder)


@pytest.fixture(autouse=True)
def docker_config(no_docker_logins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What whoever runs the tests is logged in to is nothing to them."""
    monkeypatch.setenv("DOCKER_CONFIG", no_docker_logins)


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A blocking call of the program in the event loop fails the test that makes it."""
    with blockbuster_ctx("copycat") as guard:
        for function in guard.functions.values():
            # a convenience of the sandbox, called by tests alone
            function.can_block_in("copycat/sandbox/kube_api.py", "kubeconfig")
            # runs an event loop of its own in a worker thread, which counts as blocking too
            function.can_block_in("copycat/registry/ecr/aws.py", "_off_loop")
            # the measurement's own lock, for which a worker thread that is measured too may have to be waited
            function.can_block_in("coverage/collector.py", "lock_data")
        yield guard
