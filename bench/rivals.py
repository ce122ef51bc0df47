"""Copy the same images with every tool that is on the PATH, in turn, and print what it took.

    python -m bench.rivals [W1 W3 W4 W5] [--runs 5] [--disk] [--tls] [--registry docker-registry]

W1: one image, 8 layers of 128 MiB. W1/2: 16 of them, so that the difference is 1 GiB. W2: 2 GiB, one
layer of 1.5. W3: 200 small images of 6 layers, 4 of them shared. W3/signatures: the same with
`signatures: all`, for this program alone. W4: W3 where everything stands already. W5: 20 images on one
base of 200 MiB. W6: 16 images of 1 GiB. W7: 20 images through lines with 20 ms and 25 MB/s for each
connection (toxiproxy).

Needs docker-registry (Debian) for source and target; skopeo, crane, regctl, regsync and oras are measured
where they are installed. Every run gets an empty target, whose storage is a directory in memory (/dev/shm) unless `--disk`
is given: a disk that is shared with the tool under test would be what is measured. With `--tls` both ends have
certificates of an authority made for the run, which SSL_CERT_FILE makes every tool trust. Wall and CPU seconds are
those of the whole process tree, peak memory that of its largest process; requests (at the source, and at the
target) and bytes are counted at the registries. Tools take turns, so what else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme
import yaml

from copycat.sandbox.images import Image, image, layer
from tests.integration import images
from tests.integration.images import push
from tests.integration.lines import Lines, slow
from tests.integration.registries import DockerRegistry, Request

MIB = 1024 * 1024
#: Where skopeo sync puts its copies.
SYNCED = "synced"


@dataclass(frozen=True, slots=True)
class Job:
    """What a tool is to copy, and a folder of its own."""

    source: str
    target: str
    names: list[str]
    folder: Path
    tls: bool = False

    def plain(self, *flags: str) -> str:
        """Flags for registries without TLS, with a blank before them, or nothing."""
        return "" if self.tls else " ".join(["", *flags])

    def pairs(self) -> str:
        """One line per image, for xargs."""
        return "".join(f"{self.source}/{n} {self.target}/{n}\n" for n in self.names)


@dataclass(frozen=True, slots=True)
class Run:
    """One process."""

    wall: float
    cpu: float
    rss: float
    requests: int
    sent: int
    pulled: float
    pushed: float


@dataclass(frozen=True, slots=True)
class Workload:
    """Names at the source, and whether the target has them already."""

    names: list[str]
    warm: bool = False
    slow: bool = False
    """Through slow lines."""
    signatures: str = "none"


def copycat(job: Job) -> list[str]:
    file = job.folder / "images.txt"
    file.write_text("".join(f"{job.source}/{name}\n" for name in job.names))
    # an address without a name may be contacted when it is named
    named = f"env ALLOWED_REGISTRIES={job.source} " if job.tls else ""
    line = f"{named}xargs -a {file} {sys.executable} -m copycat mirror{job.plain('--insecure')} --target {job.target}"
    return ["sh", "-ec", line]


def skopeo(job: Job) -> list[str]:
    """One process for all images; of a repository's name it keeps the last part."""
    images: dict[str, list[str]] = {}
    for name in job.names:
        repository, _, tag = name.rpartition(":")
        images.setdefault(repository, []).append(tag)
    file = job.folder / "skopeo.yml"
    file.write_text(yaml.safe_dump({job.source: {"images": images, "tls-verify": job.tls}}))
    line = (
        f"rm -f {Path.home()}/.local/share/containers/cache/blob-info-cache-v1.boltdb"
        " /var/lib/containers/cache/blob-info-cache-v1.boltdb; exec skopeo sync --all --preserve-digests"
        f" --src yaml --dest docker --dest-tls-verify={str(job.tls).lower()} {file} {job.target}/{SYNCED}"
    )
    return ["sh", "-ec", line]


def crane(job: Job) -> list[str]:
    return _xargs(job, f"crane copy{job.plain('--insecure')}")


