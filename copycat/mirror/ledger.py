"""What is known about each request: whether its copy stands, and how the last attempt went.

The two are kept apart on purpose. An upstream that is gone makes attempts fail for ever and takes
nothing from a copy that stands. Everything here lives in memory: a restart asks the target again.

Times are seconds of the injected monotonic clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from copycat.errors import CopycatError
from copycat.mirror.request import MirrorRequest, MirrorResult
from copycat.oci.digest import Digest
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference

__all__ = ["GROWING", "Ledger", "Record"]

#: Minutes of the cool-down after the first, second, … terminal failure in a row.
GROWING = (1, 5, 15, 60, 240, 1440)
#: Temporary failures: seconds before the next try, doubled each time, and the most that it grows to.
_FIRST_RETRY, _LAST_RETRY = 5.0, 3600.0


@dataclass(slots=True)
class Record:
    """What is known about one request."""

    result: MirrorResult | None = None
    protected: bool = False
    target: Reference | None = None
    digest: Digest | None = None
    anchored: frozenset[Digest] = frozenset()
    absent: frozenset[Digest] = frozenset()
    owned: Digest | None = None
    """The digest that this source's tag was given, or found to have, at the target."""
    source_checked: float | None = None
    target_checked: float | None = None
    protected_since: float | None = None
    unprotected_since: float | None = None
    error: CopycatError | None = None
    failures: int = 0
    """Terminal failures in a row."""
    tries: int = 0
    """Temporary failures in a row."""
    running: tuple[Digest, ...] = ()
    """What ran at the last attempt, newest first."""
    platforms: frozenset[Platform] | None = None
    """What was wanted at the last attempt."""
    signatures_due: bool = False
    """The last look for signatures failed."""
    cooling_until: float = 0.0
    next_try: float = 0.0


class Ledger:
    """All records. Synchronous; the controller is its only writer."""

    def __init__(
        self,
        *,
        cooldown_minutes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Args: `cooldown_minutes` flat; 0 disables it; None grows as `GROWING` says."""
        self._flat = cooldown_minutes
        self._clock = clock
        self._jitter = jitter
        self._records: dict[MirrorRequest, Record] = {}

    @property
    def cooldown_enabled(self) -> bool:
        """Whether terminal failures cool down at all."""
        return self._flat != 0

    def __getitem__(self, request: MirrorRequest) -> Record:
        """The record, made if there is none."""
        record = self._records.get(request)
        if record is None:
            record = self._records[request] = Record(unprotected_since=self._clock())
        return record

    def get(self, request: MirrorRequest) -> Record | None:
        """The record, if there is one."""
        return self._records.get(request)

    def __iter__(self) -> Iterator[tuple[MirrorRequest, Record]]:
        """Every request that was ever asked for and not forgotten."""
        return iter(list(self._records.items()))

    def forget(self, request: MirrorRequest) -> None:
        """Nothing wants it any more."""
        self._records.pop(request, None)

    def finished(
        self, request: MirrorRequest, result: MirrorResult, *, held_until: float = 0.0
    ) -> Record:
        """Write down an attempt. The next try of a failed one is in `next_try`.

        Args: `held_until`: the target refuses everybody till then, which is no failure of this image.
        """
        now = self._clock()
        record = self[request]
        record.result = result
        record.target = result.target
        self._protection(record, result, now)
        if result.source_checked:
            record.source_checked = now
        if result.signatures_due is not None:
            record.signatures_due = result.signatures_due
        if result.tag_written or (
            result.state in {"protected", "tag_only"} and result.source_checked
        ):
            record.owned = result.digest
        record.error = result.error
        if result.error is None:
            record.failures = record.tries = 0
            record.cooling_until = record.next_try = 0.0
        elif held_until:
            record.next_try = held_until
        elif result.state == "waiting_quota":
            # no failure: nothing was asked, and the time when it is worth asking is known
            record.next_try = now + (result.error.retry_after or _FIRST_RETRY)
        elif result.error.temporary or not self.cooldown_enabled:
            record.tries += 1
            record.next_try = now + self._retry_delay(record.tries, result.error)
        else:
            record.failures += 1
            record.cooling_until = record.next_try = now + self._cooldown(record.failures)
        return record

    def _protection(self, record: Record, result: MirrorResult, now: float) -> None:
        record.anchored |= result.anchored
        record.absent |= result.absent
        record.protected = result.protected
        record.digest = result.digest or record.digest
        if result.protected:
            record.target_checked = now
            record.protected_since = record.protected_since or now
            record.unprotected_since = None
        else:
            record.protected_since = None
            record.unprotected_since = record.unprotected_since or now
            if result.error is None or result.error.side != "source":
                record.anchored = result.anchored

    def _retry_delay(self, tries: int, error: CopycatError) -> float:
        delay = min(_LAST_RETRY, _FIRST_RETRY * 2.0 ** min(tries - 1, 16))
        delay *= 0.8 + 0.4 * self._jitter()
        return max(delay, error.retry_after or 0.0)

    def _cooldown(self, failures: int) -> float:
        if self._flat is not None:
            return self._flat * 60.0
        return GROWING[min(failures, len(GROWING)) - 1] * 60.0

    def cooling(self, request: MirrorRequest) -> bool:
        """Whether the request waits for the end of its cool-down."""
        record = self._records.get(request)
        return record is not None and record.cooling_until > self._clock()

    def warm(self, request: MirrorRequest) -> bool:
        """Something changed that may mend the failure: do not wait any longer. Says whether it was cooling down."""
        record = self._records.get(request)
        if record is None or not record.next_try:
            return False
        cooling = record.cooling_until > self._clock()
        # 0 would mean that no failure is known
        record.next_try = min(record.next_try, self._clock())
        record.cooling_until = 0.0
        record.failures = record.tries = 0
        return cooling

    def stale(self, request: MirrorRequest) -> None:
        """Something changed: ask source and target again."""
        record = self._records.get(request)
        if record is not None:
            record.source_checked = record.target_checked = None
            record.anchored = frozenset()

    def reset(self) -> list[MirrorRequest]:
        """End every cool-down; the requests that had one."""
        return [request for request, _ in self if self.warm(request)]
