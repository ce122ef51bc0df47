"""Copy 50 MiB under `maxBandwidth: 10Mi`, and say how long it took: five seconds are right.

    python -m bench.bandwidth [--rate 10Mi] [--images 1] [--size 50]

Both registries are the sandbox's, in this process; the size is that of all images together. Ends with 1
if the time is off by more than a tenth.
"""

from __future__ import annotations

import argparse
import sys
import time

import anyio

from copycat.app.wiring import open_engine
from copycat.config.sources import load
from copycat.metrics import Metrics
from copycat.mirror.request import MirrorRequest, Need
from copycat.oci.reference import Reference
from copycat.sandbox.registry import Registry

MIB = 1024 * 1024
LAYERS = 4


async def measure(rate: str, images: int, size: int) -> tuple[float, float]:
    """Seconds that it took, and that it should have taken. Args: `size` in MiB."""
    async with Registry() as source, Registry() as target:
        settings = load(
            path="/nonexistent/copycat.yaml",
            environ={},
            flags={
                "target_kind": "docker",
                "docker.registry": target.address,
                "docker.insecure": True,
                "insecure_registries": source.address,
                "max_bandwidth": rate,
            },
        )
        layer = size * MIB // images // LAYERS
        for number in range(images):
            source.add_image(f"bench/{number}", "1", seed=number, layers=[layer] * LAYERS)
        async with open_engine(settings, metrics=Metrics(version="bench")) as engine:

            async def copy(number: int) -> None:
                reference = Reference.parse(f"{source.address}/bench/{number}:1")
                result = await engine.mirror.run(MirrorRequest(reference, f"copy/{number}"), Need())
                if not result.protected:
                    raise SystemExit(result.message)

            begun = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for number in range(images):
                    tasks.start_soon(copy, number)
            took = time.perf_counter() - begun
    return took, size * MIB / settings.max_bandwidth if settings.max_bandwidth else 0.0


def main() -> int:
    """Print one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", default="10Mi")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--size", type=int, default=50, help="MiB in all")
    options = parser.parse_args()
    took, right = anyio.run(measure, options.rate, options.images, options.size)
    print(f"{options.size} MiB in {options.images} images at {options.rate}/s: {took:.2f} s, {right:.2f} s would be exact")  # fmt: skip
    return 0 if not right or abs(took - right) <= right / 10 else 1


if __name__ == "__main__":
    sys.exit(main())
