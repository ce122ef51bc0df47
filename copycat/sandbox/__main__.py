"""`python -m copycat.sandbox registry|kube-api`: one sandbox server in a process of its own.

It prints one line of JSON with its address when it listens, and runs until SIGTERM, SIGINT or, if its
standard input is a pipe, until that closes: it does not outlive whoever started it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from copycat.sandbox import images
from copycat.sandbox.chaos import unleash
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry

__all__ = ["main"]

Serve = Callable[[argparse.Namespace], Coroutine[Any, Any, None]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, serves, returns when told to stop."""
    options = _parser().parse_args(arguments)
    serve: Serve = options.serve
    anyio.run(_until_told, serve, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m copycat.sandbox", description=__doc__)
    servers = parser.add_subparsers(required=True, metavar="registry|kube-api")
    registry = servers.add_parser("registry", help="a container registry in memory")
    registry.set_defaults(serve=_serve_registry)
    registry.add_argument("--host", default="127.0.0.1")
    registry.add_argument("--port", type=int, default=0)
    registry.add_argument("--profile", choices=sorted(PROFILES), default="distribution")
    registry.add_argument("--auth", choices=["none", "basic", "token"])
    registry.add_argument("--username", default="sandbox")
    registry.add_argument(
        "--password-env", default="", help="the environment variable that has the password"
    )
    registry.add_argument("--anonymous", action="store_true", help="anybody may pull")
    registry.add_argument("--images", type=int, default=0, help="fill <prefix>0:1, …")
    registry.add_argument("--image-prefix", default="library/image-")
    registry.add_argument("--layers", type=int, default=3, help="of each image")
    registry.add_argument("--layer-bytes", type=int, default=4096)
    registry.add_argument(
        "--faults", type=float, default=0.0, help="the share of requests that go wrong"
    )
    registry.add_argument("--seed", type=int, default=0, help="of the faults")
    kube = servers.add_parser("kube-api", help="a Kubernetes API")
    kube.set_defaults(serve=_serve_kube_api)
    kube.add_argument("--host", default="127.0.0.1")
    kube.add_argument("--port", type=int, default=0)
    kube.add_argument("--kubeconfig", type=Path, help="write one to this path")
    kube.add_argument("--pods", type=int, default=0)
    kube.add_argument("--images", type=int, default=0, help="different images among the Pods")
    kube.add_argument("--image-prefix", default="")
    kube.add_argument(
        "--digests", type=Path, help="a file with the digest of each image, one on a line"
    )
    kube.add_argument("--events", type=float, default=0.0, help="changes a second")
    return parser


async def _serve_registry(options: argparse.Namespace) -> None:
    password = os.environ.get(options.password_env, "") if options.password_env else ""
    async with Registry(
        host=options.host,
        port=options.port,
        profile=options.profile,
        auth=options.auth,
        username=options.username,
        password=password,
        anonymous=options.anonymous,
    ) as registry:
        for number in range(options.images):
            made = images.image(seed=number, layers=[options.layer_bytes] * options.layers)
            registry.add(f"{options.image_prefix}{number}", made, tag="1")
        if options.faults:
            unleash(registry.faults, share=options.faults, seed=options.seed)
        _say(kind="registry", address=registry.address, url=registry.url, cdn=registry.cdn)
        await anyio.sleep_forever()


async def _serve_kube_api(options: argparse.Namespace) -> None:
    # Nothing of the other server is loaded by a process that does not run it.
    from copycat.sandbox import kube_api  # noqa: PLC0415 - see above

    chosen = {
        "host": options.host,
        "port": options.port,
        "kubeconfig": options.kubeconfig,
        "pods": options.pods or None,
        "images": options.images or None,
        "image_prefix": options.image_prefix or None,
        "digests": tuple(options.digests.read_text().split()) if options.digests else None,
        "events": options.events or None,
    }
    settings = kube_api.ServeOptions(**{k: v for k, v in chosen.items() if v is not None})
    await kube_api.serve(settings, started=lambda api: _say(kind="kube-api", url=api.url))


def _say(**facts: str) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def _until_told(serve: Serve, options: argparse.Namespace) -> None:
    async with anyio.create_task_group() as tasks, _signals() as told:
        tasks.start_soon(serve, options)
        if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
            tasks.start_soon(_watch_stdin, told)
        await told.wait()
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _signals() -> AsyncIterator[anyio.Event]:
    """An event that the signals set."""
    told = anyio.Event()
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                async for _ in received:
                    told.set()

            tasks.start_soon(listen)
            yield told
            tasks.cancel_scope.cancel()


async def _watch_stdin(told: anyio.Event) -> None:
    descriptor = sys.stdin.fileno()
    while True:
        await anyio.wait_readable(descriptor)
        if not os.read(descriptor, 4096):
            break
    told.set()


if __name__ == "__main__":
    main()
