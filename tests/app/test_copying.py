"""What the configuration says about signatures and pull quotas reaches what copies."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from copycat.app.oneshot import mirror
from copycat.progress import Lines
from copycat.sandbox import images
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.app.support import World


@pytest.mark.parametrize(
    ("variable", "signed", "asked"),
    [(None, True, 4), ("all", True, 4), ("tags", True, 3), ("none", False, 0)],
)
async def test_signatures_follow_as_configured(
    world: World, variable: str | None, *, signed: bool, asked: int
) -> None:
    """`signatures` reaches what copies; without a word about it they all follow."""
    app = world.source.add_image("team/app", "1")
    tag = images.cosign_tag(app)
    world.source.add("team/app", images.signature(app), tag)
    settings = world.settings(**({"signatures": variable} if variable else {}))
    lines = Lines(io.StringIO())
    assert await mirror(
        settings, references=[world.image("team/app:1")], manifests=[], reporter=lines
    )
    assert (tag in world.target.tags["mirror/team/app"]) is signed
    extra = [r for r in world.source.requests if "sha256-" in r.path or "referrers" in r.path]
    assert len(extra) == asked


async def test_the_quota_of_the_file_is_kept(tmp_path: Path) -> None:
    """`pullQuotaReserve` reaches what copies: images that would eat into it are left for a later run."""
    profile = replace(PROFILES["hub"], rate_limit=10, auth="none", redirects=False)
    async with Registry(profile=profile) as hub, Registry() as target, KubeApi() as api:
        here = World(source=hub, target=target, api=api, folder=tmp_path)
        names = [f"team/app{n}" for n in range(4)]
        for name in names:
            hub.add_image(name, "1", seed=name)
        out = io.StringIO()
        settings = here.settings(pull_quota_reserve="80%", max_concurrent_reconciles=1)
        references = [here.image(f"{name}:1") for name in names]
        assert not await mirror(settings, references=references, manifests=[], reporter=Lines(out))
        assert hub.core.pulls == 2
        assert "2 waiting_quota" in out.getvalue()
