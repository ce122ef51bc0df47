"""What real API servers do to a watcher: history that is gone, restarts, tokens and rights taken away.

Both dry modes are on: what counts is that the inventory is what the cluster holds, so no registry is needed.
"""

from __future__ import annotations

import re
import shutil
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Setup
from tests.integration.kube_server import KubeServer
from tests.integration.programs import Copycat, Kubectl, until
from tests.integration.slow import SlowLine
from tests.integration.workloads import Workloads

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.needs(
        *("docker-registry", "kubectl", "openssl", "setpriv"),
        *("kube-apiserver", "etcd", "kube-controller-manager"),
    ),
]


#: A configuration that asks no registry, of a whole cluster.
DRY = {
    "targetKind": "docker",
    "docker": {"registry": "registry.example"},
    "dryRun": True,
    "dryPull": True,
}


def watching(setup: Setup, kubeconfig: Path | None = None, **settings: Any) -> Copycat:
    """The program, which asks no registry."""
    config = setup.config(dryRun=True, dryPull=True, **settings)
    return setup.copycat(config, kubeconfig=kubeconfig)


def used(program: Copycat) -> set[str]:
    """The images that a workload uses, without registry and tag."""
    rows = program.images().values()
    return {row["source"].rpartition("/")[2].partition(":")[0] for row in rows if row["users"]}


def wait_used(program: Copycat, *names: str) -> None:
    """Waits until exactly these images are used."""
    until(lambda: used(program) == set(names), f"{names} are used, and nothing else")


def lists(kubectl: Kubectl, resource: str) -> int:
    """How many lists of a kind the API server has answered."""
    found = re.findall(
        rf'^apiserver_request_total{{.*resource="{resource}".*verb="LIST".*}} (\d+)$',
        kubectl("get", "--raw", "/metrics"),
        re.MULTILINE,
    )
    return sum(map(int, found))


def relists(program: Copycat, resource: str, reason: str) -> float:
    """How often a kind was listed anew for this reason."""
    labels = f'reason="{reason}",resource="{resource}"'
    return program.metric(f"k8s_copycat_watch_relists_total{{{labels}}}")


def test_history_that_is_gone(setup: Setup, workloads: Workloads, tmp_path: Path) -> None:
    """The line is cut, objects come and go, etcd compacts and the API server restarts: the watch's version is too old.

    Every kind is listed once anew, and what is known is what is there.
    """
    workloads.pod("old", "example.com/old:1")
    workloads.deployment("stays", "example.com/stays:1", replicas=0)
    with SlowLine(setup.kube.port) as line:
        through = setup.kube.kubeconfig_through(tmp_path / "through", line.port)
        with watching(setup, through) as program:
            wait_used(program, "old", "stays")
            line.frozen = True
            workloads.delete("pod", "old")
            workloads.pod("new", "example.com/new:1")
            workloads.annotate("deployment", "stays", "again")
            setup.kube.compact()
            line.drop()
            setup.kube.restart_apiserver()
            line.frozen = False
            wait_used(program, "new", "stays")
            # A watch is refused only when the server has filled its cache of that kind, each kind at its own time.
            expired = partial(relists, program, reason="expired")
            until(lambda: expired("pods") and expired("deployments"), "both are listed anew")
            workloads.deployment("later", "example.com/later:1", replicas=0)
            wait_used(program, "new", "stays", "later")
            assert (expired("pods"), expired("deployments")) == (1, 1)


def test_control_plane_that_is_killed(setup: Setup, workloads: Workloads) -> None:
    """API server and etcd are killed and come back: what changes afterwards is seen, and nobody restarts."""
    workloads.deployment("before", "example.com/before:1", replicas=0)
    with watching(setup) as program:
        wait_used(program, "before")
        setup.kube.restart()
        workloads.pod("after", "example.com/after:1")
        wait_used(program, "before", "after")
        assert program.answers(f"{program.health}/healthz") == 200
        program.wait_ready()


def test_etcd_that_is_restored(tmp_path: Path) -> None:
    """etcd comes back from an older copy, so versions go back: what was lost is forgotten, what comes is seen.

    A watch from a version that is still to come would say nothing, and no error either.
    """
    copied = tmp_path / "copied"
    with KubeServer() as kube:
        kubectl = Kubectl(kube.kubeconfig)
        kubectl("create", "namespace", "here")
        workloads = Workloads(kubectl, "here")
        workloads.deployment("kept", "example.com/kept:1", replicas=0)

        def copy(data: Path) -> None:
            shutil.copytree(data, copied)

        kube.restart(swap=copy)
        with Copycat(tmp_path / "copycat", DRY, kube.kubeconfig) as program:
            # more changes than a start of the API server makes
            where = {"apiVersion": "v1", "kind": "ConfigMap"}
            kubectl.apply(
                *({**where, "metadata": {"name": f"n{n}", "namespace": "here"}} for n in range(100))
            )
            workloads.deployment("lost", "example.com/lost:1", replicas=0)
            wait_used(program, "kept", "lost")

            def restore(data: Path) -> None:
                shutil.rmtree(data)
                copied.rename(data)
                failed = (
                    'k8s_copycat_watch_errors_total{reason="connection",resource="deployments"}'
                )
                until(lambda: program.metric(failed) >= 2, "nobody is there")

            kube.restart(swap=restore)
            workloads.deployment("fresh", "example.com/fresh:1", replicas=0)
            wait_used(program, "kept", "fresh")
            assert relists(program, "deployments", "version") == 1


