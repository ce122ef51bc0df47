"""Backoff, the gate and the breaker."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat.registry.limits import CircuitBreaker, HostGate, RetryPolicy, parse_retry_after


@pytest.mark.parametrize(
    ("failures", "bound"), [(1, 1.0), (2, 2.0), (3, 4.0), (6, 30.0), (5000, 30.0)]
)
def test_full_jitter(failures: int, bound: float) -> None:
    """A delay is any part of a bound that doubles up to the cap."""
    policy = RetryPolicy()

    assert policy.delay(failures, lambda: 1.0) == bound
    assert policy.delay(failures, lambda: 0.0) == 0.0
    assert 0 <= policy.delay(failures) <= bound


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("2", 2, id="seconds"),
        pytest.param(" 30 ", 30, id="blanks"),
        pytest.param("0", 1, id="least"),
        pytest.param("86400", 900, id="most"),
        pytest.param("9" * 5000, 900, id="huge"),
        pytest.param("Thu, 01 Jan 1970 00:01:40 GMT", 40, id="date"),
        pytest.param("Thu, 01 Jan 1970 00:00:01 GMT", 1, id="past"),
        pytest.param("Fri, 01 Jan 2100 00:00:00 GMT", 900, id="far"),
        pytest.param("soon", None, id="neither"),
        pytest.param("", None, id="empty"),
        pytest.param("-5", None, id="negative"),
        pytest.param("Thu, 99 Jan 1970 99:00:00 GMT", None, id="no-date"),
    ],
)
def test_retry_after(value: str, expected: float | None) -> None:
    """Seconds or an HTTP date, between 1 s and 15 min."""
    assert parse_retry_after(value, now=lambda: 60.0) == expected


@given(st.text())
def test_retry_after_never_fails(value: str) -> None:
    """Whatever a server sends."""
    found = parse_retry_after(value, now=time.time)

    assert found is None or 1 <= found <= 900


def test_gate() -> None:
    """The later of two times counts, and the prolongation is what is told."""
    now = 100.0
    gate = HostGate(clock=lambda: now)

    assert gate.remaining() == 0
    assert gate.shut(10) == 10
    assert gate.shut(4) == 0
    assert gate.shut(12) == 2
    now = 105
    assert gate.remaining() == 7
    now = 200
    assert gate.remaining() == 0


def broken(breaker: CircuitBreaker, times: int = 5, path: str = "") -> None:
    """Failures in a row."""
    for _ in range(times):
        breaker.failure(path)


def holds(breaker: CircuitBreaker) -> bool:
    """Whether it is open now."""
    return breaker.is_open


def test_breaker_opens() -> None:
    """Five failures in a row open it; a success in between starts the count anew."""
    breaker = CircuitBreaker(clock=lambda: 0.0)
    broken(breaker, 4)
    breaker.success()
    broken(breaker, 4)
    assert not holds(breaker)

    breaker.failure()

    assert holds(breaker)
    assert breaker.remaining() == 5


def test_one_broken_object() -> None:
    """Failures of one path alone do not open it: an object is not a host."""
    breaker = CircuitBreaker(clock=lambda: 0.0)
    broken(breaker, 50, "blobs/a")
    assert not holds(breaker)

    breaker.failure("blobs/b")

    assert holds(breaker)


def test_breaker_doubles() -> None:
    """Every failed probe doubles the time, up to five minutes; a success closes and forgets."""
    now = 0.0
    breaker = CircuitBreaker(clock=lambda: now)
    broken(breaker)
    lengths = []
    for _ in range(8):
        now += breaker.remaining()
        breaker.reopen()
        lengths.append(breaker.remaining())

    assert lengths == [10, 20, 40, 80, 160, 300, 300, 300]

    breaker.failure()  # a request from before: says nothing new
    assert breaker.remaining() == 300
    breaker.success()
    assert not holds(breaker)

    breaker.reopen()  # a probe that overtook the good answer
    assert not holds(breaker)
    assert breaker.remaining() == 0
    broken(breaker)
    assert breaker.remaining() == 5
