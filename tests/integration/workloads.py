"""The workloads that tests put into the cluster, in one namespace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.integration.programs import Kubectl, until

__all__ = ["Workloads"]


def template(name: str, images: Mapping[str, str], init: str = "") -> dict[str, Any]:
    """A Pod template: container name → image, and an init container."""
    spec: dict[str, Any] = {
        "containers": [{"name": key, "image": image} for key, image in images.items()],
        "terminationGracePeriodSeconds": 0,
    }
    if init:
        spec["initContainers"] = [{"name": "init", "image": init}]
    return {"metadata": {"labels": {"app": name}}, "spec": spec}


class Workloads:
    """Creates and changes workloads of a namespace by kubectl."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self.kubectl = kubectl
        self.namespace = namespace

    def deployment(self, name: str, image: str, *, replicas: int = 1) -> None:
        """A Deployment of one container."""
        spec = {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template(name, {"main": image}),
        }
        self._apply("apps/v1", "Deployment", name, spec)

    def cron_job(self, name: str, image: str) -> None:
        """A CronJob that never runs."""
        pod = template(name, {"main": image})
        pod["spec"]["restartPolicy"] = "Never"
        job = {"spec": {"template": pod}}
        spec = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": job}
        self._apply("batch/v1", "CronJob", name, spec)

    def pod(self, name: str, image: str, *, init: str = "") -> None:
        """A Pod without an owner; Pending, because there is no node."""
        self._apply("v1", "Pod", name, template(name, {"main": image}, init)["spec"])

    def scale(self, deployment: str, replicas: int) -> list[str]:
        """Scales, and waits until that many Pods exist; their names."""
        self.kubectl(
            "scale", "-n", self.namespace, f"deployment/{deployment}", f"--replicas={replicas}"
        )
        names: list[str] = until(
            lambda: self._pods(deployment, replicas), f"{replicas} Pods of {deployment}"
        )
        return names

    def annotate(self, resource: str, name: str, value: str) -> None:
        """Sets an annotation."""
        note = f"example.com/note={value}"
        self.kubectl("annotate", "-n", self.namespace, "--overwrite", resource, name, note)

    def delete(self, resource: str, name: str) -> None:
        """Deletes an object."""
        self.kubectl("delete", "-n", self.namespace, resource, name, "--wait=true")

    def _pods(self, app: str, count: int) -> list[str]:
        items = self.kubectl.get("pods", "-n", self.namespace, "-l", f"app={app}")["items"]
        names = [item["metadata"]["name"] for item in items]
        return names if len(names) == count else []

    def _apply(self, version: str, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        metadata = {"name": name, "namespace": self.namespace, "labels": {"app": name}}
        item = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(item))
