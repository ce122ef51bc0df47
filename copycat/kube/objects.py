"""The parts of Kubernetes objects that are decoded at all.

Field names are the API's in snake case. What is not named here is skipped by the decoder, which makes it
several times faster than building whole objects, and null is accepted wherever Go writes it.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = [
    "Annotations",
    "Container",
    "ContainerStatus",
    "Decoded",
    "ImageSource",
    "JobSpec",
    "JobTemplate",
    "Labels",
    "Metadata",
    "Name",
    "OwnerReference",
    "Pod",
    "PodSpec",
    "PodStatus",
    "PodTemplate",
    "Running",
    "State",
    "Templated",
    "TemplatedSpec",
    "Volume",
    "Waiting",
]


class Decoded(msgspec.Struct, rename="camel", gc=False):
    """Base of the decoded parts."""


class OwnerReference(Decoded):
    kind: str = ""
    name: str = ""
    controller: bool | None = None


class Labels(Decoded, rename={"pod_template_hash": "pod-template-hash"}):
    pod_template_hash: str = ""


class Annotations(Decoded, rename={"mirror": "kubernetes.io/config.mirror"}):
    mirror: str = ""


class Metadata(Decoded):
    name: str = ""
    namespace: str = ""
    generate_name: str = ""
    labels: Labels | None = None
    annotations: Annotations | None = None
    owner_references: list[OwnerReference] | None = None


class Container(Decoded):
    name: str = ""
    image: str = ""


class ImageSource(Decoded):
    reference: str = ""


class Volume(Decoded):
    name: str = ""
    image: ImageSource | None = None


class Name(Decoded):
    name: str = ""


class PodSpec(Decoded):
    init_containers: list[Container] | None = None
    containers: list[Container] | None = None
    ephemeral_containers: list[Container] | None = None
    volumes: list[Volume] | None = None
    node_name: str = ""
    service_account_name: str = ""
    image_pull_secrets: list[Name] | None = None


class Running(Decoded):
    started_at: datetime | None = None


class Waiting(Decoded):
    reason: str = ""


class State(Decoded):
    running: Running | None = None
    waiting: Waiting | None = None


class ContainerStatus(Decoded):
    name: str = ""
    image_id: str = msgspec.field(default="", name="imageID")
    state: State | None = None


class PodStatus(Decoded):
    phase: str = ""
    init_container_statuses: list[ContainerStatus] | None = None
    container_statuses: list[ContainerStatus] | None = None
    ephemeral_container_statuses: list[ContainerStatus] | None = None


class Pod(Decoded):
    metadata: Metadata
    spec: PodSpec | None = None
    status: PodStatus | None = None


class PodTemplate(Decoded):
    spec: PodSpec | None = None


class JobSpec(Decoded):
    template: msgspec.Raw = msgspec.Raw()


class JobTemplate(Decoded):
    spec: JobSpec | None = None


class TemplatedSpec(Decoded):
    template: msgspec.Raw = msgspec.Raw()
    job_template: JobTemplate | None = None


class Templated(Decoded):
    metadata: Metadata
    spec: TemplatedSpec | None = None
