"""A container of a manifest, started as a process: what a kubelet would give it, on a loopback address of its own."""

from __future__ import annotations

import contextlib
import copy
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.integration.net import get
from tests.integration.process import end, spawn
from tests.integration.programs import ROOT, environment

__all__ = ["Container", "Manifest"]

Object = dict[str, Any]


class Manifest:
    """The objects of a file; changes are made to a copy."""

    def __init__(self, path: Path) -> None:
        self.objects: list[Object] = list(yaml.safe_load_all(path.read_text()))

    def changed(self) -> Manifest:
        """A copy to change."""
        other = copy.copy(self)
        other.objects = copy.deepcopy(self.objects)
        return other

    def one(self, kind: str) -> Object:
        """The only object of its kind."""
        (found,) = (item for item in self.objects if item["kind"] == kind)
        return found

    @property
    def pod(self) -> Object:
        """The Pod's spec in the Deployment."""
        spec: Object = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        """The only container."""
        (found,) = self.pod["containers"]
        container: Object = found
        return container

    @property
    def namespace(self) -> str:
        """Where the Deployment is."""
        return str(self.one("Deployment")["metadata"]["namespace"])

    def config(self) -> Object:
        """What the ConfigMap's config.yaml holds."""
        loaded: Object = yaml.safe_load(self.one("ConfigMap")["data"]["config.yaml"])
        return loaded

    def set_config(self, config: Object) -> None:
        """Edit the ConfigMap."""
        self.one("ConfigMap")["data"]["config.yaml"] = yaml.safe_dump(config)

    def set_env(self, name: str, value: str) -> None:
        """Edit, or add, a variable of the Deployment."""
        env = self.container["env"]
        row = next((row for row in env if row["name"] == name), None)
        if row is None:
            env.append({"name": name, "value": value})
        else:
            row["value"] = value


class Container:
    """The process, with the image's entry point in place of the image."""

    def __init__(self, manifest: Manifest, directory: Path, kubeconfig: Path) -> None:
        """Args: `kubeconfig` stands for the mounted service account; `directory` for the container's root."""
        self._manifest = manifest
        self._root = directory / "root"
        self._kubeconfig = kubeconfig
        self._log = directory / "container.log"
        self._process: subprocess.Popen[bytes] | None = None
        #: The Pod's address: all of 127/8 is loopback, so the manifest's ports can be used as they are.
        self.ip = f"127.{secrets.randbelow(250) + 2}.{secrets.randbelow(250)}.{secrets.randbelow(250) + 1}"

    @contextlib.contextmanager
    def running(self, **trust: str) -> Iterator[Container]:
        """Mounts, starts, and ends it. Args: `trust` are variables that stand for the node's certificates."""
        self._mount()
        # a Pod has its addresses to itself; here the listeners are told which one is theirs
        address = {"METRICS_ADDR": f"{self.ip}:{self.port('metrics')}", "ADMIN_ADDR": f"{self.ip}:8082"}  # fmt: skip
        command = [
            *(sys.executable, "-m", "copycat", "run"),
            *self._manifest.container["args"],
            f"--kubeconfig={self._kubeconfig}",
            f"--health-probe-bind-address={self.ip}:{self.port('probes')}",
        ]
        variables = environment({**self._env(), **address, **trust})
        with self._log.open("wb") as log:
            self._process = spawn(command, output=log, environment=variables, directory=ROOT)
        try:
            yield self
        finally:
            if self._process.poll() is None:
                end(self._process, patience=40)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self._process is not None
        return self._process

    def port(self, name: str) -> int:
        """A port by its name, as probes and Services name it."""
        return next(int(p["containerPort"]) for p in self._manifest.container["ports"] if p["name"] == name)  # fmt: skip

    def probe(self, name: str) -> int:
        """Ask as the kubelet would; 0 if nobody answers."""
        wanted = self._manifest.container[name]["httpGet"]
        return self.get(wanted["port"], wanted["path"])[0]

    def get(self, port: str, path: str) -> tuple[int, str]:
        """Status and body of a named port; (0, "") if nobody answers."""
        assert self.process.poll() is None, self.log()
        try:
            status, body = get(f"http://{self.ip}:{self.port(port)}{path}")
        except OSError:
            return 0, ""
        return status, body.decode()

    def log(self) -> str:
        """All that it wrote."""
        return self._log.read_text(errors="replace")

    def peak_memory(self) -> int:
        """Bytes of memory that it had at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def _mount(self) -> None:
        names = {v["name"]: v["configMap"]["name"] for v in self._manifest.pod["volumes"]}
        config = self._manifest.one("ConfigMap")
        for mount in self._manifest.container["volumeMounts"]:
            assert names[mount["name"]] == config["metadata"]["name"]
            folder = self._inside(mount["mountPath"])
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in config["data"].items():
                (folder / name).write_text(text)

    def _inside(self, path: str) -> Path:
        return self._root / path.removeprefix("/")

    def _env(self) -> dict[str, str]:
        secret = self._manifest.one("Secret")["stringData"]
        mounts = tuple(m["mountPath"] for m in self._manifest.container["volumeMounts"])
        found = {}
        for row in self._manifest.container["env"]:
            value = row.get("value")
            if value is None:
                value = secret[row["valueFrom"]["secretKeyRef"]["key"]]
            found[row["name"]] = str(self._inside(value)) if value.startswith(mounts) else value
        return found
