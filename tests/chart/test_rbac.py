"""The rights that the chart grants: exactly what the configuration needs, rule for rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from copycat.app.permissions import needed_permissions
from copycat.config.sources import load
from tests.chart.conftest import Render
from tests.chart.rendering import Object, Rendered

pytestmark = [pytest.mark.chart, pytest.mark.needs("helm-python-sdk")]

Rule = tuple[str, str, str, tuple[str, ...]]  # group, resource, resource name, verbs

READ = ("list", "watch")
PODS = ("", "pods", "", READ)
SECRETS = {("", "secrets", "", ("get",)), ("", "serviceaccounts", "", ("get",))}
NODES = ("", "nodes", "", READ)
EVENTS = ("", "events", "", ("create", "patch"))
#: What is needed where workloads are looked at: to see the six kinds, and to tell their failures.
ALL_SIX = {
    PODS,
    EVENTS,
    ("apps", "deployments", "", READ),
    ("apps", "statefulsets", "", READ),
    ("apps", "daemonsets", "", READ),
    ("batch", "jobs", "", READ),
    ("batch", "cronjobs", "", READ),
}


def rules(role: Object) -> set[Rule]:
    """A role's rules, one for each resource."""
    return {
        (group, resource, name, tuple(sorted(rule["verbs"])))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }


def lease(name: str) -> set[Rule]:
    """What a leader election on that Lease needs."""
    group = "coordination.k8s.io"
    return {(group, "leases", "", ("create",)), (group, "leases", name, ("get", "update"))}


def granted(rendered: Rendered) -> dict[str, set[Rule]]:
    """Namespace ("" for the cluster) → all rights there, by following each binding to the ServiceAccount."""
    account: dict[str, Any] = {
        "kind": "ServiceAccount",
        "name": rendered.pod["serviceAccountName"],
        "namespace": rendered.one("Deployment")["metadata"]["namespace"],
    }
    roles = {
        (role["kind"], role["metadata"].get("namespace", ""), role["metadata"]["name"]): role
        for role in rendered.all("Role", "ClusterRole")
    }
    rights: dict[str, set[Rule]] = {}
    used = set()
    for binding in rendered.all("RoleBinding", "ClusterRoleBinding"):
        assert binding["subjects"] == [account]
        namespace = binding["metadata"].get("namespace", "")
        key = (binding["roleRef"]["kind"], namespace, binding["roleRef"]["name"])
        rights.setdefault(namespace, set()).update(rules(roles[key]))
        used.add(key)
    assert used == roles.keys()
    return rights


def test_cluster_wide_by_default(with_values: Render) -> None:
    """Without includeNamespaces: list and watch on the six kinds and Events everywhere, the Lease at home, nothing else."""
    assert granted(with_values({})) == {"": ALL_SIX, "mirror": lease("copycat-k8s-copycat")}


def test_plain_names_need_no_cluster_role(with_values: Render) -> None:
    """Namespaces named one by one get a Role each, and nothing is granted cluster-wide."""
    rendered = with_values({"config": {"includeNamespaces": ["b", "a", "a"]}})
    assert rendered.all("ClusterRole", "ClusterRoleBinding") == []
    rights = granted(rendered)
    own = ALL_SIX | SECRETS
    assert rights == {"a": own, "b": own, "mirror": lease("copycat-k8s-copycat")}


def test_the_releases_own_namespace_can_be_watched(with_values: Render) -> None:
    """The Lease's Role and the Role to watch are two objects, also where they stand in one namespace."""
    rights = granted(with_values({"config": {"includeNamespaces": ["mirror"]}}))
    assert rights == {"mirror": ALL_SIX | SECRETS | lease("copycat-k8s-copycat")}


@pytest.mark.parametrize("names", [["*"], ["team-*", "a"], ["team-?"], []], ids=str)
def test_wildcards_need_the_cluster(with_values: Render, names: list[str]) -> None:
    """Namespaces that come later count, so a wildcard is watched cluster-wide."""
    assert granted(with_values({"config": {"includeNamespaces": names}}))[""] == ALL_SIX


def test_only_the_watched_kinds(with_values: Render) -> None:
    """watchResources, in any case of letters, limits the rights."""
    rights = granted(with_values({"config": {"watchResources": ["Pods", "cronJobs"]}}))
    assert rights[""] == {PODS, ("batch", "cronjobs", "", READ), EVENTS}


@pytest.mark.parametrize("mode", ["dryRun", "dryPull"])
@pytest.mark.parametrize("names", [["*"], ["a"]], ids=["cluster", "namespaces"])
def test_a_dry_mode_may_not_write_events(with_values: Render, mode: str, names: list[str]) -> None:
    """A dry mode writes nothing, so that nothing but its Lease may be written."""
    config = {mode: True, "includeNamespaces": names, "pullSecrets": "off"}
    rights = granted(with_values({"config": config}))
    assert rights["" if names == ["*"] else "a"] == ALL_SIX - {EVENTS}


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], {"": ALL_SIX | {NODES}}), (["a"], {"": {NODES}, "a": ALL_SIX | SECRETS})],
    ids=["cluster", "namespaces"],
)
def test_nodes_only_when_their_platform_is_asked(
    with_values: Render, names: list[str], expected: dict[str, set[Rule]]
) -> None:
    """checkNodePlatform adds nodes, and only that."""
    config = {"includeNamespaces": names, "checkNodePlatform": True}
    rights = granted(with_values({"config": config}))
    assert rights == expected | {"mirror": lease("copycat-k8s-copycat")}


