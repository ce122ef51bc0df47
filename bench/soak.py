"""Thousands of copies while a share of all requests goes wrong, at both ends and in every phase.

    python -m bench.soak [--images 5000] [--share 0.02] [--seed 1]

Both registries are sandboxes in processes of their own. In the end every image was copied, or its last
error is stated; what has a tag or an anchor is read back and compared bit by bit, by a client that
shares no code with the program; no transfer, permit, connection or task is left; and the memory is
printed as it went. The exit code is 1 if any of this does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import anyio

from bench.program import sandbox
from copycat.app.wiring import Engine, open_engine
from copycat.config.sources import load
from copycat.metrics import Metrics
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.oci.reference import Reference
from copycat.sandbox import images
from copycat.sandbox.images import Image

LAYERS, LAYER_BYTES = 4, 4096
#: Images at a time, and how often one is tried: what the controller's queue would do.
WORKERS, TRIES = 24, 6


class Soak:
    """One run."""

    def __init__(self, engine: Engine, source: str, count: int) -> None:
        """Args: an engine between the two registries, the source's address, how many images."""
        self._engine = engine
        self._source = source
        self._waiting = list(range(count))
        self._count = count
        self.results: dict[int, MirrorResult] = {}
        self.attempts = 0
        self.memory: list[float] = []

    async def run(self) -> None:
        """Copy everything."""
        async with anyio.create_task_group() as tasks:
            for _ in range(WORKERS):
                tasks.start_soon(self._work)

    async def _work(self) -> None:
        while self._waiting:
            number = self._waiting.pop()
            self.results[number] = await self._copy(number)
            if len(self.results) % max(1, self._count // 10) == 0:
                self.memory.append(resident())
                print(f"  {len(self.results)} images, {self.memory[-1]:.0f} MiB", flush=True)

    async def _copy(self, number: int) -> MirrorResult:
        name = f"library/image-{number}"
        request = MirrorRequest(Reference.parse(f"{self._source}/{name}:1"), name)
        result = await self._try(request)
        for _ in range(TRIES - 1):
            if result.error is None or not result.error.temporary:
                break
            result = await self._try(request)
        return result

    async def _try(self, request: MirrorRequest) -> MirrorResult:
        self.attempts += 1
        return await self._engine.mirror.run(request, Need())


def resident() -> float:
    """Resident MiB of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def fetch(url: str) -> bytes | None:
    """The body of a URL, however often it takes; None for 404. Its digest is the caller's to check."""
    accept = {"Accept": f"{images.OCI_MANIFEST}, {images.OCI_INDEX}"}
    for _ in range(50):
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers=accept), timeout=10
            ) as answer:
                body: bytes = answer.read()
                if "manifests/" in url or url.endswith(_digest(body)):
                    return body
        except urllib.error.HTTPError as error:
            if error.code == 404 and b"UNKNOWN" in error.read():
                return None
        except (OSError, http.client.HTTPException):
            continue
    raise SystemExit(f"{url} does not answer")


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def whole(target: str, number: int, made: Image, reference: str) -> bool | None:
    """Whether the target serves the image whole under a tag; None if it has no such tag."""
    base = f"http://{target}/v2/library/image-{number}"
    # what is corrupt on its way is right at the next try; what lies there wrong never is
    bodies = (fetch(f"{base}/manifests/{reference}") for _ in range(50))
    found = next((b for b in bodies if b is None or b == made.data), b"")
    if found is None:
        return None
    return bool(found) and all(fetch(f"{base}/blobs/{d}") == b for d, b in made.blobs.items())


async def soak(options: argparse.Namespace) -> bool:
    """Copy, then hold everything against what was promised."""
    with ExitStack() as stack:
        filled = ("--images", str(options.images), "--layers", str(LAYERS))
        faults = ("--faults", str(options.share), "--seed")
        source, target = (
            stack.enter_context(sandbox("registry", *more, *faults, str(options.seed + n)))[
                "address"
            ]
            for n, more in enumerate((filled, ()))
        )
        settings = load(
            environ={
                "TARGET_KIND": "docker",
                "TARGET_REGISTRY": target,
                "INSECURE_REGISTRIES": f"{source},{target}",
                "REGISTRY_RETRY_BACKOFF": "10ms",
                "REGISTRY_REQUEST_TIMEOUT": "5",
                "SIGNATURES": "none",
            }
        )
        begun = time.perf_counter()
        async with open_engine(settings, metrics=Metrics(version="soak")) as engine:
            run = Soak(engine, source, options.images)
            await run.run()
            left = engine.mirror.transfers()
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        print(f"{run.attempts} attempts in {time.perf_counter() - begun:.0f} s")
        return verdict(run, target, left=len(left), tasks=len(tasks))


def verdict(run: Soak, target: str, *, left: int, tasks: int) -> bool:
    """Read back what was copied, and say how it went."""
    states = Counter(f"{r.state} {r.reason}".strip() for r in run.results.values())
    wrong = []
    for number, result in run.results.items():
        made = images.image(seed=number, layers=[LAYER_BYTES] * LAYERS)
        anchor = "digest-" + made.digest.partition(":")[2]
        under_tag, under_anchor = (whole(target, number, made, name) for name in ("1", anchor))
        if False in (under_tag, under_anchor) or (
            result.protected and not (under_tag and under_anchor)
        ):
            wrong.append(number)
        if not result.protected and not result.message:
            wrong.append(number)
    growth = run.memory[-1] - run.memory[len(run.memory) // 3] if run.memory else 0.0
    print(f"states {dict(states)}; wrong or partial: {wrong or 'none'}")
    print(
        f"left: {left} transfers, {tasks} tasks; memory grew {growth:.1f} MiB in the last two thirds"
    )
    print(json.dumps({"images": len(run.results), "states": states}))
    return not wrong and not left and not tasks


def main() -> None:
    """Soak, and exit 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(0 if anyio.run(soak, parser.parse_args()) else 1)


if __name__ == "__main__":
    main()
