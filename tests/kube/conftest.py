"""A sandbox API and a client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from copycat.kube.client import KubeClient
from copycat.sandbox.kube_api import KubeApi
from tests.kube.support import client_for


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    """A sandbox API with nothing in it."""
    async with KubeApi() as server:
        yield server


@pytest.fixture
async def client(api: KubeApi, tmp_path: Path) -> AsyncIterator[KubeClient]:
    """A client of `api`."""
    async with client_for(api, tmp_path) as opened:
        yield opened
