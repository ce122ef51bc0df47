"""Parts of the target that take nothing at the moment: one image probes now and then, the others wait.

A refusal there (no permission, a quota, a missing project) is no image's fault, so it costs none of
them its turn in the cool-down (product: section 5).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from copycat.errors import Unavailable
from copycat.logs import get_logger
from copycat.mirror.ledger import Ledger
from copycat.mirror.request import MirrorRequest, MirrorResult
from copycat.registry.target import target_refusal
from copycat.workqueue import Priority, WorkQueue

__all__ = ["HOLD", "Hold", "Holds"]

_log = get_logger(__name__)

#: A target that refuses is probed this often (seconds).
HOLD = 300.0


@dataclass(slots=True)
class Hold:
    """A part of the target that takes nothing at the moment."""

    until: float
    reason: str
    message: str
    waiting: set[MirrorRequest]
    probe: MirrorRequest | None = None
    """Who tries now whether the target takes something again."""


class Holds:
    """Every hold, by the part of the target that it concerns."""

    def __init__(
        self,
        *,
        queue: WorkQueue[MirrorRequest],
        ledger: Ledger,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: without `enabled` a refusal is told and nothing is held (one-shot commands)."""
        self._queue = queue
        self._ledger = ledger
        self._enabled = enabled
        self._clock = clock
        self._holds: dict[str, Hold] = {}

    def __len__(self) -> int:
        """How many parts are held."""
        return len(self._holds)

    def judge(self, request: MirrorRequest, result: MirrorResult) -> Hold | None:
        """The hold that an attempt's result puts on its part of the target; a push that went well ends it."""
        part = _part(request)
        refusal = target_refusal(result.error) if result.error and self._enabled else None
        if refusal is None:
            if result.pushed:
                self._release(part)
            else:
                self._pass_on(part, request)
            return None
        message = str(result.error)
        known = self._holds.get(part)
        waiting = known.waiting if known else set()
        hold = self._holds[part] = Hold(self._clock() + HOLD, refusal, message, waiting)
        if known is None:
            _log.warning(
                "target refuses", part=part, reason=refusal, error=message, probe_seconds=HOLD
            )
        return hold

    def _release(self, part: str) -> None:
        hold = self._holds.pop(part, None)
        for request in hold.waiting if hold else ():
            self._queue.add(request, Priority.LIVE)

    def _pass_on(self, part: str, request: MirrorRequest) -> None:
        """A probe that had nothing to write proves nothing: the next one is the probe."""
        hold = self._holds.get(part)
        if hold is None or hold.probe != request:
            return
        hold.until, hold.probe = self._clock(), None
        for waiting in hold.waiting:
            self._queue.add(waiting, Priority.LIVE)
            break

    def holds(self, request: MirrorRequest) -> bool:
        """Whether the request has to wait; then it is queued again. It does not if it is the probe."""
        hold = self._holds.get(_part(request))
        if hold is None:
            return False
        now = self._clock()
        if now >= hold.until:
            hold.until, hold.probe = now + HOLD, request
            hold.waiting.discard(request)
            return False
        hold.waiting.add(request)
        record = self._ledger[request]
        record.error = Unavailable(hold.message, side="target", reason=hold.reason)
        self._queue.add(request, Priority.LIVE, delay=hold.until - now)
        return True

    def release_all(self) -> None:
        """Let everything be tried at once; what is still refused is held anew."""
        for part in list(self._holds):
            self._release(part)


def _part(request: MirrorRequest) -> str:
    """What a refusal of the target concerns: the first part of the path, which is a project where there are such."""
    return request.repository.partition("/")[0]
