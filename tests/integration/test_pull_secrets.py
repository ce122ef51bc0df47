"""Pull secrets with a real API server's Secrets and permissions, and a real registry that wants a password."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from copycat.app.process import Program
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.controller.pulls import LOOK
from tests.app.support import program_of, row_of
from tests.app.support import until as until_async
from tests.app.times import Time
from tests.chart.rendering import Object, render
from tests.integration.conftest import Setup
from tests.integration.images import Image, push, single_image
from tests.integration.net import get
from tests.integration.programs import until
from tests.integration.registries import ONE_USER, DockerRegistry
from tests.integration.workloads import Workloads, template

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.needs(
        *("docker-registry", "kubectl", "openssl", "setpriv", "helm-python-sdk"),
        *("kube-apiserver", "etcd", "kube-controller-manager"),
    ),
]

PASSWORD = "a-password"
NAME = "team/private"


@pytest.fixture
def image() -> Image:
    """What only who has the password may read."""
    return single_image("private")


@pytest.fixture
def private(image: Image, tmp_path: Path) -> Iterator[DockerRegistry]:
    """A registry with the image, and one user."""
    directory = tmp_path / "private"
    with DockerRegistry(directory) as open_to_all:
        push(image, open_to_all.address, NAME, "1")
    with DockerRegistry(directory, htpasswd=ONE_USER) as registry:
        yield registry


class Cluster:
    """The test's namespace, with a Deployment of the private image that names the Secret `hub`."""

    def __init__(self, setup: Setup, workloads: Workloads, registry: DockerRegistry) -> None:
        self.workloads = workloads
        self.kubectl = workloads.kubectl
        self.namespace = setup.namespace
        self.registry = registry
        self.source = f"{registry.address}/{NAME}:1"

    def secret(self, password: str = PASSWORD) -> None:
        """Create or replace the Secret, as a person would."""
        login = (f"--docker-server={self.registry.address}", "--docker-username=somebody")
        text = self.kubectl(
            *("create", "secret", "docker-registry", "hub", "-n", self.namespace, *login),
            *(f"--docker-password={password}", "--dry-run=client", "-o", "json"),
        )
        self.kubectl.apply(json.loads(text))

    def events(self) -> str:
        """The program's Events, as JSON; nothing if there is none."""
        text = self.kubectl("get", "events", "-n", self.namespace, "-o", "json")
        return text if "ImageMirrorFailed" in text else ""

    def deploy(self, *, names_it: bool = True) -> None:
        """The Deployment; its template names the Secret, or has its ServiceAccount's."""
        pod = template("web", {"main": self.source})
        if names_it:
            pod["spec"]["imagePullSecrets"] = [{"name": "hub"}]
        spec = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": pod}
        metadata = {"name": "web", "namespace": self.namespace}
        self.kubectl.apply(
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        )

    def account(self, config: dict[str, Any], *, without: str = "") -> str:
        """Install the chart's account and roles, without those whose name ends so; a token of the account."""
        values = {"image": {"repository": "registry.example.com/copycat"}, "config": config}
        rendered = render(values, name="copycat", namespace=self.namespace)
        self.kubectl.apply(
            *(item for item in rendered.objects if _is_right(item) and not _ends(item, without))
        )
        account = rendered.pod["serviceAccountName"]
        return self.kubectl("create", "token", account, "-n", self.namespace).strip()


def _is_right(item: Object) -> bool:
    return item["kind"] == "ServiceAccount" or "Role" in item["kind"]


def _ends(item: Object, name: str) -> bool:
    return bool(name) and item["metadata"]["name"].endswith(name)


@pytest.fixture
def cluster(setup: Setup, workloads: Workloads, private: DockerRegistry) -> Cluster:
    """Nothing is deployed yet."""
    return Cluster(setup, workloads, private)


def configuration(setup: Setup, private: DockerRegistry, **more: Any) -> dict[str, Any]:
    """Copies of each namespace for itself; `pullSecrets` is auto, and the namespace a plain name."""
    target = {"registry": setup.target.address, "insecure": True}
    prefix = {"docker": {**target, "repoPrefix": "mirror/$namespace"}}
    return setup.config(private.address, **prefix, leaderElect=False, **more)


