"""What people and programs see of the images: plain rows, made when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from copycat.controller.controller import Controller, state_of
from copycat.controller.inventory import Entry
from copycat.kube.workload import Workload
from copycat.mirror.ledger import Record
from copycat.mirror.request import MirrorRequest

__all__ = ["MAX_USERS", "Rows"]

#: Users named in a row; `userCount` has them all.
MAX_USERS = 20


class Rows:
    """The images of a controller as JSON-ready dictionaries."""

    def __init__(
        self,
        controller: Controller,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Args: `clock` is the ledger's; `wall` turns its times into dates."""
        self._controller = controller
        self._clock = clock
        self._wall = wall

    def images(self) -> list[dict[str, object]]:
        """One row for each image, by name."""
        inventory, ledger = self._controller.inventory, self._controller.ledger
        rows = [self._row(entry, ledger.get(r)) for r, entry in sorted(inventory.entries.items(), key=lambda i: str(i[0]))]
        rows += [
            {
                "source": bad.image,
                "target": None,
                "state": "failed",
                "reason": "invalid_reference",
                "message": bad.message,
                "protected": False,
                **_users(bad.users.values()),
            }
            for bad in inventory.invalid.values()
        ]
        return rows

    def transfers(self) -> list[dict[str, object]]:
        """Blobs on their way now."""
        now = self._clock()
        return [
            {
                "image": t.image,
                "digest": str(t.digest),
                "size": t.size,
                "bytesPulled": t.pulled,
                "bytesPushed": t.pushed,
                "seconds": round(now - t.started, 1),
            }
            for t in self._controller.mirror.transfers()
        ]

    def states(self) -> dict[str, int]:
        """How many images are in each state."""
        inventory = self._controller.inventory
        counts: dict[str, int] = inventory.states()
        for request, entry in inventory.entries.items():
            if not entry.verdict:
                state = state_of(self._controller.ledger.get(request))
                counts[state] = counts.get(state, 0) + 1
        return {state: n for state, n in counts.items() if n}

    def _row(self, entry: Entry, record: Record | None) -> dict[str, object]:
        request = entry.request
        row: dict[str, object] = {
            "source": str(request.source),
            "target": self._target(request, record),
            "state": entry.verdict or state_of(record),
            "protected": False,
            "wantedSince": self._date(entry.wanted_since),
            **_users(entry.users.values()),
        }
        if entry.verdict:
            row["message"] = _VERDICTS[entry.verdict]
        if record is not None:
            row |= self._attempt(record)
        return row

    def _target(self, request: MirrorRequest, record: Record | None) -> str:
        if record is not None and record.target is not None:
            return str(record.target)
        return f"{self._controller.mirror.target.registry}/{request.repository}"

    def _attempt(self, record: Record) -> dict[str, object]:
        result = record.result
        error = record.error
        row: dict[str, object] = {
            "protected": record.protected,
            "digest": str(record.digest) if record.digest else None,
            "anchors": sorted(str(d) for d in record.anchored),
            "targetChecked": self._date(record.target_checked),
            "sourceChecked": self._date(record.source_checked),
            "nextTry": self._date(record.next_try or None),
            "failures": record.failures + record.tries,
        }
        if result is not None:
            row |= {"reason": result.reason, "message": result.message}
        if record.protected:
            row["freshness"] = self._freshness(record)
        if error is not None:
            row["error"] = {
                "reason": error.reason,
                "message": str(error),
                "side": error.side,
                "temporary": error.temporary,
            }
        return row

    def _freshness(self, record: Record) -> str:
        result = record.result
        if result is not None and result.target.digest is not None:
            return "current"
        if record.error is None and record.source_checked is not None:
            return "current"
        since = self._date(record.source_checked or record.protected_since)
        return f"unknown since {since}"

    def _date(self, moment: float | None) -> str | None:
        if moment is None:
            return None
        seconds = self._wall() + (moment - self._clock())
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


_VERDICTS = {
    "excluded": "its registry is in excludeRegistries",
    "denied": "its registry is not in allowedRegistries; nobody was contacted",
}


def _users(users: Collection[Workload]) -> dict[str, object]:
    owners = sorted({(w.namespace, w.owner_kind, w.owner_name) for w in users})
    return {
        "userCount": len(owners),
        "users": [{"namespace": n, "kind": k, "name": name} for n, k, name in owners[:MAX_USERS]],
    }
