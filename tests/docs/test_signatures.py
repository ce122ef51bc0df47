"""The price list of docs/signatures.md, against what is asked."""

from __future__ import annotations

import pytest

from copycat.mirror.signatures import Kind
from copycat.sandbox import images
from copycat.sandbox.profiles import Profile
from copycat.sandbox.registry import Registry
from tests.docs.pages import ROOT
from tests.mirror.test_signatures import APP, FORCED, NEW, OLD, asked, between, refer, run, sign

ROWS = [
    line for line in (ROOT / "docs/signatures.md").read_text().splitlines() if line.startswith("| ")
]


def price(registry: Registry, *, image: dict[str, int]) -> str:
    """What was asked besides the requests for the image itself, in the page's words."""
    found = {name: count - image.get(name, 0) for name, count in asked(registry).items()}
    words = {
        "referrers": found.pop("referrers", 0),
        "HEAD": found.pop("HEAD tag", 0) + found.pop("head_manifest", 0),
        "GET": found.pop("get_manifest", 0),
        "PUT": found.pop("put_manifest", 0),
    }
    assert not found
    return ", ".join(f"{count} {word}" for word, count in words.items() if count) or "nothing"


@pytest.mark.parametrize(
    ("what", "source", "kind", "row"),
    [
        pytest.param("nothing attached, `all`", NEW, "all", "{0}", id="all"),
        pytest.param("nothing attached, `all`, source without the API", OLD, "all", "{0}, and 2 referrers every ten minutes for the whole host", id="no-api"),
        pytest.param("nothing attached, `referrers`", NEW, "referrers", "{0}", id="referrers"),
        pytest.param("nothing attached, `tags`", NEW, "tags", "{0}", id="tags"),
    ],
)  # fmt: skip
async def test_nothing_attached(what: str, source: Profile, kind: Kind, row: str) -> None:
    """What an image costs that nobody signed."""
    async with between(source) as bench:
        mirror = bench.mirror(signatures=kind)
        for number in range(2):
            bench.source.add("team/app", images.image(seed=number), f"{number}")
            bench.forget_requests()
            await run(mirror, bench, reference=f"team/app:{number}")
        told = row.format(price(bench.source, image={"get_manifest": 1}))
        kept = {"head_manifest": 2, "put_manifest": 2}
        assert f"| {what} | {told} | {price(bench.target, image=kept)} |" in ROWS


async def test_forced_without_the_api() -> None:
    """What a forced pass costs where there is no API: it asks for it anew."""
    async with between(OLD) as bench:
        mirror = bench.mirror(signatures="all")
        bench.source.add("team/app", APP, "1.0")
        await run(mirror, bench)
        bench.forget_requests()
        await run(mirror, bench, FORCED)
        source = price(bench.source, image={"head_manifest": 1})
        assert f"| the same in a forced pass | {source} | nothing |" in ROWS


async def test_something_attached() -> None:
    """What an image costs that has a referrer and a signature, at first and in a forced pass."""
    async with between() as bench:
        bench.source.add("team/app", APP, "1.0")
        refer(bench.source, images.artifact(subject=APP))
        sign(bench.source)
        mirror = bench.mirror(signatures="all")
        await run(mirror, bench)
        source = price(bench.source, image={"get_manifest": 1})
        target = price(bench.target, image={"head_manifest": 2, "put_manifest": 2})
        assert f"| 1 referrer and 1 cosign tag, `all` | {source} | {target} |" in ROWS
        bench.forget_requests()
        await run(mirror, bench, FORCED)
        source = price(bench.source, image={"head_manifest": 1})
        target = price(bench.target, image={"head_manifest": 2})
        assert f"| the same in a forced pass, nothing new | {source} | {target} |" in ROWS
