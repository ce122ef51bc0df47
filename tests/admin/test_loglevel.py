"""The log level while the program runs: who may change it, and what it takes."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from copycat import logs
from tests.admin.stubs import TOKEN, Served, serve

PATH = "/api/v1/loglevel"


@pytest.fixture(autouse=True)
def stream() -> Iterator[io.StringIO]:
    """What is logged; the process's logging is left as it was."""
    root = logging.getLogger()
    number, handlers = root.level, list(root.handlers)
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    yield stream
    root.setLevel(number)
    root.handlers[:] = handlers
    logs.unconfigure()


async def put(
    served: Served, body: bytes, *, on: str = "admin", token: str = "", **headers: str
) -> tuple[int, Any]:
    """Status and answer."""
    if token:
        headers["Authorization"] = f"Bearer {token}"
    url = f"http://{served.addresses[on]}{PATH}"
    async with served.session.put(url, data=body, headers=headers) as response:
        return response.status, await response.json()


async def test_the_level_changes(stream: io.StringIO) -> None:
    """GET says the level, PUT changes it at once for everybody, and the log says so whatever the level."""
    async with serve() as served:
        assert (await served.call(PATH))[:2] == (200, {"level": "info"})
        log = logs.get_logger("x")
        log.debug("before")
        assert await put(served, b'{"level": "debug"}') == (200, {"level": "debug"})
        log.debug("after")
        assert (await served.call(PATH))[1] == {"level": "debug"}
        assert await put(served, b'{"level": "WARNING"}') == (200, {"level": "warn"})
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "before" not in {e["msg"] for e in events}
    assert "after" in {e["msg"] for e in events}
    assert [(e["to"], e["status"]) for e in events if e["msg"] == "log level"] == [
        ("debug", 200),
        ("warn", 200),
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"level": "loud"}', "use debug, info"),
        (b"debug", 'like {"level": "debug"}'),
        (b'{"level": 5}', 'like {"level": "debug"}'),
        (b"", 'like {"level": "debug"}'),
        (b'{"x": ' + b"[" * 100_000, 'like {"level": "debug"}'),
        (b'{"level": "\xff"}', 'like {"level": "debug"}'),
    ],
    ids=["name", "text", "number", "empty", "deep", "no-text"],
)
async def test_what_is_no_level(body: bytes, words: str) -> None:
    """A bad level is refused with the ones that exist, and nothing changes."""
    async with serve() as served:
        status, answer = await put(served, body)
        assert status == 400
        assert words in answer["message"]
        assert (await served.call(PATH))[1] == {"level": "info"}


@pytest.mark.parametrize(
    ("token", "expected"),
    [("", 401), ("wrong" * 8, 401), (TOKEN, 200)],
    ids=["none", "bad", "good"],
)
async def test_a_token_is_needed(tmp_path: Path, token: str, expected: int) -> None:
    """Off loopback the bearer token of the actions is needed, to read and to change."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with serve(token_file=str(file)) as served:
        status, _ = await put(served, b'{"level": "debug"}', on="metrics", token=token)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        read = await served.call(PATH, on="metrics", headers=headers)
        assert (status, read[0]) == (expected, expected)
        assert logs.level() == ("debug" if expected == 200 else "info")


async def test_without_a_token_file_nobody() -> None:
    """Off loopback and without a token file: 403 with the remedy, as for actions."""
    async with serve() as served:
        status, answer = await put(served, b'{"level": "debug"}', on="metrics")
        assert status == 403
        assert "adminTokenFile" in answer["message"]


async def test_no_page_from_elsewhere() -> None:
    """A browser that another site's page sends is refused, also on loopback."""
    async with serve() as served:
        status, _ = await put(served, b'{"level": "debug"}', Origin="https://evil.example")
        assert status == 403
        assert logs.level() == "info"


async def test_other_methods() -> None:
    """POST and DELETE are no ways to change it."""
    async with serve() as served:
        for method in ("POST", "DELETE"):
            url = f"http://{served.addresses['admin']}{PATH}"
            async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
                assert answer.status == 405
