"""Watching over it, in a real cluster: Events, permissions, a configuration that changes, the log level, a blocked loop."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import Setup
from tests.integration.images import push, single_image
from tests.integration.net import get
from tests.integration.programs import Copycat, Kubectl, until
from tests.integration.registries import DockerRegistry
from tests.integration.workloads import Workloads

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.needs(
        *("docker-registry", "skopeo", "kubectl", "openssl", "setpriv"),
        *("kube-apiserver", "etcd", "kube-controller-manager"),
    ),
]

SUCCESSFUL = "k8s_copycat_config_last_reload_successful"
#: How long a look at the files may take to come, in seconds (one every 10).
LOOK = 40.0


def events_of(kubectl: Kubectl, namespace: str) -> list[dict[str, Any]]:
    """The program's own Events."""
    items: list[dict[str, Any]] = kubectl.get("events", "-n", namespace)["items"]
    return [item for item in items if item["source"].get("component") == "k8s-copycat"]


def test_one_event_for_a_failure_and_hour(
    setup: Setup, workloads: Workloads, source: DockerRegistry, kubectl: Kubectl
) -> None:
    """An image that fails again and again is one Event on its Deployment, which `kubectl describe` shows.

    The next process finds the same Event and counts on.
    """
    image = f"{source.address}/team/absent:1"
    workloads.deployment("broken", image, replicas=2)
    # no cool-down: tried again after 5 s, 10 s, …
    config = setup.config(source.address, failureCooldownMinutes=0)
    with setup.copycat(config) as program:
        program.wait_states({image: "failed"})
        until(lambda: events_of(kubectl, setup.namespace), "an Event")
        until(lambda: program.images()[image]["attempts"] >= 2, "another attempt")
        [event] = events_of(kubectl, setup.namespace)
        assert event["count"] == 1
        assert event["involvedObject"]["kind"] == "Deployment"
        assert event["reason"] == "ImageMirrorFailed"
        assert "not_found" in event["message"]
        described = kubectl("describe", "deployment", "broken", "-n", setup.namespace)
        assert "ImageMirrorFailed" in described
        assert image in described
    with setup.copycat(config):
        until(lambda: events_of(kubectl, setup.namespace)[0]["count"] == 2, "the count")
    assert len(events_of(kubectl, setup.namespace)) == 1


def account(setup: Setup, kubectl: Kubectl, path: Path) -> Path:
    """A kubeconfig of a ServiceAccount that may see everything but CronJobs, and write no Events."""
    where = ("-n", setup.namespace)
    kubectl("create", "serviceaccount", "limited", *where)
    kubectl(
        *("create", "role", "limited", "--verb=list,watch", *where),
        "--resource=deployments.apps,statefulsets.apps,daemonsets.apps,jobs.batch,pods",
    )
    bind(setup, kubectl, "limited")
    token = kubectl("create", "token", "limited", *where).strip()
    return setup.kube.kubeconfig_for(path, token)


def bind(setup: Setup, kubectl: Kubectl, role: str) -> None:
    """Gives a Role to that ServiceAccount."""
    subject = f"--serviceaccount={setup.namespace}:limited"
    where = ("-n", setup.namespace)
    kubectl("create", "rolebinding", role, f"--role={role}", subject, *where)


def test_the_start_names_what_is_missing(
    setup: Setup,
    workloads: Workloads,
    source: DockerRegistry,
    kubectl: Kubectl,
    tmp_path: Path,
) -> None:
    """One table names the permissions that the account lacks, while the work goes on; its rules are the right ones."""
    push(single_image("seen"), source.address, "team/seen", "1")
    image = f"{source.address}/team/seen:1"
    workloads.deployment("seen", image)
    kubeconfig = account(setup, kubectl, tmp_path / "limited.kubeconfig")
    config = setup.config(source.address, pullSecrets="off")
    with setup.copycat(config, kubeconfig=kubeconfig) as program:
        line = program.wait_for_log(lambda e: e["msg"] == "permissions are missing")
        rows = line["table"].splitlines()[1:]
        assert [row.split()[:3] for row in rows] == [
            ["list,", "watch", "cronjobs.batch"],
            ["create,", "patch", "events"],
        ]
        assert all(setup.namespace in row for row in rows)
        program.wait_states({image: "protected"})
    head, _, text = line["add"].partition("\n")
    assert head == f"# a Role in the namespace {setup.namespace}:"
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "added", "namespace": setup.namespace},
        "rules": yaml.safe_load(text),
    }
    kubectl.apply(role)
    bind(setup, kubectl, "added")
    with setup.copycat(config, kubeconfig=kubeconfig) as program:
        program.wait_for_log(lambda e: e["msg"] == "permissions are complete")


