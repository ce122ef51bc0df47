"""The listeners: what they serve, how they start and end."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import anyio
import pytest

from copycat.admin.server import AdminServer
from copycat.admin.static import ASSETS, INDEX
from copycat.errors import ConfigError
from copycat.metrics import Metrics
from tests.admin.stubs import Controller, serve


async def test_metrics() -> None:
    """`/metrics` is the exposition text, brought up to date first, rendered off the event loop."""
    async with serve() as served:
        served.metrics.leader.set(1)
        for on in ("metrics", "admin"):
            status, body, headers = await served.call("/metrics", on=on)
            assert status == 200
            assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert "k8s_copycat_leader 1.0" in body
        assert (await served.call("/metrics", method="POST"))[0] == 405

    assert len(served.refreshed) == 2


async def test_images() -> None:
    """`/api/v1/images` is an object with `images`, camelCase, times as RFC 3339, without secrets."""
    async with serve() as served:
        status, body, headers = await served.call("/api/v1/images")

    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    alpine, bad = body["images"]
    assert alpine["users"] == [{"kind": "Deployment", "namespace": "team-a", "name": "web"}]
    assert alpine["nextTry"] is None
    assert bad["nextTry"] == "2026-01-02T03:04:05Z"
    assert "Canary9" not in json.dumps(body)


async def test_status_and_transfers() -> None:
    """The summary and the blobs on their way."""
    async with serve() as served:
        _, status, _ = await served.call("/api/v1/status")
        _, transfers, _ = await served.call("/api/v1/transfers")

    assert (status["total"], status["protected"], status["images"]) == (
        2,
        1,
        {"protected": 1, "failed": 1},
    )
    assert [(t["pulled"], t["pushed"], t["size"]) for t in transfers["transfers"]] == [(6, 5, 10)]


async def test_page() -> None:
    """The page and its files come from here alone, under a policy that allows nothing else."""
    async with serve() as served:
        _, page, headers = await served.call("/")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for path, (_, content_type) in ASSETS.items():
            status, _, headers = await served.call(path)
            assert (status, headers["Content-Type"]) == (200, f"{content_type}; charset=utf-8")
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert path.removeprefix("/") in page
        status, _, headers = await served.call("/nothing")
        assert status == 404
        assert "Content-Security-Policy" in headers


def test_page_needs_no_internet_and_no_markup() -> None:
    """The page's files name no other host, hold no inline script or style, and make no markup from data."""
    script = ASSETS["/app.js"][0].decode()
    page = INDEX.decode()

    for text in (script, page, ASSETS["/style.css"][0].decode()):
        assert not re.search(r"https?://|//\w+\.\w+/", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    assert not re.search(r"\sstyle=|\son\w+=|<script>|<style", page)
    ids = set(re.findall(r'\bid="([\w-]+)"', page))
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= ids


async def test_all_off() -> None:
    """`0` turns every listener off; the server still runs until it is cancelled."""
    async with serve(metrics_address="0", admin_address="0", health_address="") as served:
        assert served.addresses == {}


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("metrics_address", "METRICS_ADDR"),
        ("admin_address", "ADMIN_ADDR"),
        ("health_address", "health-probe-bind-address"),
    ],
)
async def test_taken(option: str, setting: str) -> None:
    """A port that is taken stops the start with one error that names the setting."""
    controller = Controller()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options: dict[str, Any] = {
            "metrics_address": "0",
            "admin_address": "0",
            "health_address": "0",
        }
        options[option] = f"127.0.0.1:{taken.getsockname()[1]}"
        server = AdminServer(
            **options,
            metrics=Metrics(version="1"),
            health=controller,
            actions=controller,
            api=controller,
        )
        with pytest.raises(ConfigError, match=setting):
            await server.run()


def test_bad_address() -> None:
    """An address that is none is refused before anything starts."""
    controller = Controller()
    with pytest.raises(ConfigError, match="METRICS_ADDR"):
        AdminServer(
            metrics_address="8080",
            admin_address="0",
            health_address="0",
            metrics=Metrics(version="1"),
            health=controller,
            actions=controller,
            api=controller,
        )


async def test_defaults() -> None:
    """Without a say on standing and refreshing, this process leads and nothing needs refreshing."""
    controller = Controller()
    server = AdminServer(
        metrics_address="[::1]:0",
        admin_address="127.0.0.1:0",
        health_address="0",
        metrics=Metrics(version="1"),
        health=controller,
        actions=controller,
        api=controller,
    )
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: server.run(task_status=task_status))
        assert server.addresses["metrics"].startswith("[::1]:")
        for address in server.addresses.values():
            host, _, port = address.rpartition(":")
            async with await anyio.connect_tcp(host.strip("[]"), int(port)) as stream:
                await stream.send(
                    f"GET /reset-cooldown HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
                )
                assert b"200 OK" in await stream.receive()
                await stream.send(f"GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
                assert b"200 OK" in await stream.receive()
        group.cancel_scope.cancel()
    assert controller.resets == 2
