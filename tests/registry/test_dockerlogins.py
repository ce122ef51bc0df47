"""The logins of `docker login`: a file that changes, and the helpers that it names."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from copycat.registry.credentials import Credentials
from copycat.registry.dockerlogins import LIFE, LOOK, DockerKeychain, docker_config_file
from copycat.registry.keychain import ANONYMOUS
from tests.registry.helpers import calls, install, keeps


def login(user: str, secret: str = "secret") -> dict[str, str]:
    """An entry of `auths`."""
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


class Home:
    """A folder with a config.json and helpers, and the keychain that reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.environ: Mapping[str, str] = {"PATH": "/usr/bin:/bin"}
        self.writes = 0

    @property
    def file(self) -> Path:
        """The file."""
        return self.folder / "config.json"

    def write(self, content: object) -> None:
        """Its content; each time with another time of change."""
        text = content if isinstance(content, str) else json.dumps(content)
        self.file.write_text(text)
        self.writes += 1
        os.utime(self.file, (self.writes, self.writes))

    def helper(self, name: str, script: str) -> None:
        """A helper on the PATH."""
        self.environ = install(self.folder, name, script)

    def keychain(self, *, required: bool = True) -> DockerKeychain:
        """A keychain that is new."""
        return DockerKeychain(
            self.file,
            required=required,
            environ=self.environ,
            helper_time_limit=5.0,
            clock=lambda: self.now,
        )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty one."""
    return Home(tmp_path)


async def users(keychain: DockerKeychain, image: str) -> list[str]:
    """Who the candidates are."""
    registry, _, repository = image.partition("/")
    return [c.username for c in await keychain.resolve(registry, repository, ANONYMOUS)]


@pytest.mark.parametrize(
    ("environ", "workstation", "expected"),
    [
        ({"DOCKER_CONFIG": "/d", "HOME": "/h"}, False, "/d/config.json"),
        ({"DOCKER_CONFIG": "/d", "HOME": "/h"}, True, "/d/config.json"),
        ({"HOME": "/h"}, True, "/h/.docker/config.json"),
        ({"HOME": "/h"}, False, None),
        ({}, True, None),
    ],
)
def test_where(environ: dict[str, str], workstation: bool, expected: str | None) -> None:
    """DOCKER_CONFIG everywhere, the home only where somebody sits."""
    assert docker_config_file(environ, workstation=workstation) == (expected and Path(expected))


async def test_auths(home: Home) -> None:
    """Exact hosts and paths at segments, the longest first; every spelling of Docker Hub; nobody else's."""
    home.write(
        {
            "auths": {
                "ghcr.io": login("host"),
                "ghcr.io/team": login("team"),
                "https://index.docker.io/v1/": login("hub"),
                "docker.io/library": login("library"),
                "empty.io": {},
            }
        }
    )
    keychain = home.keychain()

    assert await users(keychain, "ghcr.io/team/app") == ["team", "host"]
    assert await users(keychain, "ghcr.io/teams/app") == ["host"]
    assert await users(keychain, "docker.io/library/alpine") == ["library", "hub"]
    for other in ("ghcr.io.evil.example/team/app", "evil-ghcr.io/team", "empty.io/a", "quay.io/a"):
        assert await users(keychain, other) == []


async def test_order_of_helpers(home: Home) -> None:
    """For one path: its own helper, the store, the file; a longer path comes first whatever keeps it."""
    home.helper("own", keeps("own", "s"))
    home.helper("all", keeps("store", "s"))
    home.write(
        {
            "auths": {"a.io": login("file"), "a.io/team": login("near"), "*.io": login("wild")},
            "credHelpers": {"a.io": "own", "other.io": "own"},
            "credsStore": "all",
        }
    )

    assert await users(home.keychain(), "a.io/team/x") == ["near", "own", "store", "file", "wild"]
    assert calls(home.folder, "own") == ["get a.io"]


