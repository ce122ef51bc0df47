"""`copycat run` with a loop that can be blocked: SIGUSR1 stops it dead, SIGUSR2 lets it go on.

It stands in `sigwait` in the middle of a callback, as a library that calls something slow would; the process,
its other threads and the kernel, which accepts connections for it, go on.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from copycat.cli import execute
from copycat.config.settings import Settings
from copycat.program import RealProgram


def block() -> None:
    """Runs in the event loop, and does not return."""
    signal.sigwait({signal.SIGUSR2})


class Blockable(RealProgram):
    """The real program, whose loop listens to SIGUSR1."""

    async def run(self, settings: Settings, **options: Any) -> None:
        """As always."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, block)
        await super().run(settings, **options)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    execute(sys.argv[1:], program=Blockable())
