"""`copycat run`, writing down when what came into its queue: `python -m bench.observed run …`.

The file of ADDS gets a line for each key that was not there before: the time by the machine's monotonic clock,
which other processes share, and the key. Nothing else differs from the real program.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TextIO

from copycat.cli import execute
from copycat.mirror.request import MirrorRequest
from copycat.workqueue import Priority, WorkQueue

__all__ = ["ADDS"]

#: The environment variable that names the file.
ADDS = "BENCH_ADDS"


def observe(file: TextIO) -> None:
    """Write down each new key from now on."""
    add = WorkQueue.add
    known: set[MirrorRequest] = set()

    def noting(
        queue: WorkQueue[MirrorRequest],
        key: MirrorRequest,
        priority: Priority = Priority.LIVE,
        *,
        delay: float = 0.0,
        rerun: bool = True,
    ) -> None:
        if key not in known:
            known.add(key)
            file.write(f"{time.monotonic()} {key.source}\n")
        add(queue, key, priority, delay=delay, rerun=rerun)

    WorkQueue.add = noting  # type: ignore[method-assign,assignment]  # the one change


if __name__ == "__main__":
    with Path(os.environ[ADDS]).open("w", buffering=1) as adds:
        observe(adds)
        execute(sys.argv[1:])
