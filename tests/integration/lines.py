"""A line to a registry that is slow or breaks: toxiproxy."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tests.integration.net import free_ports
from tests.needs import executable

__all__ = ["Lines", "slow"]


def slow(*, latency: int, rate: int) -> list[dict[str, Any]]:
    """The toxics of a distant registry. Args: milliseconds for each answer; kB a second for each connection."""
    limits = [
        {"type": "bandwidth", "stream": stream, "attributes": {"rate": rate}}
        for stream in ("upstream", "downstream")
    ]
    return [
        *limits,
        {"type": "latency", "stream": "downstream", "attributes": {"latency": latency}},
    ]


class Lines:
    """A toxiproxy server as a context manager; every line has its own port of this machine."""

    def __init__(self, *toxics: Mapping[str, Any]) -> None:
        """Args: `toxics` as toxiproxy's API takes them; every line gets them all."""
        self._toxics = toxics
        self._api, *self._ports = free_ports(9)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Starts it. Raises SystemExit if it is not installed."""
        program = executable("toxiproxy-server")
        if program is None:
            raise SystemExit(
                "toxiproxy-server is not installed; tests/integration/go_tools.sh builds it"
            )
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
        for toxic in self._toxics:
            # the name is the type and the direction, which must differ
            self._call("POST", f"proxies/{name}/toxics", dict(toxic))
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
