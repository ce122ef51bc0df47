"""Generated Pods for benchmarks: as large as real ones (8 KB of JSON, most of it nothing that a mirror needs), and as many as wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import anyio
import msgspec

from copycat.sandbox.kube_store import Object, Store, Stored

__all__ = ["churn", "fill", "pod"]

#: The namespaces are as large as that.
_PER_NAMESPACE = 500
#: Placeholders of the template; each stands in the JSON exactly as the text that replaces it.
_NAME, _NAMESPACE, _VERSION, _IMAGE, _DIGEST, _NODE = (
    "@name@",
    "@namespace@",
    "@version@",
    "@image@",
    "@digest@",
    "@node@",
)


def fill(store: Store, *, pods: int, images: int, prefix: str, digests: Sequence[str] = ()) -> None:
    """Add running Pods, 500 to a namespace, whose images are `<prefix>0:1` … in turn.

    They are rendered when they are read, so that 100,000 of them take 20 MB instead of 800.
    """
    if not pods:
        return
    collection = store["pods"]
    render = _Renderer(images=images, prefix=prefix, digests=digests)
    for number in range(pods):
        item = _stored(number, render, version=store.next_version())
        collection.objects[item.key] = item
    collection.compact(store.version)  # they have no history


def pod(number: int, *, images: int, prefix: str) -> Object:
    """One such Pod, as another API server can create it."""
    item = _stored(number, _Renderer(images=images, prefix=prefix), version=0).decode()
    for field in ("resourceVersion", "uid", "creationTimestamp", "managedFields"):
        del item["metadata"][field]
    return item


def _stored(number: int, render: _Renderer, *, version: int) -> Stored:
    return Stored(
        namespace=f"team-{number // _PER_NAMESPACE:03d}",
        name=f"app-{number:06d}",
        version=version,
        data=render,
        phase="Running",
        node=f"node-{number % 100}",
    )


async def churn(store: Store, *, rate: float) -> None:
    """Change the status of Pods for ever, evenly, `rate` times a second."""
    collection = store["pods"]
    keys = sorted(collection.objects)
    position = 0
    begin = anyio.current_time()
    while keys:
        due = int((anyio.current_time() - begin) * rate)
        for index in range(position, due):
            before = collection.objects[keys[index % len(keys)]]
            item = before.decode()
            item["status"]["conditions"][0]["lastProbeTime"] = str(index)
            store.replace("pods", before, item)
        position = max(due, position)
        await anyio.sleep(0.01)


class _Renderer:
    """The JSON of a generated Pod."""

    def __init__(self, *, images: int, prefix: str, digests: Sequence[str] = ()) -> None:
        """Prepare the template."""
        self._digests = digests
        self._images = images
        self._prefix = prefix
        text = msgspec.json.encode(_template()).decode()
        for placeholder in (_NAME, _NAMESPACE, _VERSION, _IMAGE, _DIGEST, _NODE):
            text = text.replace(placeholder, f"\0{placeholder[1:-1]}\0")
        self._parts = text.split("\0")

    def __call__(self, item: Stored) -> bytes:
        number = int(item.name.rpartition("-")[2]) % self._images
        image = f"{self._prefix}{number}"
        values = {
            "name": item.name,
            "namespace": item.namespace,
            "version": str(item.version),
            "image": image,
            "digest": self._digests[number]
            if self._digests
            else f"sha256:{hashlib.sha256(image.encode()).hexdigest()}",
            "node": item.node,
        }
        parts = self._parts.copy()
        for index in range(1, len(parts), 2):
            parts[index] = values[parts[index]]
        return "".join(parts).encode()


def _template() -> Object:
    containers = [_container("app", _IMAGE + ":1"), _container("sidecar", _IMAGE + ":1")]
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": _NAME,
            "namespace": _NAMESPACE,
            "uid": "6b2f8d6e-0000-4000-8000-000000000000",
            "resourceVersion": _VERSION,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/name": "app", "pod-template-hash": "5d4f8c7b9"},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": "app-5d4f8c7b9",
                    "uid": "6b2f8d6e-0000-4000-8000-000000000001",
                    "controller": True,
                }
            ],
            "managedFields": [_managed("kube-controller-manager"), _managed("kubelet")],
        },
        "spec": {
            "containers": containers,
            "nodeName": _NODE,
            "serviceAccountName": "default",
            "restartPolicy": "Always",
            "volumes": [{"name": f"volume-{n}", "emptyDir": {}} for n in range(4)],
        },
        "status": {
            "phase": "Running",
            "conditions": [
                {"type": kind, "status": "True", "lastProbeTime": None}
                for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
            ],
            "containerStatuses": [_status(c["name"]) for c in containers],
        },
    }


def _container(name: str, image: str) -> Object:
    return {
        "name": name,
        "image": image,
        "env": [{"name": f"SETTING_{n}", "value": f"value of {n}"} for n in range(12)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "volumeMounts": [{"name": f"volume-{n}", "mountPath": f"/data/{n}"} for n in range(4)],
        "imagePullPolicy": "IfNotPresent",
    }


def _status(name: str) -> Object:
    return {
        "name": name,
        "image": _IMAGE + ":1",
        "imageID": f"{_IMAGE}@{_DIGEST}",
        "ready": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}},
    }


def _managed(manager: str) -> Object:
    fields: Object = {f"f:field-{n}": {"f:nested": {}, "f:other": {}} for n in range(45)}
    return {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
