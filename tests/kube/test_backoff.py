"""How long one waits after a failure: client-go's constants."""

from __future__ import annotations

from copycat.kube.backoff import Backoff


def test_doubling_to_the_cap() -> None:
    """0.8 s, doubled, at most 30 s; the jitter comes on top of that."""
    waits = Backoff(clock=lambda: 0.0, jitter=lambda: 0.0)
    assert [waits.next() for _ in range(8)] == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


def test_jitter() -> None:
    """Up to as much again."""
    numbers = iter([0.0, 0.5, 1.0])
    waits = Backoff(base=1.0, cap=1.0, clock=lambda: 0.0, jitter=lambda: next(numbers))
    assert [waits.next() for _ in range(3)] == [1.0, 1.5, 2.0]


def test_two_quiet_minutes() -> None:
    """It begins anew after two minutes without a failure, and not sooner."""
    now = 0.0
    waits = Backoff(clock=lambda: now, jitter=lambda: 0.0)
    assert [waits.next(), waits.next()] == [0.8, 1.6]
    now = 120.0
    assert waits.next() == 3.2
    now = 240.1
    assert waits.next() == 0.8


def test_soon() -> None:
    """A first failure of that kind waits for less than the base, the next ones as always."""
    waits = Backoff(clock=lambda: 0.0, jitter=lambda: 0.25)
    assert [waits.soon(), waits.soon(), waits.next()] == [0.2, 2.0, 4.0]


def test_many_failures() -> None:
    """A year of them breaks nothing."""
    waits = Backoff(clock=lambda: 0.0, jitter=lambda: 0.0)
    assert {waits.next() for _ in range(2000)} >= {30.0}
    assert waits.next() == 30.0
