"""What every test gets: one event loop implementation, and an alarm for code that blocks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture
def anyio_backend() -> str:
    """The program runs on asyncio alone (aiohttp)."""
    return "asyncio"


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A blocking call of the program in the event loop fails the test that makes it."""
    with blockbuster_ctx("copycat") as guard:
        for function in guard.functions.values():
            # a convenience of the sandbox, called by tests alone
            function.can_block_in("copycat/sandbox/kube_api.py", "kubeconfig")
            # runs an event loop of its own in a worker thread, which counts as blocking too
            function.can_block_in("copycat/registry/ecr/aws.py", "_off_loop")
        yield guard
