"""Ports and plain requests on loopback, for tests that drive real processes."""

from __future__ import annotations

import json
import os
import socket
import ssl
import urllib.error
import urllib.request
from itertools import cycle, islice
from typing import Any

__all__ = ["free_port", "free_ports", "get", "get_json"]


#: Below what the kernel hands out to whoever asks for any port: a server that starts a moment later finds its port still
#: free, and no other one answers in its place. Processes that test at the same time begin far apart.
_PORTS = range(12_000, 32_000)
_candidates = cycle(_PORTS)
next(islice(_candidates, os.getpid() * 1009 % len(_PORTS), None))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens at, all different, none of them given before.

    Raises:
        RuntimeError: there are not so many.
    """
    found = list(islice(filter(_is_free, islice(_candidates, len(_PORTS))), count))
    if len(found) < count:
        raise RuntimeError(f"fewer than {count} ports of {_PORTS} are free on 127.0.0.1")
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """One such port."""
    return free_ports(1)[0]


def get(
    url: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    data: bytes | None = None,
    tls: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """Status and body, whatever the status.

    Raises:
        OSError: nobody answers.
    """
    request = urllib.request.Request(url, method=method, headers=headers or {}, data=data)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
    )
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def get_json(url: str, *, method: str = "GET") -> Any:
    """The decoded body of a 200."""
    status, body = get(url, method=method)
    assert status == 200, f"{method} {url}: {status} {body[:400]!r}"
    return json.loads(body)
