"""What the cluster runs, cut down to what a mirror needs to know, so that 100,000 Pods fit into memory.

Two objects that differ only in what does not matter (metadata, status conditions, scale) give equal
workloads, so an informer that compares them stays silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from sys import intern

import msgspec

from copycat.kube.kinds import KINDS, Kind
from copycat.kube.objects import (
    Container,
    ContainerStatus,
    Pod,
    PodSpec,
    PodStatus,
    PodTemplate,
    State,
    Templated,
)
from copycat.kube.owners import Owner, owners_of_pod, owners_of_template

__all__ = [
    "KINDS",
    "ContainerImage",
    "Kind",
    "Owner",
    "Workload",
    "project",
    "read",
    "resolve_owner",
]

#: Waiting reasons of the kubelet that mean: this image cannot be had now (pkg/kubelet/images/types.go).
_PULL_FAILURES = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"})
_FINISHED = frozenset({"Succeeded", "Failed"})


class ContainerImage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One container, init container, ephemeral container or image volume, and the image it names."""

    container: str
    """The container's name; an image volume's own name."""
    image: str
    """As written in the object."""
    image_id: str = ""
    """`imageID` as the kubelet reports it; "" until it does. A finished init container keeps its own."""
    running: bool = False
    """Whether the container runs now."""
    started: float = 0.0
    """Since when it runs: seconds since 1970, 0 if it does not."""
    failing_to_pull: bool = False
    """Whether the kubelet says now that it cannot get the image."""


