"""kubectl and the program under test as processes: what a person at a terminal would use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.integration.net import free_ports, get, get_json
from tests.integration.process import end, run, spawn

__all__ = ["Copycat", "Kubectl", "copycat", "until"]

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], Any], what: str, *, patience: float = 60.0) -> Any:
    """Waits until `condition` gives something true, and gives that.

    Raises:
        AssertionError: it did not in `patience` seconds; `what` says what was waited for.
    """
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {patience} s: {what}"
        time.sleep(0.05)
    return found


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a developer's shell may have set for the program, and with `extra`."""
    prefixes = ("AWS_", "ECR_", "TARGET_", "KUBECONFIG", "CONFIG_PATH")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return {**kept, "PYTHONUNBUFFERED": "1", "NO_PROXY": "*", **extra}


def copycat(
    *arguments: str, stdin: str = "", variables: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Runs a command of the program to its end: exit code, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "copycat", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(variables or {}),
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


class Kubectl:
    """kubectl with one kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self._base = ("kubectl", f"--kubeconfig={kubeconfig}")

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Runs a command; its standard output."""
        return run(*self._base, *arguments, stdin=stdin)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Creates or changes objects."""
        self("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a List."""
        found: dict[str, Any] = json.loads(self("get", *arguments, "-o", "json"))
        return found

    def namespace(self, name: str) -> None:
        """Makes a namespace and waits until Pods may be created in it."""
        self("create", "namespace", name)
        account = ("serviceaccounts", "-n", name, "-o", "name")
        until(lambda: "serviceaccount/default" in self("get", *account), f"namespace {name}")

    def running(self, namespace: str, pod: str, statuses: list[dict[str, Any]]) -> None:
        """Writes a Pod's status as a kubelet would: Running, with these container statuses."""
        started = [status | {"ready": True, "restartCount": 0} for status in statuses]
        for status in started:
            status.setdefault("state", {"running": {"startedAt": "2026-01-01T00:00:00Z"}})
        patch = json.dumps({"status": {"phase": "Running", "containerStatuses": started}})
        self(
            "patch",
            "pod",
            pod,
            "-n",
            namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        )


class Copycat:
    """`copycat run` as a process: its log, its two HTTP listeners, and signals.

    `config_file` is what a test may change while it runs.

    Args:
        directory: where its configuration and its log go; the log of each start is appended.
        config: what config.yaml holds, besides the addresses.
        kubeconfig: the cluster.
        arguments: further flags.
        variables: further environment variables.
        module: what is run: the program, or one that is it and more.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        kubeconfig: Path,
        *arguments: str,
        variables: Mapping[str, str] | None = None,
        module: str = "copycat",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        metrics, admin, health = (f"127.0.0.1:{port}" for port in free_ports(3))
        self.admin = f"http://{admin}"
        self.health = f"http://{health}"
        self.metrics_url = f"http://{metrics}/metrics"
        self._log = directory / "copycat.log"
        self._variables = dict(variables or {})
        self._process: subprocess.Popen[bytes] | None = None
        file = self.config_file = directory / "config.yaml"
        addresses = {"metricsAddr": metrics, "adminAddr": admin, "logFormat": "json"}
        file.write_text(yaml.safe_dump({**config, **addresses}))
        self._command = [
            *(sys.executable, "-m", module, "run"),
            f"--config={file}",
            f"--kubeconfig={kubeconfig}",
            f"--health-probe-bind-address={health}",
            *arguments,
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            end(self._process, patience=40)
        if error is not None:
            print(f"--- the program's log ---\n{self.log_text()[-20000:]}")  # noqa: T201  # pytest shows it with the failure

    def start(self) -> None:
        """Starts the process; a second time after it ended."""
        with self._log.open("ab") as log:
            self._process = spawn(
                self._command, output=log, environment=environment(self._variables), directory=ROOT
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, running or ended."""
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """Ends it at once, as a node's failure would."""
        self.process.kill()
        self.process.wait()

    def terminate(self, *, patience: float = 40.0) -> int:
        """Sends SIGTERM and waits; the exit code."""
        self.process.terminate()
        return self.process.wait(patience)

    def ended(self, *, patience: float = 30.0) -> int:
        """Waits for the end; the exit code."""
        return self.process.wait(patience)

    # What it says

    def log_text(self) -> str:
        """All that it wrote."""
        return self._log.read_text(errors="replace")

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log that are whole JSON objects."""
        lines = []
        for line in self.log_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a traceback, or the line that is being written
            if isinstance(entry, dict):
                lines.append(entry)
        return lines

    def wait_for_log(
        self, predicate: Callable[[dict[str, Any]], bool], *, patience: float = 60.0
    ) -> dict[str, Any]:
        """The first line of the log that the predicate accepts."""
        found: dict[str, Any] = until(
            lambda: next(filter(predicate, self.log()), None),
            "a line of the log",
            patience=patience,
        )
        return found

    # What it answers

    def answers(self, url: str) -> int:
        """The status that a listener answers; 0 if nobody does."""
        assert self.process.poll() is None, f"the program ended:\n{self.log_text()[-4000:]}"
        try:
            return get(url)[0]
        except OSError:
            return 0

    def wait_ready(self, *, patience: float = 60.0) -> None:
        """Waits for 200 from /readyz."""
        until(lambda: self.answers(f"{self.health}/readyz") == 200, "/readyz", patience=patience)

    def images(self) -> dict[str, dict[str, Any]]:
        """What /api/v1/images lists, by source; nothing while nobody answers."""
        if self.answers(f"{self.admin}/api/v1/images") != 200:
            return {}
        listed: list[dict[str, Any]] = get_json(f"{self.admin}/api/v1/images")["images"]
        return {image["source"]: image for image in listed}

    def wait_states(
        self, wanted: Mapping[str, str], *, patience: float = 90.0
    ) -> dict[str, dict[str, Any]]:
        """Waits until every source has the state that is wanted of it; all images."""
        seen: dict[str, dict[str, Any]] = {}

        def reached() -> bool:
            seen.clear()
            seen.update(self.images())
            return all(
                seen.get(source, {}).get("state") == state for source, state in wanted.items()
            )

        try:
            until(reached, "states", patience=patience)
        except AssertionError as error:
            states = {
                source: (seen.get(source, {}).get("state"), state)
                for source, state in wanted.items()
            }
            raise AssertionError(
                f"not in {patience} s: source: (state, wanted) {states}"
            ) from error
        return seen

    def metric(self, sample: str) -> float:
        """The value of one sample of /metrics, written as there, labels and all; 0 if absent."""
        _, body = get(self.metrics_url)
        for line in body.decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0

    def force_reconcile(self) -> dict[str, Any]:
        """Looks at everything anew; the answer."""
        answer: dict[str, Any] = get_json(f"{self.admin}/force-reconcile", method="POST")
        return answer

    def reset_cooldown(self) -> dict[str, Any]:
        """Forgets cool-downs; the answer."""
        answer: dict[str, Any] = get_json(f"{self.admin}/reset-cooldown", method="POST")
        return answer
