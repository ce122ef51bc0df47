"""What the tests of the Kubernetes side share: a projection, a follower that mirrors an informer, and waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec

from copycat.kube.backoff import Backoff
from copycat.kube.client import KubeClient, open_api
from copycat.kube.informer import Informer
from copycat.metrics import Metrics
from copycat.sandbox.kube_api import KubeApi


@dataclass(frozen=True)
class Thing:
    """A projection that changes with every version, so that a mirror of it misses nothing."""

    namespace: str
    name: str
    version: int
    note: str = ""


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    resource_version: str
    namespace: str = ""
    annotations: dict[str, str] | None = None


class _Object(msgspec.Struct):
    metadata: _Metadata


_DECODER = msgspec.json.Decoder(_Object)


def project(data: bytes) -> Thing | None:
    """The thing in an object's JSON; None if it is called `ignored`."""
    metadata = _DECODER.decode(data).metadata
    note = (metadata.annotations or {}).get("note", "")
    if note == "ignored":
        return None
    return Thing(metadata.namespace, metadata.name, int(metadata.resource_version), note)


def pod(name: str, namespace: str = "shop", **fields: Any) -> dict[str, Any]:
    """A Pod."""
    return {
        "metadata": {"name": name, "namespace": namespace, **fields.pop("metadata", {})},
        "spec": {"containers": [{"name": "app", "image": "alpine:3.19"}]},
        "status": {"phase": "Running"},
        **fields,
    }


def metrics() -> Metrics:
    """A fresh set, with the kinds of these tests."""
    return Metrics(version="test", resources=("pods", "deployments"))


class Follower:
    """An informer with short intervals, and what its `on_change` has told so far."""

    def __init__(self, client: KubeClient, **options: Any) -> None:
        self.told: dict[tuple[str, str], Thing] = {}
        self.calls: list[tuple[Thing | None, Thing | None]] = []
        self.metrics: Metrics = options.pop("metrics", None) or metrics()
        defaults: dict[str, Any] = {
            "resource": "pods",
            "path": "/api/v1/pods",
            "project": project,
            "silence": 5.0,
            "backoff": Backoff(base=0.02, cap=0.1),
        }
        self.informer: Informer[Thing] = Informer(
            client, on_change=self._on_change, metrics=self.metrics, **{**defaults, **options}
        )

    def _on_change(self, old: Thing | None, new: Thing | None) -> None:
        self.calls.append((old, new))
        if new is not None:
            assert self.told.get((new.namespace, new.name)) == old
            self.told[new.namespace, new.name] = new
        elif old is not None:
            assert self.told.pop((old.namespace, old.name)) == old

    def matches(self, api: KubeApi, resource: str = "pods") -> bool:
        """Whether store and mirror are what the server has, to the version."""
        want = api.versions(resource)
        return want == _versions(self.informer.store) == _versions(self.told)

    def value(self, name: str, **labels: str) -> float:
        """A metric of the program."""
        found = self.metrics.registry.get_sample_value(f"k8s_copycat_{name}", labels)
        return 0.0 if found is None else found

    @asynccontextmanager
    async def running(self, *, settled: bool = True) -> AsyncIterator[Informer[Thing]]:
        """Run it for the length of a block."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.informer.run)
            if settled:
                with anyio.fail_after(5):
                    await self.informer.wait_settled()
            yield self.informer
            tasks.cancel_scope.cancel()


def _versions(things: Any) -> dict[tuple[str, str], int]:
    return {key: thing.version for key, thing in things.items()}


async def until(condition: Callable[[], bool], *, timeout: float = 5.0) -> None:
    """Wait until the world is as it should be."""
    with anyio.fail_after(timeout):
        while not condition():  # noqa: ASYNC110 - the condition is the state of a server or a store, which sets no event
            await anyio.sleep(0.005)


@asynccontextmanager
async def client_for(api: KubeApi, directory: Path, **options: Any) -> AsyncIterator[KubeClient]:
    """A client of the sandbox by kubeconfig; `options` go into that."""
    path = api.kubeconfig(directory / "kubeconfig", **options)
    async with open_api(str(path), environ={}) as client:
        yield client
