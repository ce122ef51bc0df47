"""Which informers a configuration needs: for the controller, which keeps them, and for lists that are read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anyio

import copycat
from copycat.app.wiring import selection_of
from copycat.config.settings import Settings
from copycat.errors import KubeUnavailable
from copycat.kube.client import KubeClient
from copycat.kube.informer import Informer
from copycat.kube.kinds import KINDS
from copycat.kube.nodes import NODES_PATH, Node, NodeReader, read_node
from copycat.kube.workload import Workload, project
from copycat.metrics import Metrics
from copycat.oci.platform import Platform

__all__ = ["Listing", "list_cluster", "node_informers", "workload_informers"]

#: How long a cluster may take to be listed once, in seconds.
LIST_LIMIT = 300.0


def workload_informers(
    settings: Settings,
    client: KubeClient,
    metrics: Metrics,
    on_change: Callable[[Workload | None, Workload | None], None],
) -> list[Informer[Workload]]:
    """One for each watched kind, in each namespace where the configuration names them one by one."""
    namespaces = selection_of(settings).literal_namespaces()
    return [
        Informer(
            client,
            resource=resource,
            path=KINDS[resource].path(namespace),
            project=project(KINDS[resource]),
            on_change=on_change,
            metrics=metrics,
            field_selector=KINDS[resource].field_selector,
        )
        for resource in settings.watch_resources
        for namespace in (namespaces if namespaces is not None else ("",))
    ]


def node_informers(
    settings: Settings,
    client: KubeClient,
    metrics: Metrics,
    on_node: Callable[[str, Platform | None], None],
) -> list[Informer[Node]]:
    """The nodes, if the configuration asks for their platforms; `on_node` gets None for one that went."""
    if not settings.check_node_platform:
        return []

    def changed(old: Node | None, new: Node | None) -> None:
        if new is not None:
            on_node(new.name, new.platform)
        elif old is not None:
            on_node(old.name, None)

    return [
        Informer(
            client,
            resource="nodes",
            path=NODES_PATH,
            project=read_node,
            on_change=changed,
            metrics=metrics,
        )
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a cluster had when it was listed."""

    workloads: tuple[Workload, ...] = ()
    nodes: Mapping[str, Platform]
    denied: tuple[str, ...] = ()
    """Kinds that we may not list, or not in every namespace that is asked for."""


async def list_cluster(
    settings: Settings, client: KubeClient, *, limit: float = LIST_LIMIT
) -> Listing:
    """Everything that is watched, listed once.

    Args: `limit` for the whole, in seconds.

    Raises:
        KubeError: the API does not answer, or does not accept who we are.
    """
    # an informer would try for ever
    await client.request("GET", "/version")
    metrics = Metrics(version=copycat.__version__)
    nodes: dict[str, Platform] = {}

    def on_node(name: str, platform: Platform | None) -> None:
        if platform is not None:
            nodes[name] = platform

    reader = NodeReader(client, on_node)

    def on_workload(_old: Workload | None, new: Workload | None) -> None:
        if new is not None:
            reader.want(new.node)

    found = workload_informers(settings, client, metrics, on_workload)
    informers: list[Informer[Workload] | Informer[Node]] = [
        *found,
        *node_informers(settings, client, metrics, on_node),
    ]
    with anyio.move_on_after(limit):
        async with anyio.create_task_group() as tasks:
            for informer in informers:
                tasks.start_soon(informer.run)
            for informer in informers:
                await informer.wait_settled()
            if any(i.resource == "nodes" and i.denied for i in informers):
                await reader.settle()
            tasks.cancel_scope.cancel()
    waiting = sorted({i.resource for i in informers if not i.settled})
    if waiting:
        raise KubeUnavailable(
            f"The Kubernetes API did not list {', '.join(waiting)} within {limit:.0f} s; "
            "the log above says what it answered"
        )
    return Listing(
        workloads=tuple(w for informer in found for w in informer.store.values()),
        nodes=nodes,
        denied=tuple(
            sorted(
                {
                    informer.resource
                    for informer in informers
                    # nodes that are read one by one are not missed
                    if informer.denied and (informer.resource != "nodes" or reader.denied)
                }
            )
        ),
    )
