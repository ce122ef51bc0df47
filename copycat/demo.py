"""`copycat demo`: the whole program at work, on servers of its own, with nothing installed and nothing outside.

A source registry, a target registry and a Kubernetes API start on loopback; the real controller runs
against them as `copycat run` would. When every image has arrived the source is switched off and each
image is read back from the target, bit by bit: what a restore would do on the day when it matters.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import aiohttp
import anyio
from rich.console import Console
from rich.table import Table

from copycat.app.process import Program
from copycat.app.wiring import open_engine
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.errors import one_error
from copycat.kube.client import open_api
from copycat.metrics import Metrics
from copycat.oci.manifest import ACCEPT, Index, parse_document
from copycat.oci.reference import Reference
from copycat.progress import size
from copycat.sandbox.images import Image, image, index
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.registry import Registry

__all__ = ["main"]

#: Seconds that the demonstration waits for the images before it says that it failed.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """An image that was read back from the target."""

    source: str
    target: str
    digest: str
    bytes: int


def demo_images() -> Mapping[str, Image]:
    """What the source serves: repository and tag, or repository alone for what is named by digest."""
    return {
        "shop/web:1.4": index(attestations=True, seed="web", layers=(300_000, 120_000)),
        "shop/migrate:7": image(seed="migrate", layers=(150_000,)),
        "ops/backup:nightly": image(seed="backup", layers=(80_000, 40_000)),
        "shop/cache": image(seed="cache", layers=(60_000,)),
    }


def _workloads(source: str, images: Mapping[str, Image]) -> list[tuple[str, dict[str, object]]]:
    def spec(name: str, reference: str, *, init: str = "") -> dict[str, object]:
        found: dict[str, object] = {"containers": [{"name": name, "image": reference}]}
        if init:
            found["initContainers"] = [{"name": "migrate", "image": init}]
        return found

    def named(name: str) -> dict[str, str]:
        return {"name": name, "namespace": "demo"}

    web = spec("web", f"{source}/shop/web:1.4", init=f"{source}/shop/migrate:7")
    backup = spec("backup", f"{source}/ops/backup:nightly")
    cache = spec("cache", f"{source}/shop/cache@{images['shop/cache'].digest}")
    return [
        ("deployments", {"metadata": named("web"), "spec": {"template": {"spec": web}}}),
        ("cronjobs", {"metadata": named("backup"), "spec": {"jobTemplate": {"spec": {"template": {"spec": backup}}}}}),
        ("pods", {"metadata": named("cache-0"), "spec": cache, "status": {"phase": "Running"}}),
    ]  # fmt: skip


async def main(
    *,
    keep: bool,
    out: TextIO | None = None,
    patience: float = PATIENCE,
    prepare: Callable[[Registry, Registry], None] = lambda source, target: None,
) -> bool:
    """Show it all; whether everything is as it should be.

    Args:
        keep: leave everything running until interrupted, with the addresses printed.
        patience: seconds to wait for the images.
        prepare: may change the servers before the controller starts, for tests.
    """
    console = Console(file=out or sys.stdout, soft_wrap=True, highlight=False, width=240)
    images = demo_images()
    async with Registry() as source, Registry() as target, KubeApi() as api:
        for name, content in images.items():
            repository, _, tag = name.partition(":")
            source.add(repository, content, tag or None)
        for resource, item in _workloads(source.address, images):
            api.create(resource, item)
        prepare(source, target)
        console.print(f"source registry     http://{source.address}")
        console.print(f"target registry     http://{target.address}")
        console.print(f"Kubernetes API      {api.url}")
        async with anyio.TemporaryDirectory() as folder:
            kubeconfig = await anyio.to_thread.run_sync(api.kubeconfig, Path(folder) / "kubeconfig")
            settings = _settings(source.address, target.address)
            return await _show(
                console, settings, str(kubeconfig), source, images, keep=keep, patience=patience
            )


def _settings(source: str, target: str) -> Settings:
    return load(
        path="/nonexistent/copycat-demo.yaml",
        environ={},
        flags={
            "target_kind": "docker",
            "docker.registry": target,
            "docker.repo_prefix": "mirror",
            "docker.insecure": True,
            "insecure_registries": source,
            "metrics_addr": "127.0.0.1:0",
            "admin_addr": "0",
            "health_addr": "127.0.0.1:0",
            "leader_elect": False,
            "registry_retry_attempts": 2,
        },
    )


async def _show(
    console: Console,
    settings: Settings,
    kubeconfig: str,
    source: Registry,
    images: Mapping[str, Image],
    *,
    keep: bool,
    patience: float,
) -> bool:
    metrics = Metrics(version="demo", resources=settings.watch_resources)
    async with (
        open_engine(settings, metrics=metrics) as engine,
        open_api(kubeconfig, environ={}) as client,
    ):
        program = Program(settings, engine=engine, client=client, environ={})
        with one_error():
            async with anyio.create_task_group() as tasks:
                listening = anyio.Event()
                tasks.start_soon(lambda: program.run(started=lambda p: listening.set()))
                await listening.wait()
                console.print(f"status page         http://{program.server.addresses['metrics']}\n")
                arrived = await _arrivals(console, program, len(images), patience)
                await source.stop()
                console.print(
                    "\nThe source is switched off now; reading every image back from the target."
                )
                good = arrived and await _read_back(console, program, settings, images)
                if keep and not program.stopping:
                    await source.start()
                    console.print("\nEverything keeps running; Ctrl-C ends it.")
                    await program.wait_stopping()
                program.stop()
    console.print(
        "\nAll images are at the target, whole." if good else "\nSomething is not as it should be."
    )
    return good


async def _arrivals(console: Console, program: Program, expected: int, patience: float) -> bool:
    """Print each image as it arrives; False when it takes too long or one fails."""
    seen: set[str] = set()
    with anyio.move_on_after(patience):
        while len(seen) < expected:
            for row in program.facade.images():
                if row.source in seen or row.state == "pending":
                    continue
                if not row.protected:
                    console.print(f"{row.state:<10} {row.source}: {row.message}")
                    return False
                seen.add(row.source)
                console.print(f"{row.state:<10} {row.source}")
            await anyio.sleep(0.02)
    if len(seen) < expected:
        console.print(f"only {len(seen)} of {expected} images arrived within {patience:.0f} s")
    return len(seen) >= expected


async def _read_back(
    console: Console, program: Program, settings: Settings, images: Mapping[str, Image]
) -> bool:
    table = Table("source", "target", "digest", "bytes", box=None, pad_edge=False)
    good = True
    by_digest = {i.digest: i for i in images.values()}
    async with aiohttp.ClientSession(base_url=f"http://{settings.docker.registry}") as session:
        for row in program.facade.images():
            reference = Reference.parse(row.target)
            wanted = by_digest.get(row.digest)
            try:
                count = await _read(session, reference.repository, row.digest)
            except (aiohttp.ClientError, ValueError) as error:
                console.print(f"{row.target}: {error}")
                good = False
                continue
            if wanted is None or count < wanted.blob_bytes:
                console.print(
                    f"{row.target}: {count} bytes read, {wanted.blob_bytes if wanted else 0} expected"
                )
                good = False
            table.add_row(row.source, row.target, row.digest, size(count))
    console.print(table)
    return good


async def _read(session: aiohttp.ClientSession, repository: str, digest: str) -> int:
    """Read a manifest and everything below it, hashing every byte; how many bytes of blobs there were."""
    raw = await _get(session, f"/v2/{repository}/manifests/{digest}", digest)
    document = parse_document(raw)
    if isinstance(document, Index):
        counts = [await _read(session, repository, str(c.digest)) for c in document.manifests]
        return sum(counts)
    total = 0
    for blob in document.blobs():
        data = await _get(session, f"/v2/{repository}/blobs/{blob.digest}", str(blob.digest))
        total += len(data)
    return total


async def _get(session: aiohttp.ClientSession, path: str, digest: str) -> bytes:
    async with session.get(path, headers={"Accept": ACCEPT}) as response:
        response.raise_for_status()
        data = await response.read()
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if found != digest:
        raise ValueError(f"{path} hashes to {found}")
    return data
