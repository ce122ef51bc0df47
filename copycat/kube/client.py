"""The client for the Kubernetes API: one request, or one stream, with the credentials of the moment.

Requests and streams have an Api each: a burst of one kind never waits for a connection of the other.
Everything that fails leaves as a `KubeError`. Nothing here retries, but for the one 401 after which
there are new credentials. The API server need not be up when a client is opened.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec

from copycat import __version__
from copycat.kube.channel import CONNECT_TIMEOUT, Channels
from copycat.kube.credentials import Credentials
from copycat.kube.kubeconfig import SERVICE_ACCOUNT, find_access
from copycat.kube.refusal import SILENCE, refusal, translated

__all__ = ["MERGE_PATCH", "KubeClient", "open_api"]

MERGE_PATCH = "application/merge-patch+json"
_JSON = "application/json"
#: The longest wait for the head of a stream's answer, in seconds.
_HEAD_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    retry_after: str | None


class KubeClient:
    """Requests to one API server as one user. Made by `open_api`."""

    def __init__(self, credentials: Credentials, *, namespace: str, in_cluster: bool) -> None:
        """Args: `namespace` is the one of this process; `in_cluster` is true in a Pod that uses its service account."""
        self.namespace = namespace
        self.in_cluster = in_cluster
        self._credentials = credentials
        agent = f"k8s-copycat/{__version__}"
        self._requests = Channels(user_agent=agent)
        self._streams = Channels(user_agent=agent)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object | None = None,
        content_type: str = _JSON,
        timeout: float = 30.0,
    ) -> bytes:
        """Send a request and read the answer.

        Args:
            path: from the server's root, `/api/v1/namespaces/shop/pods`.
            body: encoded as JSON, unless it is bytes.
            content_type: `MERGE_PATCH` for a patch.
            timeout: the longest silence, in seconds; use a cancel scope to bound the whole.

        Raises:
            KubeError: what the API refused, by status; KubeUnavailable if it did not answer.
        """
        what = f"{method} {path}"
        while True:
            grant = await self._credentials.current()
            channel = await self._requests.get(grant.connection)
            async with channel.use() as api:
                with translated(what):
                    async with api.call_api(
                        method,
                        **_split(path),
                        params=dict(params or {}),
                        content=_encode(body),
                        headers={**grant.headers, "Content-Type": content_type},
                        timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT, pool=5),
                        raise_for_status=False,
                    ) as response:
                        answer = _Answer(
                            response.status_code,
                            response.content,
                            response.headers.get("retry-after"),
                        )
            if answer.status == 401 and await self._credentials.refused(grant):
                continue
            if answer.status >= 400:
                raise refusal(what, answer.status, answer.body, retry_after=answer.retry_after)
            return answer.body

    @asynccontextmanager
    async def stream(
        self, path: str, *, params: Mapping[str, str], silence: float
    ) -> AsyncIterator[AsyncGenerator[bytes]]:
        """Open an answer that goes on, and give its bytes as they arrive.

        Args:
            path: as for `request`.
            silence: the longest time without a byte, in seconds.

        Raises:
            KubeError: at the opening as `request`; while reading KubeUnavailable, whose reason is
                `silence` if nothing came for too long, `connection` if the stream broke.
        """
        what = f"watch {path}"
        async with AsyncExitStack() as stack:
            response = await self._open(stack, what, path, params, silence)
            chunks = await stack.enter_async_context(aclosing(_chunks(response, what)))
            yield chunks

    async def _open(
        self,
        stack: AsyncExitStack,
        what: str,
        path: str,
        params: Mapping[str, str],
        silence: float,
    ) -> httpx.Response:
        while True:
            grant = await self._credentials.current()
            channel = await self._streams.get(grant.connection)
            attempt = AsyncExitStack()
            async with attempt:
                api = await attempt.enter_async_context(channel.use())
                with translated(what):
                    call = api.call_api(
                        "GET",
                        **_split(path),
                        params=dict(params),
                        headers=grant.headers,
                        timeout=httpx.Timeout(silence, connect=CONNECT_TIMEOUT, pool=5),
                        stream=True,
                        raise_for_status=False,
                    )
                    with anyio.fail_after(min(silence, _HEAD_TIMEOUT)):
                        response = await attempt.enter_async_context(call)
                    body = await response.aread() if response.is_error else b""
                if not response.is_error:
                    stack.push_async_exit(attempt.pop_all())
                    return response
            if response.status_code == 401 and await self._credentials.refused(grant):
                continue
            retry_after = response.headers.get("retry-after")
            raise refusal(what, response.status_code, body, retry_after=retry_after)

    async def aclose(self) -> None:
        """Close every connection; later requests raise KubeUnavailable."""
        with anyio.CancelScope(shield=True):
            await self._streams.close()
            await self._requests.close()


@asynccontextmanager
async def open_api(
    kubeconfig: str | None = None,
    context: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    service_account: Path = SERVICE_ACCOUNT,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[KubeClient]:
    """A client for the kubeconfig that is named, KUBECONFIG, the Pod's service account, or ~/.kube/config.

    No request is sent. Raises ConfigError if there is none of them, or if it cannot be used.

    Args:
        kubeconfig: a path, or several with `:` between them.
        context: instead of the kubeconfig's current one.
        environ, service_account, clock: for tests.
    """
    for name in ("httpx", "httpcore"):  # they log each request at INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    load = functools.partial(
        find_access, kubeconfig, context, environ=environ, service_account=service_account
    )
    access = await anyio.to_thread.run_sync(load)
    credentials = Credentials(load, access, environ=environ, clock=clock)
    client = KubeClient(
        credentials,
        namespace=environ.get("POD_NAMESPACE") or access.namespace or "default",
        in_cluster=access.in_cluster,
    )
    try:
        yield client
    finally:
        await client.aclose()


async def _chunks(response: httpx.Response, what: str) -> AsyncGenerator[bytes]:
    # Without a chunk size: with one, httpx holds events back until that many bytes have arrived.
    chunks = response.aiter_bytes()
    while True:
        with translated(what, timeout_reason=SILENCE):
            chunk = await anext(chunks, b"")
        if not chunk:
            return
        yield chunk


def _split(path: str) -> dict[str, Any]:
    """The arguments of call_api that give this path again: it wants a base and the rest."""
    base, _, rest = path.lstrip("/").partition("/")
    return {"base": f"/{base}", "version": "", "url": rest}


def _encode(body: object | None) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
