"""`copycat mirror`: once, for a list, and what counts as good."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import anyio
import anyio.to_thread
import pytest

from copycat.app.manifests import ManifestFile
from copycat.app.oneshot import mirror
from copycat.config.sources import load
from copycat.errors import ConfigError
from copycat.program import RealProgram
from copycat.progress import JsonLines, Lines
from copycat.sandbox.images import image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.app.support import World, named, until


def manifest(world: World, *names: str) -> bytes:
    """A List of Pods that run these images, as JSON."""
    items = [
        {
            "kind": "Pod",
            "metadata": named(f"p{n}"),
            "spec": {"containers": [{"name": "c", "image": world.image(name)}]},
        }
        for n, name in enumerate(names)
    ]
    return json.dumps({"kind": "List", "items": items}).encode()


async def test_references_and_manifests_are_copied(world: World) -> None:
    """Each image is copied once and reported once; all good is True."""
    a = world.source.add_image("a", "1", seed="a")
    b = world.source.add_image("b", "1", seed="b")
    out = io.StringIO()
    good = await RealProgram().mirror(
        world.settings(),
        references=[world.image("a:1")],
        manifests=[ManifestFile(name="m", text=manifest(world, "a:1", "b:1"))],
        reporter=JsonLines(out),
    )
    assert good
    assert world.target.has("mirror/a", a, "1")
    assert world.target.has("mirror/b", b, "1")
    digests = [json.loads(line).get("digest") for line in out.getvalue().splitlines()]
    assert sorted(d for d in digests if d) == sorted([a.digest, b.digest])


async def test_no_image_is_hidden_by_a_namesake(world: World) -> None:
    """Jobs of one generateName: what cannot be parsed in the first fails although a second bears its name."""
    job = {"kind": "Job", "metadata": {"generateName": "run-"}}
    files = [
        ManifestFile(
            name=image,
            text=json.dumps(
                job
                | {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}
            ).encode(),
        )
        for image in ("no image", world.image("a:1"))
    ]
    world.source.add_image("a", "1", seed="a")
    out = io.StringIO()
    assert not await mirror(
        world.settings(), references=[], manifests=files, reporter=JsonLines(out)
    )
    states = {row["source"]: row["state"] for row in map(json.loads, out.getvalue().splitlines())}
    assert states == {"no image": "failed", world.image("a:1"): "protected"}


async def test_nothing_to_do(world: World) -> None:
    """No images are no failure."""
    assert await mirror(
        world.settings(), references=[], manifests=[], reporter=Lines(io.StringIO())
    )


async def test_an_image_without_a_name_at_the_target(world: World) -> None:
    """A rule that leaves nothing of its path costs this image alone, and no request."""
    out = io.StringIO()
    file = anyio.Path(world.folder / "config.yaml")
    docker = f'{{registry: "{world.target.address}", insecure: true}}'
    hosts = f'insecureRegistries: ["{world.source.address}"]'
    await file.write_text(
        f"targetKind: docker\ndocker: {docker}\n{hosts}\npathMap: [{{from: a, to: ''}}]\n"
    )
    settings = await anyio.to_thread.run_sync(lambda: load(path=str(file), environ={}, flags={}))
    references = [world.image("a:1"), world.image("b:1")]
    world.source.add("b", image(seed="b"), "1")
    assert not await mirror(settings, references=references, manifests=[], reporter=JsonLines(out))
    told = {r["source"]: r for r in map(json.loads, out.getvalue().splitlines())}
    assert "pathMap" in told[references[0]]["message"]
    assert told[references[1]]["state"] == "protected"
    assert {r.repository for r in world.source.requests} == {"", "b"}


async def test_a_manifest_that_is_no_yaml(world: World) -> None:
    """The file is named, and nothing is asked of anybody."""
    files = [ManifestFile(name=f"{n}.yaml", text=t) for n, t in enumerate((b"", b"a: ["))]
    with pytest.raises(ConfigError, match=r"from 1\.yaml"):
        await mirror(
            world.settings(),
            references=[],
            manifests=files,
            reporter=Lines(io.StringIO()),
        )
    assert world.source.requests == []


@pytest.mark.parametrize(
    ("reference", "good", "state"),
    [
        pytest.param("excluded.example/x:1", True, "excluded", id="excluded"),
        pytest.param("denied.example/x:1", False, "allowedRegistries", id="denied"),
        pytest.param("NOT A REFERENCE", False, "failed", id="invalid"),
        pytest.param("{source}/gone:1", False, "failed", id="failed"),
        pytest.param("{source}/a:1", True, "a:1", id="copied"),
        pytest.param("{target}/mine:1", True, "in_place", id="in-place"),
    ],
)
async def test_outcomes(world: World, reference: str, good: bool, state: str) -> None:
    """Each outcome is reported, and only what is at the target as asked, or excluded, is good."""
    world.source.add_image("a", "1", seed="a")
    world.target.add_image("mine", "1", seed="mine")
    out = io.StringIO()
    text = reference.format(source=world.source.address, target=world.target.address)
    settings = world.settings(
        exclude_registries="excluded.example",
        allowed_registries=f"{world.source.address},{world.target.address},excluded.example",
    )
    found = await mirror(settings, references=[text], manifests=[], reporter=JsonLines(out))
    assert found is good, out.getvalue()
    assert state in out.getvalue()


async def test_an_image_that_should_be_at_the_target_and_is_not(world: World) -> None:
    """What names the target already but is not there is not good."""
    out = io.StringIO()
    missing = f"{world.target.address}/missing:1"
    assert not await mirror(
        world.settings(), references=[missing], manifests=[], reporter=JsonLines(out)
    )


@pytest.mark.parametrize("same", [True, False], ids=["equal", "different"])
async def test_two_sources_of_one_tag(world: World, same: bool) -> None:
    """Each image is reported once, when it is known whether the tag of the other is a conflict at all."""
    async with Registry() as other:
        first, second = sorted((world.source, other), key=lambda r: r.address)
        first.add("a", one := image(seed="one"), "1")
        second.add("a", one if same else image(seed="two"), "1")
        # the second by name comes to the target before the tag is there
        first.fail("get_manifest", delay=0.3)
        out = io.StringIO()
        good = await mirror(
            world.settings(insecure_registries=f"{first.address},{second.address}"),
            references=[f"{r.address}/a:1" for r in (first, second)],
            manifests=[],
            reporter=JsonLines(out),
        )
        told = {r["source"]: r for r in map(json.loads, out.getvalue().splitlines())}
        assert len(out.getvalue().splitlines()) == len(told) == 2
        assert good is same
        found = told[f"{second.address}/a:1"]
        assert found["state"] == ("protected" if same else "conflict")
        assert found["bytesPulled"] > 0
        assert told[f"{first.address}/a:1"]["state"] == "protected"


@pytest.mark.parametrize(
    "library", ["kr8s", "httpx", "aiobotocore", "botocore", "rich", "structlog"]
)
def test_what_mirror_need_not_load(library: str) -> None:
    """`copycat mirror` to a plain registry loads no client of a cluster or a cloud, and nothing that only a terminal
    or an event needs: they cost more than a small copy."""
    code = f"import sys, copycat.cli, copycat.app.oneshot; sys.exit({library!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0


async def test_sigterm_ends_it_like_ctrl_c() -> None:
    """The process is told to end in the middle of a blob: exit 143, no tag, and no upload session is left."""
    async with Registry() as source, Registry() as target:
        made = image(layers=[1_000_000])
        source.add("team/app", made, "1")
        layer = max(made.blobs, key=lambda digest: len(made.blobs[digest]))
        # the configuration, which may come first, is shorter than that
        fault = source.fail(Phase.GET_BLOB, stall_at=500_000, match=lambda r: r.reference == layer)
        command = [
            sys.executable,
            "-m",
            "copycat",
            "mirror",
            "--insecure",
            "--target",
            target.address,
        ]
        reference = f"{source.address}/team/app:1"
        with anyio.fail_after(20):
            async with await anyio.open_process([*command, reference], stdout=None) as process:
                await fault.reached.wait()
                # a session whose POST is not answered yet has no address: the others are through with theirs
                rest = set(made.blobs) - {layer}
                await until(lambda: rest <= set(target.blobs.get("team/app", ())))
                process.terminate()
                assert await process.wait() == 143
        assert target.tags["team/app"] == {}
        assert target.sessions == 0
