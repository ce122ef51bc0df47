"""What waiting keys cost: `python -m bench.queue_keys [--keys 50000]`.

The keys are requests as the controller has them, made of references that were parsed; half of them wait for a
time to come. The memory is the process's own, measured after a collection, with the keys and without the queue too.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

from copycat.mirror.request import MirrorRequest
from copycat.oci.reference import Reference
from copycat.workqueue import Priority, WorkQueue


def resident() -> float:
    """MiB of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    """Fill a queue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=50_000)
    options = parser.parse_args()
    before = resident()
    keys = []
    for number in range(options.keys):
        name = f"team-{number % 500}/application-{number}"
        source = Reference.parse(f"registry.example.com/{name}:1.{number % 50}")
        keys.append(MirrorRequest(source, f"mirror/registry.example.com/{name}"))
    made = resident()
    queue: WorkQueue[MirrorRequest] = WorkQueue(fair=lambda key: key.source.repository[:8])
    begin = time.perf_counter()
    for number, key in enumerate(keys):
        queue.add(key, Priority.INITIAL, delay=3600.0 * (number % 2))
    took = time.perf_counter() - begin
    after = resident()
    print(
        f"{options.keys} keys: {after - before:.0f} MiB, of which the queue {after - made:.0f} MiB; added in {took:.2f} s"
    )


if __name__ == "__main__":
    main()
