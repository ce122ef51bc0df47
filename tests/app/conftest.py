"""The world of every test here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.registry import Registry
from tests.app.support import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Two registries and a Kubernetes API."""
    async with Registry() as source, Registry() as target, KubeApi() as api:
        yield World(source=source, target=target, api=api, folder=tmp_path)
