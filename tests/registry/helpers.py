"""Credential helpers for tests: small shell scripts on a PATH of their own."""

from __future__ import annotations

from pathlib import Path

#: Prints the login of a user whose password is `$1`.
ANSWER = """printf '{"ServerURL":"%s","Username":"%s","Secret":"%s"}' "$server" """


def install(folder: Path, name: str, script: str) -> dict[str, str]:
    """Put `docker-credential-<name>` into a folder; the environment to find it. Every call is counted in `<name>.calls`.

    In the script `$server` is what was asked for.
    """
    program = folder / f"docker-credential-{name}"
    calls = folder / f"{name}.calls"
    program.write_text(f'#!/bin/sh\nread -r server\necho "$1 $server" >> {calls}\n{script}\n')
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def calls(folder: Path, name: str) -> list[str]:
    """What a helper was asked, in order: `get ghcr.io`."""
    file = folder / f"{name}.calls"
    return file.read_text().splitlines() if file.exists() else []


def keeps(user: str, secret: str) -> str:
    """A script with one login for every server."""
    return f"""{ANSWER} {user} {secret}"""
