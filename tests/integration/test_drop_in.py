"""The original's own manifest with nothing but the image replaced: it starts, is probed, and does the work."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trustme
import yaml

from copycat.sandbox.images import Image, index
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.registry import Registry
from tests.integration.container import Container, Manifest
from tests.integration.kube_server import KubeServer
from tests.integration.programs import Kubectl

ORIGINAL = Path(__file__).parent / "original.yaml"
KEYS = Path(__file__).parents[1] / "config" / "original.yaml"
LIMIT = 60.0

#: All that the original's Deployment sets.
VARIABLES = {
    *("TARGET_KIND", "TARGET_REPO_PREFIX", "TARGET_REGISTRY", "TARGET_INSECURE", "TARGET_USERNAME"),
    *("TARGET_PASSWORD", "DRY_RUN", "ECR_REPO_PREFIX", "ECR_CREATE_REPO", "CONFIG_PATH"),
    *("REGISTRY_REQUEST_TIMEOUT", "INCLUDE_NAMESPACES", "SKIP_NAMESPACES", "SKIP_DEPLOYMENTS"),
    *("SKIP_STATEFULSETS", "SKIP_JOBS", "SKIP_CRONJOBS", "SKIP_PODS", "DOCKERHUB_USERNAME"),
    *("DOCKERHUB_PASSWORD", "GHCR_TOKEN"),
}


def test_the_fixture_is_the_originals() -> None:
    """The manifest has each key of the original's ConfigMap, each variable of its Deployment, its ports and probes."""
    manifest = Manifest(ORIGINAL)
    assert manifest.config() == yaml.safe_load(KEYS.read_text())
    assert {row["name"] for row in manifest.container["env"]} == VARIABLES
    assert [p["containerPort"] for p in manifest.container["ports"]] == [8080, 8081]
    assert manifest.container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert manifest.container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registries:
    """A source that wants a login and speaks TLS, and the owner's registry."""

    source: Registry
    target: Registry
    trust: Path
    manifest: Manifest

    def switched_on(self) -> Manifest:
        """The manifest after its owner ended the dry modes and named the registries (README: testing with kind)."""
        manifest = self.manifest.changed()
        manifest.set_env("DRY_RUN", "false")
        manifest.set_config({**manifest.config(), "dryRun": False, "dryPull": False})
        return manifest


@pytest.fixture
async def registries(tmp_path: Path) -> AsyncIterator[Registries]:
    """Both, and the manifest with their addresses."""
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trust = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trust))
    manifest = Manifest(ORIGINAL)
    secret = manifest.one("Secret")["stringData"]
    async with (
        Registry(ssl_context=server, auth="token", username=secret["hub-username"], password=secret["hub-password"]) as source,
        Registry(auth="token", username=secret["target-username"], password=secret["target-password"]) as target,
    ):  # fmt: skip
        manifest.set_env("TARGET_REGISTRY", target.address)
        config = manifest.config()
        config["docker"]["registry"] = target.address
        login = {"usernameEnv": "DOCKERHUB_USERNAME", "passwordEnv": "DOCKERHUB_PASSWORD"}
        config["registryCredentials"].append({"registry": source.address, **login})
        manifest.set_config(config)
        yield Registries(source=source, target=target, trust=trust, manifest=manifest)


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a blocking question is answered by something true."""
    with anyio.fail_after(LIMIT):
        while True:  # processes have no events
            if await anyio.to_thread.run_sync(condition):
                return
            await anyio.sleep(0.05)


@asynccontextmanager
async def started(registries: Registries, manifest: Manifest, folder: Path, kubeconfig: Path) -> AsyncIterator[Container]:  # fmt: skip
    """The container, live and ready by the manifest's own probes; it ends in good order."""
    container = Container(manifest, folder, kubeconfig)
    with container.running(SSL_CERT_FILE=str(registries.trust)):
        for probe in ("livenessProbe", "readinessProbe"):
            await until(partial(ok, container, probe))
        try:
            yield container
        except BaseException:
            print(container.log()[-20000:])  # noqa: T201 - pytest shows it with the failure
            raise
        limit = int(manifest.container["resources"]["limits"]["memory"].removesuffix("Mi"))
        assert container.peak_memory() < limit * 1024**2
        container.process.terminate()
        await until(lambda: container.process.poll() is not None)
        assert container.process.returncode == 0


def ok(container: Container, probe: str) -> bool:
    """Whether a probe is answered as it should be."""
    return container.probe(probe) == 200


