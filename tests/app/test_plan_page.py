"""The example of docs/planning.md is what the program says."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio.to_thread

from copycat.app.plan import plan
from copycat.app.plan_output import JsonPlan, LinesPlan, Printer
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.oci.digest import Digest
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.registry import Registry
from tests.docs.pages import page

_HOSTS = {"docker.io": "hub", "ghcr.io": "ghcr", "quay.io": "quay", "registry.example.com": "zot"}
_BASE = images.layer(3_000_000, seed="base")


def _image(name: str, size: int) -> Image:
    return images.image(seed=name, layers=[_BASE, size])


def _fill(found: dict[str, Registry]) -> None:
    hub, target = found["docker.io"], found["registry.example.com"]
    arm = images.image(seed="arm", layers=[8_000_000], platform="linux/arm64")
    hub.add(
        "library/nginx", images.index(_image("nginx", 9_000_000), arm, attestations=True), "1.27"
    )
    hub.add("library/redis", _image("redis", 4_100_000), "7")
    old = hub.add("library/redis", _image("old", 4_000_000))
    busybox = hub.add_image("library/busybox", "1.36", layers=[2_000_000])
    found["quay.io"].add("prometheus/node-exporter", _image("exporter", 7_000_000), "v1.8.0")
    found["ghcr.io"].add("team/tool", _image("tool", 1_000_000), "2")
    for name, tag, image in (("busybox", "1.36", busybox), ("redis", "7", old)):
        for written in (tag, Digest.parse(image.digest).anchor):
            target.add(f"mirror/docker.io/library/{name}", image, written)


def _deploy(api: KubeApi, namespace: str, name: str, *used: str, secrets: Sequence[str] = ()) -> None:  # fmt: skip
    spec = {
        "containers": [{"name": f"c{n}", "image": image} for n, image in enumerate(used)],
        "imagePullSecrets": [{"name": secret} for secret in secrets],
    }
    metadata = {"namespace": namespace, "name": name}
    api.create("deployments", {"metadata": metadata, "spec": {"template": {"spec": spec}}})


@asynccontextmanager
async def shop(folder: Path) -> AsyncIterator[tuple[Settings, str]]:
    """The cluster of the example, and registries under their public names."""
    async with AsyncExitStack() as stack:
        found = {
            host: await stack.enter_async_context(
                Registry(profile=profile, anonymous=host != "registry.example.com")
            )
            for host, profile in _HOSTS.items()
        }
        await anyio.to_thread.run_sync(_fill, found)
        api = await stack.enter_async_context(KubeApi())
        _deploy(api, "shop", "web", "nginx:1.27", "ghcr.io/team/private:4", secrets=["regcred"])
        _deploy(api, "shop", "cache", "redis:7")
        _deploy(api, "shop", "job", "busybox:1.36")
        _deploy(api, "monitoring", "exporter", "quay.io/prometheus/node-exporter:v1.8.0")
        _deploy(api, "monitoring", "tool", "ghcr.io/team/tool:2")
        api.forbid("cronjobs")
        rows = [
            {"host": host, "endpoints": [r.address], "insecure": True} for host, r in found.items()
        ]
        rows += [{"host": r.address, "insecure": True} for r in found.values()]
        target = {"registry": "registry.example.com", "repoPrefix": "mirror/$registry"}
        config = folder / "config.yaml"
        config.write_text(
            json.dumps({"targetKind": "docker", "docker": target, "registries": rows})
        )
        settings = await anyio.to_thread.run_sync(lambda: load(path=str(config), environ={}))
        yield settings, str(api.kubeconfig(folder / "kubeconfig"))


async def _told(folder: Path, make: type[Printer]) -> str:
    out = io.StringIO()
    async with shop(folder) as (settings, kubeconfig):
        printer = make(out)  # type: ignore[call-arg] # the forms take a stream
        assert not await plan(
            settings, manifests=None, kubeconfig=kubeconfig, context=None, printer=printer
        )
    return _masked(out.getvalue())


def _masked(text: str) -> str:
    """Without what differs between two days and two versions of zlib."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC|sha256:[0-9a-f]{64}", "…", text)


async def test_the_lines(tmp_path: Path) -> None:
    """Every line of the example, but for the time."""
    text = await _told(tmp_path, LinesPlan)
    assert text.strip() in _masked(page("docs/planning.md").text), text


async def test_the_objects(tmp_path: Path) -> None:
    """The example's object is one of those that --json writes."""
    text = await _told(tmp_path, JsonPlan)
    redis = next(line for line in text.splitlines() if "library/redis:7" in line)
    assert redis in _masked(page("docs/planning.md").text), redis
