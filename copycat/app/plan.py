"""`copycat plan`: what `copycat run` would do now, by rehearsing it.

The same inventory, the same attempts and the same registries as in a run; see `copycat.mirror.rehearsal`
for why nothing is written. What the rehearsal found becomes a `Plan`, which is data for a printer.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from aiohttp.abc import AbstractResolver

import copycat
from copycat.app.informers import Listing, list_cluster
from copycat.app.manifests import ManifestFile, read_files
from copycat.app.oneshot import make_inventory, workload_of
from copycat.app.plan_look import look, rows_of
from copycat.app.plan_model import Plan
from copycat.app.plan_output import Printer
from copycat.app.plan_summary import summarise
from copycat.app.wiring import Engine, coverage_of, make_pulls, open_engine
from copycat.config.settings import Settings
from copycat.controller.inventory import Inventory
from copycat.kube.client import KubeClient, open_api
from copycat.kube.workload import Workload
from copycat.metrics import Metrics
from copycat.mirror.rehearsal import Rehearsal

__all__ = ["plan"]


async def plan(
    settings: Settings,
    *,
    manifests: Sequence[ManifestFile] | None,
    kubeconfig: str | None,
    context: str | None,
    printer: Printer,
    resolver: AbstractResolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> bool:
    """Print for each image what `copycat run` would do; touch nothing. Whether nothing stands in the way.

    Args:
        manifests: files of YAML or JSON; None: what the cluster runs now. With a kubeconfig or a
            context: both, as the cluster would be after the manifests were applied.
        kubeconfig, context: which cluster.
        resolver, ssl_context: for tests.

    Raises:
        ConfigError: a manifest or the kubeconfig cannot be read.
        KubeError: the cluster does not answer.
    """
    workloads = read_files(manifests or ())
    async with AsyncExitStack() as stack:
        cluster = None
        if manifests is None or kubeconfig or context:
            client = await stack.enter_async_context(open_api(kubeconfig, context))
            cluster = _Cluster(client, await list_cluster(settings, client))
        engine = await stack.enter_async_context(
            open_engine(
                settings,
                metrics=Metrics(version=copycat.__version__),
                resolver=resolver,
                ssl_context=ssl_context,
                workstation=True,
            )
        )
        inventory = _observe(settings, engine, workloads, cluster)
        stack.enter_context(printer)
        made = await _rehearse(settings, engine, inventory, cluster, printer)
        printer.show(made)
        return made.good


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What is planned for, and what its pull secrets are read with."""

    client: KubeClient
    listing: Listing


def _observe(
    settings: Settings, engine: Engine, workloads: Sequence[Workload], cluster: _Cluster | None
) -> Inventory:
    """Everything that is wanted, as the controller would know it once its informers are synced."""
    inventory = make_inventory(settings, engine)
    for name, platform in (cluster.listing.nodes if cluster else {}).items():
        inventory.node(name, platform)
    wanted = [
        *(cluster.listing.workloads if cluster else ()),
        *workloads,
        *map(workload_of, settings.extra_images),
    ]
    # a manifest takes the place of the object of its name
    for workload in {(w.kind, w.namespace, w.name): w for w in wanted}.values():
        inventory.observe(None, workload)
    return inventory


def _notes(settings: Settings, cluster: _Cluster | None) -> list[str]:
    notes = []
    if settings.check_node_platform and cluster is None:
        notes.append(
            "checkNodePlatform: manifests have no nodes, so whole indexes are planned;"
            " add --kubeconfig or --context to plan with a cluster's nodes"
        )
    if settings.dry_run and not settings.dry_pull:
        notes.append("dryRun is set: run only says this, until it is off")
    if settings.dry_pull:
        notes.append("dryPull is set: no source was asked, so sizes and counts are not known")
    return notes


async def _rehearse(
    settings: Settings,
    engine: Engine,
    inventory: Inventory,
    cluster: _Cluster | None,
    printer: Printer,
) -> Plan:
    policy = engine.mirror.policy
    if not policy.dry_pull:
        policy = replace(policy, dry_run=False)
    rehearsal = Rehearsal(
        transport=engine.transport,
        target=engine.target,
        naming=engine.naming,
        policy=policy,
        signatures=settings.signatures,
    )
    pulls = make_pulls(settings, engine, cluster.client) if cluster else None
    results = await look(rehearsal, inventory, printer, pulls=pulls)
    rows = rows_of(rehearsal, inventory, results)
    summary = summarise(
        rows=rows,
        results=results,
        inventory=inventory,
        rehearsal=rehearsal,
        quota=engine.transport.quota,
        coverage=coverage_of(settings),
        cluster=cluster is not None,
        now=datetime.now(UTC),
    )
    return Plan(
        rows=rows,
        summary=replace(
            summary,
            denied_kinds=cluster.listing.denied if cluster else (),
            notes=tuple(_notes(settings, cluster)),
        ),
    )
