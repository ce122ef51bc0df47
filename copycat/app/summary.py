"""One line now and then that says how the whole stands, for who reads the log alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from copycat.app.facade import Facade
from copycat.logs import get_logger

__all__ = ["SUMMARY", "tell_summaries"]

_log = get_logger(__name__)

#: Seconds between two summaries; nothing is said while nothing changes.
SUMMARY = 300.0


async def tell_summaries(facade: Facade, *, sleep: Callable[[float], Awaitable[None]]) -> None:
    """For ever; on standby there is nothing to tell."""
    told: dict[str, object] = {}
    while True:
        await sleep(SUMMARY)
        if facade.controller is None:
            continue
        status = facade.status()
        now: dict[str, object] = {
            "images": status.total,
            "protected": status.protected,
            "states": {state: count for state, count in status.images.items() if count},
            "queued": status.queued,
            "working": status.working,
            "workloads": status.workloads,
        }
        if now != told:
            _log.info("summary", **now)
            told = now
