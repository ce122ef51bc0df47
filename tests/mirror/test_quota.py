"""An image of more manifests than a pull quota gives at a time."""

from __future__ import annotations

from dataclasses import replace

from copycat.mirror.request import Need
from copycat.sandbox import images
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.mirror.conftest import Bench
from tests.registry.support import world

#: What the source gives, and how many of them may be used.
LIMIT, SPARE = 20, 6


async def test_what_was_read_is_kept() -> None:
    """Each attempt takes the pulls that there are and keeps what they brought, so the image is whole one day; no tag before."""
    profile = replace(PROFILES["hub"], rate_limit=LIMIT, auth="none", redirects=False)
    now = [1000.0]
    async with (
        Registry(profile=profile) as source,
        Registry() as target,
        world(
            source.address,
            target.address,
            target_registries=frozenset({target.address}),
            pull_quota_reserve=1 - SPARE / LIMIT,
            clock=lambda: now[0],
        ) as here,
    ):
        bench = Bench(source, target, here)
        halves = [images.index(*(images.image(seed=f"{h}{n}") for n in range(5))) for h in "ab"]
        whole = source.add("team/app", images.index(*halves), "1.0")
        mirror = bench.mirror()
        # the root and both halves are read each time, which leaves three; a half that is whole is written
        for kept in (3, 6):
            result = await mirror.run(bench.ask(), Need())
            assert (result.state, result.reason) == ("waiting_quota", "pull_quota")
            assert not result.protected
            assert source.core.pulls == SPARE
            assert len(target.manifests["copy/app"]) == kept
            assert not target.tags.get("copy/app")
            source.core.pulls = 0
            now[0] += 3600
        while (result := await mirror.run(bench.ask(), Need())).state == "waiting_quota":
            assert source.core.pulls <= SPARE
            assert len(target.manifests["copy/app"]) > kept
            kept = len(target.manifests["copy/app"])
            source.core.pulls = 0
            now[0] += 3600
        assert result.state == "protected"
        assert target.has("copy/app", whole, "1.0")
