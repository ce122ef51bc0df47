"""What the chart renders: valid objects, a Pod under the restricted standard, and no secret anywhere."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

from tests.chart.conftest import Render
from tests.chart.rendering import CHART, Object, ci_values, helm, render

pytestmark = [pytest.mark.chart, pytest.mark.needs("helm-python-sdk", "kubernetes-validate")]

EXAMPLES = sorted(ci_values())


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Object:
    """The values of each example in turn."""
    return ci_values()[request.param]


def test_every_object_is_valid(example: Object) -> None:
    """Kubernetes' own strict schemas know every field of every object of every example."""
    kubernetes_validate: Any = importlib.import_module("kubernetes_validate")
    objects = render(example).objects
    assert objects
    for item in objects:
        kubernetes_validate.validate(item, "1.37", strict=True)


def test_helm_lint_is_content(example: Object) -> None:
    """`helm lint --strict` has nothing to say."""
    report = helm().lint(CHART, example, strict=True)
    findings = [
        entry for entry in report["messages"] if "icon is recommended" not in json.dumps(entry)
    ]
    assert findings == []


def test_the_pod_is_restricted(example: Object) -> None:
    """The Pod satisfies every control of the restricted Pod security standard, and its root is read-only."""
    pod = render(example).pod
    assert not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"configMap", "secret", "emptyDir", "projected", "downwardAPI"}
    assert all(volume.keys() - {"name"} <= allowed for volume in pod["volumes"])
    assert "initContainers" not in pod
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not any(port.get("hostPort") for port in container["ports"])