class Workload(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An object of one of the six kinds. Compares by value."""

    kind: str
    namespace: str
    name: str
    owner_kind: str
    """The top owner, which names the workload for people; the object itself if nothing owns it."""
    owner_name: str
    owners: tuple[Owner, ...] = ()
    """Everything that owns the object, the direct controller first, the top owner last."""
    images: tuple[ContainerImage, ...] = ()
    node: str = ""
    """Where a Pod is scheduled; "" for templates and waiting Pods."""
    service_account: str = ""
    pull_secrets: tuple[str, ...] = ()
    fingerprint: int = 0
    """Differs when the workload changed: the pod template's bytes; of a Pod its images and imageIDs."""
    phase: str = ""
    """Of a Pod."""

    @property
    def failing_to_pull(self) -> bool:
        """Whether a container waits for an image that the kubelet cannot get."""
        return any(image.failing_to_pull for image in self.images)


_POD = msgspec.json.Decoder(Pod)
_TEMPLATED = msgspec.json.Decoder(Templated)
_TEMPLATE = msgspec.json.Decoder(PodTemplate)


def project(kind: Kind) -> Callable[[bytes | msgspec.Raw], Workload | None]:
    """The function that an informer applies to each object of `kind`.

    It never raises: an object that cannot be decoded (no API server sends one) counts as absent, because
    one of them must not stop the watch of all the others.
    """

    def projected(raw: bytes | msgspec.Raw) -> Workload | None:
        try:
            return read(kind, raw)
        except msgspec.DecodeError:
            return None

    return projected


def read(kind: Kind, raw: bytes | msgspec.Raw) -> Workload | None:
    """The workload in an object's JSON; None for a Pod that has finished.

    Raises:
        msgspec.DecodeError: the JSON is broken, or a field has another type than Kubernetes defines.
    """
    return _read_template(kind, raw) if kind.template else _read_pod(kind, raw)


def resolve_owner(workload: Workload, job_owners: Mapping[tuple[str, str], Owner]) -> Workload:
    """The workload with the owner that the watched Jobs know for the Job that controls it.

    Args:
        job_owners: (namespace, name) of each watched Job → its top owner (`("Job", name)` if none).
    """
    if workload.kind != "Pod" or not workload.owners or workload.owners[0][0] != "Job":
        return workload
    job = workload.owners[0]
    known = job_owners.get((workload.namespace, job[1]))
    if known is None or known == (workload.owner_kind, workload.owner_name):
        return workload
    owners = (job,) if known == job else (job, known)
    return msgspec.structs.replace(
        workload, owners=owners, owner_kind=known[0], owner_name=known[1]
    )


def _read_template(kind: Kind, raw: bytes | msgspec.Raw) -> Workload:
    """A workload from an object that carries a pod template."""
    decoded = _TEMPLATED.decode(raw)
    template: object = decoded
    for step in kind.template:
        template = getattr(template, step, None)
    body = bytes(template) if isinstance(template, msgspec.Raw) else b""
    spec = (_TEMPLATE.decode(body).spec if body else None) or PodSpec()
    owners = owners_of_template(kind, decoded.metadata)
    owner_kind, owner_name = owners[-1] if owners else (kind.kind, decoded.metadata.name)
    return Workload(
        kind=kind.kind,
        namespace=intern(decoded.metadata.namespace),
        name=decoded.metadata.name,
        owner_kind=intern(owner_kind),
        owner_name=intern(owner_name),
        owners=owners,
        images=_images(spec, PodStatus()),
        service_account=intern(spec.service_account_name),
        pull_secrets=_pull_secrets(spec),
        fingerprint=_fingerprint(body),
    )


def _read_pod(kind: Kind, raw: bytes | msgspec.Raw) -> Workload | None:
    """A workload from a Pod."""
    pod = _POD.decode(raw)
    spec, status = pod.spec or PodSpec(), pod.status or PodStatus()
    if status.phase in _FINISHED:
        return None
    images = _images(spec, status)
    owners = owners_of_pod(pod.metadata, spec.node_name)
    owner_kind, owner_name = owners[-1] if owners else (kind.kind, pod.metadata.name)
    return Workload(
        kind=kind.kind,
        namespace=intern(pod.metadata.namespace),
        name=pod.metadata.name,
        owner_kind=intern(owner_kind),
        owner_name=intern(owner_name),
        owners=owners,
        images=images,
        node=intern(spec.node_name),
        service_account=intern(spec.service_account_name),
        pull_secrets=_pull_secrets(spec),
        fingerprint=_fingerprint(
            "\0".join(f"{i.container}\0{i.image}\0{i.image_id}" for i in images).encode()
        ),
        phase=intern(status.phase),
    )


def _fingerprint(facts: bytes) -> int:
    """64 bits of a hash. Key order is the API server's, which is fixed, so equal templates have equal bytes."""
    return int.from_bytes(blake2b(facts, digest_size=8).digest(), "big")


def _pull_secrets(spec: PodSpec) -> tuple[str, ...]:
    return tuple(intern(secret.name) for secret in spec.image_pull_secrets or () if secret.name)


def _images(spec: PodSpec, status: PodStatus) -> tuple[ContainerImage, ...]:
    """Every image that the pod names; containers without one (a webhook fills it in) are left out."""
    statuses = {
        entry.name: entry
        for entries in (
            status.init_container_statuses,
            status.container_statuses,
            status.ephemeral_container_statuses,
        )
        for entry in entries or ()
    }
    found = [
        _image(container, statuses.get(container.name))
        for containers in (spec.init_containers, spec.containers, spec.ephemeral_containers)
        for container in containers or ()
        if container.image
    ]
    found += [
        ContainerImage(container=intern(volume.name), image=intern(volume.image.reference))
        for volume in spec.volumes or ()
        if volume.image and volume.image.reference
    ]
    return tuple(found)


def _image(container: Container, status: ContainerStatus | None) -> ContainerImage:
    """A container with what the kubelet says about it."""
    name, image = intern(container.name), intern(container.image)
    if status is None:
        return ContainerImage(container=name, image=image)
    state = status.state or State()
    since = state.running.started_at if state.running else None
    return ContainerImage(
        container=name,
        image=image,
        image_id=intern(status.image_id),
        running=state.running is not None,
        started=since.timestamp() if since else 0.0,
        failing_to_pull=state.waiting is not None and state.waiting.reason in _PULL_FAILURES,
    )
