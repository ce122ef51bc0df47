"""What the cluster runs, cut down to what a mirror needs to know, so that 100,000 Pods fit into memory.

One row of `KINDS` says everything about a kind: where its objects are served and where its pod template
lies. msgspec decodes only the fields that are named here; the rest of an object is skipped, never built.

Two objects that differ only in what does not matter (metadata, status conditions, scale) give equal
workloads, so an informer that compares them stays silent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from sys import intern
from types import MappingProxyType

import msgspec

__all__ = [
    "KINDS",
    "ContainerImage",
    "Kind",
    "Owner",
    "Workload",
    "project",
    "read",
    "resolve_owner",
    "top_owner",
]

#: (kind, name) of an object in the workload's own namespace.
Owner = tuple[str, str]

#: Jobs are named `<CronJob>-<scheduled time>`: minutes since 1970 (8 digits), seconds before Kubernetes 1.21.
_SCHEDULED = re.compile(r"(?P<cronjob>.+)-\d{8,}")
#: What the API server appends to a generateName (k8s.io/apimachinery/pkg/util/rand: no vowels, no 0, 1, 3).
_GENERATED = re.compile(r"(?P<prefix>.+)-[bcdfghjklmnpqrstvwxz2456789]{5}")
#: Waiting reasons of the kubelet that mean: this image cannot be had now (pkg/kubelet/images/types.go).
_PULL_FAILURES = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"})
_FINISHED = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A row of the table of watched kinds."""

    resource: str
    """Plural, lower case: `deployments`. The word of WATCH_RESOURCES, of metrics and of URLs."""
    kind: str
    """`Deployment`."""
    group_path: str
    """`/apis/apps/v1`."""
    template: tuple[str, ...]
    """Attributes that lead from an object to its pod template; empty where the object is a Pod itself."""
    field_selector: str = ""
    """What the server is asked to leave out."""

    def path(self, namespace: str = "") -> str:
        """The collection's URL path: of one namespace, or of the cluster."""
        scope = f"/namespaces/{namespace}" if namespace else ""
        return f"{self.group_path}{scope}/{self.resource}"


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        row.resource: row
        for row in (
            Kind(
                resource="deployments",
                kind="Deployment",
                group_path="/apis/apps/v1",
                template=("spec", "template"),
            ),
            Kind(
                resource="statefulsets",
                kind="StatefulSet",
                group_path="/apis/apps/v1",
                template=("spec", "template"),
            ),
            Kind(
                resource="daemonsets",
                kind="DaemonSet",
                group_path="/apis/apps/v1",
                template=("spec", "template"),
            ),
            Kind(
                resource="jobs",
                kind="Job",
                group_path="/apis/batch/v1",
                template=("spec", "template"),
            ),
            Kind(
                resource="cronjobs",
                kind="CronJob",
                group_path="/apis/batch/v1",
                template=("spec", "job_template", "spec", "template"),
            ),
            Kind(
                resource="pods",
                kind="Pod",
                group_path="/api/v1",
                template=(),
                # Finished Pods dominate batch clusters; an object that finishes arrives as DELETED.
                field_selector="status.phase!=Succeeded,status.phase!=Failed",
            ),
        )
    }
)


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


# What is decoded. Field names become camel case; everything that is not named is skipped.


class _Object(msgspec.Struct, rename="camel", gc=False):
    """Base of the decoded parts."""


class _OwnerReference(_Object):
    kind: str = ""
    name: str = ""
    controller: bool | None = None


class _Labels(_Object, rename={"pod_template_hash": "pod-template-hash"}):
    pod_template_hash: str = ""


class _Annotations(_Object, rename={"mirror": "kubernetes.io/config.mirror"}):
    mirror: str = ""


class _Metadata(_Object):
    name: str = ""
    namespace: str = ""
    generate_name: str = ""
    labels: _Labels | None = None
    annotations: _Annotations | None = None
    owner_references: list[_OwnerReference] | None = None


class _Container(_Object):
    name: str = ""
    image: str = ""


class _ImageSource(_Object):
    reference: str = ""


class _Volume(_Object):
    name: str = ""
    image: _ImageSource | None = None


class _Name(_Object):
    name: str = ""


class _PodSpec(_Object):
    init_containers: list[_Container] | None = None
    containers: list[_Container] | None = None
    ephemeral_containers: list[_Container] | None = None
    volumes: list[_Volume] | None = None
    node_name: str = ""
    service_account_name: str = ""
    image_pull_secrets: list[_Name] | None = None


class _Running(_Object):
    started_at: datetime | None = None


class _Waiting(_Object):
    reason: str = ""


class _State(_Object):
    running: _Running | None = None
    waiting: _Waiting | None = None


class _ContainerStatus(_Object):
    name: str = ""
    image_id: str = msgspec.field(default="", name="imageID")
    state: _State | None = None


