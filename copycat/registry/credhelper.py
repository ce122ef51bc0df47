"""Docker's credential helpers: programs on the PATH that keep logins, one question and one answer each.

The protocol is docker-credential-helpers' (`credentials/credentials.go`): `docker-credential-<name> get`
reads the server from its standard input and prints `{"Username": …, "Secret": …}`. A helper may be slow, talk
without end or never come back, so that it has a time limit and its output a bound. What it printed is shown
to nobody unless it is an error of its own, and then without what looks like a secret.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress

import anyio
import msgspec
from anyio.abc import ByteReceiveStream, Process

from copycat.decoding import UNREADABLE
from copycat.errors import Unavailable, printable
from copycat.registry.credentials import IDENTITY_USER, Credentials

__all__ = ["TIME_LIMIT", "ask_helper"]

#: Seconds after which a helper is stopped.
TIME_LIMIT = 30.0
#: Bytes that a helper may print; a login is shorter.
MAX_OUTPUT = 64 * 1024
#: How helpers say that they have nothing.
_NOTHING = "credentials not found"


class _Answer(msgspec.Struct, rename="pascal", gc=False):
    username: str
    secret: str


_ANSWER = msgspec.json.Decoder(_Answer)


async def ask_helper(
    name: str, server: str, *, environ: Mapping[str, str], time_limit: float = TIME_LIMIT
) -> Credentials | None:
    """What a helper keeps for a server; None if it has nothing.

    Args:
        environ: of the program; the PATH in it is where the program is looked for.
        time_limit: in seconds.

    Raises:
        Unavailable: the helper is not there, fails, is too slow, or prints what is no answer.
    """
    program = f"docker-credential-{name}"
    try:
        with anyio.fail_after(time_limit):
            code, output, complaint = await _run([program, "get"], server, environ)
    except TimeoutError as error:
        raise _failure(program, server, f"it did not end within {time_limit:g} s") from error
    except OSError as error:
        raise _failure(program, server, _reason(error)) from error

    if len(output) > MAX_OUTPUT:
        raise _failure(program, server, f"it printed more than {MAX_OUTPUT // 1024} KiB")

    if code != 0:
        said = _said(output) or _said(complaint)
        if _NOTHING in said.lower():
            return None

        raise _failure(program, server, f"it ended with {code}{f': {said}' if said else ''}")

    return _credentials(program, server, output)


def _credentials(program: str, server: str, output: bytes) -> Credentials | None:
    try:
        answer = _ANSWER.decode(output)
    except UNREADABLE:
        # no cause: it quotes what was printed
        raise _failure(program, server, "it printed no JSON with Username and Secret") from None

    if not answer.secret:
        return None

    source = f"of {program} for {server}"
    if answer.username == IDENTITY_USER:
        return Credentials(username=answer.username, identity_token=answer.secret, source=source)

    return Credentials(username=answer.username, password=answer.secret, source=source)


async def _run(
    command: list[str], server: str, environ: Mapping[str, str]
) -> tuple[int, bytes, bytes]:
    """Exit code and what was printed to both outputs, of each a little more than the bound at most."""
    process = await anyio.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environ),
        # a group of its own, so that it can be stopped with all that it started
        start_new_session=True,
    )
    output, complaint = bytearray(), bytearray()
    async with process:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_tell, process, server)
                tasks.start_soon(_read, process.stderr, complaint)
                if not await _read(process.stdout, output):
                    _stop(process)
                    tasks.cancel_scope.cancel()
            return await process.wait(), bytes(output), bytes(complaint)
        except BaseException:
            _stop(process)
            raise


def _stop(process: Process) -> None:
    """End a helper and its children: many are scripts around a program, which would stay behind each time."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _tell(process: Process, server: str) -> None:
    """The question. A helper that does not read it answers all the same, or not."""
    if process.stdin is not None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await process.stdin.send(server.encode())
        await process.stdin.aclose()


async def _read(stream: ByteReceiveStream | None, into: bytearray) -> bool:
    """Read to the end, or until there is too much; whether it was the end."""
    if stream is not None:
        async for chunk in stream:
            into += chunk
            if len(into) > MAX_OUTPUT:
                return False
    return True


def _said(raw: bytes) -> str:
    """An error that a helper printed, fit to be shown. An answer is none, even if the helper failed after it."""
    text = raw[:2000].decode(errors="replace").strip()
    return "" if "{" in text or "secret" in text.lower() else printable(text, 200)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not on the PATH"
    return printable(error.strerror or type(error).__name__)


def _failure(program: str, server: str, what: str) -> Unavailable:
    return Unavailable(
        f"The credential helper {program} gave no login for {printable(server, 100)}: {what}."
    )
