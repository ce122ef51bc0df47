"""`copycat plan`: what `copycat run` would do now, by rehearsing it.

The same inventory, the same attempts and the same registries as in a run; see `copycat.mirror.rehearsal`
for why nothing is written. What the rehearsal found becomes a `Plan`, which is data for a printer.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby

import anyio
import structlog
from aiohttp.abc import AbstractResolver

import copycat
from copycat.app.informers import Listing, list_cluster
from copycat.app.manifests import read_manifests
from copycat.app.oneshot import WORKERS, make_inventory, workload_of
from copycat.app.plan_model import Plan, Row, decided, invalid, row
from copycat.app.plan_output import Printer
from copycat.app.plan_summary import summarise
from copycat.app.wiring import Engine, open_engine
from copycat.config.settings import Settings
from copycat.controller.inventory import Inventory
from copycat.errors import CopycatError
from copycat.kube.client import open_api
from copycat.kube.workload import Workload
from copycat.metrics import Metrics
from copycat.mirror.rehearsal import Rehearsal
from copycat.mirror.request import MirrorRequest, MirrorResult
from copycat.mirror.stage import Notes
from copycat.oci.digest import Digest

__all__ = ["look", "plan"]

_log = structlog.get_logger(__name__)


async def plan(
    settings: Settings,
    *,
    manifests: Sequence[bytes] | None,
    kubeconfig: str | None,
    context: str | None,
    printer: Printer,
    resolver: AbstractResolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> bool:
    """Print for each image what `copycat run` would do; touch nothing. Whether nothing stands in the way.

    Args:
        manifests: texts of YAML or JSON; None: what the cluster runs now. With a kubeconfig or a
            context: both, as the cluster would be after the manifests were applied.
        kubeconfig, context: which cluster.
        resolver, ssl_context: for tests.

    Raises:
        ConfigError: a manifest or the kubeconfig cannot be read.
        KubeError: the cluster does not answer.
    """
    workloads = [
        workload
        for number, text in enumerate(manifests or (), 1)
        for workload in read_manifests(text, origin=f"manifest {number}")
    ]
    listing = None
    if manifests is None or kubeconfig or context:
        async with open_api(kubeconfig, context) as client:
            listing = await list_cluster(settings, client)
    metrics = Metrics(version=copycat.__version__)
    async with open_engine(
        settings,
        metrics=metrics,
        resolver=resolver,
        ssl_context=ssl_context,
        workstation=True,
    ) as engine:
        inventory = _observe(settings, engine, workloads, listing)
        with printer:
            made = await _rehearse(engine, inventory, printer)
            made = replace(made, summary=replace(
                made.summary,
                denied_kinds=listing.denied if listing else (),
                notes=(*made.summary.notes, *_notes(settings, listing)),
            ))  # fmt: skip
            printer.show(made)
            return made.good


def _observe(
    settings: Settings, engine: Engine, workloads: Sequence[Workload], listing: Listing | None
) -> Inventory:
    """Everything that is wanted, as the controller would know it once its informers are synced."""
    inventory = make_inventory(settings, engine)
    for name, platform in (listing.nodes if listing else {}).items():
        inventory.node(name, platform)
    wanted = [
        *(listing.workloads if listing else ()),
        *workloads,
        *map(workload_of, settings.extra_images),
    ]
    # a manifest takes the place of the object of its name
    for workload in {(w.kind, w.namespace, w.name): w for w in wanted}.values():
        inventory.observe(None, workload)
    return inventory


def _notes(settings: Settings, listing: Listing | None) -> list[str]:
    notes = []
    if settings.check_node_platform and listing is None:
        notes.append(
            "checkNodePlatform: manifests have no nodes, so whole indexes are planned;"
            " add --kubeconfig or --context to plan with a cluster's nodes"
        )
    if settings.dry_run and not settings.dry_pull:
        notes.append("dryRun is set: run only says this, until it is off")
    if settings.dry_pull:
        notes.append("dryPull is set: no source was asked, so sizes and counts are not known")
    return notes


async def _rehearse(engine: Engine, inventory: Inventory, printer: Printer) -> Plan:
    policy = engine.mirror.policy
    if not policy.dry_pull:
        policy = replace(policy, dry_run=False)
    rehearsal = Rehearsal(
        transport=engine.transport, target=engine.target, naming=engine.naming, policy=policy
    )
    results = await look(rehearsal, inventory, printer)
    rows = _rows(rehearsal, inventory, results)
    summary = summarise(
        rows=rows,
        results=results,
        inventory=inventory,
        rehearsal=rehearsal,
        quota=engine.transport.quota,
        now=datetime.now(UTC),
    )
    return Plan(rows=rows, summary=summary)


async def look(
    rehearsal: Rehearsal, inventory: Inventory, printer: Printer
) -> dict[MirrorRequest, MirrorResult]:
    """One attempt for each; those upon one repository one after the other, in the order of their names.

    So two plans of the same cluster are the same, whoever answers first.
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
                results[request] = await _attempt(rehearsal, inventory, request)
            printer.looked(len(results), len(requests))

    async with anyio.create_task_group() as tasks:
        for _, group in groupby(requests, key=lambda r: r.repository):
            tasks.start_soon(work, list(group))
    return results


async def _attempt(
    rehearsal: Rehearsal, inventory: Inventory, request: MirrorRequest
) -> MirrorResult:
    try:
        return await rehearsal.run(request, inventory.need(request))
    except Exception as bug:  # noqa: BLE001 - as in a run: a bug costs one image its line, not the others theirs
        _log.exception("attempt broke", image=str(request.source))
        error = CopycatError(f"internal error: {type(bug).__name__}: {bug}")
        target = replace(
            request.source, registry=rehearsal.target.registry, repository=request.repository
        )
        return MirrorResult(
            state="failed", target=target, reason="internal", message=str(error), error=error
        )


def _rows(
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
