"""The same faults where a copy stands already: the source is asked by HEAD, and what it fails to say harms nothing."""

from __future__ import annotations

from typing import Any

import pytest

from copycat.errors import CopycatError, Denied, NotFound, Throttled, Unauthorized, Unavailable
from copycat.sandbox import images
from copycat.sandbox.faults import Fault
from copycat.sandbox.ledger import Phase
from tests.faults.support import IMAGE, SOURCE, TAG, TARGET, Bench, bench

NEWER = images.image(seed="newer", layers=(400_000,))


def standing(b: Bench, **options: Any) -> Fault:
    """The image is at both ends; the source's HEAD is spoiled."""
    b.target.add(TARGET, IMAGE, TAG)
    return b.source.fail(Phase.HEAD_MANIFEST, **options)


async def kept(b: Bench, error: type[CopycatError], *, temporary: bool) -> None:
    """The copy counts, and the result says why the source could not be asked."""
    found = await b.copy()

    assert (found.state, found.protected, found.digest) == ("protected", True, found.digest)
    assert str(found.digest) == IMAGE.digest
    assert not found.source_checked
    assert found.error is not None
    assert (type(found.error), found.error.side, found.error.temporary) == (
        error,
        "source",
        temporary,
    )
    assert (found.reason, found.message) == (found.error.reason, str(found.error))
    assert b.count("M") == 0


async def test_01_source_is_gone() -> None:
    """[Hm] A source that is away leaves the copy as it is."""
    async with bench() as b:
        standing(b, down=True)
        await kept(b, Unavailable, temporary=True)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_03_source_stumbles(status: int) -> None:
    """[Hm] One stumble costs one HEAD more."""
    async with bench() as b:
        fault = standing(b, status=status)
        found = await b.copy()

        assert (found.state, found.reason, found.source_checked) == ("protected", "", True)
        assert (fault.seen, b.time.naps, b.count("Gm")) == (2, [1.0], 0)


async def test_04_source_stumbles_for_ever() -> None:
    """[Hm] After the tries the copy stands, with the source's freshness unknown."""
    async with bench() as b:
        fault = standing(b, status=503, times=None)
        await kept(b, Unavailable, temporary=True)
        assert fault.hits == 3


async def test_05_source_wants_a_day() -> None:
    """[Hm] A source that wants to be left alone is, at once."""
    async with bench() as b:
        fault = standing(b, status=429, headers={"Retry-After": "86400"}, times=None)
        await kept(b, Throttled, temporary=True)
        assert (fault.hits, b.time.naps) == (1, [])


@pytest.mark.parametrize(
    ("status", "error"), [(401, Unauthorized), (403, Denied)], ids=["401", "403"]
)
async def test_07_source_refuses(status: int, error: type[CopycatError]) -> None:
    """[Hm] A source that refuses HEAD and GET does not touch the copy."""
    async with bench() as b:
        standing(b, status=status, times=None)
        b.fail("Gm", status=status, times=None)
        await kept(b, error, temporary=False)
        assert b.count("T-source") <= 2


async def test_12_source_has_no_head() -> None:
    """[Hm] A source without HEAD is asked by GET, from then on at once."""
    async with bench() as b:
        fault = standing(b, status=405, times=None)
        for gets in (1, 2):
            found = await b.copy()
            assert (found.state, found.reason, found.source_checked) == ("protected", "", True)
            assert b.count("Gm") == gets
        assert fault.hits == 1


async def test_12_source_hides_the_tag() -> None:
    """[Hm] A HEAD that denies what GET serves is not believed."""
    async with bench() as b:
        standing(b, status=404, times=None)
        found = await b.copy()

        assert (found.state, found.reason, found.source_checked) == ("protected", "", True)
        assert b.count("Gm") == 1


async def test_12_source_has_lost_the_tag() -> None:
    """[Hm] A tag that is gone at the source is what the copy is for."""
    async with bench() as b:
        standing(b)
        del b.source.tags[SOURCE][TAG]
        await kept(b, NotFound, temporary=False)


async def test_16_source_has_moved() -> None:
    """[Hm Gm] A new digest is fetched by that digest, whatever the tag means by then, and the tag moves last."""
    async with bench() as b:
        standing(b)
        b.source.add(SOURCE, NEWER, TAG)
        b.fail("Gm", run=lambda _: b.source.tags[SOURCE].update({TAG: IMAGE.digest}))
        found = await b.copy()

        assert (found.state, str(found.digest)) == ("protected", NEWER.digest)
        assert b.arrived(NEWER)
        assert b.target.has(TARGET, IMAGE)


@pytest.mark.parametrize("step", ["Gb", "I", "U", "C", "M"])
async def test_04_new_content_cannot_be_had(step: str) -> None:
    """While the source's new content cannot be copied, the tag stays on the old, which is whole."""
    async with bench() as b:
        standing(b)
        b.source.add(SOURCE, NEWER, TAG)
        b.target.put_blob(TARGET, min(NEWER.blobs.values(), key=len))  # one blob is to be sent
        b.fail(step, status=503, times=None)
        found = await b.copy()

        assert found.state in {"failed", "protected"}
        assert found.error is not None
        assert found.error.temporary
        assert b.target.tags[TARGET][TAG] == IMAGE.digest
        assert b.target.has(TARGET, IMAGE, TAG)
