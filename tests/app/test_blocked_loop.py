"""A loop that is blocked fails the liveness probe, in the real process: nobody answers, and the kubelet's time-out is the verdict."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import aiohttp
import anyio
import yaml
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.app.support import World, until

ROOT = Path(__file__).parents[2]
#: The probe's patience in this test (seconds); the chart's is 5.
PATIENCE = 1.0


@asynccontextmanager
async def process(world: World) -> AsyncIterator[tuple[Process, dict[str, str]]]:
    """The program as a process, and where it listens."""
    config = world.folder / "config.yaml"
    keys = {
        "targetKind": "docker",
        "docker": {"registry": world.target.address, "insecure": True},
        "insecureRegistries": [world.source.address],
        **dict.fromkeys(("metricsAddr", "healthAddr"), "127.0.0.1:0"),
        "adminAddr": "0",
    }
    await anyio.Path(config).write_text(yaml.safe_dump(keys))
    command = [sys.executable, "-m", "tests.app.blockable", "run", f"--config={config}"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    async with await anyio.open_process(
        [*command, f"--kubeconfig={world.kubeconfig}"],
        env=environ,
        cwd=ROOT,
        stdout=PIPE,
        stderr=None,
    ) as running:
        assert running.stdout is not None
        lines = BufferedByteReceiveStream(running.stdout)
        with anyio.fail_after(20):
            event: dict[str, str] = {}
            while event.get("msg") != "listening":
                event = json.loads(await lines.receive_until(b"\n", 65536))
        try:
            yield running, event
        finally:
            running.send_signal(signal.SIGUSR2)
            running.terminate()


async def probe(address: str, path: str = "/healthz") -> int:
    """The status, as the kubelet sees it; 0 if there is none in time."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            async with session.get(f"http://{address}{path}") as answer:
                await answer.read()
                return answer.status
        except TimeoutError:
            return 0


async def test_a_blocked_loop_fails_the_probe(world: World) -> None:
    """While the loop stands still /healthz has no answer though the process lives; then all is well again."""
    async with process(world) as (running, addresses):
        with anyio.fail_after(20):
            while await probe(addresses["health"], "/readyz") != 200:  # noqa: ASYNC110 -- another process
                await anyio.sleep(0.05)
        assert await probe(addresses["health"]) == 200
        running.send_signal(signal.SIGUSR1)
        with anyio.fail_after(20):
            while await probe(addresses["health"]):  # it may answer until the signal is handled
                pass
        assert running.returncode is None
        running.send_signal(signal.SIGUSR2)
        assert await probe(addresses["health"]) == 200
        url = f"http://{addresses['metrics']}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            text = await answer.text()
        # the histogram tells afterwards what the probe told at the time
        at_most_half = _sample(text, 'k8s_copycat_event_loop_lag_seconds_bucket{le="0.5"}')
        assert _sample(text, "k8s_copycat_event_loop_lag_seconds_count") > at_most_half
    await until(lambda: running.returncode is not None)


def _sample(text: str, name: str) -> float:
    [value] = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(value)
