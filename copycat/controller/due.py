"""What is due: whether an attempt would be for anything, for what, and when to look the next time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from copycat.controller.inventory import Entry, Inventory
from copycat.mirror.ledger import Ledger, Record
from copycat.mirror.request import MirrorRequest, Need
from copycat.workqueue import Priority

__all__ = ["Agenda", "Intervals"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """How often things are looked at again, in seconds; 0 is never."""

    target_check: float = 86_400.0
    tag_refresh: float = 86_400.0
    force: float = 0.0


class Agenda:
    """Compares what the cluster wants with what the ledger knows."""

    def __init__(
        self,
        *,
        inventory: Inventory,
        ledger: Ledger,
        intervals: Intervals,
        digest_pull: bool = False,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Args: `digest_pull`: what runs newest decides about the tag."""
        self._inventory = inventory
        self._ledger = ledger
        self._intervals = intervals
        self._digest_pull = digest_pull
        self._clock = clock
        self._jitter = jitter

    def need(self, entry: Entry) -> Need | None:
        """What an attempt would be for; None if nothing is due."""
        request = entry.request
        record = self._ledger.get(request)
        need = self._inventory.need(request, absent=record.absent if record else ())
        if record is not None:
            need = _grown(need, record)
        if record is None or record.result is None or entry.forced:
            return replace(need, check_anchors=entry.forced, check_signatures=entry.forced, known=record is not None and record.protected,
                           owned=record.owned if record else None)  # fmt: skip
        now = self._clock()
        if record.next_try > now:
            return None
        digests = tuple(r.digest for r in need.running)
        fresh_digests = any(d not in record.anchored for d in digests)
        moved = self._digest_pull and digests[:1] != record.running[:1]
        source_due = request.source.digest is None and self._due(
            record.source_checked, self._intervals.tag_refresh, now
        )
        target_due = self._due(record.target_checked, self._intervals.target_check, now)
        reshaped = need.platforms != record.platforms
        failed = record.error is not None or not record.protected
        if not (
            fresh_digests
            or moved
            or source_due
            or target_due
            or reshaped
            or (failed and record.next_try)
        ):
            return None
        # the tag does not tell whether what is kept without it is still what the source means
        untagged = record.result.state in {"tag_held", "conflict"}
        return replace(
            need,
            check_source=source_due or reshaped or failed or untagged,
            check_anchors=target_due or not record.protected,
            check_signatures=record.signatures_due,
            anchored=frozenset()
            if target_due or failed or record.signatures_due
            else record.anchored,
            known=record.protected,
            owned=record.owned,
            whole=record.result.state == "protected",
        )

    def _due(self, last: float | None, interval: float, now: float) -> bool:
        # checks are spread over the second half of the interval (`next_look`)
        return last is None or (interval > 0 and now - last >= interval * 0.5)

    def next_look(self, request: MirrorRequest, record: Record) -> tuple[Priority, float] | None:
        """When to look at it next: with which priority, in how many seconds; None if never."""
        now = self._clock()
        if record.next_try:
            return Priority.LIVE, max(0.0, record.next_try - now)
        checks = [(record.target_checked, self._intervals.target_check)]
        if request.source.digest is None:
            checks.append((record.source_checked, self._intervals.tag_refresh))
        waits = [
            # spread over the interval, so that what started together does not stay together
            max(
                1.0, (now if last is None else last) + interval * (0.5 + 0.5 * self._jitter()) - now
            )
            for last, interval in checks
            if interval
        ]
        return (Priority.CHECK, min(waits)) if waits else None


def _grown(need: Need, record: Record) -> Need:
    """A narrowed copy never shrinks: what was wanted of it stays wanted, though nobody may run it any more."""
    if need.platforms is None or not record.protected:
        return need
    before = record.platforms
    return replace(need, platforms=None if before is None else need.platforms | before)
