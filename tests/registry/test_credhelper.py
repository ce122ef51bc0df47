"""Programs that keep logins: their answers, and everything else that a program may do."""

from __future__ import annotations

import os
import select
from pathlib import Path

import anyio.to_thread
import pytest

from copycat.errors import Unavailable
from copycat.registry.credhelper import ask_helper
from tests.registry.helpers import calls, install, keeps

CANARY = "canary-5d1c"


async def test_login(tmp_path: Path) -> None:
    """The server goes in, the login comes out; its repr shows no secret."""
    environ = install(tmp_path, "x", keeps("me", CANARY))
    found = await ask_helper("x", "ghcr.io", environ=environ)

    assert found is not None
    assert (found.username, found.password) == ("me", CANARY)
    assert found.source == "of docker-credential-x for ghcr.io"
    assert CANARY not in repr(found)
    assert calls(tmp_path, "x") == ["get ghcr.io"]


async def test_identity_token(tmp_path: Path) -> None:
    """The user `<token>` marks an identity token."""
    environ = install(tmp_path, "x", keeps("'<token>'", CANARY))
    found = await ask_helper("x", "a.io", environ=environ)

    assert found is not None
    assert found.refresh_token == CANARY
    assert not found.password


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("echo 'credentials not found in native keychain'; exit 1", id="on stdout"),
        pytest.param("echo 'credentials not found in native keychain' >&2; exit 1", id="on stderr"),
        pytest.param("""echo '{"Username":"me","Secret":""}'""", id="empty"),
    ],
)
async def test_nothing(tmp_path: Path, script: str) -> None:
    """A helper that has nothing is no trouble."""
    environ = install(tmp_path, "x", script)

    assert await ask_helper("x", "a.io", environ=environ) is None


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        pytest.param("echo 'gcloud is not logged in' >&2; exit 3", "ended with 3: gcloud is not logged in", id="says why"),
        pytest.param("exit 4", r"it ended with 4\.", id="silent"),
        pytest.param(f"{keeps('me', CANARY)}; exit 5", r"it ended with 5\.", id="after its answer"),
        pytest.param(f"echo 'Secret: {CANARY}' >&2; exit 6", r"it ended with 6\.", id="talks"),
        pytest.param(f"echo {CANARY}", "no JSON", id="no json"),
        pytest.param("printf '{\"x\":'; head -c 20000 /dev/zero | tr '\\0' '['", "no JSON", id="nested"),
        pytest.param(f"""echo '{{"Username":"{CANARY}"}}'""", "no JSON", id="half of it"),
        pytest.param("printf '\\377\\376'", "no JSON", id="no text"),
        pytest.param("yes", "more than 64 KiB", id="endless"),
        pytest.param("yes >&2", "not end within 0.5 s", id="endless complaint"),
        pytest.param("exec sleep 60", "not end within 0.5 s", id="hangs"),
        pytest.param("sleep 3 & exit 0", "not end within 0.5 s", id="leaves a child"),
    ],
)  # fmt: skip
async def test_trouble(tmp_path: Path, script: str, problem: str) -> None:
    """What a helper does instead of answering is an error that names it and the server; nothing that it printed as an answer is shown."""
    environ = install(tmp_path, "x", script)
    limit = 0.5 if "within" in problem else 20.0
    with pytest.raises(Unavailable, match=problem) as caught:
        await ask_helper("x", "a.io", environ=environ, time_limit=limit)

    assert "docker-credential-x gave no login for a.io" in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("cat {line}", id="waits for it"),
        pytest.param("cat {line} & exit 0", id="leaves it behind"),
        pytest.param("trap '' TERM HUP INT; cat {line}; cat {line}", id="does not want to end"),
        pytest.param("cat {line} & yes", id="talks meanwhile"),
    ],
)
async def test_children(tmp_path: Path, script: str) -> None:
    """A helper that is stopped takes along what it started: a script that wraps a program leaves nothing running."""
    line = tmp_path / "line"
    os.mkfifo(line)
    environ = install(tmp_path, "x", script.format(line=line))
    # whoever waits for the line has opened it, and keeps it open as long as it lives
    end = os.open(line, os.O_RDWR)
    reader = os.open(line, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(line, os.O_WRONLY)
    os.close(end)
    with pytest.raises(Unavailable):
        await ask_helper("x", "a.io", environ=environ, time_limit=0.5)

    os.close(reader)
    poll = select.poll()
    poll.register(writer, 0)
    nobody_reads = await anyio.to_thread.run_sync(poll.poll, 10_000)
    os.close(writer)
    assert nobody_reads


async def test_does_not_listen(tmp_path: Path) -> None:
    """A helper that closes its input answers all the same."""
    program = tmp_path / "docker-credential-deaf"
    program.write_text("""#!/bin/sh\nexec 0<&-\necho '{"Username":"u","Secret":"s"}'\n""")
    program.chmod(0o755)
    server = "a.io/" + "x" * 200_000
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    found = await ask_helper("deaf", server, environ=environ)

    assert found is not None
    assert found.password == "s"


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        pytest.param(None, "it is not on the PATH", id="absent"),
        pytest.param(0o644, "Permission denied", id="no program"),
    ],
)
async def test_not_to_be_run(tmp_path: Path, mode: int | None, problem: str) -> None:
    """A program that is not there or cannot be run is named."""
    if mode is not None:
        install(tmp_path, "x", "")
        (tmp_path / "docker-credential-x").chmod(mode)
    with pytest.raises(Unavailable, match=problem):
        await ask_helper("x", "a.io", environ={"PATH": str(tmp_path)})
