"""The container image, really built: by buildah, on a small Debian that stands in for the named base image.

No registry is asked: the base is made by mmdebstrap from the machine's own Debian sources, kept outside the tree,
and tagged exactly as the Dockerfile names it. The build may reach the package index that the machine's pip is set
up for; those settings are mounted, so they never become a part of the image.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import copycat
from tests.integration.process import run
from tests.needs import cache_dir

pytestmark = [
    pytest.mark.integration,
    pytest.mark.chart,
    pytest.mark.needs("buildah", "mmdebstrap"),
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).parents[2]
PACKAGES = "python3,python3-venv,ca-certificates"
#: What decides where pip gets packages from, and nothing else.
PIP_KEYS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "cert",
    "client-cert",
    "trusted-host",
    "proxy",
    "timeout",
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


class Buildah:
    """buildah with a store of its own: plain files, no daemon, nothing pulled."""

    def __init__(self, store: Path) -> None:
        self._options = ("--storage-driver=vfs", f"--root={store}/root", f"--runroot={store}/run")
        self._containers: dict[str, str] = {}

    def __call__(self, command: str, *arguments: str) -> str:
        """Runs a command of buildah; its standard output without the line's end."""
        return run("buildah", *self._options, command, *arguments, patience=500).strip()

    def image_of(self, archive: Path, tag: str) -> None:
        """Makes an image of a root file system."""
        container = self("from", "scratch")
        self("add", container, str(archive), "/")
        self("commit", "--quiet", "--rm", container, tag)

    def run(self, image: str, *command: str) -> str:
        """What a command in a container of that image prints, as the image's user."""
        if image not in self._containers:  # vfs copies the whole root for each container
            self._containers[image] = self("from", "--pull=never", image)
        return self("run", "--isolation=chroot", self._containers[image], "--", *command)

    def config(self, image: str) -> dict[str, Any]:
        """The image's OCI configuration."""
        found: dict[str, Any] = json.loads(self("inspect", "--type=image", image))["OCIv1"][
            "config"
        ]
        return found


@pytest.fixture(scope="module")
def buildah() -> Iterator[Buildah]:
    """A store that is gone afterwards."""
    with tempfile.TemporaryDirectory(
        prefix="copycat-buildah-", ignore_cleanup_errors=True
    ) as store:
        yield Buildah(Path(store))


@pytest.fixture(scope="module")
def image(buildah: Buildah, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, built from the checkout."""
    tag = "localhost/k8s-copycat:test"
    buildah.image_of(base_archive(), base_name())
    options = ["--pull=never", "--isolation=chroot", "--network=host", "--layers=false"]
    for name, value in pip_mounts(tmp_path_factory.mktemp("pip")).items():
        options.append(f"--volume={value}:{name}:ro")
    options += [f"--build-arg={name}" for name in PROXIES if name in os.environ]
    buildah("bud", *options, f"--tag={tag}", str(ROOT))
    return tag


def base_name() -> str:
    """The base image that the Dockerfile names."""
    found = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def base_archive() -> Path:
    """A Debian with Python as a tar archive; made once, in some twenty seconds."""
    codename = "bookworm"
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            codename = line.partition("=")[2].strip('"')
    archive = cache_dir() / f"base-{codename}-{PACKAGES.replace(',', '-')}.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        fresh = archive.with_suffix(f".{os.getpid()}.tar")
        files = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
        mirrors = [str(file) for file in files if file.exists() and file.stat().st_size]
        options = ["--quiet", "--variant=minbase", f"--include={PACKAGES}"]
        run("mmdebstrap", *options, codename, str(fresh), *mirrors, patience=500)
        fresh.rename(archive)
    return archive


def pip_mounts(directory: Path) -> dict[str, Path]:
    """The machine's pip settings: path in the build → path here."""
    settings: dict[str, str] = {}
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pip" / "pip.conf"
    named = Path(os.environ.get("PIP_CONFIG_FILE", os.devnull))
    parser = configparser.RawConfigParser()
    parser.read([Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", user, named])
    for section in ("global", "install"):
        if parser.has_section(section):
            settings.update(parser.items(section))
    for key in PIP_KEYS:
        value = os.environ.get(f"PIP_{key.upper().replace('-', '_')}", "")
        if value:
            settings[key] = value
    chosen = {key: settings[key] for key in PIP_KEYS if key in settings}
    config = directory / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in chosen.items()))
    local = [
        chosen.get("cert", ""),
        chosen.get("client-cert", ""),
        *chosen.get("find-links", "").split(),
    ]
    mounts = {path: Path(path) for path in local if path.startswith("/") and Path(path).exists()}
    return {"/etc/pip.conf": config, **mounts}


def test_it_builds_and_its_program_answers(buildah: Buildah, image: str) -> None:
    """The image is built on its named base without pulling, and `copycat run --version` runs in it."""
    assert copycat.__version__ in buildah.run(image, "copycat", "run", "--version")


def test_it_runs_as_nobody_in_particular(buildah: Buildah, image: str) -> None:
    """The user is a number that is not root, as the restricted Pod security standard can check."""
    assert buildah.config(image)["User"] == "65532:65532"
    assert buildah.run(image, "id", "-u") == "65532"


def test_the_entry_point_takes_the_arguments_of_run(buildah: Buildah, image: str) -> None:
    """A Pod's `args` are flags of `copycat run`, as they are with the original program."""
    config = buildah.config(image)
    assert config["Entrypoint"] == ["copycat", "run"]
    assert "Cmd" not in config


def test_nothing_of_the_build_machine_is_in_it(buildah: Buildah, image: str) -> None:
    """Neither pip's settings nor the checkout are left in the image or its configuration."""
    names = {entry.partition("=")[0] for entry in buildah.config(image)["Env"]}
    assert names == {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
    left = buildah.run(
        image, "sh", "-c", "ls -d /src /etc/pip.conf /opt/copycat/bin/pip 2>/dev/null; true"
    )
    assert left == ""