def oras(job: Job) -> list[str]:
    plain = job.plain("--from-plain-http", "--to-plain-http")
    return _xargs(job, f"oras cp{plain} --no-tty")


def regsync(job: Job) -> list[str]:
    file = job.folder / "regsync.yml"
    hosts = [
        {"registry": host, "tls": "enabled" if job.tls else "disabled", "reqConcurrent": 8}
        for host in (job.source, job.target)
    ]
    sync = [
        {"source": f"{job.source}/{n}", "target": f"{job.target}/{n}", "type": "image"}
        for n in job.names
    ]
    config = {"version": 1, "creds": hosts, "defaults": {"parallel": 8}, "sync": sync}
    file.write_text(yaml.safe_dump(config))
    return ["regsync", "once", "-c", str(file)]


def _xargs(job: Job, command: str) -> list[str]:
    file = job.folder / "pairs.txt"
    file.write_text(job.pairs())
    return ["sh", "-ec", f"xargs -a {file} -P 4 -n 2 {command}"]


TOOLS: dict[str, Callable[[Job], list[str]]] = {
    "copycat": copycat,
    "crane": crane,
    "regsync": regsync,
    "oras": oras,
    "skopeo": skopeo,
}


def fill(source: DockerRegistry, workload: str) -> Workload:
    """Put a workload's images into the source."""
    if workload == "W1":
        put(source, "w1/image", image(seed="w1", layers=[128 * MIB] * 8))
        return Workload(["w1/image:1"])
    if workload == "W1/2":
        put(source, "w1/image", image(seed="w1", layers=[128 * MIB] * 16))
        return Workload(["w1/image:1"])
    if workload == "W2":
        put(source, "w2/image", image(seed="w2", layers=[1536 * MIB, 256 * MIB, 256 * MIB]))
        return Workload(["w2/image:1"])
    if workload == "W5":
        shared, own, count = [layer(200 * MIB, seed="base")], [5 * MIB], 20
    elif workload == "W6":
        shared, own, count = [], [128 * MIB] * 8, 16
    elif workload == "W7":
        shared, own, count = [layer(30 * MIB, seed=n) for n in range(2)], [2 * MIB] * 4, 20
    else:
        shared, own, count = [layer(200 * 1024, seed=n) for n in range(4)], [200 * 1024] * 2, 200
    names = []
    for number in range(count):
        name = f"{workload.partition('/')[0].lower()}/image-{number}"
        put(source, name, image(seed=number, layers=[*shared, *own]))
        names.append(f"{name}:1")
    return Workload(
        names,
        warm=workload == "W4",
        slow=workload == "W7",
        signatures="all" if workload == "W3/signatures" else "none",
    )


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, of an authority that this process and its children trust alone."""
    authority, files = trustme.CA(), (folder / "certificate.pem", folder / "key.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(files[0])
    issued.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(folder / "authority.pem")
    os.environ["SSL_CERT_FILE"] = str(folder / "authority.pem")
    return files


def put(source: DockerRegistry, repository: str, made: Image) -> None:
    """Push a made image."""
    manifests = [(m.media_type, m.data) for m in made.manifests]
    push(images.Image(blobs=made.blobs, manifests=manifests), source.address, repository, "1")


#: A small process starts the command: a child inherits the peak memory of the one that forks it.
_RUNNER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([status, time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


def measure(command: list[str], *, signatures: str = "none") -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, peak MiB of the largest process of a command.

    Raises:
        SystemExit: the command failed.
    """
    # signatures are not what is compared: no rival looks for them by default
    environment = {**os.environ, "SIGNATURES": signatures}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, *command], check=True, capture_output=True, env=environment
    )
    status, wall, cpu, rss = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{' '.join(command)[:200]} ended with {status}")
    return wall, cpu, rss


