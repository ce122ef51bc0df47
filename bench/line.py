"""A slow line to a registry: toxiproxy, with latency and a limit for each connection."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from types import TracebackType
from typing import Any, Self

from tests.integration.net import free_ports

__all__ = ["PROGRAMS", "Lines"]

#: `go install` names it after its folder; packages call it toxiproxy-server.
PROGRAMS = ("toxiproxy-server", "toxiproxy")


class Lines:
    """A toxiproxy server as a context manager; every line has its own port of this machine."""

    def __init__(self, *, latency: int, rate: int) -> None:
        """Args: latency of each direction together in milliseconds, rate in kB a second for each connection."""
        self._latency, self._rate = latency, rate
        self._api, *self._ports = free_ports(9)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Starts it. Raises SystemExit if it is not installed."""
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            raise SystemExit(f"none of {', '.join(PROGRAMS)} is on the PATH")
        self._process = subprocess.Popen(
            [program, "-port", str(self._api)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                self._call("GET", "proxies")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def to(self, upstream: str) -> str:
        """A line to this address; where it begins."""
        address = f"127.0.0.1:{self._ports.pop()}"
        name = address.rpartition(":")[2]
        self._call("POST", "proxies", {"name": name, "listen": address, "upstream": upstream})
        for stream in ("upstream", "downstream"):
            limit = {"type": "bandwidth", "stream": stream, "attributes": {"rate": self._rate}}
            self._call("POST", f"proxies/{name}/toxics", limit)
        delay = {
            "type": "latency",
            "stream": "downstream",
            "attributes": {"latency": self._latency},
        }
        self._call("POST", f"proxies/{name}/toxics", delay)
        return address

    def end(self, address: str) -> None:
        """Ends a line; its port may be used again."""
        name = address.rpartition(":")[2]
        self._call("DELETE", f"proxies/{name}")
        self._ports.append(int(name))

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._api}/{path}",
            data=json.dumps(body).encode() if body is not None else None,
            method=method,
            headers={"User-Agent": "bench"},
        )
        urllib.request.urlopen(request, timeout=10).close()
