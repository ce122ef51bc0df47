"""The API server of a bench, spoken to directly: one connection, no client of the program."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["Api", "patch_images"]

_MERGE = "application/merge-patch+json"


class Api:
    """Requests of the user that a kubeconfig names."""

    def __init__(self, kubeconfig: Path) -> None:
        config: dict[str, Any] = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        url = urlsplit(cluster["server"])
        self._token = config["users"][0]["user"].get("token", "")
        assert url.hostname is not None
        if url.scheme == "https":
            tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.hostname, url.port, context=tls
            )
        else:
            self._connection = http.client.HTTPConnection(url.hostname, url.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def __call__(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The decoded answer; a PATCH is a merge patch.

        Raises:
            SystemExit: the API refuses.
        """
        kind = _MERGE if method == "PATCH" else "application/json"
        headers = {"Content-Type": kind, "Authorization": f"Bearer {self._token}"}
        data = json.dumps(body) if body is not None else None
        self._connection.request(method, path, body=data, headers=headers)
        with self._connection.getresponse() as answer:
            text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text[:400]!r}")
        return json.loads(text)


def patch_images(api: Api, prefix: str, *, count: int, pause: float = 0.02) -> dict[str, float]:
    """Gives so many Pods an image that nobody had; image → when its request was sent, by the monotonic clock."""
    sent = {}
    pods = api("GET", f"/api/v1/pods?limit={count}")["items"]
    for number, pod in enumerate(pods):
        metadata, containers = pod["metadata"], pod["spec"]["containers"]
        image = f"{prefix}0:patched-{number}"
        containers[0]["image"] = image
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        sent[image] = time.monotonic()
        api("PATCH", path, {"spec": {"containers": containers}})
        time.sleep(pause)
    return sent
