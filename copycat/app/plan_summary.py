"""What a plan says about all images together: load on the sources, repositories, secrets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from copycat.app.plan_model import Load, Missing, PullSecrets, Row, Summary
from copycat.controller.inventory import Inventory
from copycat.errors import Denied, InvalidReference, NotFound, Unauthorized
from copycat.kube.secrets import Coverage
from copycat.mirror.rehearsal import Rehearsal
from copycat.mirror.request import MirrorRequest, MirrorResult
from copycat.mirror.stage import Presence
from copycat.oci.reference import DOCKER_HUB
from copycat.registry.quota import REASON, Quota

__all__ = ["done_by", "summarise"]

Results = Mapping[MirrorRequest, MirrorResult]
#: A quota's answer that means: what is behind it was not seen.
_UNSEEN = frozenset({REASON, "throttled"})


def summarise(
    *,
    rows: tuple[Row, ...],
    results: Results,
    inventory: Inventory,
    rehearsal: Rehearsal,
    quota: Callable[[str], Quota | None],
    coverage: Coverage,
    cluster: bool,
    now: datetime,
) -> Summary:
    """Everything that is no single image's.

    Args:
        quota: what a registry said last about its own.
        coverage: the namespaces whose pull secrets are read.
        cluster: whether there was one to read them from.
    """
    return Summary(
        states=dict(Counter(row.state for row in rows).most_common()),
        actions=dict(Counter(row.action for row in rows).most_common()),
        size=sum(row.size for row in rows),
        unmeasured=sum(not row.measured for row in rows),
        loads=_loads(results, rehearsal, quota, now=now),
        repositories=_repositories(rehearsal),
        # what is covered was read, where there was a cluster, and each row says what came of it
        pull_secrets=tuple(
            item
            for item in _pull_secrets(results, inventory, coverage)
            if not (item.covered and cluster)
        ),
    )


# Sources


def done_by(requests: int, quota: Quota, *, now: datetime) -> datetime | None:
    """When the last of so many counted requests is allowed; None if the registry does not say enough.

    What is left now is spent first, down to what is left to the nodes (pullQuotaReserve); after that the quota
    grows back evenly over its window, as Docker Hub's does.
    """
    kept = quota.share * (quota.limit or 0)
    over = requests - max(0.0, quota.remaining - kept)
    if over <= 0:
        return now
    if not quota.limit or not quota.window or kept >= quota.limit:
        return None
    return now + timedelta(seconds=over * quota.window / (quota.limit - kept))


def _loads(
    results: Results,
    rehearsal: Rehearsal,
    quota: Callable[[str], Quota | None],
    *,
    now: datetime,
) -> tuple[Load, ...]:
    requests: dict[str, list[MirrorRequest]] = defaultdict(list)
    for request, result in results.items():
        if result.state != "in_place":
            requests[request.source.registry].append(request)
    return tuple(
        _load(
            registry,
            [rehearsal.notes[r].reads for r in requests[registry]],
            quota(registry),
            unseen=sum(results[r].reason in _UNSEEN for r in requests[registry]),
            now=now,
        )
        for registry in sorted(requests)
    )


def _load(
    registry: str,
    reads: list[int],
    quota: Quota | None,
    *,
    unseen: int,
    now: datetime,
) -> Load:
    total = sum(reads)
    done = done_by(total, quota, now=now) if quota else None
    note = f"{unseen} image{'s were' if unseen > 1 else ' was'} not looked into" if unseen else ""
    if quota is None:
        told = "its pull quota is not known: it did not say" if registry == DOCKER_HUB else "tells of no pull quota"  # fmt: skip
        note = f"{told}; {note}" if note else told
    return Load(
        registry=registry,
        images=sum(count > 0 for count in reads),
        requests=total,
        at_least=bool(unseen),
        limit=quota.limit if quota else None,
        remaining=quota.remaining if quota else None,
        window=quota.window if quota else None,
        done_by=done,
        at_once=done == now,
        note=note,
    )


# The target


def _repositories(rehearsal: Rehearsal) -> tuple[Missing, ...]:
    stage = rehearsal.stage
    found: list[Missing | None] = []
    for name, presence in sorted(stage.presence.items()):
        if presence is Presence.NO_PROJECT:
            told = str(stage.refusals[name])
            found.append(Missing(repository=name, how="no_project", note=told))
        elif presence is not Presence.THERE:
            found.append(_missing(rehearsal, name, certain=presence is Presence.ABSENT))
    return tuple(item for item in found if item is not None)


def _missing(rehearsal: Rehearsal, name: str, *, certain: bool) -> Missing | None:
    """None if there can be no such repository, which is the failure of its images."""
    try:
        makes = rehearsal.target.makes(name)
    except NotFound as error:
        return Missing(repository=name, how="missing", note=str(error))
    except InvalidReference:
        return None
    note = "" if certain else "the registry does not tell whether it is there"
    return Missing(repository=name, how="create" if makes else "on_push", note=note)


# Secrets


def _pull_secrets(
    results: Results, inventory: Inventory, coverage: Coverage
) -> tuple[PullSecrets, ...]:
    secrets: dict[str, set[str]] = defaultdict(set)
    images: dict[str, set[str]] = defaultdict(set)
    for request in _hidden(results):
        for workload in inventory.entries[request].users.values():
            if workload.pull_secrets:
                secrets[workload.namespace].update(workload.pull_secrets)
                images[workload.namespace].add(str(request.source))
    return tuple(
        PullSecrets(
            namespace=namespace,
            secrets=tuple(sorted(secrets[namespace])),
            images=tuple(sorted(images[namespace])),
            covered=coverage.covers(namespace),
        )
        for namespace in sorted(secrets)
    )


def _hidden(results: Results) -> Iterable[MirrorRequest]:
    """What the source says is not there, or not for us: many say the one where they mean the other."""
    for request, result in results.items():
        error = result.error
        refused = isinstance(error, Unauthorized | Denied | NotFound) and error.side == "source"
        # it showed us the tag, so what is missing is really missing; or a secret was used already
        if refused and not result.source_checked and result.state != "denied":
            yield request
