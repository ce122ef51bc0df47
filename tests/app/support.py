"""A whole world for the program: two registries and a Kubernetes API on loopback, and ways to wait for it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import anyio
from aiohttp.abc import AbstractResolver
from prometheus_client.parser import text_string_to_metric_families

from copycat.admin.api import Image as Row
from copycat.app.process import Program, run
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.oci.reference import Reference
from copycat.sandbox.images import Image
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.registry import Registry
from tests.app.times import Time

#: Seconds that any wait may take before the test fails.
LIMIT = 30.0


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    with anyio.fail_after(LIMIT):
        while True:  # most of what is waited for has no event of its own
            if condition():
                return
            await anyio.sleep(0.01)


async def fetch(program: Program, listener: str, path: str, method: str = "GET") -> tuple[int, str]:
    """Ask a listener of the program; the status and the body."""
    url = f"http://{program.server.addresses[listener]}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
        return answer.status, await answer.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The servers, and how to run the program against them."""

    source: Registry
    target: Registry
    api: KubeApi
    folder: Path

    @property
    def kubeconfig(self) -> str:
        """A kubeconfig for the API, written anew."""
        return str(self.api.kubeconfig(self.folder / "kubeconfig"))

    def settings(self, **flags: object) -> Settings:
        """As of a configuration that names both registries; dots in keys are written `__`."""
        return load(
            path=str(self.folder / "no-config.yaml"),
            environ={},
            flags={
                "target_kind": "docker",
                "docker.registry": self.target.address,
                "docker.repo_prefix": "mirror",
                "docker.insecure": True,
                "insecure_registries": self.source.address,
                "metrics_addr": "127.0.0.1:0",
                "admin_addr": "0",
                "health_addr": "127.0.0.1:0",
                "leader_elect": False,
                "registry_retry_attempts": 2,
                "registry_retry_backoff": "10ms",
                **{key.replace("__", "."): value for key, value in flags.items()},
            },
        )

    @asynccontextmanager
    async def running(self, time: Time | None = None, /, **flags: object) -> AsyncIterator[Program]:
        """The program at work."""
        async with program_of(self.settings(**flags), self.kubeconfig, time) as program:
            yield program

    def image(self, name: str) -> str:
        """A reference to something at the source."""
        return f"{self.source.address}/{name}"

    def deployment(self, name: str, image: str, *, init: str = "") -> None:
        """Create a Deployment."""
        spec: dict[str, Any] = {"containers": [{"name": "main", "image": image}]}
        if init:
            spec["initContainers"] = [{"name": "init", "image": init}]
        self.api.create(
            "deployments", {"metadata": named(name), "spec": {"template": {"spec": spec}}}
        )

    def pod(self, name: str, image: str, *, image_id: str = "", init: str = "", node: str = "", owner: str = "") -> None:  # fmt: skip
        """Create a Pod that runs, on a node, with what the kubelet reports."""
        spec: dict[str, Any] = {"containers": [{"name": "main", "image": image}]}
        if init:
            spec["initContainers"] = [{"name": "init", "image": init}]
        if node:
            spec["nodeName"] = node
        status: dict[str, Any] = {"phase": "Running"}
        if image_id:
            status["containerStatuses"] = [
                {
                    "name": "main",
                    "image": image,
                    "imageID": image_id,
                    "state": {"running": {"startedAt": "2025-01-01T00:00:00Z"}},
                }
            ]
        self.api.create("pods", {"metadata": named(name), "spec": spec, "status": status})

    def holds(self, row: Row, image: Image, tag: str | None = None) -> bool:
        """Whether the target has the image of a row, whole."""
        return self.target.has(repository(row), image, tag)


@asynccontextmanager
async def program_of(
    settings: Settings,
    kubeconfig: str,
    time: Time | None = None,
    *,
    resolver: AbstractResolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
    load: Callable[[], Settings] | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Program]:
    """The program at work; it is stopped in good order at the end, which must not take long."""
    found: list[Program] = []
    ready = anyio.Event()
    now = time or Time()

    def started(program: Program) -> None:
        found.append(program)
        ready.set()

    async def work() -> None:
        await run(
            settings,
            kubeconfig=kubeconfig,
            environ=environ,
            resolver=resolver,
            ssl_context=ssl_context,
            clock=now.clock,
            wall=now.wall,
            sleep=now.sleep,
            load=load,
            started=started,
        )

    with anyio.fail_after(3 * LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await ready.wait()
            yield found[0]
            found[0].stop()


def named(name: str) -> dict[str, str]:
    """Metadata in the namespace that all tests use."""
    return {"name": name, "namespace": "demo"}


def repository(row: Row) -> str:
    """Where at the target the image of a row is."""
    return Reference.parse(row.target).repository


def row_of(program: Program, source: str) -> Row:
    """The row of one source, which is waited for in vain if there is none."""
    return next(row for row in program.facade.images() if row.source == source)


async def in_state(program: Program, source: str, state: str) -> Row:
    """Wait until the image of a source is in this state; its row."""

    def rows() -> list[Row]:
        return [r for r in program.facade.images() if (r.source, r.state) == (source, state)]

    await until(lambda: bool(rows()))
    return rows()[0]


async def counters(program: Program) -> dict[tuple[str, str], float]:
    """The four counters of the original as `/metrics` shows them: (`pull_success`, image) → value."""
    _, text = await fetch(program, "metrics", "/metrics")
    prefix, end = "k8s_copycat_registry_", "_total"
    return {
        (sample.name.removeprefix(prefix).removesuffix(end), sample.labels["image"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(prefix) and sample.name.endswith(end) and "image" in sample.labels
    }


async def protected(program: Program, count: int) -> list[Row]:
    """Wait until this many images are at the target and nothing is worked on."""

    def there() -> bool:
        status = program.facade.status()
        rows = program.facade.images()
        done = sum(row.protected and row.state != "pending" for row in rows)
        return done >= count and not status.queued and not status.working

    await until(there)
    return list(program.facade.images())
