"""The look at each image of a plan: its attempt on the stage, and its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby

import anyio

from copycat.app.oneshot import WORKERS
from copycat.app.plan_model import Row, decided, invalid, row
from copycat.app.plan_output import Printer
from copycat.controller.inventory import Inventory
from copycat.controller.pulls import Pulls
from copycat.errors import CopycatError
from copycat.logs import bound, get_logger
from copycat.mirror.rehearsal import Rehearsal
from copycat.mirror.request import MirrorRequest, MirrorResult
from copycat.mirror.stage import Notes
from copycat.oci.digest import Digest

__all__ = ["look", "rows_of"]

_log = get_logger(__name__)


async def look(
    rehearsal: Rehearsal, inventory: Inventory, printer: Printer, *, pulls: Pulls | None = None
) -> dict[MirrorRequest, MirrorResult]:
    """One attempt for each; those upon one repository one after the other, in the order of their names.

    So two plans of the same cluster are the same, whoever answers first.

    Args: `pulls` uses the cluster's pull secrets as a run does; without a cluster there are none.
    """
    requests = sorted(
        (r for r, entry in inventory.entries.items() if not entry.verdict),
        key=lambda r: (r.repository, r),
    )
    results: dict[MirrorRequest, MirrorResult] = {}
    limiter = anyio.CapacityLimiter(WORKERS)
    printer.looked(0, len(requests))

    async def work(group: list[MirrorRequest]) -> None:
        for request in group:
            async with limiter:
                # what attempts log sounds as if it were done
                with bound(image=str(request.source), rehearsal=True):
                    results[request] = await _attempt(rehearsal, inventory, request, pulls)
            printer.looked(len(results), len(requests))

    async with anyio.create_task_group() as tasks:
        for _, group in groupby(requests, key=lambda r: r.repository):
            tasks.start_soon(work, list(group))
    return results


async def _attempt(
    rehearsal: Rehearsal, inventory: Inventory, request: MirrorRequest, pulls: Pulls | None
) -> MirrorResult:
    need = inventory.need(request)
    try:
        if pulls is None:
            return await rehearsal.run(request, need)
        attempt = partial(rehearsal.run, request)
        return await pulls.run(request, need, inventory.askers(request), attempt)
    except Exception as bug:  # noqa: BLE001 - as in a run: a bug costs one image its line, not the others theirs
        _log.exception("attempt broke")
        error = CopycatError(f"internal error: {type(bug).__name__}: {bug}")
        target = replace(
            request.source, registry=rehearsal.target.registry, repository=request.repository
        )
        return MirrorResult(
            state="failed", target=target, reason="internal", message=str(error), error=error
        )


def rows_of(
    rehearsal: Rehearsal, inventory: Inventory, results: Mapping[MirrorRequest, MirrorResult]
) -> tuple[Row, ...]:
    """One line for each image, in the order of their names. A blob is counted for the first that needs it."""
    sent = _Sent(rehearsal)
    rows = []
    for request in sorted(inventory.entries):
        entry = inventory.entries[request]
        if entry.verdict:
            rows.append(decided(entry))
            continue
        result, notes = results[request], rehearsal.notes[request]
        rows.append(row(entry, result, notes, size=sent.add(result.target.repository, notes)))
    rows += [invalid(bad) for _, bad in sorted(inventory.invalid.items())]
    return tuple(rows)


class _Sent:
    """Blobs that are at the target by now, where each image finds those of the images before it."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._mounts = rehearsal.target.mounts
        self._homes = {d: set(homes) for d, homes in rehearsal.stage.homes.items()}
        self._places: set[tuple[str, Digest]] = set()

    def add(self, repository: str, notes: Notes) -> int:
        """The bytes that an image adds to what is sent (who may mount what: `copycat.mirror.blobs`)."""
        size = 0
        for digest, count in notes.blobs.items():
            homes = self._homes.setdefault(digest, set())
            mounted = self._mounts and not homes.isdisjoint({"", notes.home})
            if not mounted and (repository, digest) not in self._places:
                size += count
            self._places.add((repository, digest))
            homes.add(notes.home if mounted else notes.kept_for)
        return size
