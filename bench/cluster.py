"""How `copycat run` carries a large cluster: time to know it all, time to protect it all, memory, CPU, latency.

    python -m bench.cluster [--pods 10000] [--images 200] [--events 0 --seconds 60] [--patches 0]
                            [--api real [--idle MINUTES]]

The Kubernetes API, the source and the target are the sandbox's, each in a process of its own; with `--api real`
the API is etcd and kube-apiserver. "synced" is the time from the start of the process to the log line that says
that every informer has its first list, "protected" the time until the metrics show every image protected. With
`--events` the (sandbox) API changes so many Pods a second, and the CPU of `--seconds` after that is measured,
with the event loop's lag. With `--patches` so many Pods get another image, meanwhile or after that, and the time is
measured from the sending of the patch to the arrival of the image in the queue. With `--idle` nothing changes for
so many minutes, and all that the program asks of the API is counted.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from bench.api import Api, patch_images
from bench.program import LAG, Program, copycat, quantile, sandbox
from bench.real import HOME, asked, control_plane
from copycat.sandbox.images import image
from tests.integration.kube_server import KubeServer

#: What the sandbox registry makes of `--layers` and `--layer-bytes`.
LAYERS, LAYER_BYTES = 3, 4096
#: Seconds for which what was patched may be on its way.
PATIENCE = 30.0
_MODIFIED = 'k8s_copycat_watch_events_total{resource="pods",type="MODIFIED"}'


def measure(options: argparse.Namespace) -> None:
    """One run, printed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = stack.enter_context(
            sandbox("registry", "--images", str(options.images), "--layers", str(LAYERS))
        )["address"]
        target = stack.enter_context(sandbox("registry"))["address"]
        prefix = f"{source}/library/image-"
        server = api(stack, folder, prefix, options)
        arguments = ["--leader-elect"] if server else []
        program = stack.enter_context(
            copycat(
                folder,
                source,
                target,
                *arguments,
                kubeconfig=folder / "kubeconfig",
                variables={"POD_NAMESPACE": HOME},
            )
        )
        synced = program.wait_for_line("synced")
        after_sync = program.memory()[1]
        protected = program.wait_protected(options.images)
        now, peak = program.memory()
        print(
            f"{options.pods} Pods, {options.images} images: synced {synced:.2f} s (peak {after_sync:.0f} MiB),"
            f" protected {protected:.2f} s, RSS {now:.0f} MiB, peak {peak:.0f} MiB"
        )
        if options.idle and server:
            idle(server, options.idle)
        threads = [
            threading.Thread(target=patched, args=(program, folder, prefix, options.patches))
        ]
        for thread in threads if options.patches else ():
            thread.start()
            stack.callback(thread.join)
        if options.events:
            churned(program, options)


def api(
    stack: ExitStack, folder: Path, prefix: str, options: argparse.Namespace
) -> KubeServer | None:
    """The API server, full; its kubeconfig in the folder."""
    if options.api == "real":
        return stack.enter_context(
            control_plane(folder, pods=options.pods, images=options.images, prefix=prefix)
        )
    digests = folder / "digests"
    made = (image(seed=n, layers=[LAYER_BYTES] * LAYERS) for n in range(options.images))
    digests.write_text("\n".join(i.digest for i in made))
    sizes = ["--pods", str(options.pods), "--images", str(options.images)]
    names = ["--image-prefix", prefix, "--digests", str(digests)]
    events = ["--events", str(options.events), "--kubeconfig", str(folder / "kubeconfig")]
    stack.enter_context(sandbox("kube-api", *sizes, *names, *events))
    return None


def churned(program: Program, options: argparse.Namespace) -> None:
    """What steady change costs."""
    cpu, begin = program.cpu(), time.perf_counter()
    seen, lag = program.value(_MODIFIED), program.buckets(LAG)
    time.sleep(options.seconds)
    share = (program.cpu() - cpu) / (time.perf_counter() - begin)
    events = program.value(_MODIFIED) - seen
    late = quantile(0.99, lag, program.buckets(LAG))
    print(
        f"  {events / options.seconds:.0f} events a second: {share:.0%} of a core,"
        f" loop lag p99 at most {late * 1000:.0f} ms, RSS {program.memory()[0]:.0f} MiB"
    )


def patched(program: Program, folder: Path, prefix: str, count: int) -> None:
    """How long a new image takes from the patch to the queue."""
    with Api(folder / "kubeconfig") as one:
        sent = patch_images(one, prefix, count=count)
    deadline = time.monotonic() + PATIENCE
    while (missing := sent.keys() - program.adds().keys()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if missing:
        raise SystemExit(f"{len(missing)} of {count} patched images never came into the queue")
    adds = program.adds()
    taken = sorted(adds[image] - moment for image, moment in sent.items())
    p50, p99 = (taken[min(int(share * count), count - 1)] * 1000 for share in (0.5, 0.99))
    print(f"  patch to queue: p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {taken[-1] * 1000:.1f} ms")


def idle(server: KubeServer, minutes: float) -> None:
    """What is asked while nothing changes."""
    before = asked(server)
    time.sleep(minutes * 60)
    found = sorted((asked(server) - before).items())
    print(f"  {minutes:g} idle minutes: {', '.join(f'{count} x {what}' for what, count in found)}")


def main() -> None:
    """Measure as often as asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--api", choices=["sandbox", "real"], default="sandbox")
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--events", type=float, default=0.0, help="changes a second (sandbox)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--patches", type=int, default=0, help="Pods that get another image")
    parser.add_argument("--idle", type=float, default=0.0, help="minutes without a change (real)")
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    if options.api == "real" and options.events:
        parser.error("--events are changes that only the sandbox makes")
    if options.api == "sandbox" and options.idle:
        parser.error("--idle needs --api real: its audit log tells every request")
    for _ in range(options.runs):
        measure(options)


if __name__ == "__main__":
    main()
