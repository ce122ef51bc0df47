"""Which tests need a real program, and what happens when it is not installed.

A test module says `pytest.mark.needs("skopeo", …)`. Where everything is installed the tests simply run. On a
newcomer's machine the others stay out and one line says so, instead of a screen of skips. In CI, or with
COPYCAT_REQUIRE_ALL=1, a missing program is an error: nothing may pass there by not running.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

#: Python packages among the names that `needs` takes, by what is imported; all others are executables.
PACKAGES = {"helm-python-sdk": "helm_python", "kubernetes-validate": "kubernetes_validate"}

#: Executables that live in the directory that KUBEBUILDER_ASSETS names (envtest's convention).
ENVTEST = ("kube-apiserver", "etcd", "kube-controller-manager")

#: Executables that nox builds into the cache, unless they are on the PATH.
BUILT = ("registry-v3", "toxiproxy-server")

_MISSING = pytest.StashKey[tuple[int, list[str]]]()


def cache_dir() -> Path:
    """Where builds that outlive a checkout are kept."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "k8s-copycat"


def envtest_dir() -> Path:
    """The directory of kube-apiserver and etcd: KUBEBUILDER_ASSETS, else what `.ci/run` and nox build."""
    named = os.environ.get("KUBEBUILDER_ASSETS", "")
    return Path(named) if named else cache_dir() / "envtest"


def executable(name: str) -> str | None:
    """Where an executable is: on the PATH, or among those that nox builds."""
    return shutil.which(name) or (
        shutil.which(str(cache_dir() / "go" / name)) if name in BUILT else None
    )


def installed(name: str) -> bool:
    """Whether the program or package of that name can be used here."""
    if name in PACKAGES:
        return importlib.util.find_spec(PACKAGES[name]) is not None
    if name in ENVTEST:
        return os.access(envtest_dir() / name, os.X_OK)
    return executable(name) is not None


def required() -> bool:
    """Whether a missing program is an error: in CI, or when asked for."""
    off = ("", "0", "false")
    return any(
        os.environ.get(name, "").lower() not in off for name in ("CI", "COPYCAT_REQUIRE_ALL")
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the mark."""
    config.addinivalue_line(
        "markers", "needs(*names): programs or packages without which the test cannot run"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what cannot run here; after `-m` and `-k` have chosen."""
    verdict: dict[str, bool] = {}
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        names = {str(name) for mark in item.iter_markers("needs") for name in mark.args}
        for name in names - verdict.keys():
            verdict[name] = installed(name)
        (kept if all(verdict[name] for name in names) else left).append(item)
    if not left:
        return
    missing = sorted(name for name, there in verdict.items() if not there)
    if required():
        raise pytest.UsageError(
            f"{len(left)} tests need {', '.join(missing)}, not installed here, and CI may leave nothing out: "
            "CONTRIBUTING.md says where each comes from"
        )
    config.stash[_MISSING] = (len(left), missing)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The one line."""
    count, missing = config.stash.get(_MISSING, (0, []))
    if count:
        terminalreporter.write_line(
            f"{count} tests were not run: they need {', '.join(missing)} (CONTRIBUTING.md, 'Real programs')"
        )