async def test_what_helpers_are_asked(home: Home) -> None:
    """The store is asked for the keys that were logged in to, for Docker Hub by Docker's own; a helper by the key as written."""
    home.helper("own", keeps("own", "s"))
    home.helper("all", keeps("store", "s"))
    home.write(
        {
            "auths": {"docker.io": {}, "a.io/team": {}, "b.io/x": {}},
            "credHelpers": {"https://gcr.io": "own"},
            "credsStore": "all",
        }
    )
    keychain = home.keychain()
    for image in ("docker.io/library/a", "a.io/team/app", "b.io/y", "gcr.io/a"):
        await users(keychain, image)

    assert calls(home.folder, "all") == [
        "get docker.io",
        "get a.io/team",
        "get a.io",
        "get b.io",
        "get gcr.io",
    ]
    assert calls(home.folder, "own") == ["get https://gcr.io"]

    home.write({"credsStore": "all"})
    home.now += LOOK
    await keychain.resolve("docker.io", "library/a", ANONYMOUS)

    assert calls(home.folder, "all")[-1] == "get https://index.docker.io/v1/"


async def test_helpers_are_asked_once(home: Home) -> None:
    """Twenty requests at once run a helper once; its answer is used for some minutes, what it does not have too."""
    home.helper("x", keeps("me", "$(date +%N)"))
    home.helper("none", "echo 'credentials not found in native keychain'; exit 1")
    home.write({"credHelpers": {"a.io": "x", "b.io": "none"}})
    keychain = home.keychain()
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(keychain.resolve, "a.io", f"app{number}", ANONYMOUS)
            tasks.start_soon(keychain.resolve, "b.io", f"app{number}", ANONYMOUS)

    assert len(calls(home.folder, "x")) == len(calls(home.folder, "none")) == 1

    home.now += LIFE / 2
    await keychain.resolve("a.io", "app", ANONYMOUS)
    await keychain.resolve("b.io", "app", ANONYMOUS)

    assert len(calls(home.folder, "x")) == len(calls(home.folder, "none")) == 2


async def test_expired(home: Home) -> None:
    """A registry that calls a helper's login too old makes the helper be asked again; other logins stay."""
    home.helper("x", keeps("me", "$(wc -l < $0.calls 2>/dev/null || date +%N)"))
    home.write({"credHelpers": {"a.io": "x"}})
    keychain = home.keychain()
    [first] = await keychain.resolve("a.io", "app", ANONYMOUS)
    home.now += 60
    keychain.expired("a.io", Credentials(username="somebody", password="else"))
    [same] = await keychain.resolve("a.io", "app", ANONYMOUS)
    keychain.expired("a.io", first)
    [other] = await keychain.resolve("a.io", "app", ANONYMOUS)

    assert first == same
    assert first.password != other.password
    assert len(calls(home.folder, "x")) == 2


async def test_a_helper_that_fails(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """It is warned of once and the next candidate is used; after a while it is tried again."""
    home.helper("x", "echo 'no session' >&2; exit 1")
    home.write({"auths": {"a.io": login("file")}, "credHelpers": {"a.io": "x"}})
    keychain = home.keychain()
    for _ in range(3):
        assert await users(keychain, "a.io/app") == ["file"]
    home.now += 61
    assert await users(keychain, "a.io/app") == ["file"]

    assert len(calls(home.folder, "x")) == 2
    out = capsys.readouterr().out
    assert out.count("docker-credential-x gave no login for a.io") == 1
    assert "no session" in out

    home.helper("x", keeps("back", "s"))
    home.now += 61
    assert await users(keychain, "a.io/app") == ["back", "file"]


async def test_the_file_changes(home: Home) -> None:
    """Some seconds after a change the new content counts, and helpers are asked anew; an unchanged file is not read again."""
    home.helper("x", keeps("helped", "s"))
    home.write({"auths": {"a.io": login("one")}, "credHelpers": {"b.io": "x"}})
    keychain = home.keychain()
    assert await users(keychain, "a.io/x") == ["one"]
    assert await users(keychain, "b.io/x") == ["helped"]

    home.write({"auths": {"a.io": login("two")}, "credHelpers": {"b.io": "x"}})
    assert await users(keychain, "a.io/x") == ["one"]
    home.now += LOOK
    assert await users(keychain, "a.io/x") == ["two"]
    assert await users(keychain, "b.io/x") == ["helped"]
    assert len(calls(home.folder, "x")) == 2

    home.now += LOOK
    await users(keychain, "b.io/x")
    assert len(calls(home.folder, "x")) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param('{"auths": {"a.io": {"auth": "Y2FuYXJ5', "not JSON", id="half written"),
        pytest.param(" " * (1024 * 1024 + 1), "larger than 1024 KiB", id="huge"),
    ],
)
async def test_a_file_that_breaks(
    home: Home, capsys: pytest.CaptureFixture[str], content: str, problem: str
) -> None:
    """What was read last counts as long as the file cannot be read; a warning names the file, not its content."""
    home.write({"auths": {"a.io": login("one")}})
    keychain = home.keychain()
    await users(keychain, "a.io/x")
    home.write(content)
    for _ in range(3):
        home.now += LOOK
        assert await users(keychain, "a.io/x") == ["one"]

    out = capsys.readouterr().out
    assert out.count(problem) == 1
    assert str(home.file) in out
    assert "Y2FuYXJ5" not in out


