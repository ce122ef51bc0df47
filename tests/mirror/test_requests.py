"""What copies cost in requests, counted at both registries to the last one."""

from __future__ import annotations

from collections import Counter
from functools import partial

import anyio

from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.mirror.conftest import Bench

Counts = dict[Phase | str, int]
SHARED = [images.layer(4096, seed=f"shared {number}") for number in range(2)]


def counted(registry: Registry) -> Counts:
    """Requests by what they are, mounts told from other POSTs, pings left out."""
    return Counter(
        "mount" if "mount=" in r.query else r.phase
        for r in registry.ledger.requests
        if r.phase is not Phase.PING
    )


async def test_cold_images_that_share(bench: Bench) -> None:
    """The source is asked once for each thing; at the target a blob that nobody has costs one POST and one PUT.

    The first image asks whether its repository is new instead of looking for each of its blobs. The second
    mounts what it shares, after which the registry is known to mount. In both cases the question whether a
    blob is there opens its upload as well.
    """
    for number in range(3):
        bench.source.add(
            f"team/app-{number}", images.image(layers=[*SHARED, 512], seed=number), "1"
        )
    expected: list[tuple[Counts, Counts]] = [
        (
            {Phase.GET_MANIFEST: 1, Phase.GET_BLOB: 4},
            {Phase.TAGS: 1, "mount": 4, Phase.UPLOAD_BODY: 4},
        ),
        (
            {Phase.GET_MANIFEST: 1, Phase.GET_BLOB: 2},
            {Phase.TAGS: 1, "mount": 4, Phase.UPLOAD_BODY: 2},
        ),
        (
            {Phase.GET_MANIFEST: 1, Phase.GET_BLOB: 2},
            {"mount": 4, Phase.UPLOAD_BODY: 2},
        ),
    ]
    for number, (at_source, at_target) in enumerate(expected):
        bench.forget_requests()
        result = await bench.run(f"team/app-{number}:1", repository=f"copy/app-{number}")
        assert result.state == "protected"
        assert counted(bench.source) == at_source
        manifests: Counts = {Phase.HEAD_MANIFEST: 2, Phase.PUT_MANIFEST: 2}
        assert counted(bench.target) == at_target | manifests


async def test_new_repositories_at_once(bench: Bench) -> None:
    """Who waits for a blob that goes into another repository does not look for it in his own, which is new."""
    gate = anyio.Event()
    own = images.layer(512, seed="own")
    bench.source.add("team/one", images.image(layers=SHARED), "1")
    bench.source.add("team/two", images.image(layers=[*SHARED, own]), "1")
    shared = bench.source.fail(
        Phase.GET_BLOB, match=lambda r: r.reference == SHARED[0].digest, hold=gate
    )
    last = bench.source.fail(Phase.GET_BLOB, match=lambda r: r.reference == own.digest, hold=gate)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(bench.run, "team/one:1", repository="copy/one"))
            await shared.reached.wait()
            tasks.start_soon(partial(bench.run, "team/two:1", repository="copy/two"))
            await last.reached.wait()
            gate.set()
    assert bench.target.tags["copy/two"]
    assert Phase.HEAD_BLOB not in counted(bench.target)


async def test_a_repository_that_is_there(bench: Bench) -> None:
    """Where a registry has the repository, each blob is looked for, and what is found is not sent."""
    bench.source.add("team/app", images.image(layers=[*SHARED, 512], seed=1), "1")
    bench.source.add("team/app", images.image(layers=[*SHARED, 512], seed=2), "2")
    await bench.run("team/app:1", repository="copy/app")
    bench.use(bench.plain)  # as after a restart
    bench.forget_requests()
    await bench.run("team/app:2", repository="copy/app")
    assert counted(bench.target) == {
        Phase.HEAD_MANIFEST: 2,
        Phase.TAGS: 1,
        Phase.HEAD_BLOB: 4,
        Phase.START_UPLOAD: 2,
        Phase.UPLOAD_BODY: 2,
        Phase.PUT_MANIFEST: 2,
    }


async def test_few_blobs(bench: Bench) -> None:
    """For two blobs nobody asks whether the repository is new: it would spare next to nothing."""
    bench.source.add("team/app", images.image(layers=[512]), "1")
    await bench.run("team/app:1", repository="copy/app")
    assert counted(bench.target) == {
        Phase.HEAD_MANIFEST: 2,
        Phase.HEAD_BLOB: 2,
        Phase.START_UPLOAD: 2,
        Phase.UPLOAD_BODY: 2,
        Phase.PUT_MANIFEST: 2,
    }


async def test_nothing_is_sent_again(bench: Bench) -> None:
    """A blob that was finished before stands, also where the question for it could open an upload."""
    image = images.image(layers=[*SHARED, 512])
    for name in ("one", "two", "three"):
        bench.source.add(f"team/{name}", image, "1")
    await bench.run("team/one:1", repository="copy/one")
    await bench.run("team/two:1", repository="copy/two")
    bench.use(bench.plain)  # as after a restart
    bench.target.manifests["copy/two"].clear()
    bench.target.tags["copy/two"].clear()
    bench.forget_requests()
    await bench.run("team/two:1", repository="copy/two")
    assert counted(bench.source) == {Phase.GET_MANIFEST: 1}
    assert counted(bench.target) == {
        Phase.HEAD_MANIFEST: 2,
        "mount": 4,
        Phase.PUT_MANIFEST: 2,
    }
    assert all(r.status == 201 for r in bench.target.ledger.requests if "mount=" in r.query)
