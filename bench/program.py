"""`copycat run` and the sandbox's servers as processes, for the benches of a cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.observed import ADDS
from tests.integration.net import free_port

__all__ = ["LAG", "Program", "copycat", "quantile", "sandbox"]

#: The histogram of the event loop's lag.
LAG = "k8s_copycat_event_loop_lag_seconds"
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
        self, process: subprocess.Popen[bytes], folder: Path, metrics: str, started: float
    ) -> None:
        """Args: where its files are, the URL of its metrics, and when it was started."""
        self._process = process
        self._log = folder / "log"
        self._adds = folder / "adds"
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
        raise SystemExit(f"copycat ended without saying {message!r}:\n{self._log.read_text()}")

    def wait_protected(self, count: int) -> float:
        """Seconds from the start until so many images are protected."""
        while self.value('k8s_copycat_images{state="protected"}') < count:
            time.sleep(0.05)
        return time.perf_counter() - self._started

    def adds(self) -> dict[str, float]:
        """When each image first came into the queue, by the monotonic clock."""
        lines = [line.split() for line in self._adds.read_text().splitlines()]
        return {source: float(moment) for moment, source in lines}

    def text(self) -> str:
        """Its metrics."""
        with urllib.request.urlopen(self._metrics) as answer:
            found: str = answer.read().decode()
        return found

    def value(self, series: str) -> float:
        """A value of its metrics; 0 if it is not there."""
        found = re.search(rf"^{re.escape(series)} (\S+)$", self.text(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def buckets(self, histogram: str) -> dict[float, float]:
        """Upper bound → observations at or below it."""
        pattern = rf'^{histogram}_bucket{{le="([^"]+)"}} (\S+)$'
        return {float(b): float(n) for b, n in re.findall(pattern, self.text(), re.MULTILINE)}

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


def quantile(share: float, before: Mapping[float, float], after: Mapping[float, float]) -> float:
    """The bound of the bucket in which so large a share of the observations in between lies: never too good."""
    found = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = max(found.values())
    return next(bound for bound, count in found.items() if count >= share * total)


@contextmanager
def copycat(
    folder: Path,
    source: str,
    target: str,
    *arguments: str,
    kubeconfig: Path,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Program]:
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
        ADDS: str(folder / "adds"),
        **(variables or {}),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [
        *(sys.executable, "-m", "bench.observed", "run"),
        *("--kubeconfig", str(kubeconfig), "--health-probe-bind-address=0"),
        *arguments,
    ]
    started = time.perf_counter()
    with (
        (folder / "log").open("wb") as output,
        subprocess.Popen(command, stdout=output, env=environment) as it,
    ):
        try:
            yield Program(it, folder, f"http://127.0.0.1:{port}/metrics", started)
        finally:
            it.terminate()