@pytest.mark.parametrize(
    ("setting", "names", "expected"),
    [
        pytest.param(None, ["*"], [], id="auto, cluster-wide"),
        pytest.param("Auto", ["a", "b"], ["a", "b"], id="auto, plain names"),
        pytest.param("auto", ["a", "team-*"], [], id="auto, wildcard"),
        pytest.param("off", ["a"], [], id="off"),
        pytest.param(False, ["a"], [], id="off, as YAML reads it"),
        pytest.param("all", ["*"], [""], id="all, cluster-wide"),
        pytest.param("all", ["a", "b"], ["a", "b"], id="all, plain names"),
        pytest.param(["c", "a", "c"], ["*"], ["a", "c"], id="a list"),
        pytest.param("c, a", ["*"], ["a", "c"], id="a list as text"),
        pytest.param(["a", "c"], ["a", "b"], ["a"], id="a list, of what is watched"),
        pytest.param([], ["*"], [], id="an empty list"),
    ],
)
def test_pull_secrets_are_read_where_the_setting_says(
    with_values: Render, setting: object, names: list[str], expected: list[str]
) -> None:
    """`get` on Secrets and ServiceAccounts, by Roles in those namespaces; cluster-wide for `all` alone."""
    config = {"includeNamespaces": names} | ({} if setting is None else {"pullSecrets": setting})
    rights = granted(with_values({"config": config}))
    assert sorted(where for where, found in rights.items() if found & SECRETS) == expected
    assert all(found >= SECRETS for found in rights.values() if found & SECRETS)
    assert not [
        rule
        for found in rights.values()
        for rule in found
        if rule[1] == "secrets" and rule[3] != ("get",)
    ]


def test_no_source_no_secrets(with_values: Render) -> None:
    """dryPull asks no source, so it needs no pull secret."""
    config = {"includeNamespaces": ["a"], "pullSecrets": "all", "dryPull": True}
    assert not granted(with_values({"config": config}))["a"] & SECRETS


def test_the_lease_that_is_named(with_values: Render) -> None:
    """leaseName decides about the one Lease, and the program is told the same name."""
    rendered = with_values({"config": {"leaseName": "insurance"}})
    assert granted(rendered)["mirror"] == lease("insurance")
    assert {"name": "LEASE_NAME", "value": "insurance"} in rendered.container["env"]


def test_no_election_no_lease(with_values: Render) -> None:
    """Without leader election nothing is granted on leases."""
    assert granted(with_values({"config": {"leaderElect": False}})) == {"": ALL_SIX}


def test_no_roles_where_the_owner_makes_them(with_values: Render) -> None:
    """rbac.create: false leaves the roles to somebody else, and an existing account is used as it is."""
    account = {"create": False, "name": "mine"}
    rendered = with_values({"rbac": {"create": False}, "serviceAccount": account})
    kinds = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "ServiceAccount")
    assert rendered.all(*kinds) == []
    assert rendered.pod["serviceAccountName"] == "mine"


def test_two_releases_share_nothing(with_values: Render) -> None:
    """Releases of one name in two namespaces make different objects, also cluster-wide and in what both watch."""
    values = {"config": {"includeNamespaces": ["a"], "checkNodePlatform": True}}
    seen: set[tuple[str, str, str]] = set()
    for namespace in ("one", "two"):
        rendered = with_values(values, namespace=namespace)
        names = {
            (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])
            for item in rendered.objects
        }
        assert not names & seen
        seen |= names


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"includeNamespaces": ["a", "b"]},
        {"includeNamespaces": ["mirror"], "watchResources": ["pods"], "checkNodePlatform": True},
        {"includeNamespaces": ["team-*"], "leaderElect": False},
        {"dryRun": True},
        {"dryPull": True, "includeNamespaces": ["a"]},
    ],
    ids=str,
)
def test_what_is_granted_is_what_the_program_needs(
    with_values: Render, tmp_path: Path, config: dict[str, Any]
) -> None:
    """Nothing is missing of what the program checks at its start, and nothing is granted beside it."""
    rendered = with_values({"config": config})
    file = tmp_path / "config.yaml"
    file.write_text(rendered.config)
    environ = {e["name"]: e["value"] for e in rendered.container["env"] if "value" in e}
    settings = load(path=str(file), environ=environ)
    home = "" if config.get("leaderElect") is False else "mirror"
    needed: dict[str, set[Rule]] = {}
    for one in needed_permissions(settings, lease_namespace=home):
        rule = (one.group, one.resource, one.name, tuple(sorted(one.verbs)))
        needed.setdefault(one.namespace, set()).add(rule)
    assert granted(rendered) == needed
