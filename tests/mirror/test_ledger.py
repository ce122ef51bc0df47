"""What is known of each request, and how long it waits after a failure."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from copycat.errors import CopycatError, NotFound, Throttled, Unavailable
from copycat.mirror.ledger import GROWING, Ledger
from copycat.mirror.request import MirrorRequest, MirrorResult
from copycat.oci.digest import Digest
from copycat.oci.reference import Reference

REQUEST = MirrorRequest(Reference.parse("ghcr.io/team/app:1"), "copy/app")
OTHER = MirrorRequest(Reference.parse("ghcr.io/team/app:2"), "copy/app")
TARGET = Reference.parse("target.example/copy/app:1")
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
GONE = NotFound("gone", side="source")
DOWN = Unavailable("down", side="source", temporary=True)


@dataclass(slots=True)
class Clock:
    """Time that passes when told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def failed(error: CopycatError = GONE, *, protected: bool = False) -> MirrorResult:
    """An attempt that failed."""
    state = "protected" if protected else "failed"
    return MirrorResult(state=state, target=TARGET, error=error, protected=protected)


def good(digest: Digest = ONE, *, checked: bool = True, written: bool = False) -> MirrorResult:
    """An attempt that went well."""
    return MirrorResult(
        state="protected",
        target=TARGET,
        digest=digest,
        protected=True,
        anchored=frozenset({digest}),
        source_checked=checked,
        tag_written=written,
    )


def test_growing_cooldown() -> None:
    """Each terminal failure in a row waits longer, up to a day."""
    clock = Clock()
    ledger = Ledger(clock=clock)
    for minutes in (*GROWING, GROWING[-1]):
        record = ledger.finished(REQUEST, failed())
        assert record.next_try - clock.now == minutes * 60
        assert ledger.cooling(REQUEST)
        clock.now = record.next_try
        assert not ledger.cooling(REQUEST)
    assert ledger.finished(REQUEST, good()).failures == 0
    assert ledger.finished(REQUEST, failed()).next_try - clock.now == GROWING[0] * 60


def test_flat_cooldown() -> None:
    """A configured cool-down is the same after every failure."""
    clock = Clock()
    ledger = Ledger(cooldown_minutes=7, clock=clock)
    for _ in range(3):
        assert ledger.finished(REQUEST, failed()).cooling_until == clock.now + 420


def test_no_cooldown() -> None:
    """0 disables cool-downs: a terminal failure is tried again as a temporary one is."""
    clock = Clock()
    ledger = Ledger(cooldown_minutes=0, clock=clock, jitter=lambda: 0.5)
    assert not ledger.cooldown_enabled
    assert ledger.finished(REQUEST, failed()).next_try == pytest.approx(clock.now + 5)
    assert not ledger.cooling(REQUEST)


@pytest.mark.parametrize(("jitter", "factor"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
def test_backoff(jitter: float, factor: float) -> None:
    """Temporary failures double the delay up to an hour, with a jitter of a fifth, and cool nothing down."""
    clock = Clock()
    ledger = Ledger(clock=clock, jitter=lambda: jitter)
    for wanted in (5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600):
        record = ledger.finished(REQUEST, failed(DOWN))
        assert record.next_try == pytest.approx(clock.now + wanted * factor)
    assert ledger[REQUEST].failures == 0
    assert not ledger.cooling(REQUEST)


def test_retry_after() -> None:
    """A registry that says when to come back is believed if that is later."""
    clock = Clock()
    ledger = Ledger(clock=clock, jitter=lambda: 0.5)
    error = Throttled("later", side="source", temporary=True, retry_after=900.0)
    assert ledger.finished(REQUEST, failed(error)).next_try == clock.now + 900


def test_held() -> None:
    """A target that refuses everybody is no failure of an image."""
    ledger = Ledger(clock=Clock())
    record = ledger.finished(REQUEST, failed(), held_until=5000.0)
    assert (record.next_try, record.failures, record.tries) == (5000.0, 0, 0)
    assert not ledger.cooling(REQUEST)


def test_warm() -> None:
    """A change that may mend the failure ends the wait; only what was cooling down says so."""
    clock = Clock()
    ledger = Ledger(clock=clock)
    assert not ledger.warm(REQUEST)
    ledger.finished(REQUEST, good())
    assert not ledger.warm(REQUEST)
    ledger.finished(REQUEST, failed(DOWN))
    assert not ledger.warm(REQUEST)
    assert ledger[REQUEST].next_try == clock.now
    ledger.finished(REQUEST, failed())
    assert ledger.warm(REQUEST)
    assert ledger[REQUEST].next_try == clock.now
    assert not ledger.cooling(REQUEST)
    assert ledger.finished(REQUEST, failed()).failures == 1


def test_reset() -> None:
    """All cool-downs end at once, and those that had one are named."""
    ledger = Ledger(clock=Clock())
    ledger.finished(REQUEST, failed())
    ledger.finished(OTHER, failed(DOWN))
    assert ledger.reset() == [REQUEST]
    assert ledger.reset() == []


def test_stale() -> None:
    """After a change both sides are asked again; protection is not taken back by it."""
    ledger = Ledger(clock=Clock())
    ledger.stale(REQUEST)
    assert ledger.get(REQUEST) is None
    ledger.finished(REQUEST, good())
    ledger.stale(REQUEST)
    record = ledger[REQUEST]
    assert (record.source_checked, record.target_checked, record.anchored) == (
        None,
        None,
        frozenset(),
    )
    assert record.protected


def test_protection_outlives_a_source() -> None:
    """A failure of the source takes nothing from a copy that stands: since when it stands is kept."""
    clock = Clock()
    ledger = Ledger(clock=clock)
    assert ledger[REQUEST].unprotected_since == 1000
    ledger.finished(REQUEST, good())
    clock.now += 50
    record = ledger.finished(REQUEST, failed(protected=True))
    assert record.protected
    assert (record.protected_since, record.unprotected_since) == (1000, None)
    assert record.target_checked == 1050
    assert record.source_checked == 1000
    assert record.digest == ONE
    assert record.error is GONE


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        pytest.param(GONE, frozenset({ONE}), id="source"),
        pytest.param(NotFound("gone", side="target"), frozenset(), id="target"),
    ],
)
def test_protection_is_lost(error: CopycatError, kept: frozenset[Digest]) -> None:
    """Without a copy it is unprotected from now on; anchors are only doubted when the target fails."""
    clock = Clock()
    ledger = Ledger(clock=clock)
    ledger.finished(REQUEST, good())
    clock.now += 10
    record = ledger.finished(REQUEST, failed(error))
    clock.now += 10
    ledger.finished(REQUEST, failed(error))
    assert (record.protected, record.protected_since) == (False, None)
    assert record.unprotected_since == 1010
    assert record.anchored == kept


def test_owned() -> None:
    """The tag is this source's if it wrote it, or was asked and found it so."""
    ledger = Ledger(clock=Clock())
    assert ledger.finished(REQUEST, good(ONE, checked=False)).owned is None
    assert ledger.finished(REQUEST, good(ONE)).owned == ONE
    assert ledger.finished(REQUEST, good(TWO, checked=False)).owned == ONE
    assert ledger.finished(REQUEST, good(TWO, checked=False, written=True)).owned == TWO


def test_forget() -> None:
    """What nothing wants any more is gone, and may go while others are looked at."""
    ledger = Ledger(clock=Clock())
    ledger.finished(REQUEST, good())
    ledger.finished(OTHER, good())
    for request, _ in ledger:
        ledger.forget(request)
    ledger.forget(REQUEST)
    assert list(ledger) == []
    assert not ledger.cooling(REQUEST)