@pytest.fixture
def account(setup: Setup, workloads: Workloads, tmp_path: Path) -> Account:
    """A ServiceAccount that may list and watch all six kinds in the test's namespace."""
    found = Account(setup, workloads.kubectl, tmp_path)
    found.grant("pods", "deployments", "statefulsets", "daemonsets", "jobs", "cronjobs")
    return found


class Account:
    """A ServiceAccount whose token is in a file, as a Pod has it."""

    def __init__(self, setup: Setup, kubectl: Kubectl, directory: Path) -> None:
        self._setup, self._kubectl = setup, kubectl
        self._file = directory / "token"
        kubectl("create", "serviceaccount", "copycat", "-n", setup.namespace)
        self._secret = ""
        self.renew()
        self.kubeconfig = setup.kube.kubeconfig_with_token_file(directory / "account", self._file)

    def grant(self, *resources: str) -> None:
        """Makes these the kinds that it may list and watch."""
        rules = [{"apiGroups": ["*"], "resources": list(resources), "verbs": ["list", "watch"]}]
        name = {"name": "copycat", "namespace": self._setup.namespace}
        subject = {"kind": "ServiceAccount", **name}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "copycat"}
        version = {"apiVersion": "rbac.authorization.k8s.io/v1"}
        self._kubectl.apply(
            {**version, "kind": "Role", "metadata": name, "rules": rules},
            {
                **version,
                "kind": "RoleBinding",
                "metadata": name,
                "subjects": [subject],
                "roleRef": reference,
            },
        )

    def renew(self) -> None:
        """Puts a new token into the file, bound to a Secret of its own."""
        namespace = self._setup.namespace
        self._secret = f"bound-{uuid.uuid4().hex[:8]}"
        self._kubectl("create", "secret", "generic", self._secret, "-n", namespace)
        bound = ("--bound-object-kind=Secret", f"--bound-object-name={self._secret}")
        token = self._kubectl("create", "token", "copycat", "-n", namespace, *bound)
        new = self._file.with_suffix(".new")
        new.write_text(token)
        new.replace(self._file)

    def revoke(self) -> None:
        """Deletes the object that the present token is bound to."""
        self._kubectl("delete", "secret", self._secret, "-n", self._setup.namespace)


def test_token_that_is_revoked(setup: Setup, workloads: Workloads, account: Account) -> None:
    """The token is revoked and another one written to the file: the program goes on with that one."""
    workloads.deployment("before", "example.com/before:1", replicas=0)
    with watching(setup, account.kubeconfig) as program:
        wait_used(program, "before")
        account.revoke()
        # watches that are open live on; a new connection needs a token that holds
        setup.kube.restart_apiserver()
        until(
            lambda: any(e.get("level") == "warn" and "401" in str(e) for e in program.log()),
            "the refusal is told",
        )
        account.renew()
        workloads.pod("after", "example.com/after:1")
        wait_used(program, "before", "after")


def test_rights_that_are_taken_and_given_back(
    setup: Setup, workloads: Workloads, account: Account
) -> None:
    """One kind may not be listed any more: the others go on, the metric says which, and it comes back with the right."""
    workloads.deployment("fixed", "example.com/fixed:1", replicas=0)
    denied = 'k8s_copycat_rbac_denied{resource="deployments"}'
    with watching(setup, account.kubeconfig) as program:
        wait_used(program, "fixed")
        account.grant("pods", "statefulsets", "daemonsets", "jobs", "cronjobs")
        setup.kube.restart_apiserver()
        until(lambda: program.metric(denied) == 1, "the refusal is in the metrics")
        workloads.pod("pod", "example.com/pod:1")
        until(lambda: "pod" in used(program), "the Pod is seen all the same")
        assert program.answers(f"{program.health}/readyz") == 200
        account.grant("pods", "deployments", "statefulsets", "daemonsets", "jobs", "cronjobs")
        until(lambda: program.metric(denied) == 0, "the right is noticed", patience=90)
        workloads.deployment("more", "example.com/more:1", replicas=0)
        wait_used(program, "fixed", "pod", "more")


def test_namespace_that_comes_later(setup: Setup, kubectl: Kubectl) -> None:
    """A wildcard covers namespaces that are made while the program runs."""
    name = f"{setup.namespace[:40]}-later"
    with watching(setup, includeNamespaces=[f"{setup.namespace[:40]}-*"]) as program:
        program.wait_ready()
        kubectl.namespace(name)
        later = Workloads(kubectl, name)
        later.cron_job("cron", "example.com/cron:1")
        later.pod("pod", "example.com/pod:1")
        wait_used(program, "cron", "pod")
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("served", [True, False], ids=["watch-list", "list"])
def test_watch_list(tmp_path: Path, served: bool) -> None:
    """With streamed lists and without: the same inventory, and one list for each kind at the start."""
    gates = f"--feature-gates=WatchList={str(served).lower()}"
    with KubeServer(apiserver_args=(gates,)) as kube:
        kubectl = Kubectl(kube.kubeconfig)
        kubectl("create", "namespace", "here")
        workloads = Workloads(kubectl, "here")
        for number in range(5):
            workloads.pod(f"pod-{number}", f"example.com/pod-{number}:1")
        before = lists(kubectl, "cronjobs")
        with Copycat(tmp_path / "copycat", DRY, kube.kubeconfig) as program:
            wait_used(program, *(f"pod-{number}" for number in range(5)))
            workloads.delete("pod", "pod-0")
            workloads.pod("pod-9", "example.com/pod-9:1")
            wait_used(program, *(f"pod-{number}" for number in (1, 2, 3, 4, 9)))
            assert program.metric('k8s_copycat_watch_synced{resource="pods"}') == 1
        assert lists(kubectl, "cronjobs") - before == (0 if served else 1)
