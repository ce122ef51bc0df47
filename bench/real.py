"""A real kube-apiserver full of Pods, and what the program asks of it."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.api import Api
from copycat.sandbox.kube_pods import pod
from tests.integration.kube_server import KubeServer

__all__ = ["ACCOUNT", "HOME", "asked", "control_plane"]

#: Where the Lease is, and whose requests are told in the audit log.
HOME, _NAME = "copycat", "copycat"
ACCOUNT = f"system:serviceaccount:{HOME}:{_NAME}"
_AT_ONCE = 8
_RBAC = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"


@contextmanager
def control_plane(folder: Path, *, pods: int, images: int, prefix: str) -> Iterator[KubeServer]:
    """etcd and kube-apiserver with so many Pods; `folder/kubeconfig` is the program's, of a ServiceAccount."""
    with KubeServer() as server:
        with Api(server.kubeconfig) as api:
            made = [pod(number, images=images, prefix=prefix) for number in range(pods)]
            for name in sorted({item["metadata"]["namespace"] for item in made} | {HOME}):
                body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
                api("POST", "/api/v1/namespaces", body)
            accounts = f"/api/v1/namespaces/{HOME}/serviceaccounts"
            api("POST", accounts, {"metadata": {"name": _NAME}})
            subject = {"kind": "ServiceAccount", "name": _NAME, "namespace": HOME}
            group = "rbac.authorization.k8s.io"
            role = {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": group}
            metadata = {"name": _NAME}
            api("POST", _RBAC, {"metadata": metadata, "subjects": [subject], "roleRef": role})
            spec = {"spec": {"expirationSeconds": 86400}}
            token = api("POST", f"{accounts}/{_NAME}/token", spec)["status"]["token"]
        server.kubeconfig_for(folder / "kubeconfig", token)
        shares = [made[start::_AT_ONCE] for start in range(_AT_ONCE)]

        def create(share: list[dict[str, object]]) -> None:
            with Api(server.kubeconfig) as api:
                for item in share:
                    metadata = item["metadata"]
                    assert isinstance(metadata, dict)
                    api("POST", f"/api/v1/namespaces/{metadata['namespace']}/pods", item)

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            collections.deque(threads.map(create, shares), maxlen=0)
        yield server


def asked(server: KubeServer) -> collections.Counter[str]:
    """How often the program asked for what: verb and resource, as the audit log has them.

    A watch counts when it is opened and, if it has ended, once more.
    """
    events = server.audited(ACCOUNT)
    found = (
        (e["verb"], (e.get("objectRef") or {}).get("resource", ""), e["stage"]) for e in events
    )
    return collections.Counter(" ".join(part for part in parts if part) for parts in found)
