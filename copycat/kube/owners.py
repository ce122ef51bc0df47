"""Who owns an object, told from the object alone: no ReplicaSet is ever asked for, so no permission is needed.

A Pod's direct controller is in its metadata; what stands above it is in the names that the controllers of
Kubernetes give: Deployment → ReplicaSet by the pod-template-hash, CronJob → Job by the scheduled time.
"""

from __future__ import annotations

import re
from sys import intern

from copycat.kube.kinds import KINDS, Kind
from copycat.kube.objects import Metadata, OwnerReference

__all__ = ["Owner", "owners_of_pod", "owners_of_template"]

#: (kind, name) of an object in the workload's own namespace.
Owner = tuple[str, str]

#: Jobs are named `<CronJob>-<scheduled time>`: minutes since 1970 (8 digits), seconds before Kubernetes 1.21.
_SCHEDULED = re.compile(r"(?P<cronjob>.+)-\d{8,}")
#: What the API server appends to a generateName (k8s.io/apimachinery/pkg/util/rand: no vowels, no 0, 1, 3).
_GENERATED = re.compile(r"(?P<prefix>.+)-[bcdfghjklmnpqrstvwxz2456789]{5}")
#: Kinds whose names people choose; a suffix that looks random is theirs.
_STABLE = frozenset({row.kind for row in KINDS.values()} | {"ReplicaSet"})


def _controller(metadata: Metadata) -> OwnerReference | None:
    for reference in metadata.owner_references or ():
        if reference.controller:
            return reference
    return None


def owners_of_template(kind: Kind, metadata: Metadata) -> tuple[Owner, ...]:
    """The owner of a workload that has a pod template (a Job's CronJob, an operator's resource)."""
    controller = _controller(metadata)
    if controller is None and kind.kind == "Job":
        # `kubectl create job --from` of some versions does not call the CronJob a controller.
        references = metadata.owner_references or ()
        controller = next((r for r in references if r.kind == "CronJob"), None)
    if controller is not None and kind.kind == "Job":
        return _chain((controller.kind, controller.name))
    return _generated(kind.kind, metadata)


def owners_of_pod(metadata: Metadata, node: str) -> tuple[Owner, ...]:
    """The owners of a Pod, as far as the Pod itself tells."""
    controller = _controller(metadata)
    static = metadata.annotations is not None and bool(metadata.annotations.mirror)
    if static or (controller is not None and controller.kind == "Node"):
        return (("Pod", intern(metadata.name.removesuffix(f"-{node}"))),)
    if controller is None:
        return _generated("Pod", metadata)
    owner = (intern(controller.kind), intern(controller.name))
    if controller.kind == "ReplicaSet":
        suffix = f"-{metadata.labels.pod_template_hash}" if metadata.labels else "-"
        name = controller.name.removesuffix(suffix)
        if suffix == "-" or name in {"", controller.name}:
            return (owner,)
        return owner, ("Deployment", intern(name))
    if controller.kind == "Job":
        scheduled = _SCHEDULED.fullmatch(controller.name)
        return (owner, ("CronJob", intern(scheduled["cronjob"]))) if scheduled else (owner,)
    return _chain(owner)


def _chain(owner: Owner) -> tuple[Owner, ...]:
    """An owner, and itself without the random end of a generated name: each run of it is one thing to people."""
    kind, name = intern(owner[0]), intern(owner[1])
    generated = None if kind in _STABLE else _GENERATED.fullmatch(name)
    return ((kind, name), (kind, intern(generated["prefix"]))) if generated else ((kind, name),)


def _generated(kind: str, metadata: Metadata) -> tuple[Owner, ...]:
    """The generateName prefix as the owner of an object that has one and no controller."""
    prefix = metadata.generate_name.rstrip("-.")
    if not prefix or not metadata.name.startswith(metadata.generate_name):
        return ()
    return ((kind, intern(prefix)),)
