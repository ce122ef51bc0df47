"""What people and their monitoring hear of attempts: counters, one line of log, gauges of all images."""

from __future__ import annotations

import time
from collections.abc import Callable

from copycat.controller.inventory import Inventory
from copycat.logs import get_logger
from copycat.metrics import STATES, Metrics
from copycat.mirror.ledger import Ledger, Record
from copycat.mirror.request import MirrorRequest, MirrorResult

__all__ = ["Reporter", "state_of"]

_log = get_logger(__name__)


#: States whose attempts are no errors of a registry.
_NO_FAILURES = {"denied", "conflict", "waiting_quota"}
#: What an attempt's state is in metrics; a success otherwise.
_OUTCOMES = {"failed": "failure", "denied": "failure", "waiting_quota": "waiting"}


class Reporter:
    """Counts and logs; decides nothing."""

    def __init__(self, *, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: `clock` is the ledger's."""
        self._metrics = metrics
        self._clock = clock

    def count(self, request: MirrorRequest, result: MirrorResult, seconds: float) -> None:
        """An attempt's metrics."""
        image = request.source.name
        outcome = _OUTCOMES.get(result.state, "success")
        label = self._metrics.registry_label(request.source.registry)
        self._metrics.operations.labels(label, outcome, result.reason or "ok").inc()
        self._metrics.duration.labels(outcome).observe(seconds)
        if result.dry:
            return
        self._metrics.know_image(image)
        if result.pulled:
            self._metrics.pull_success.labels(image).inc()
        if result.pushed:
            self._metrics.push_success.labels(image).inc()
        # a copy that stands while its source is out of reach is protected, and the attempt failed all the same
        if result.error is not None and result.state not in _NO_FAILURES:
            side = (
                self._metrics.push_error
                if result.error.side == "target"
                else self._metrics.pull_error
            )
            side.labels(image).inc()

    def tell(
        self, request: MirrorRequest, result: MirrorResult, seconds: float, record: Record
    ) -> None:
        """One line for an attempt that did something; what was found as expected is told at debug."""
        fields: dict[str, object] = {
            "target": str(result.target),
            "state": result.state,
            "duration_s": round(seconds, 3),
        }
        if result.digest:
            fields["digest"] = str(result.digest)
        if result.error is not None:
            wait = max(0.0, record.next_try - self._clock())
            fields |= {
                "reason": result.reason,
                "error": result.message,
                "side": result.error.side,
                "next_try_s": round(wait),
            }
            if result.state == "waiting_quota":
                _log.info("image waits for the pull quota", **fields)
                return
            _log.warning(
                "source cannot be asked" if result.protected else "image not mirrored",
                **fields,
            )
        elif result.pushed:
            moved = result.moved
            _log.info("image mirrored", bytes_pulled=moved.bytes_pulled, bytes_pushed=moved.bytes_pushed,
                      bytes_mounted=moved.bytes_mounted, blobs=moved.copied, **fields)  # fmt: skip
        elif result.state in {"protected", "in_place"}:
            _log.debug("image stands at the target", **fields)
        else:
            _log.info("image looked at", reason=result.reason, message=result.message, **fields)

    def update_gauges(self, inventory: Inventory, ledger: Ledger, *, longest: float) -> None:
        """Bring the gauges of images to what is known now. Args: `longest` attempt that runs (seconds)."""
        now = self._clock()
        counts = dict.fromkeys(STATES, 0) | inventory.states()
        oldest = 0.0
        for request, entry in inventory.entries.items():
            if entry.verdict:
                continue
            record = ledger.get(request)
            state = state_of(record)
            counts[state] = counts.get(state, 0) + 1
            if record is None or not record.protected:
                oldest = max(oldest, now - entry.wanted_since)
        for state in counts:
            self._metrics.images.labels(state).set(counts[state])
        self._metrics.oldest_unprotected.set(oldest)
        self._metrics.queue_longest.set(longest)


def state_of(record: Record | None) -> str:
    """An image's state: that of its last attempt, `pending` before the first."""
    if record is None or record.result is None:
        return "failed" if record is not None and record.error is not None else "pending"
    return record.result.state
