"""`copycat mirror` in a process of its own, which a test can end as the kernel would, or a person.

The processes are forked from a server that has everything imported, so that one takes no longer than
a copy.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import anyio
import anyio.to_thread

from copycat.app.oneshot import mirror
from copycat.cli import until_terminated
from copycat.config.sources import load
from copycat.progress import Lines

__all__ = ["mirroring", "resident"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def _main(flags: Mapping[str, object], references: list[str]) -> None:
    """Exit 0 if all is at the target, and 143 on SIGTERM, as the program does."""
    settings = load(
        path="/nonexistent/copycat.yaml", environ={"TARGET_PASSWORD": "pw-of-me"}, flags=flags
    )

    async def run() -> bool:
        return await mirror(
            settings, references=references, manifests=[], reporter=Lines(io.StringIO())
        )

    sys.exit(0 if anyio.run(until_terminated, run()) else 1)


@asynccontextmanager
async def mirroring(
    flags: Mapping[str, object], *references: str
) -> AsyncIterator[ForkServerProcess]:
    """A process that mirrors; it is killed at the end if it still runs."""
    process = _CONTEXT.Process(target=_main, args=(flags, list(references)), daemon=True)
    await anyio.to_thread.run_sync(process.start)
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(process.join)


def resident(process: ForkServerProcess) -> int:
    """Bytes of memory that the process holds now."""
    fields = Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
