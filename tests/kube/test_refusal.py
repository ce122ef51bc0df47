"""What a Status means, whether it answers a request or comes as an event of an open watch."""

from __future__ import annotations

import json

import pytest

from copycat.errors import KubeExpired, KubeUnavailable
from copycat.kube.refusal import refusal


def status(code: int, reason: str) -> bytes:
    """A Status."""
    return json.dumps({"kind": "Status", "code": code, "reason": reason, "message": "m"}).encode()


@pytest.mark.parametrize(
    ("code", "reason"), [(410, "Expired"), (410, "Gone"), (410, ""), (500, "Expired"), (0, "Gone")]
)
def test_expired_event(code: int, reason: str) -> None:
    """Code or reason says that history is gone (client-go asks for the reason alone)."""
    assert isinstance(refusal("watch", 0, status(code, reason), event=True), KubeExpired)


def test_an_error_event_that_is_none_of_these() -> None:
    """It is the server's trouble."""
    error = refusal("watch", 0, status(500, "InternalError"), event=True)
    assert isinstance(error, KubeUnavailable)
    assert error.status == 500


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("", None), (None, None), ("soon", None), ("-1", None)]
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """Whole seconds, as the API server writes them; anything else is no wish."""
    body = status(429, "TooManyRequests")
    assert refusal("list", 429, body, retry_after=header).retry_after == seconds
