"""Plans of a world, read as a program would."""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from copycat.app.manifests import ManifestFile
from copycat.app.plan import plan
from copycat.app.plan_output import JsonPlan
from copycat.config.settings import Settings
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.app.support import World, named


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What `copycat plan --json` says."""

    good: bool
    images: dict[str, dict[str, Any]]
    """By source."""
    summary: dict[str, Any]


async def planned(
    world: World,
    settings: Settings,
    *,
    manifests: Sequence[bytes] | None = None,
    cluster: bool = False,
) -> Planned:
    """Plan for manifests, for the cluster if there are none, or for both."""
    return await read(
        lambda out: plan(
            settings,
            manifests=files_of(manifests),
            kubeconfig=world.kubeconfig if cluster or manifests is None else None,
            context=None,
            printer=JsonPlan(out),
        )
    )


def files_of(texts: Sequence[bytes] | None) -> list[ManifestFile] | None:
    """The texts as the files that the command line read, by their number."""
    if texts is None:
        return None
    return [ManifestFile(name=f"manifest {n}", text=text) for n, text in enumerate(texts, 1)]


async def read(work: Callable[[TextIO], Awaitable[bool]]) -> Planned:
    """What a plan writes, read back; it tells the same as its exit code."""
    out = io.StringIO()
    good = await work(out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    *images, summary = rows
    assert [r["kind"] for r in rows] == ["image"] * len(images) + ["summary"]
    assert summary["good"] is good
    return Planned(good=good, images={r["source"]: r for r in images}, summary=summary)


def manifest(*images: str, name: str = "web", secrets: Sequence[str] = ()) -> bytes:
    """A Deployment that names these images, as JSON."""
    spec = {
        "containers": [{"name": f"c{n}", "image": image} for n, image in enumerate(images)],
        "imagePullSecrets": [{"name": secret} for secret in secrets],
    }
    item = {"kind": "Deployment", "metadata": named(name), "spec": {"template": {"spec": spec}}}
    return json.dumps(item).encode()


#: What a request may be of which a registry notices nothing but that it was asked.
_HARMLESS = frozenset({Phase.PING, Phase.TOKEN, Phase.HEAD_MANIFEST, Phase.GET_MANIFEST, Phase.HEAD_BLOB, Phase.REFERRERS})  # fmt: skip


def untouched(registry: Registry) -> bool:
    """Whether nobody wrote to a registry or read a blob from it."""
    return all(
        r.method in {"GET", "HEAD"} and set(r.phases) <= _HARMLESS for r in registry.requests
    )


def contents(registry: Registry) -> tuple[object, ...]:
    """Everything that a registry holds."""
    return (
        {name: dict(tags) for name, tags in registry.tags.items() if tags},
        {name: set(found) for name, found in registry.manifests.items() if found},
        {name: set(found) for name, found in registry.blobs.items() if found},
        registry.sessions,
    )