@pytest.mark.chart
@pytest.mark.parametrize("names_it", [True, False], ids=["the template's", "the account's"])
@pytest.mark.parametrize("everywhere", [False, True], ids=["roles", "cluster role"])
def test_a_secret_is_created(
    setup: Setup,
    cluster: Cluster,
    private: DockerRegistry,
    image: Image,
    tmp_path: Path,
    *,
    names_it: bool,
    everywhere: bool,
) -> None:
    """With the chart's rights: the Secret that a person makes lets the image in; Secrets are only ever got, by name.

    The password is in no log line and on no page.
    """
    config = configuration(setup, private)
    if everywhere:
        config |= {"includeNamespaces": [f"{setup.namespace}*"], "pullSecrets": "all"}
    token = cluster.account(config)
    kubeconfig = setup.kube.kubeconfig_for(tmp_path / "account.kubeconfig", token)
    cluster.secret()
    if not names_it:
        patch = json.dumps({"imagePullSecrets": [{"name": "hub"}]})
        where = ("-n", cluster.namespace, "serviceaccount", "default")
        cluster.kubectl("patch", *where, "-p", patch)
    with setup.copycat(config, kubeconfig=kubeconfig) as program:
        cluster.deploy(names_it=names_it)
        row = program.wait_states({cluster.source: "protected"})[cluster.source]
        page = json.dumps(program.images())
        assert program.terminate() == 0
        told = program.log_text() + page
    assert row["digest"] == image.digest
    assert setup.target.digests(f"mirror/{setup.namespace}/{NAME}")["1"] == image.digest
    assert PASSWORD not in told
    user = f"system:serviceaccount:{setup.namespace}:copycat-k8s-copycat"
    asked = [
        e for e in setup.kube.audited(user) if e.get("objectRef", {}).get("resource") == "secrets"
    ]
    assert {(e["verb"], e["objectRef"]["name"], e["objectRef"]["namespace"]) for e in asked} == {
        ("get", "hub", setup.namespace)
    }


@pytest.mark.chart
def test_permission_denied(
    setup: Setup, cluster: Cluster, private: DockerRegistry, tmp_path: Path
) -> None:
    """The role for Secrets is missing: the image says so, and how to allow it; the program goes on."""
    config = configuration(setup, private)
    token = cluster.account(config, without="-pull-secrets")
    kubeconfig = setup.kube.kubeconfig_for(tmp_path / "account.kubeconfig", token)
    cluster.secret()
    cluster.deploy()
    with setup.copycat(config, kubeconfig=kubeconfig) as program:
        row = program.wait_states({cluster.source: "failed"})[cluster.source]
        program.wait_ready()
        assert program.terminate() == 0
    assert row["reason"] == "pull_secret_not_allowed"
    assert f"allow `get` on secrets in the namespace {setup.namespace}" in row["message"]
    assert PASSWORD not in program.log_text()
    assert setup.target.digests(f"mirror/{setup.namespace}/{NAME}") == {}


CANARY = "canary-Zq81x7"


def odd_secrets(host: str) -> dict[str, str]:
    """Name → what people and attackers put into a Secret of Docker's type, as far as a real API server takes it."""
    return {
        "null": "null",
        "list": f'{{"auths": ["{CANARY}"]}}',
        "text": f'{{"auths": {{"{host}": "{CANARY}"}}}}',
        "deep": f'{{"auths": {"[" * 5000}{"]" * 5000}}}',
        "no-base64": json.dumps({"auths": {host: {"auth": f"%{CANARY}%"}}}),
        "number": json.dumps({"auths": {host: {"username": CANARY, "password": 1}}}),
        "header": json.dumps({"auths": {host: {"username": "u", "password": f"{CANARY}\r\nX: 1"}}}),
        "surrogate": f'{{"auths": {{"{host}": {{"username": "\\ud800", "password": "{CANARY}"}}}}}}',
        "helper": json.dumps({"credHelpers": {host: "../../bin/sh"}, "credsStore": "../x"}),
        "wrong": json.dumps({"auths": {host: {"username": "somebody", "password": CANARY}}}),
    }