def rewrite(program: Copycat, **keys: Any) -> None:
    """Changes keys of the program's file, as an editor does; None takes one out."""
    file = program.config_file
    config = {**yaml.safe_load(file.read_text()), **keys}
    fresh = file.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    fresh.rename(file)


def test_a_bad_reload_keeps_the_old_configuration(
    setup: Setup, workloads: Workloads, source: DockerRegistry
) -> None:
    """A bad file sets the metric to 0 and stops nothing; a good one is taken up, and the metric is 1 again."""
    for name in ("one", "two", "three"):
        push(single_image(name), source.address, f"team/{name}", "1")
    images = {name: f"{source.address}/team/{name}:1" for name in ("one", "two", "three")}
    workloads.deployment("one", images["one"])
    with setup.copycat(setup.config(source.address)) as program:
        program.wait_states({images["one"]: "protected"})
        assert program.metric(SUCCESSFUL) == 1
        rewrite(program, watchResources=["deploymints"], digestPull="perhaps")
        line = program.wait_for_log(lambda e: e["msg"].startswith("changed configuration refused"))
        assert {p.partition(":")[0] for p in line["problems"]} == {"watchResources", "digestPull"}
        assert program.metric(SUCCESSFUL) == 0
        workloads.deployment("two", images["two"])
        program.wait_states({images["two"]: "protected"})
        target = {**setup.config()["docker"], "repoPrefix": "elsewhere"}
        rewrite(program, watchResources=None, digestPull=None, docker=target)
        until(lambda: program.metric(SUCCESSFUL) == 1, "the metric", patience=LOOK)
        workloads.deployment("three", images["three"])
        seen = program.wait_states(dict.fromkeys(images.values(), "protected"))
        assert all("/elsewhere/" in row["target"] for row in seen.values())
        assert program.answers(f"{program.health}/readyz") == 200


def test_the_log_level_changes_at_run_time(setup: Setup, source: DockerRegistry) -> None:
    """The level is read and changed over HTTP, and by the configuration, without a restart."""
    with setup.copycat(setup.config(source.address)) as program:
        program.wait_ready()
        url = f"{program.admin}/api/v1/loglevel"
        assert json.loads(get(url)[1]) == {"level": "info"}
        status, body = get(url, method="PUT", data=b'{"level": "debug"}')
        assert (status, json.loads(body)) == (200, {"level": "debug"})
        assert json.loads(get(url)[1]) == {"level": "debug"}
        rewrite(program, logLevel="error")
        until(lambda: json.loads(get(url)[1]) == {"level": "error"}, "the level", patience=LOOK)


def probed(program: Copycat) -> int:
    """What /healthz answers within a second; 0 for nothing, as a kubelet sees it."""
    try:
        with urllib.request.urlopen(f"{program.health}/healthz", timeout=1) as answer:
            return int(answer.status)
    except TimeoutError:
        return 0


def test_liveness_fails_for_a_blocked_loop_alone(
    setup: Setup, workloads: Workloads, source: DockerRegistry
) -> None:
    """No registry, no API server, a bad configuration: alive. A loop that stands still: no answer, until it goes on."""
    workloads.deployment("web", f"{source.address}/team/web:1")
    config = setup.config(source.address)
    with setup.copycat(config, module="tests.app.blockable") as program:
        program.wait_ready()
        source.stop()
        setup.target.stop()
        rewrite(program, targetKind="nonsense")
        until(lambda: program.metric(SUCCESSFUL) == 0, "the metric", patience=LOOK)
        with setup.kube.suspended():
            assert probed(program) == 200
        program.process.send_signal(signal.SIGUSR1)
        until(lambda: probed(program) == 0, "no answer")
        assert program.process.poll() is None
        program.process.send_signal(signal.SIGUSR2)
        until(lambda: probed(program) == 200, "an answer")
