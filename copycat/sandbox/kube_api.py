"""A Kubernetes API in this process, over real sockets: strict enough that a client that works here works there.

It keeps objects of the kinds that the program watches (and Leases, Secrets, Events), with resource
versions, optimistic concurrency, lists in pages, watches with bookmarks and initial events,
histories that a compaction cuts, permissions, and faults on demand.

    async with KubeApi() as api:
        api.create("pods", {"metadata": {"namespace": "shop", "name": "web"}, "spec": {...}})
        api.kubeconfig(path)
        api.fail(Fault.ERROR_410, resource="pods")

It knows nothing of the program's own Kubernetes client, so that one may test the other.
"""

from __future__ import annotations

import base64
import json
import ssl
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from aiohttp import web

from copycat.sandbox.kube_handler import Handler, Request, merge_patch
from copycat.sandbox.kube_pods import churn, fill
from copycat.sandbox.kube_rules import Access, Fault, Faults, Rule
from copycat.sandbox.kube_store import Key, Object, Store
from copycat.sandbox.kube_watch import WatchSettings

__all__ = ["Fault", "KubeApi", "Request", "Rule", "ServeOptions", "serve"]


class KubeApi:
    """The server. State outlives `stop` and `start`, which keep the port."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        history: int = 5000,
        watch_list: bool = True,
        bookmark_every: float = 60.0,
    ) -> None:
        """Args: `history` is how many changes each kind remembers; `bookmark_every` is in seconds."""
        self.store = Store(history=history)
        self.access = Access()
        self.faults = Faults()
        self.watch_settings = WatchSettings(watch_list=watch_list, bookmark_every=bookmark_every)
        self._handler = Handler(self.store, self.access, self.faults, self.watch_settings)
        self._host = host
        self._port = port
        self._ssl = ssl_context
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # Lifetime

    async def start(self) -> None:
        """Listen; after `stop` on the port of before."""
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handler.answer)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.01
        )
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._port, ssl_context=self._ssl)
        await site.start()
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Break every connection and close the port."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, https with a certificate."""
        return f"{'https' if self._ssl else 'http'}://{self._host}:{self._port}"

    def kubeconfig(
        self,
        path: Path,
        *,
        token: str = "",
        namespace: str = "",
        ca: bytes = b"",
        user: Object | None = None,
    ) -> Path:
        """Write a kubeconfig for this server (as JSON, which is YAML too).

        Args: `ca` is a PEM bundle; `user` are more fields of the user (exec, tokenFile, …).
        """
        cluster: Object = {"server": self.url}
        if ca:
            cluster["certificate-authority-data"] = base64.b64encode(ca).decode()
        context: Object = {"cluster": "sandbox", "user": "sandbox"}
        if namespace:
            context["namespace"] = namespace
        fields = {**({"token": token} if token else {}), **(user or {})}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "sandbox", "cluster": cluster}],
            "users": [{"name": "sandbox", "user": fields}],
            "contexts": [{"name": "sandbox", "context": context}],
            "current-context": "sandbox",
        }
        path.write_text(json.dumps(config, indent=2))
        return path

    # Objects

    def create(self, resource: str, item: Object) -> Object:
        """Add an object; the namespace is `default` if it names none."""
        return self.store.create(resource, item).decode()

    def update(self, resource: str, item: Object) -> Object:
        """Replace an object that is there, whatever its version."""
        metadata = item["metadata"]
        before = self.store[resource].objects[self._key(resource, metadata)]
        return self.store.replace(resource, before, item).decode()

    def patch(self, resource: str, namespace: str, name: str, patch: Object) -> Object:
        """Merge into an object (RFC 7396)."""
        before = self.store[resource].objects[Key(namespace, name)]
        return self.store.replace(resource, before, merge_patch(before.decode(), patch)).decode()

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Remove an object."""
        self.store.delete(resource, self.store[resource].objects[Key(namespace, name)])

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """A copy of an object."""
        stored = self.store[resource].objects.get(Key(namespace, name))
        return stored.decode() if stored else None

    def objects(self, resource: str) -> list[Object]:
        """Copies of all objects of a kind, sorted."""
        return [stored.decode() for stored in self.store[resource].sorted()]

    def versions(self, resource: str) -> dict[tuple[str, str], int]:
        """The version of each object of a kind by namespace and name."""
        return {
            (key.namespace, key.name): s.version for key, s in self.store[resource].objects.items()
        }

    # Trouble

    def fail(self, fault: Fault, *, resource: str = "", times: int = 1) -> None:
        """Let the next request or open watch (of a kind) meet a fault."""
        self.faults.add(fault, resource, times)
        for collection in self.store:
            collection.wake()

    def compact(self) -> None:
        """Forget all history and let every continue token expire."""
        self.store.compact()
        self._handler.snapshots.clear()

    def rewind(self, version: int) -> None:
        """Restore the state of a version, from which versions are counted on; the server must be stopped."""
        self.store.rewind(version)
        self._handler.snapshots.clear()

    def hang(self) -> None:
        """Accept requests and answer none, until `resume`; open watches go on."""
        self._handler.answering = anyio.Event()

    def resume(self) -> None:
        """Answer again, also what waited."""
        if self._handler.answering is not None:
            self._handler.answering.set()
            self._handler.answering = None

    def forbid(
        self,
        *resources: str,
        verbs: Iterable[str] = ("*",),
        namespace: str | None = None,
        names: Iterable[str] = (),
    ) -> Rule:
        """Answer 403 to these requests until the rule is given to `permit`."""
        rule = Rule.of(resources, verbs, namespace, names)
        self.access.denials.append(rule)
        return rule

    def permit(self, rule: Rule) -> None:
        """Take a rule of `forbid` back."""
        self.access.denials.remove(rule)

    # What the clients did

    @property
    def requests(self) -> list[Request]:
        """Every request since the start, in order."""
        return self._handler.requests

    def count(self, verb: str, resource: str) -> int:
        """How many requests of a kind there were."""
        return sum(1 for r in self.requests if r.verb == verb and r.resource == resource)

    def watching(self, resource: str) -> int:
        """How many watches of a kind are open."""
        return sum(1 for r in self._handler.open if r.resource == resource)

    def _key(self, resource: str, metadata: Object) -> Key:
        if not self.store[resource].resource.namespaced:
            return Key("", metadata["name"])
        return Key(metadata.get("namespace", "default"), metadata["name"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What `python -m copycat.sandbox kube-api` is asked for."""

    host: str = "127.0.0.1"
    port: int = 0
    pods: int = 0
    """How many generated Pods there are at the start."""
    images: int = 100
    """How many different images they run."""
    image_prefix: str = "registry.example/library/image-"
    """Image number 7 is `<prefix>7:1`."""
    digests: tuple[str, ...] = ()
    """What the kubelets report of the images, in their order; without it digests of nothing."""
    events: float = 0.0
    """Status changes of Pods per second."""
    kubeconfig: Path | None = None
    """Where to write a kubeconfig."""


async def serve(options: ServeOptions, *, started: Callable[[KubeApi], None] | None = None) -> None:
    """Serve until cancelled. `started` is called once the port is open; by default the address is printed."""
    # At 2,000 changes a second a list of 100,000 objects must not outlast the history.
    history = 20_000 if options.events else 5000
    async with KubeApi(host=options.host, port=options.port, history=history) as api:
        fill(
            api.store,
            pods=options.pods,
            images=options.images,
            prefix=options.image_prefix,
            digests=options.digests,
        )
        if options.kubeconfig is not None:
            api.kubeconfig(options.kubeconfig)
        if started is None:
            sys.stdout.write(f"{api.url}\n")
            sys.stdout.flush()
        else:
            started(api)
        if options.events:
            await churn(api.store, rate=options.events)
        await anyio.sleep_forever()
