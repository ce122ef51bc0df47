"""One control plane for all integration tests; registries and a namespace for each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.kube_server import KubeServer
from tests.integration.programs import Copycat, Kubectl
from tests.integration.registries import DockerRegistry
from tests.integration.workloads import Workloads


@pytest.fixture(scope="session")
def kube() -> Iterator[KubeServer]:
    """etcd, kube-apiserver and the controller manager; ready in about three seconds."""
    with KubeServer(controller_manager=True) as server:
        yield server


@pytest.fixture(scope="session")
def kubectl(kube: KubeServer) -> Kubectl:
    """kubectl as the cluster's administrator."""
    return Kubectl(kube.kubeconfig)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[DockerRegistry]:
    """The registry that images come from."""
    with DockerRegistry(tmp_path / "source") as registry:
        yield registry


@pytest.fixture
def target(tmp_path: Path) -> Iterator[DockerRegistry]:
    """The registry that the owner controls."""
    with DockerRegistry(tmp_path / "target") as registry:
        yield registry


@pytest.fixture
def workloads(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[Workloads]:
    """A namespace of the test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50].strip("-")
    kubectl.namespace(name)
    yield Workloads(kubectl, name)
    kubectl("delete", "namespace", name, "--wait=false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What `copycat run` needs to be started for one test."""

    directory: Path
    kube: KubeServer
    target: DockerRegistry
    namespace: str

    def config(self, *sources: str, **settings: Any) -> dict[str, Any]:
        """A configuration: these source hosts are plain HTTP, the tries quick, and `settings` on top."""
        return {
            "targetKind": "docker",
            "docker": {"registry": self.target.address, "repoPrefix": "mirror", "insecure": True},
            "insecureRegistries": list(sources),
            "includeNamespaces": [self.namespace],
            "registryRetryAttempts": 2,
            "registryRetryBackoff": "100ms",
            **settings,
        }

    def copycat(
        self,
        config: Mapping[str, Any],
        *arguments: str,
        kubeconfig: Path | None = None,
        variables: Mapping[str, str] | None = None,
        module: str = "copycat",
    ) -> Copycat:
        """The program, not started yet; its files are kept apart by how often this was called."""
        number = len(list(self.directory.glob("copycat-*")))
        return Copycat(
            self.directory / f"copycat-{number}",
            config,
            kubeconfig or self.kube.kubeconfig,
            *arguments,
            variables=variables,
            module=module,
        )


@pytest.fixture
def setup(tmp_path: Path, kube: KubeServer, target: DockerRegistry, workloads: Workloads) -> Setup:
    """The test's target, cluster and namespace, put together."""
    return Setup(directory=tmp_path, kube=kube, target=target, namespace=workloads.namespace)
