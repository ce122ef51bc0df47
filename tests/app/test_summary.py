"""How the whole stands is told now and then, if it changed."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from copycat import logs
from copycat.app.summary import SUMMARY
from tests.app.support import World, in_state, protected, until
from tests.app.times import Time


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    yield stream
    root.setLevel(level)
    root.handlers[:] = handlers
    logs.unconfigure()


def told(stream: io.StringIO) -> list[dict[str, Any]]:
    """The summaries so far."""
    return [e for e in map(json.loads, stream.getvalue().splitlines()) if e["msg"] == "summary"]


async def test_a_summary_when_something_changed(world: World, stream: io.StringIO) -> None:
    """Every five minutes one line has the counts; none is said twice, and a standby says none."""
    time = Time()
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    world.deployment("b", world.image("absent:1"))
    async with world.running(time, failure_cooldown_minutes=600, leader_elect=True) as program:
        await protected(program, 1)
        await in_state(program, world.image("absent:1"), "failed")
        async with world.running(time, leader_elect=True) as standby:
            await until(lambda: bool(standby.facade.holder()))
            time.jump(SUMMARY)
            await until(lambda: len(told(stream)) == 1)
            for _ in range(3):
                time.jump(SUMMARY)
                for _ in range(20):
                    await checkpoint()
        assert len(told(stream)) == 1
        world.source.add_image("c", "1", seed="c")
        world.deployment("c", world.image("c:1"))
        await protected(program, 2)
        time.jump(SUMMARY)
        await until(lambda: len(told(stream)) == 2)
    first, second = told(stream)
    assert (first["images"], first["protected"]) == (2, 1)
    assert first["states"] == {"protected": 1, "failed": 1}
    assert (second["images"], second["protected"], second["workloads"]) == (3, 2, 3)