def test_odd_secrets(setup: Setup, cluster: Cluster, private: DockerRegistry) -> None:
    """Whatever stands in the Secrets before it, the right one is found; what is in them is seen nowhere."""
    odd = odd_secrets(private.address)
    where = {"apiVersion": "v1", "kind": "Secret"}
    cluster.kubectl.apply(
        *(
            {
                **where,
                "metadata": {"name": name, "namespace": setup.namespace},
                "type": "kubernetes.io/dockerconfigjson",
                "data": {".dockerconfigjson": base64.b64encode(content.encode()).decode()},
            }
            for name, content in odd.items()
        ),
        {
            **where,
            "metadata": {"name": "opaque", "namespace": setup.namespace},
            "stringData": {"token": CANARY},
        },
    )
    cluster.secret()
    names = ["../x/secrets/hub", "UPPER", "missing", "opaque", *odd, "hub"]
    pod = template("web", {"main": cluster.source, "other": f"{private.address}/team/absent:1"})
    pod["spec"]["imagePullSecrets"] = [{"name": name} for name in names]
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": pod}
    metadata = {"name": "web", "namespace": setup.namespace}
    cluster.kubectl.apply(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
    )
    config = configuration(setup, private, logLevel="debug")
    with setup.copycat(config) as program:
        absent = f"{private.address}/team/absent:1"
        program.wait_states({cluster.source: "protected", absent: "failed"})
        events = until(cluster.events, "an Event")
        pages = [f"{program.admin}{path}" for path in ("/api/v1/images", "/api/v1/status", "/")]
        shown = [get(url)[1].decode() for url in (*pages, program.metrics_url)]
        assert program.terminate() == 0
    told = "\n".join([*shown, events, program.log_text()])
    for name in ("null", "list", "deep", "opaque", "missing"):
        assert f"the pull secret {setup.namespace}/{name} " in told
    assert CANARY not in told
    assert PASSWORD not in told
    assert base64.b64encode(f"somebody:{PASSWORD}".encode()).decode() not in told


# With the program in this process, where time may jump.


async def settings(tmp_path: Path, config: dict[str, Any]) -> Settings:
    """The configuration, with ports of the system's choice."""
    addresses = {"metricsAddr": "127.0.0.1:0", "adminAddr": "0", "healthAddr": "127.0.0.1:0"}
    file = tmp_path / "in-process.yaml"
    file.write_text(json.dumps({**config, **addresses}))
    return await anyio.to_thread.run_sync(partial(load, path=str(file), environ={}))


async def test_a_secret_is_changed(
    setup: Setup, cluster: Cluster, private: DockerRegistry, tmp_path: Path
) -> None:
    """A wrong password fails; five minutes after the Secret was mended, the image is copied, whatever its cool-down."""
    config = configuration(setup, private, failureCooldownMinutes=600)
    cluster.secret("wrong")
    cluster.deploy()
    time = Time()
    running = program_of(await settings(tmp_path, config), str(setup.kube.kubeconfig), time)
    async with running as program:
        await until_async(lambda: state(program, cluster.source) == ("failed", "unauthorized"))
        await anyio.to_thread.run_sync(cluster.secret)
        await until_async(lambda: time.sleeping[LOOK] > 0)
        time.pass_by(program, minutes=5.5)
        await until_async(lambda: state(program, cluster.source) == ("protected", ""))
    assert setup.target.digests(f"mirror/{setup.namespace}/{NAME}")


@pytest.mark.chart
async def test_permission_is_given_later(
    setup: Setup, cluster: Cluster, private: DockerRegistry, tmp_path: Path
) -> None:
    """The role comes while the program runs: noticed within five minutes, and tried at once."""
    config = configuration(setup, private, failureCooldownMinutes=600)
    token = cluster.account(config, without="-pull-secrets")
    kubeconfig = setup.kube.kubeconfig_for(tmp_path / "account.kubeconfig", token)
    cluster.secret()
    cluster.deploy()
    time = Time()
    refused = ("failed", "pull_secret_not_allowed")
    async with program_of(await settings(tmp_path, config), str(kubeconfig), time) as program:
        await until_async(lambda: state(program, cluster.source) == refused)
        await anyio.to_thread.run_sync(partial(cluster.account, config))
        await anyio.to_thread.run_sync(partial(may, cluster))
        await until_async(lambda: time.sleeping[LOOK] > 0)
        time.pass_by(program, minutes=5.5)
        await until_async(lambda: state(program, cluster.source) == ("protected", ""))


def state(program: Program, source: str) -> tuple[str, str]:
    """State and reason of an image; nothing before it is known."""
    if not any(row.source == source for row in program.facade.images()):
        return "", ""
    row = row_of(program, source)
    return row.state, row.reason


def may(cluster: Cluster) -> None:
    """Wait until the authorizer has seen the new role."""
    account = f"system:serviceaccount:{cluster.namespace}:copycat-k8s-copycat"
    ask = ("auth", "can-i", "get", "secrets/hub", "-n", cluster.namespace, f"--as={account}")
    until(lambda: _yes(cluster, ask), "the permission")


def _yes(cluster: Cluster, ask: tuple[str, ...]) -> bool:
    try:
        return cluster.kubectl(*ask).strip() == "yes"
    except AssertionError:
        return False
