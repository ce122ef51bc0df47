"""Shared by the tests of the registry client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A client that blocks the event loop is broken."""
    with blockbuster_ctx("copycat") as found:
        yield found
