"""Which permissions a configuration needs, and that the program says what is missing beside its work."""

from __future__ import annotations

import pytest

from copycat.app.permissions import needed_permissions
from copycat.config.settings import Settings
from copycat.config.sources import load
from tests.app.support import World, protected, until


def settings(**flags: object) -> Settings:
    """A configuration with these keys."""
    base = {"target_kind": "docker", "docker.registry": "t.example"}
    return load(path="/nonexistent/config.yaml", environ={}, flags={**base, **flags})


def asked(flags: dict[str, object], *, lease: str = "") -> set[tuple[str, str, str, str]]:
    """(what, verbs, namespace, name) of everything that is needed."""
    return {
        (p.what, " ".join(p.verbs), p.namespace, p.name)
        for p in needed_permissions(settings(**flags), lease_namespace=lease)
    }


WATCH = "list watch"


@pytest.mark.parametrize(
    ("flags", "lease", "expected"),
    [
        pytest.param(
            {"watch_resources": "pods,deployments"},
            "",
            {
                ("pods", WATCH, "", ""),
                ("deployments.apps", WATCH, "", ""),
                ("events", "create patch", "", ""),
            },
            id="cluster",
        ),
        pytest.param(
            {"watch_resources": "cronjobs", "include_namespaces": "a,b"},
            "tools",
            {
                ("cronjobs.batch", WATCH, "a", ""),
                ("cronjobs.batch", WATCH, "b", ""),
                ("events", "create patch", "a", ""),
                ("events", "create patch", "b", ""),
                ("leases.coordination.k8s.io", "create", "tools", ""),
                ("leases.coordination.k8s.io", "get update", "tools", "k8s-copycat"),
            },
            id="namespaces",
        ),
        pytest.param(
            {"watch_resources": "pods", "check_node_platform": True, "dry_pull": True},
            "",
            {("pods", WATCH, "", ""), ("nodes", WATCH, "", "")},
            id="dry",
        ),
    ],
)
def test_needed(
    flags: dict[str, object], lease: str, expected: set[tuple[str, str, str, str]]
) -> None:
    """Exactly what the configuration uses, where it uses it."""
    got = asked({"pull_secrets": "off", **flags}, lease=lease)
    assert got == expected


@pytest.mark.parametrize(
    ("flags", "namespaces"),
    [
        ({}, set()),
        ({"include_namespaces": "a,b"}, {"a", "b"}),
        ({"include_namespaces": "a,b", "skip_namespaces": "b"}, {"a"}),
        ({"include_namespaces": "a,team-*"}, set()),
        ({"pull_secrets": "all"}, {""}),
        ({"pull_secrets": "all", "include_namespaces": "a"}, {"a"}),
        ({"pull_secrets": "b,c"}, {"b", "c"}),
        ({"pull_secrets": "b,c", "include_namespaces": "a,b"}, {"b"}),
        ({"pull_secrets": "off", "include_namespaces": "a"}, set()),
        ({"pull_secrets": "all", "dry_pull": True}, set()),
    ],
    # sets in an order that is the same in every process, or pytest-xdist would not run them
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_pull_secrets(flags: dict[str, object], namespaces: set[str]) -> None:
    """`get` on Secrets and ServiceAccounts where the setting has a use for them."""
    found = {row for row in asked(flags) if row[0] in {"secrets", "serviceaccounts"}}
    kinds = ("secrets", "serviceaccounts")
    assert found == {(kind, "get", where, "") for kind in kinds for where in namespaces}


async def test_the_work_does_not_wait(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing is named at the start while everything else is copied."""
    world.api.forbid("cronjobs", "events")
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    seen = ""
    async with world.running() as program:
        await protected(program, 1)

        def told() -> bool:
            nonlocal seen
            seen += capsys.readouterr().out
            return "permissions are missing" in seen

        await until(told)
    assert "cronjobs.batch" in seen
    assert "create, patch" in seen
