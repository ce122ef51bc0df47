"""The chart's objects in a real API server: its rights are enough for the program, and none is too much."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chart.rendering import Rendered, render
from tests.integration.conftest import Setup
from tests.integration.images import push, single_image
from tests.integration.kube_server import KubeServer
from tests.integration.programs import Kubectl, copycat, until
from tests.integration.registries import DockerRegistry
from tests.integration.workloads import Workloads

pytestmark = [
    pytest.mark.integration,
    pytest.mark.chart,
    pytest.mark.timeout(300),
    pytest.mark.needs(
        *("docker-registry", "kubectl", "openssl", "setpriv", "helm-python-sdk"),
        *("kube-apiserver", "etcd", "kube-controller-manager"),
    ),
]

KINDS = {"deployments", "statefulsets", "daemonsets", "jobs", "cronjobs", "pods"}


@pytest.fixture(params=["namespaced", "cluster-wide"])
def rendered(
    request: pytest.FixtureRequest, setup: Setup, kubectl: Kubectl, source: DockerRegistry
) -> Rendered:
    """The chart, installed without its Deployment: that one runs here as a process."""
    config = setup.config(source.address, checkNodePlatform=True)
    if request.param == "cluster-wide":
        config |= {"includeNamespaces": [f"{setup.namespace}*"]}
    values = {"image": {"repository": "registry.example.com/copycat"}, "config": config}
    rendered = render(values, name="copycat", namespace=setup.namespace)
    kubectl.apply(*(item for item in rendered.objects if item["kind"] != "Deployment"))
    return rendered


def test_the_rights_are_enough_and_all_used(
    rendered: Rendered, setup: Setup, workloads: Workloads, source: DockerRegistry, tmp_path: Path
) -> None:
    """As the chart's ServiceAccount, with leader election, the program does its work and is refused nothing.

    The API server's audit log also shows that each kind that the account may watch is watched.
    """
    digest = push(single_image("chart"), source.address, "some/image", "1")
    workloads.deployment("some", f"{source.address}/some/image:1")
    workloads.deployment("broken", f"{source.address}/no/image:1")
    account = rendered.pod["serviceAccountName"]
    token = workloads.kubectl("create", "token", account, "-n", setup.namespace).strip()
    kube = setup.kube
    kubeconfig = kube.kubeconfig_for(tmp_path / "account.kubeconfig", token)
    file = tmp_path / "config.yaml"
    file.write_text(rendered.config)
    assert copycat("config", "check", "--config", str(file))[0] == 0
    lease = next(e["value"] for e in rendered.container["env"] if e["name"] == "LEASE_NAME")
    variables = {"POD_NAMESPACE": setup.namespace, "POD_NAME": "a-pod", "LEASE_NAME": lease}
    config = setup.config(source.address, checkNodePlatform=True)
    if rendered.all("ClusterRole")[0]["rules"][0]["resources"] != ["nodes"]:
        config |= {"includeNamespaces": [f"{setup.namespace}*"]}
    program = setup.copycat(
        config, "--leader-elect=true", kubeconfig=kubeconfig, variables=variables
    )
    with program:
        program.wait_states({f"{source.address}/some/image:1": "protected"})
        program.wait_ready()
        assert program.images()[f"{source.address}/some/image:1"]["digest"] == digest
        user = f"system:serviceaccount:{setup.namespace}:{account}"
        # Leader election renews by `update`; the audit log is written behind the answers.
        until(
            lambda: ("update", "leases") in asked(kube, user),
            "the Lease's renewal in the audit log",
        )
        until(lambda: ("create", "events") in asked(kube, user), "an Event in the audit log")
        program.wait_for_log(lambda e: e["msg"] == "permissions are complete")
        assert program.terminate() == 0
    refused = [e for e in kube.audited(user) if e.get("responseStatus", {}).get("code") == 403]
    assert [e["requestURI"] for e in refused] == []
    watched = {resource for verb, resource in asked(kube, user) if verb in ("list", "watch")}
    assert watched >= KINDS | {"nodes"}


def asked(kube: KubeServer, user: str) -> set[tuple[str, str]]:
    """Verb and resource of all that the user asked for."""
    return {
        (event["verb"], event["objectRef"]["resource"])
        for event in kube.audited(user)
        if "objectRef" in event
    }
