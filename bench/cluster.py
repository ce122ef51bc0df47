"""How `copycat run` carries a large cluster: time to know it all, time to protect it all, memory, CPU.

    python -m bench.cluster [--pods 10000] [--images 200] [--events 0 --seconds 60]

The Kubernetes API, the source and the target are the sandbox's, each in a process of its own. "synced"
is the time from the start of the process to the log line that says that every informer has its first list,
"protected" the time until the metrics show every image protected. With `--events` the API changes so
many Pods a second, and the CPU of `--seconds` after that is measured, with the event loop's lag.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from copycat.sandbox.images import image
from tests.integration.net import free_port

#: What the sandbox registry makes of `--layers` and `--layer-bytes`.
LAYERS, LAYER_BYTES = 3, 4096
_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def sandbox(*arguments: str) -> Iterator[dict[str, str]]:
    """A sandbox server in a process of its own; what it says of itself."""
    command = [sys.executable, "-m", "copycat.sandbox", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        try:
            yield json.loads(it.stdout.readline())
        finally:
            it.terminate()


class Program:
    """`copycat run` as a process."""

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, metrics: str, started: float
    ) -> None:
        """Args: its log, the URL of its metrics, and when it was started."""
        self._process = process
        self._log = log
        self._metrics = metrics
        self._started = started

    def wait_for_line(self, message: str) -> float:
        """Seconds from the start until it logs this.

        Raises:
            SystemExit: it ended without.
        """
        while self._process.poll() is None:
            if f'"{message}"' in self._log.read_text():
                return time.perf_counter() - self._started
            time.sleep(0.02)
        raise SystemExit(f"copycat ended without saying {message!r}")

    def wait_protected(self, count: int) -> float:
        """Seconds from the start until so many images are protected."""
        while self.value('k8s_copycat_images{state="protected"}') < count:
            time.sleep(0.05)
        return time.perf_counter() - self._started

    def value(self, series: str) -> float:
        """A value of its metrics; 0 if it is not there."""
        with urllib.request.urlopen(self._metrics) as answer:
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def memory(self) -> tuple[float, float]:
        """Resident MiB: now, and at the most."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        now, peak = (
            int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")
        )
        return now, peak

    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def copycat(folder: Path, source: str, target: str) -> Iterator[Program]:
    """The program, watching that cluster."""
    port = free_port()
    environment = {
        **os.environ,
        "TARGET_KIND": "docker",
        "TARGET_REGISTRY": target,
        "INSECURE_REGISTRIES": f"{source},{target}",
        "METRICS_ADDR": f"127.0.0.1:{port}",
        "ADMIN_ADDR": "0",
        "SIGNATURES": "none",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [
        sys.executable,
        "-m",
        "copycat",
        "run",
        "--kubeconfig",
        str(folder / "kubeconfig"),
        "--health-probe-bind-address=0",
    ]
    started = time.perf_counter()
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, env=environment) as it,
    ):
        try:
            yield Program(it, log, f"http://127.0.0.1:{port}/metrics", started)
        finally:
            it.terminate()


def measure(options: argparse.Namespace) -> None:
    """One run, printed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        digests = folder / "digests"
        made = (image(seed=n, layers=[LAYER_BYTES] * LAYERS) for n in range(options.images))
        digests.write_text("\n".join(i.digest for i in made))
        source = stack.enter_context(
            sandbox("registry", "--images", str(options.images), "--layers", str(LAYERS))
        )["address"]
        target = stack.enter_context(sandbox("registry"))["address"]
        kubeconfig = folder / "kubeconfig"
        sizes = ["--pods", str(options.pods), "--images", str(options.images)]
        names = ["--image-prefix", f"{source}/library/image-", "--digests", str(digests)]
        events = ["--events", str(options.events), "--kubeconfig", str(kubeconfig)]
        stack.enter_context(sandbox("kube-api", *sizes, *names, *events))
        program = stack.enter_context(copycat(folder, source, target))
        synced = program.wait_for_line("synced")
        after_sync = program.memory()[1]
        protected = program.wait_protected(options.images)
        now, peak = program.memory()
        print(
            f"{options.pods} Pods, {options.images} images: synced {synced:.2f} s (peak {after_sync:.0f} MiB),"
            f" protected {protected:.2f} s, RSS {now:.0f} MiB, peak {peak:.0f} MiB"
        )
        if options.events:
            churned(program, options)


def churned(program: Program, options: argparse.Namespace) -> None:
    """What steady change costs."""
    cpu, begin = program.cpu(), time.perf_counter()
    seen = program.value('k8s_copycat_watch_events_total{resource="pods",type="MODIFIED"}')
    time.sleep(options.seconds)
    share = (program.cpu() - cpu) / (time.perf_counter() - begin)
    events = program.value('k8s_copycat_watch_events_total{resource="pods",type="MODIFIED"}') - seen
    total = program.value("k8s_copycat_event_loop_lag_seconds_count")
    late = total - program.value('k8s_copycat_event_loop_lag_seconds_bucket{le="0.1"}')
    print(
        f"  {events / options.seconds:.0f} events a second: {share:.0%} of a core,"
        f" loop later than 100 ms in {late:.0f} of {total:.0f} samples, RSS {program.memory()[0]:.0f} MiB"
    )


def main() -> None:
    """Measure as often as asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--events", type=float, default=0.0, help="changes a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    for _ in range(options.runs):
        measure(options)


if __name__ == "__main__":
    main()