class _PodStatus(_Object):
    phase: str = ""
    init_container_statuses: list[_ContainerStatus] | None = None
    container_statuses: list[_ContainerStatus] | None = None
    ephemeral_container_statuses: list[_ContainerStatus] | None = None


class _Pod(_Object):
    metadata: _Metadata
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


class _PodTemplate(_Object):
    spec: _PodSpec | None = None


class _JobSpec(_Object):
    template: msgspec.Raw = msgspec.Raw()


class _JobTemplate(_Object):
    spec: _JobSpec | None = None


class _TemplatedSpec(_Object):
    template: msgspec.Raw = msgspec.Raw()
    job_template: _JobTemplate | None = None


class _Templated(_Object):
    metadata: _Metadata
    spec: _TemplatedSpec | None = None


_POD = msgspec.json.Decoder(_Pod)
_TEMPLATED = msgspec.json.Decoder(_Templated)
_TEMPLATE = msgspec.json.Decoder(_PodTemplate)


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


def top_owner(workload: Workload, job_owners: Mapping[tuple[str, str], Owner]) -> Owner:
    """(kind, name) of what people call the workload; `job_owners` as in `resolve_owner`."""
    resolved = resolve_owner(workload, job_owners)
    return resolved.owner_kind, resolved.owner_name


def _read_template(kind: Kind, raw: bytes | msgspec.Raw) -> Workload:
    """A workload from an object that carries a pod template."""
    decoded = _TEMPLATED.decode(raw)
    template: object = decoded
    for step in kind.template:
        template = getattr(template, step, None)
    body = bytes(template) if isinstance(template, msgspec.Raw) else b""
    spec = (_TEMPLATE.decode(body).spec if body else None) or _PodSpec()
    owners = _owners_of_template(kind, decoded.metadata)
    owner_kind, owner_name = owners[-1] if owners else (kind.kind, decoded.metadata.name)
    return Workload(
        kind=kind.kind,
        namespace=intern(decoded.metadata.namespace),
        name=decoded.metadata.name,
        owner_kind=intern(owner_kind),
        owner_name=intern(owner_name),
        owners=owners,
        images=_images(spec, _PodStatus()),
        service_account=intern(spec.service_account_name),
        pull_secrets=_pull_secrets(spec),
        fingerprint=_fingerprint(body),
    )


def _read_pod(kind: Kind, raw: bytes | msgspec.Raw) -> Workload | None:
    """A workload from a Pod."""
    pod = _POD.decode(raw)
    spec, status = pod.spec or _PodSpec(), pod.status or _PodStatus()
    if status.phase in _FINISHED:
        return None
    images = _images(spec, status)
    owners = _owners_of_pod(pod.metadata, spec.node_name)
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


def _pull_secrets(spec: _PodSpec) -> tuple[str, ...]:
    return tuple(intern(secret.name) for secret in spec.image_pull_secrets or () if secret.name)


def _images(spec: _PodSpec, status: _PodStatus) -> tuple[ContainerImage, ...]:
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


def _image(container: _Container, status: _ContainerStatus | None) -> ContainerImage:
    """A container with what the kubelet says about it."""
    name, image = intern(container.name), intern(container.image)
    if status is None:
        return ContainerImage(container=name, image=image)
    state = status.state or _State()
    since = state.running.started_at if state.running else None
    return ContainerImage(
        container=name,
        image=image,
        image_id=intern(status.image_id),
        running=state.running is not None,
        started=since.timestamp() if since else 0.0,
        failing_to_pull=state.waiting is not None and state.waiting.reason in _PULL_FAILURES,
    )


def _controller(metadata: _Metadata) -> _OwnerReference | None:
    for reference in metadata.owner_references or ():
        if reference.controller:
            return reference
    return None


def _owners_of_template(kind: Kind, metadata: _Metadata) -> tuple[Owner, ...]:
    """The owner of a workload that has a pod template (a Job's CronJob, an operator's resource)."""
    controller = _controller(metadata)
    if controller is None and kind.kind == "Job":
        # `kubectl create job --from` of some versions does not call the CronJob a controller.
        references = metadata.owner_references or ()
        controller = next((r for r in references if r.kind == "CronJob"), None)
    if controller is not None and kind.kind == "Job":
        return _chain((controller.kind, controller.name))
    return _generated(kind.kind, metadata)


def _owners_of_pod(metadata: _Metadata, node: str) -> tuple[Owner, ...]:
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


#: Kinds whose names people choose; a suffix that looks random is theirs.
_STABLE = frozenset({row.kind for row in KINDS.values()} | {"ReplicaSet"})


def _generated(kind: str, metadata: _Metadata) -> tuple[Owner, ...]:
    """The generateName prefix as the owner of an object that has one and no controller."""
    prefix = metadata.generate_name.rstrip("-.")
    if not prefix or not metadata.name.startswith(metadata.generate_name):
        return ()
    return ((kind, intern(prefix)),)
