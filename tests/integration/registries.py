"""A real registry, Debian's docker-registry 2.8, as a process with its storage and its access log in view."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.integration.net import free_port, get
from tests.integration.process import end, run, spawn
from tests.needs import executable

__all__ = ["ONE_USER", "DockerRegistry", "Request"]

#: User `somebody`, password `a-password`.
ONE_USER = "somebody:$2b$05$7JI0ULPIyApf2zyrBGBxouX8KbvlsFIjS4C/D9AGHiNCPr1xepc0C"

_ACCESS = re.compile(
    r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[\d.]+" (?P<status>\d{3}) (?P<size>\d+) '
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One line of the access log."""

    method: str
    path: str
    status: int
    size: int
    """Bytes of the answer's body."""

    @property
    def is_ping(self) -> bool:
        """Whether it only asks what the registry is and who may enter."""
        return self.path in ("/v2/", "/v2")

    @property
    def writes(self) -> bool:
        """Whether it can change anything."""
        return self.method not in ("GET", "HEAD")

    @property
    def blob(self) -> str:
        """The digest of the blob that it reads or commits, or nothing."""
        found = re.search(r"(?:/blobs/|[?&]digest=)(sha256(?::|%3A)[0-9a-f]{64})", self.path)
        return found[1].replace("%3A", ":") if found else ""


class DockerRegistry:
    """The process as a context manager; it can be stopped and started again with its storage and its port.

    Args:
        directory: where configuration, storage and log go.
        tls: certificate and key files; plain HTTP without.
        htpasswd: the line of an htpasswd file (bcrypt) for one user: nobody else may enter.
        token: realm, service, issuer and the file of the issuer's certificate, as `auth: token` takes them.
        memory: keep the content in the process, where no disk takes part; it ends with the process.
        program: the executable; distribution v3's is another one than Debian's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tls: tuple[Path, Path] | None = None,
        htpasswd: str = "",
        token: Mapping[str, str] | None = None,
        memory: bool = False,
        program: str = "docker-registry",
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._tls = tls
        self._htpasswd = htpasswd
        self._token = token
        self._memory = memory
        self._program = program
        self._log = directory / "registry.log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and waits for its first answer.

        Raises:
            RuntimeError: it ended, or was silent for ten seconds.
        """
        config = self.directory / "config.yml"
        config.write_text(yaml.safe_dump(self._config()))
        with self._log.open("ab") as log:
            program = executable(self._program) or self._program
            self._process = spawn(
                [program, "serve", str(config)],
                output=log,
                # distribution v3 would send traces to a collector
                environment={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
            )
        deadline = time.monotonic() + 10
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self._program} did not start:\n{self._log.read_text()[-2000:]}"
                )
            time.sleep(0.02)

    def bytes_read(self) -> int:
        """Bytes that the process has read: with storage in memory, what it was sent (proc(5), rchar)."""
        assert self._process is not None, "it runs"
        counts = Path(f"/proc/{self._process.pid}/io").read_text()
        return int(counts.split("rchar: ")[1].split()[0])

    def stop(self) -> None:
        """Ends it; storage and log stay."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def requests(self, *, start: int = 0) -> list[Request]:
        """What was asked since the registry was made, from the given position on; pings left out."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        every = [
            Request(
                method=found["method"],
                path=found["path"],
                status=int(found["status"]),
                size=int(found["size"]),
            )
            for found in _ACCESS.finditer(text)
        ]
        return [request for request in every if not request.is_ping][start:]

    def position(self) -> int:
        """A position in the list of requests, to see later what came after."""
        return len(self.requests())

    def digests(self, repository: str) -> dict[str, str]:
        """Tag → digest of a repository, read from the storage, so that nothing is counted."""
        tags = self._storage / "repositories" / repository / "_manifests" / "tags"
        found = {}
        for link in tags.glob("*/current/link"):
            found[link.parents[1].name] = link.read_text().strip()
        return found

    def blob_file(self, digest: str) -> Path:
        """Where a blob's bytes lie, also those of a manifest."""
        algorithm, _, value = digest.partition(":")
        return self._storage / "blobs" / algorithm / value[:2] / value / "data"

    def raw_manifest(self, repository: str, reference: str) -> bytes:
        """What `skopeo inspect --raw` prints of an image: its bytes as they are served."""
        name = f"docker://{self.address}/{repository}{'@' if ':' in reference else ':'}{reference}"
        flags = ("--raw", f"--tls-verify={str(self._tls is not None).lower()}")
        return run("skopeo", "inspect", *flags, name).encode()

    @property
    def _storage(self) -> Path:
        return self.directory / "data" / "docker" / "registry" / "v2"

    def _config(self) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": self.address, "secret": "of a test"}
        if self._tls is not None:
            http["tls"] = {"certificate": str(self._tls[0]), "key": str(self._tls[1])}
        disk = {"filesystem": {"rootdirectory": str(self.directory / "data")}}
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "error", "formatter": "json", "accesslog": {"disabled": False}},
            "storage": {
                **({"inmemory": {}} if self._memory else disk),
                "delete": {"enabled": True},
            },
            "http": http,
        }
        if self._htpasswd:
            file = self.directory / "htpasswd"
            file.write_text(self._htpasswd + "\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(file)}}
        if self._token is not None:
            config["auth"] = {"token": dict(self._token)}
        return config

    def _answers(self) -> bool:
        try:
            if self._tls is not None:
                run("openssl", "s_client", "-connect", self.address, patience=5)
                return True
            return get(f"http://{self.address}/v2/")[0] in (200, 401)
        except (OSError, AssertionError):
            return False