def verify(source: DockerRegistry, target: DockerRegistry, what: Workload, *, synced: bool) -> None:
    """See that every image arrived, with the source's digest."""
    for name in what.names:
        repository, _, tag = name.rpartition(":")
        ours = source.raw_manifest(repository, tag)
        theirs = f"{SYNCED}/{repository.rpartition('/')[2]}" if synced else repository
        if target.raw_manifest(theirs, tag) != ours:
            raise SystemExit(f"{name} is not what the source has")


def runs(workload: str, options: argparse.Namespace) -> Iterator[tuple[str, Run]]:
    """Every tool in turn, `options.runs` times."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        memory = None if options.disk else "/dev/shm"
        targets = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        with DockerRegistry(folder / "source", program=options.registry) as plain:
            what = fill(plain, workload)
        tls = certificate(folder) if options.tls else None
        source = stack.enter_context(
            DockerRegistry(folder / "source", program=options.registry, tls=tls)
        )
        lines = stack.enter_context(Lines(*slow(latency=20, rate=25_000))) if what.slow else None
        for number in range(options.runs):
            for name in options.tools if what.signatures == "none" else ("copycat",):
                if name != "copycat" and shutil.which(name) is None:
                    print(f"{name} is not installed", file=sys.stderr)
                    continue
                directory = targets / f"{name}-{number}"
                with DockerRegistry(directory, program=options.registry, tls=tls) as target:
                    yield (
                        name,
                        one(name, source, target, what, lines, check=number == 0, tls=options.tls),
                    )
                shutil.rmtree(directory, ignore_errors=True)


def one(
    name: str,
    source: DockerRegistry,
    target: DockerRegistry,
    what: Workload,
    lines: Lines | None,
    *,
    check: bool,
    tls: bool,
) -> Run:
    """One run of one tool."""
    ends = [source.address, target.address]
    if lines is not None:
        ends = [lines.to(end) for end in ends]
    command = TOOLS[name](Job(ends[0], ends[1], what.names, target.directory, tls))
    if what.warm:
        measure(command)
    position, before, read = source.position(), target.position(), target.bytes_read()
    wall, cpu, rss = measure(command, signatures=what.signatures)
    if lines is not None:
        for end in ends:
            lines.end(end)
    asked = source.requests(start=position)
    pushed = (target.bytes_read() - read) / MIB
    sent = len(target.requests(start=before))
    if check:
        verify(source, target, what, synced=name == "skopeo")
    return Run(wall, cpu, rss, len(asked), sent, sum(map(_served, asked)) / MIB, pushed)


def _served(request: Request) -> int:
    return 0 if request.method == "HEAD" else request.size


def table(workload: str, found: dict[str, list[Run]], *, count: int) -> None:
    """Print medians, and each tool's wall in this program's."""
    print(f"{workload}: median of {count} (x = this program's wall in the tool's)")
    ours = statistics.median(run.wall for run in found["copycat"]) if "copycat" in found else 0.0
    for name, all_runs in found.items():
        wall, cpu, rss, asked, sent, pulled, pushed = (
            statistics.median(getattr(run, key) for run in all_runs)
            for key in ("wall", "cpu", "rss", "requests", "sent", "pulled", "pushed")
        )
        print(
            f"  {name:8} wall {wall:7.2f} s (x {ours / wall:4.2f})  cpu {cpu:6.2f} s  rss {rss:5.0f} MiB"
            f"  requests {asked:5.0f} and {sent:5.0f}  MiB pulled {pulled:7.1f} pushed {pushed:7.1f}",
            flush=True,
        )


def main() -> None:
    """Measure the workloads that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=["W1", "W3", "W4", "W5"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--disk", action="store_true", help="keep the target's content on disk")
    parser.add_argument("--tls", action="store_true", help="both registries over TLS")
    parser.add_argument("--registry", default="docker-registry", help="the registries' executable")
    options = parser.parse_args()
    for workload in options.workloads:
        found: dict[str, list[Run]] = {}
        for name, run in runs(workload, options):
            found.setdefault(name, []).append(run)
        table(workload, found, count=options.runs)


if __name__ == "__main__":
    main()
