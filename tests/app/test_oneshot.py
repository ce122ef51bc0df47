"""`copycat mirror`: once, for a list, and what counts as good."""

from __future__ import annotations

import io
import json

import pytest

from copycat.app.manifests import ManifestFile
from copycat.app.oneshot import mirror
from copycat.errors import ConfigError
from copycat.program import RealProgram
from copycat.progress import JsonLines, Lines
from tests.app.support import World, named


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


async def test_nothing_to_do(world: World) -> None:
    """No images are no failure."""
    assert await mirror(
        world.settings(), references=[], manifests=[], reporter=Lines(io.StringIO())
    )


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