async def test_a_file_that_goes(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A mounted Secret that is being replaced takes no login away; a warning says so, also on a workstation."""
    home.write({"auths": {"a.io": login("one")}})
    keychain = home.keychain(required=False)
    await users(keychain, "a.io/x")
    home.file.unlink()
    for _ in range(3):
        home.now += LOOK
        assert await users(keychain, "a.io/x") == ["one"]

    assert capsys.readouterr().out.count("it is gone; what it held stays in use") == 1

    home.write({"auths": {"a.io": login("two")}})
    home.now += LOOK
    assert await users(keychain, "a.io/x") == ["two"]


async def test_a_folder_in_its_place(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be opened is told with the system's words."""
    home.file.mkdir()

    assert await users(home.keychain(), "a.io/x") == []
    assert "Is a directory" in capsys.readouterr().out


@pytest.mark.parametrize("required", [True, False])
async def test_no_file(home: Home, capsys: pytest.CaptureFixture[str], required: bool) -> None:
    """A file that DOCKER_CONFIG promises is missed with a word, the usual one of a workstation without."""
    keychain = home.keychain(required=required)
    for _ in range(2):
        assert await users(keychain, "a.io/x") == []
        home.now += LOOK

    assert capsys.readouterr().out.count("DOCKER_CONFIG names the folder") == int(required)


async def test_broken_entries(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken entry is told once and costs only itself; a helper's name is never a path."""
    home.helper("x", keeps("me", "s"))
    home.write(
        {
            "auths": {"a.io": login("a"), "b.io": {"auth": "%%%"}},
            "credHelpers": {"c.io": "../x", "": "x", "a.io": "x"},
            "credsStore": "/bin/x",
        }
    )
    keychain = home.keychain()

    assert await users(keychain, "a.io/x") == ["me", "a"]
    for image in ("b.io/x", "c.io/x"):
        assert await users(keychain, image) == []
    out = capsys.readouterr().out
    assert out.count("docker's logins cannot be used") == 1
    for words in ("'b.io' has an auth", "'c.io' of credHelpers does not name", "credsStore is not"):
        assert words in out
    assert "%%%" not in out


@pytest.mark.parametrize("wrong", [["x"], {"a.io": 1}, "x"])
async def test_helpers_of_another_form(home: Home, wrong: object) -> None:
    """Fields of a form that Docker does not know cost only themselves; null is nothing."""
    home.write({"auths": {"a.io": login("a")}, "credHelpers": wrong, "credsStore": 3})
    assert await users(home.keychain(), "a.io/x") == ["a"]

    home.write({"auths": {"a.io": login("a")}, "credHelpers": None, "credsStore": None})
    assert await users(home.keychain(), "a.io/x") == ["a"]
