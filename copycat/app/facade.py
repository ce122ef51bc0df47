"""What the listeners show of the controller, and the orders that they pass on.

The admin package knows its own types alone; here they are filled from the controller of the present
term of leadership. On standby there is none, and the answers say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

import copycat
from copycat.admin.actions import ForceResult, ResetResult
from copycat.admin.api import Image, Status, Transfer, User
from copycat.config.settings import Settings
from copycat.controller.controller import Controller, state_of
from copycat.controller.inventory import Entry, Invalid
from copycat.errors import Unavailable
from copycat.kube.workload import Workload
from copycat.mirror.ledger import Record
from copycat.mirror.request import MirrorRequest

__all__ = ["Facade"]

#: Workloads that are named in the row of one image.
MAX_USERS = 50
#: Failures that are named in the answer of a forced pass.
_NAMED_FAILURES = 5

_VERDICTS = {
    "excluded": "its registry is in excludeRegistries",
    "denied": "its registry is not in allowedRegistries; nobody was contacted",
}


class Facade:
    """Implements the Actions and Api of the admin package."""

    def __init__(
        self,
        settings: Settings,
        *,
        target: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Args: `clock` is the ledger's; `wall` turns its times into dates."""
        self._settings = settings
        self._target = target
        self._clock = clock
        self._wall = wall
        self._started = clock()
        self.controller: Controller | None = None
        self.leading = True
        self.holder: Callable[[], str] = lambda: ""
        self.uncovered: Callable[[], Sequence[str]] = tuple

    def configure(self, settings: Settings, *, target: str) -> None:
        """Another configuration is in use."""
        self._settings, self._target = settings, target

    # Actions

    async def reset_cooldown(self) -> ResetResult:
        """End all cool-downs."""
        controller = self._current()
        return ResetResult(enabled=controller.ledger.cooldown_enabled, cleared=controller.reset())

    async def force_reconcile(self) -> ForceResult:
        """Try every image once."""
        controller = self._current()
        forced = await controller.force()
        failed = sorted(str(r.source) for r in forced.failed) + sorted(controller.inventory.invalid)
        failure = ""
        if failed:
            more = (
                f" and {len(failed) - _NAMED_FAILURES} more"
                if len(failed) > _NAMED_FAILURES
                else ""
            )
            failure = f"{len(failed)} images failed: {', '.join(failed[:_NAMED_FAILURES])}{more}"
        return ForceResult(
            workloads=controller.inventory.workloads(),
            protected=controller.protected(),
            failure=failure,
        )

    def _current(self) -> Controller:
        if self.controller is None:
            raise Unavailable("this replica does not lead any more", reason="standby")
        return self.controller

    def refresh(self) -> None:
        """Bring the gauges up to date."""
        if self.controller is not None:
            self.controller.update_gauges()

    # Api

    def status(self) -> Status:
        """The program as a whole."""
        controller = self.controller
        states = self._states(controller) if controller else {}
        modes = [("dryRun", self._settings.dry_run), ("dryPull", self._settings.dry_pull)]
        return Status(
            version=copycat.__version__,
            target=self._target,
            leading=self.leading,
            holder=self.holder(),
            ready=controller is not None and controller.opened,
            mode=" and ".join(name for name, on in modes if on),
            images=states,
            total=sum(states.values()),
            protected=controller.protected() if controller else 0,
            workloads=controller.inventory.workloads() if controller else 0,
            queued=sum(controller.queue.depth().values()) if controller else 0,
            working=len(controller.queue.processing) if controller else 0,
            uncovered=self.uncovered(),
            started=self._date(self._started),
        )

    def images(self) -> Sequence[Image]:
        """Every image, sorted by source and target."""
        controller = self.controller
        if controller is None:
            return ()
        rows = [
            self._image(controller, entry, controller.ledger.get(request))
            for request, entry in controller.inventory.entries.items()
        ]
        rows += [_invalid(bad) for bad in controller.inventory.invalid.values()]
        return sorted(rows, key=lambda row: (row.source, row.target))

    def transfers(self) -> Sequence[Transfer]:
        """Blobs on their way now."""
        if self.controller is None:
            return ()
        return [
            Transfer(
                image=t.image,
                digest=str(t.digest),
                size=t.size,
                pulled=t.pulled,
                pushed=t.pushed,
                started=self._date(t.started),
            )
            for t in self.controller.mirror.transfers()
        ]

    @staticmethod
    def _states(controller: Controller) -> dict[str, int]:
        counts = controller.inventory.states()
        for request, entry in controller.inventory.entries.items():
            if not entry.verdict:
                state = state_of(controller.ledger.get(request))
                counts[state] = counts.get(state, 0) + 1
        return {state: n for state, n in sorted(counts.items()) if n}

    def _image(self, controller: Controller, entry: Entry, record: Record | None) -> Image:
        request = entry.request
        result = record.result if record else None
        message = _VERDICTS.get(entry.verdict) or (result.message if result else "")
        if record is not None and record.error is not None:
            message = str(record.error)
        record = record or Record()
        return Image(
            source=str(request.source),
            target=_target(controller, request, record),
            digest=str(record.digest) if record.digest else "",
            state=entry.verdict or state_of(record),
            protected=record.protected,
            reason=result.reason if result else "",
            message=message,
            attempts=record.failures + record.tries,
            next_try=self._date(record.next_try or None),
            checked=self._date(record.target_checked),
            unknown_since=self._unknown_since(request, record),
            wanted_since=self._date(entry.wanted_since),
            users=_users(entry.users.values()),
            spellings=sorted(_spellings(entry)),
            running=[str(r.digest) for r in controller.inventory.running(request)],
        )

    def _unknown_since(self, request: MirrorRequest, record: Record) -> datetime | None:
        """Freshness: since when nobody has said what the tag means; a digest means the same for ever."""
        if request.source.digest is not None or not record.protected or record.error is None:
            return None
        return self._date(record.source_checked or record.protected_since)

    def _date(self, moment: float | None) -> datetime | None:
        if moment is None:
            return None
        seconds = self._wall() + (moment - self._clock())
        return datetime.fromtimestamp(round(seconds), UTC)


def _target(controller: Controller, request: MirrorRequest, record: Record) -> str:
    if record.target is not None:
        return str(record.target)
    return f"{controller.mirror.target.registry}/{request.repository}"


def _invalid(bad: Invalid) -> Image:
    return Image(
        source=bad.image,
        target="",
        state="failed",
        protected=False,
        reason="invalid_reference",
        message=bad.message,
        users=_users(bad.users.values()),
        spellings=[bad.image],
    )


def _users(workloads: Collection[Workload]) -> list[User]:
    owners = sorted({(w.namespace, w.owner_kind, w.owner_name) for w in workloads})
    return [User(namespace=n, kind=k, name=name) for n, k, name in owners[:MAX_USERS]]


def _spellings(entry: Entry) -> set[str]:
    """How the workloads write it: texts that end in the same tag or digest and name the same repository."""
    source = entry.request.source
    end = str(source.digest) if source.digest else f":{source.tag}"
    last = source.repository.rpartition("/")[2]
    return {
        image.image
        for workload in entry.users.values()
        for image in workload.images
        if last in image.image and (image.image.endswith(end) or source.tag == "latest")
    }
