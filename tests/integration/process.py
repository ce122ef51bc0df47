"""Child processes that end with the test run, even when it is killed."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["end", "run", "spawn"]

#: util-linux: the child dies with the thread that started it, so it must be the test's own.
_LEASH = ("setpriv", "--pdeathsig", "KILL", "--")


def spawn(
    command: Sequence[str],
    *,
    output: IO[bytes],
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a server in a session of its own, so that Ctrl-C reaches the test run alone."""
    return subprocess.Popen(
        [*_LEASH, *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=directory,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes], *, patience: float = 10.0) -> int:
    """SIGTERM, then SIGKILL after `patience` seconds; the exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def run(
    *command: str,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    patience: float = 120.0,
) -> str:
    """The standard output of a program that must succeed.

    Raises:
        AssertionError: it did not, with all that it said.
    """
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        timeout=patience,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(
            f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done.stdout