def pod(name: str, namespace: str, image: str, **spec: Any) -> dict[str, Any]:
    """A Pod with one container."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "main", "image": image}], **spec},
    }


def workloads(registries: Registries) -> tuple[Image, list[dict[str, Any]]]:
    """What the cluster runs: one Pod that counts, and one for each list that says no. The image of the first."""
    content = registries.source.add("team/app", index(seed="app"), "1")
    for name in ("skipped", "elsewhere"):
        registries.source.add_image(name, "1", seed=name)
    address = registries.source.address
    return content, [
        pod("app", "test", f"{address}/team/app:1"),
        pod("custom-pod", "test", f"{address}/skipped:1"),
        pod("away", "default", f"{address}/elsewhere:1"),
        pod("excluded", "test", "internal.registry/team/app:1"),
    ]


@pytest.mark.needs("setpriv")
async def test_as_it_is(registries: Registries, tmp_path: Path) -> None:
    """The manifest as it is ships both dry modes: live, ready, metrics on their port, the Lease held, no registry asked."""
    _, pods = workloads(registries)
    manifest = registries.manifest
    async with KubeApi() as api:
        for item in pods:
            api.create("pods", item)
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", namespace=manifest.namespace)
        async with started(registries, manifest, tmp_path, kubeconfig) as container:
            await until(lambda: '"state":"dry_run"' in container.log().replace(" ", ""))
            status, text = await anyio.to_thread.run_sync(container.get, "metrics", "/metrics")
            assert status == 200
            assert 'k8s_copycat_images{state="dry_run"} 1.0' in text
            assert next(r.namespace for r in api.requests if r.resource == "leases") == manifest.namespace  # fmt: skip
        # the manifest watches pods in one namespace
        watched = {(r.resource, r.namespace) for r in api.requests if r.verb in {"list", "watch"}}
        assert watched == {("pods", "test")}
    assert registries.source.requests == []
    assert registries.target.requests == []


@pytest.mark.needs("setpriv")
async def test_the_images_arrive(registries: Registries, tmp_path: Path) -> None:
    """With the dry modes off the images are at the target under the manifest's prefix; the lists and logins count."""
    content, pods = workloads(registries)
    manifest = registries.switched_on()
    async with KubeApi() as api:
        for item in pods:
            api.create("pods", item)
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", namespace=manifest.namespace)
        async with started(registries, manifest, tmp_path, kubeconfig) as container:
            await until(lambda: registries.target.has("mirrors/team/app", content, "1"))
            counter = f'k8s_copycat_registry_push_success_total{{image="{registries.source.address}/team/app"}} 1.0'  # fmt: skip
            await until(lambda: counter in container.get("metrics", "/metrics")[1])
            for secret in ("tArgEt-pass", "hUb-pass", "ghp-token"):
                assert secret in manifest.one("Secret")["stringData"].values()
                assert secret not in container.log()
    assert {r.repository for r in registries.source.requests} <= {"", "team/app"}
    assert registries.source.violations == registries.target.violations == []


@pytest.mark.integration
@pytest.mark.timeout(180)
@pytest.mark.needs(
    *("kubectl", "openssl", "setpriv", "kube-apiserver", "etcd", "kube-controller-manager")
)
async def test_in_a_real_cluster(
    registries: Registries, kube: KubeServer, kubectl: Kubectl, tmp_path: Path
) -> None:
    """A real API server takes the manifest; its ServiceAccount's rights are enough, for checkNodePlatform too.

    The only thing refused is to list nodes, which the original never did; they are read one by one.
    """
    content, pods = workloads(registries)
    manifest = registries.switched_on()
    manifest.set_env("CHECK_NODE_PLATFORM", "true")
    manifest.set_config({**manifest.config(), "watchResources": sorted(KINDS)})
    pods[0]["spec"]["nodeName"] = "arm"
    prepare = partial(install, kubectl, manifest, pods)
    await anyio.to_thread.run_sync(prepare)
    account = manifest.pod["serviceAccountName"]
    token = kubectl("create", "token", account, "-n", manifest.namespace).strip()
    kubeconfig = kube.kubeconfig_for(tmp_path / "account", token)
    known = json.loads(kubeconfig.read_text())
    known["contexts"][0]["context"]["namespace"] = manifest.namespace
    kubeconfig.write_text(json.dumps(known))
    try:
        async with started(registries, manifest, tmp_path, kubeconfig):
            tags = registries.target.tags
            await until(lambda: "1" in tags["mirrors/team/app"])
            arm = content.document.manifests[1].digest  # type: ignore[union-attr] # it is an index
            assert tags["mirrors/team/app"]["1"] == str(arm)
    finally:
        await anyio.to_thread.run_sync(partial(uninstall, kubectl, manifest))
    events = kube.audited(f"system:serviceaccount:{manifest.namespace}:{account}")
    refused = {
        (event["verb"], event["objectRef"]["resource"])
        for event in events
        if event.get("responseStatus", {}).get("code") == 403
    }
    assert refused <= {("list", "nodes"), ("watch", "nodes")}
    asked = {(event["verb"], event["objectRef"]["resource"]) for event in events if "objectRef" in event}  # fmt: skip
    assert ("get", "nodes") in asked
    assert {resource for verb, resource in asked if verb in {"list", "watch"}} >= KINDS


KINDS = {"deployments", "statefulsets", "daemonsets", "jobs", "cronjobs", "pods"}


def install(kubectl: Kubectl, manifest: Manifest, pods: list[dict[str, Any]]) -> None:
    """The manifest, the namespace that it watches, a node, and the Pods."""
    kubectl.namespace("test")
    kubectl.apply(*manifest.objects)
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "arm"}})
    info = {"operatingSystem": "linux", "architecture": "arm64"}
    info |= dict.fromkeys(
        (
            *("machineID", "systemUUID", "bootID", "kernelVersion", "osImage"),
            *("containerRuntimeVersion", "kubeletVersion", "kubeProxyVersion"),
        ),
        "",
    )
    patch = json.dumps({"status": {"nodeInfo": info}})
    kubectl("patch", "node", "arm", "--subresource=status", "--type=merge", "-p", patch)
    kubectl.apply(*pods)


def uninstall(kubectl: Kubectl, manifest: Manifest) -> None:
    """Everything again, but the Pods of the namespace `default`, which go first."""
    kubectl("delete", "pod", "away", "-n", "default", "--wait=false")
    kubectl("delete", "namespace", "test", manifest.namespace, "--wait=false")
    kubectl("delete", "node", "arm")
    for kind in ("ClusterRoleBinding", "ClusterRole"):
        kubectl("delete", kind, manifest.one(kind)["metadata"]["name"])