def test_names_and_selectors_fit_together(example: Object) -> None:
    """Every selector finds the Deployment's Pods, and no name or label is too long for Kubernetes."""
    rendered = render(example, name="a-release-with-a-name-that-is-as-long-as-helm-lets-be")
    labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [rendered.one("Deployment")["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in rendered.all("Service")]
    selectors += [
        item["spec"]["selector"]["matchLabels"] for item in rendered.all("PodDisruptionBudget")
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert all(len(value) <= 63 for value in labels.values())
    for item in rendered.all("Deployment", "Service", "ServiceAccount", "ConfigMap"):
        assert len(item["metadata"]["name"]) <= 63


def test_probes_ask_the_health_port(base: Object) -> None:
    """Start-up, liveness and readiness are asked on 8081; metrics are served on 8080 through the Service."""
    rendered = render(base)
    ports = {port["name"]: port["containerPort"] for port in rendered.container["ports"]}
    assert ports == {"metrics": 8080, "health": 8081}
    asked = {
        name: rendered.container[f"{name}Probe"]["httpGet"]
        for name in ("startup", "liveness", "readiness")
    }
    assert asked["startup"] == asked["liveness"] == {"path": "/healthz", "port": "health"}
    assert asked["readiness"] == {"path": "/readyz", "port": "health"}
    (port,) = rendered.one("Service")["spec"]["ports"]
    assert port == {"name": "metrics", "port": 8080, "targetPort": "metrics"}


def test_probes_are_patient(base: Object) -> None:
    """Three minutes to begin to listen, a minute for a loop that is blocked: no shorter trouble restarts a Pod."""
    container = render(base).container

    def patience(name: str) -> int:
        probe = container[f"{name}Probe"]
        seconds: int = probe["periodSeconds"] * probe["failureThreshold"]
        return seconds

    assert patience("startup") == 180
    assert patience("liveness") == 60
    assert container["livenessProbe"]["timeoutSeconds"] == 5


@pytest.mark.parametrize(
    ("address", "port"), [(":9090", 9090), ("127.0.0.1:8080", 8080), ("[::]:8443", 8443)], ids=str
)
def test_the_metrics_port_follows_the_configuration(
    with_values: Render, address: str, port: int
) -> None:
    """config.metricsAddr decides about the container's port."""
    container = with_values({"config": {"metricsAddr": address}}).container
    assert {"name": "metrics", "containerPort": port} in container["ports"]


def test_the_probes_follow_the_configuration(with_values: Render) -> None:
    """config.healthAddr decides about the port that is probed."""
    container = with_values({"config": {"healthAddr": ":9091"}}).container
    assert {"name": "health", "containerPort": 9091} in container["ports"]


def test_no_metrics_no_service(with_values: Render) -> None:
    """With metricsAddr "0" there is no port and no Service that would lead nowhere."""
    rendered = with_values({"config": {"metricsAddr": "0"}})
    assert rendered.all("Service") == []
    assert [port["name"] for port in rendered.container["ports"]] == ["health"]


def test_who_the_pod_is(base: Object) -> None:
    """The Pod knows its name and namespace, for the Lease, and uses the release's own ServiceAccount."""
    rendered = render(base, name="copy", namespace="insurance")
    fields = {
        entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"]
        for entry in rendered.container["env"]
        if "fieldRef" in entry.get("valueFrom", {})
    }
    assert fields == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}
    assert rendered.pod["serviceAccountName"] == rendered.one("ServiceAccount")["metadata"]["name"]
    assert rendered.container["args"] == ["--config=/config/config.yaml"]


def test_credentials_are_references(base: Object) -> None:
    """Passwords come from Secrets as files or single variables; no object of the chart holds one."""
    rendered = render(ci_values()["everything"])
    env = {entry["name"]: entry for entry in rendered.container["env"]}
    assert env["TARGET_USERNAME"]["valueFrom"]["secretKeyRef"] == {"name": "mirror", "key": "user"}
    assert env["TARGET_PASSWORD_FILE"]["value"] == "/var/run/secrets/k8s-copycat/target/pass"
    assert env["GHCR_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "ghcr", "key": "token"}
    mounts = {mount["mountPath"]: mount["name"] for mount in rendered.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in rendered.pod["volumes"]}
    for path, secret in {
        "target": "mirror",
        "registries/docker-hub": "docker-hub",
        "registries/quay": "quay",
        "admin": "admin",
    }.items():
        volume = volumes[mounts[f"/var/run/secrets/k8s-copycat/{path}"]]
        assert volume["secret"]["secretName"] == secret
    assert rendered.all("Secret") == []
    assert "secret" not in json.dumps(render(base).objects).lower()


def test_files_that_variables_name_are_mounted() -> None:
    """Every …_FILE variable names a file below a mounted volume."""
    container = render(ci_values()["everything"]).container
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    files = [entry["value"] for entry in container["env"] if entry["name"].endswith("_FILE")]
    assert len(files) == 3
    assert all(any(file.startswith(f"{mount}/") for mount in mounts) for file in files)


def test_a_changed_configuration_starts_new_pods(base: Object, with_values: Render) -> None:
    """The Pod template changes with config, and with nothing else of the release."""

    def checksum(rendered: Any) -> str:
        annotations = rendered.one("Deployment")["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/config"])

    assert checksum(render(base)) == checksum(with_values({"replicas": 3}))
    assert checksum(render(base)) != checksum(with_values({"config": {"dryRun": True}}))


def test_the_grace_period_covers_the_programs_own(with_values: Render) -> None:
    """Kubernetes waits longer than the program lets its copies run after SIGTERM."""
    assert with_values({}).pod["terminationGracePeriodSeconds"] == 30
    longer = with_values({"config": {"shutdownGraceSeconds": 50}})
    assert longer.pod["terminationGracePeriodSeconds"] == 60


def test_a_disruption_budget_only_for_several_replicas(with_values: Render) -> None:
    """One replica must not block the draining of its node."""
    assert with_values({}).all("PodDisruptionBudget") == []
    assert with_values({"replicas": 2}).one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_the_image_is_named_by_digest_or_tag(with_values: Render) -> None:
    """A digest wins over a tag; without either the chart's appVersion is the tag."""
    digest = f"sha256:{'0' * 64}"
    assert with_values({}).container["image"] == "registry.example.com/k8s-copycat:0.1.0"
    both = with_values({"image": {"tag": "9", "digest": digest}})
    assert both.container["image"] == f"registry.example.com/k8s-copycat@{digest}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"repository": ""}}, "image.repository"),
        ({"config": {"docker": {"registry": ""}}}, "config.docker.registry"),
        ({"config": {"targetKind": "ecr"}}, "config.ecr.accountID"),
        (
            {"config": {"targetKind": "ecr", "ecr": {"accountID": "123456789012"}}},
            "config.ecr.region",
        ),
        ({"replicas": 2, "config": {"leaderElect": False}}, "config.leaderElect"),
    ],
    ids=["no image", "no registry", "no account", "no region", "two leaders"],
)
def test_what_is_missing_is_said(with_values: Render, values: Object, message: str) -> None:
    """An installation that could not work is refused, naming the value."""
    with pytest.raises(helm().HelmError, match=message):
        with_values(values)


def test_the_notes_say_where_and_how(base: Object) -> None:
    """After the installation the user reads what is watched, the target, and how to look."""
    notes = render(ci_values()["namespaced"], namespace="insurance").notes
    assert "team-a, team-b" in notes
    assert "mirror.example.com:5000" in notes
    assert "kubectl -n insurance port-forward" in notes
    assert "the whole cluster" in render(base).notes
