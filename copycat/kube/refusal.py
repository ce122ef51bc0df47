"""The boundary of the package: everything foreign that can go wrong becomes a `KubeError` here.

Statuses are mapped by one table. Exceptions of httpx, kr8s, the sockets and the interpreter's own
(kr8s' generator ends in a RuntimeError when it is cut in the wrong place) are caught in one place.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx
import kr8s
import msgspec

from copycat.errors import (
    KubeConflict,
    KubeDenied,
    KubeError,
    KubeExpired,
    KubeNotFound,
    KubeUnavailable,
    printable,
)

__all__ = ["SILENCE", "Status", "nobody_there", "refusal", "translated"]

#: The reason of an error that says that an open stream sent nothing for too long.
SILENCE = "silence"

_KINDS: Mapping[int, type[KubeError]] = {
    401: KubeDenied,
    403: KubeDenied,
    404: KubeNotFound,
    409: KubeConflict,
    410: KubeExpired,
    429: KubeUnavailable,
}
_FOREIGN = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    kr8s.ServerError,
    OSError,
    RuntimeError,
    ssl.SSLError,
)


class Status(msgspec.Struct, gc=False):
    """The API's Status object, as far as it is used."""

    code: int = 0
    reason: str = ""
    message: str = ""


_DECODER = msgspec.json.Decoder(Status)


def refusal(
    what: str, code: int, body: bytes, *, retry_after: str | None = None, event: bool = False
) -> KubeError:
    """The error for a Status.

    Args: `what` is the request in words; `code` the HTTP status (0: the body has it); `event` is true
    for a Status that came as an event of an open stream.
    """
    try:
        status = _DECODER.decode(body)
    except msgspec.DecodeError:
        status = Status(code=code, message=body.decode(errors="replace"))
    code = code or status.code
    kind = _KINDS.get(code) or (KubeUnavailable if code >= 500 else KubeError)
    if event and status.reason in {"Expired", "Gone"}:
        kind = KubeExpired
    message = printable(status.message) or "no message"
    return kind(
        f"The Kubernetes API refused {what}: {code} {status.reason}: {message}",
        status=code,
        reason=status.reason,
        retry_after=float(retry_after) if retry_after and retry_after.isdecimal() else None,
    )


@contextmanager
def translated(what: str, *, timeout_reason: str = "timeout") -> Iterator[None]:
    """Turn foreign exceptions into KubeUnavailable. Keep code of others out of the block.

    Args: `what` is the request in words; `timeout_reason` is the error's reason if nothing came in time.
    """
    try:
        yield
    except (httpx.TimeoutException, kr8s.APITimeoutError, TimeoutError) as error:
        message = f"The Kubernetes API did not answer {what} in time"
        raise KubeUnavailable(message, reason=timeout_reason) from error
    except _FOREIGN as error:
        cause = printable(str(error)) or type(error).__name__
        message = f"The Kubernetes API could not be reached for {what}: {cause}"
        raise KubeUnavailable(message, reason="connection") from error


def nobody_there(error: KubeError) -> bool:
    """Whether no connection came about at all, so that the server may be another one when it answers again."""
    return isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
