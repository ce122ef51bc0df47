"""Which permissions a configuration needs in the cluster: the same that the chart grants, rule for rule."""

from __future__ import annotations

from collections.abc import Iterator

from copycat.app.wiring import coverage_of, selection_of
from copycat.config.settings import Settings
from copycat.kube.access import Permission
from copycat.kube.kinds import KINDS

__all__ = ["needed_permissions"]

_LEASES = "coordination.k8s.io"


def needed_permissions(settings: Settings, *, lease_namespace: str = "") -> list[Permission]:
    """All of them. Args: `lease_namespace` is where the Lease lives; empty without leader election."""
    literal = selection_of(settings).literal_namespaces()
    namespaces = literal if literal is not None else ("",)
    return [
        *_kinds(settings, namespaces),
        *_nodes(settings),
        *_pull_secrets(settings, literal),
        *_events(settings, namespaces),
        *_lease(settings, lease_namespace),
    ]


def _kinds(settings: Settings, namespaces: tuple[str, ...]) -> Iterator[Permission]:
    for resource in settings.watch_resources:
        for namespace in namespaces:
            yield Permission(
                group=_group(KINDS[resource].group_path),
                resource=resource,
                verbs=("list", "watch"),
                namespace=namespace,
                cost=f"images of {resource} get no copy",
            )


def _group(path: str) -> str:
    """`apps` of `/apis/apps/v1`; the core group has no name."""
    return path.removeprefix("/apis/").partition("/")[0] if path.startswith("/apis/") else ""


def _nodes(settings: Settings) -> Iterator[Permission]:
    if settings.check_node_platform:
        yield Permission(
            resource="nodes",
            verbs=("list", "watch"),
            cost="checkNodePlatform asks for nodes one by one if it may get them, else every platform is copied",
        )


def _pull_secrets(settings: Settings, literal: tuple[str, ...] | None) -> Iterator[Permission]:
    if settings.dry_pull:
        return
    coverage = coverage_of(settings)
    if literal is not None:
        namespaces = tuple(n for n in literal if coverage.covers(n))
    else:
        namespaces = ("",) if coverage.everywhere else tuple(sorted(coverage.namespaces))
    for resource in ("secrets", "serviceaccounts"):
        for namespace in namespaces:
            yield Permission(
                resource=resource,
                verbs=("get",),
                namespace=namespace,
                cost="images that need a pull secret of their namespace get no copy",
            )


def _events(settings: Settings, namespaces: tuple[str, ...]) -> Iterator[Permission]:
    if settings.dry_run or settings.dry_pull:
        return
    for namespace in namespaces:
        yield Permission(
            resource="events",
            verbs=("create", "patch"),
            namespace=namespace,
            cost="failures are not told as Events on the workloads",
        )


def _lease(settings: Settings, namespace: str) -> Iterator[Permission]:
    if not namespace:
        return
    cost = "no leader can be chosen, so nothing is copied"
    yield Permission(
        group=_LEASES, resource="leases", verbs=("create",), namespace=namespace, cost=cost
    )
    yield Permission(
        group=_LEASES,
        resource="leases",
        verbs=("get", "update"),
        namespace=namespace,
        name=settings.lease_name,
        cost=cost,
    )
