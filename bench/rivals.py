"""Copy the same images with every tool that is on the PATH, in turn, and print what it took.

    python -m bench.rivals [W1 W3 W4 W5] [--runs 5]

Needs docker-registry (Debian) for source and target; skopeo, crane and regctl are measured where they
are installed. Every run gets an empty target. Wall and CPU seconds and peak memory are those of the
whole process; requests and bytes are counted in the source's access log and storage.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from copycat.sandbox.images import Image, image, layer
from tests.integration import images
from tests.integration.images import push
from tests.integration.registries import DockerRegistry

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Run:
    """One process."""

    wall: float
    cpu: float
    rss: float
    requests: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Names at the source, and whether the target has them already."""

    names: list[str]
    warm: bool = False


def copycat(source: str, target: str, names: list[str]) -> list[str]:
    references = [f"{source}/{name}" for name in names]
    return [
        sys.executable,
        "-m",
        "copycat",
        "mirror",
        "--insecure",
        "--target",
        target,
        *references,
    ]


def skopeo(source: str, target: str, names: list[str]) -> list[str]:
    copies = "; ".join(
        "skopeo copy --all --preserve-digests --src-tls-verify=false --dest-tls-verify=false"
        f" docker://{source}/{name} docker://{target}/{name}"
        for name in names
    )
    return ["sh", "-ec", copies]


def crane(source: str, target: str, names: list[str]) -> list[str]:
    lines = "\\n".join(f"{source}/{name} {target}/{name}" for name in names)
    return ["sh", "-ec", f"printf '{lines}\\n' | xargs -P 4 -n 2 crane copy --insecure"]


TOOLS: dict[str, Callable[[str, str, list[str]], list[str]]] = {
    "copycat": copycat,
    "skopeo": skopeo,
    "crane": crane,
}


def fill(source: DockerRegistry, workload: str) -> Workload:
    """Put a workload's images into the source."""
    if workload == "W1":
        put(source, "w1/image", image(seed="w1", layers=[128 * MIB] * 8))
        return Workload(["w1/image:1"])
    if workload == "W5":
        shared, own, count = [layer(200 * MIB, seed="base")], 1, 20
    else:
        shared, own, count = [layer(64 * 1024, seed=n) for n in range(4)], 2, 200
    names = []
    for number in range(count):
        name = f"{workload.lower()}/image-{number}"
        put(source, name, image(seed=number, layers=[*shared, *[32 * 1024] * own]))
        names.append(f"{name}:1")
    return Workload(names, warm=workload == "W4")


def put(source: DockerRegistry, repository: str, made: Image) -> None:
    """Push a made image."""
    manifests = [(m.media_type, m.data) for m in made.manifests]
    push(images.Image(blobs=made.blobs, manifests=manifests), source.address, repository, "1")


#: A small process starts the command: a child inherits the peak memory of the one that forks it.
_RUNNER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([status, time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, peak MiB of the largest process of a command."""
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, *command], check=True, capture_output=True
    )
    status, wall, cpu, rss = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{command[0]} ended with {status}")
    return wall, cpu, rss


def runs(workload: str, count: int) -> Iterator[tuple[str, Run]]:
    """Every tool in turn, `count` times."""
    with tempfile.TemporaryDirectory() as folder, DockerRegistry(Path(folder) / "source") as source:
        what = fill(source, workload)
        for number in range(count):
            for name, command in TOOLS.items():
                if name != "copycat" and shutil.which(name) is None:
                    continue
                directory = Path(folder) / f"{name}-{number}"
                with DockerRegistry(directory) as target:
                    line = command(source.address, target.address, what.names)
                    if what.warm:
                        measure(line)
                    position = source.position()
                    wall, cpu, rss = measure(line)
                    asked = [r for r in source.requests(start=position) if not r.is_ping]
                yield name, Run(wall, cpu, rss, len(asked))
                shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """Print medians, and ratios to this program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=["W1", "W3", "W4"])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    for workload in arguments.workloads:
        found: dict[str, list[Run]] = {}
        for name, run in runs(workload, arguments.runs):
            found.setdefault(name, []).append(run)
        print(f"{workload}: median of {arguments.runs}")
        for name, all_runs in found.items():
            wall, cpu, rss = (
                statistics.median(getattr(r, key) for r in all_runs)
                for key in ("wall", "cpu", "rss")
            )
            print(
                f"  {name:8} wall {wall:7.2f} s  cpu {cpu:6.2f} s  rss {rss:6.0f} MiB  source requests {all_runs[0].requests}"
            )


if __name__ == "__main__":
    main()
