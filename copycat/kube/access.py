"""Which permissions are missing, asked once at the start and told as one table with the rules to add.

Every ServiceAccount may ask about itself (SelfSubjectAccessReview; the ClusterRole `system:basic-user`). The answer is
advice: nothing waits for it, and an API that does not give one stops nothing. What is refused in the course of
the work is told by whoever does the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import anyio
import msgspec

from copycat.errors import KubeError, KubeUnavailable
from copycat.kube.client import KubeClient
from copycat.logs import get_logger

__all__ = ["Permission", "check_access", "find_missing", "rules", "table"]

_log = get_logger(__name__)

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
#: Reviews at a time: a start must not be a burst for the API.
_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """Something that the configuration in use needs to do."""

    group: str = ""
    resource: str
    verbs: tuple[str, ...]
    namespace: str = ""
    """"" for all of them."""
    name: str = ""
    """Of the one object that it is about; creating knows no names."""
    cost: str
    """What it costs to be without, for people."""

    @property
    def what(self) -> str:
        """`deployments.apps`, as `kubectl auth can-i` takes it."""
        return f"{self.resource}.{self.group}" if self.group else self.resource


class _Verdict(msgspec.Struct):
    allowed: bool = False


class _Review(msgspec.Struct):
    status: _Verdict


_REVIEW = msgspec.json.Decoder(_Review)


async def check_access(client: KubeClient, needed: Sequence[Permission]) -> None:
    """Ask for all of them, and say in one table what is missing. Never raises a KubeError."""
    try:
        missing = await find_missing(client, needed)
    except KubeError as error:
        _log.info("permissions could not be checked", error=str(error))
        return
    if not missing:
        _log.info("permissions are complete", checked=sum(len(p.verbs) for p in needed))
        return
    _log.warning("permissions are missing", count=len(missing), table=table(missing), add=rules(missing))  # fmt: skip


async def find_missing(client: KubeClient, needed: Sequence[Permission]) -> list[Permission]:
    """Those that are not granted, each with the verbs that are missing, in the order of `needed`.

    Raises:
        KubeError: the API gave no answer to one of the questions.
    """
    allowed: dict[tuple[int, str], bool] = {}
    limit = anyio.CapacityLimiter(_AT_ONCE)

    async def ask(index: int, verb: str) -> None:
        async with limit:
            allowed[index, verb] = await _is_allowed(client, needed[index], verb)

    try:
        async with anyio.create_task_group() as tasks:
            for index, permission in enumerate(needed):
                for verb in permission.verbs:
                    tasks.start_soon(ask, index, verb)
    except* KubeError as group:
        raise next(e for e in group.exceptions if isinstance(e, KubeError)) from None
    missing = []
    for index, permission in enumerate(needed):
        verbs = tuple(verb for verb in permission.verbs if not allowed[index, verb])
        if verbs:
            missing.append(replace(permission, verbs=verbs))
    return missing


async def _is_allowed(client: KubeClient, permission: Permission, verb: str) -> bool:
    attributes = {
        "group": permission.group,
        "resource": permission.resource,
        "verb": verb,
        "namespace": permission.namespace,
        "name": "" if verb == "create" else permission.name,
    }
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}},
    }
    answer = await client.request("POST", _REVIEWS, body=body)
    try:
        return _REVIEW.decode(answer).status.allowed
    except msgspec.DecodeError as error:
        message = f"The Kubernetes API sent what is no access review: {error}"
        raise KubeUnavailable(message, reason="decode") from error


# For people


def table(missing: Iterable[Permission]) -> str:
    """One line for each, in columns; the scopes of one permission share a line."""
    lines = [("MISSING", "ON", "IN", "WITHOUT IT")]
    lines += [
        (", ".join(one.verbs), _named(one), _scopes(same), one.cost)
        for one, same in _alike(missing, scopes=True)
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join(
            (*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3])
        )
        for line in lines
    )


def _named(permission: Permission) -> str:
    return f"{permission.what}/{permission.name}" if permission.name else permission.what


def _scopes(permissions: Sequence[Permission]) -> str:
    names = [p.namespace for p in permissions if p.namespace]
    if not names:
        return "the whole cluster"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _alike(
    missing: Iterable[Permission], *, scopes: bool
) -> list[tuple[Permission, list[Permission]]]:
    """Permissions that differ in their namespace alone, together (or, without `scopes`, in their resource alone)."""
    found: dict[tuple[object, ...], list[Permission]] = {}
    for one in missing:
        key: tuple[object, ...] = (one.group, one.verbs, one.name)
        key += (one.resource, one.cost, bool(one.namespace)) if scopes else (one.namespace,)
        found.setdefault(key, []).append(one)
    return [(group[0], group) for group in found.values()]


def rules(missing: Iterable[Permission]) -> str:
    """The rules to add, as YAML that can be pasted into a ClusterRole or Role of the scope that stands above them."""
    by_scope = sorted(missing, key=lambda permission: permission.namespace)
    lines = []
    for namespace, members in groupby(by_scope, key=lambda permission: permission.namespace):
        where = f"# a Role in the namespace {namespace}" if namespace else "# a ClusterRole"
        lines.append(f"{where}:")
        for one, same in _alike(members, scopes=False):
            lines += [
                f'- apiGroups: ["{one.group}"]',
                f"  resources: [{', '.join(p.resource for p in same)}]",
            ]
            if one.name:
                lines.append(f"  resourceNames: [{one.name}]")
            lines.append(f"  verbs: [{', '.join(one.verbs)}]")
    return "\n".join(lines)
