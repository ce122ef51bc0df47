"""Rows 44 to 46 and 49: permits, cancelled tasks, killed processes, and memory."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.context import ForkServerProcess

import anyio
import anyio.to_thread
import pytest

from copycat.mirror.blobs import Blobs
from copycat.mirror.copy import Copier
from copycat.mirror.mirror import Mirror
from copycat.mirror.naming import Naming
from copycat.mirror.policy import Policy
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.oci.reference import Reference
from copycat.registry.target import Target
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.parts import OCI_LAYER, Blob
from tests.faults.child import mirroring, resident
from tests.faults.support import (
    EACH,
    IMAGE,
    SOURCE,
    STEPS,
    TAG,
    Bench,
    bench,
    flags_of,
    success,
)

# Row 44

THERE = images.image(seed="there", layers=(400_000, 300_000))
BACK = images.image(seed="back", layers=(400_000, 300_000))


def backwards(b: Bench) -> Mirror:
    """Another mirror of the same process, from the target to the source."""
    transport = b.engine.transport
    target = Target(transport, b.source.address)
    return Mirror(
        transport=transport,
        target=target,
        naming=Naming(prefix=""),
        copier=Copier(Blobs(transport=transport, target=target, metrics=b.engine.metrics)),
        policy=Policy(),
        sleep=b.time.sleep,
    )


@pytest.mark.parametrize("step", EACH)
async def test_44_there_and_back(step: str) -> None:
    """Copies from A to B and from B to A, with one stream for each host, do not wait for each other in a circle."""
    anybody = {"auth": "none"} if step[0] != "T" else {}
    login = [{"registry": "127.0.0.1:*", "username": "me", "password": "pw-of-me"}]
    async with bench(
        image=THERE,
        source={"username": "me", "password": "pw-of-me", **anybody},
        target=anybody,
        registry_concurrency=1,
        registry_credentials=[
            {**login[0], "registry": "127.0.0.1", "registryAliases": ["127.0.0.1:*"]}
        ],
    ) as b:
        b.target.add("other/app", BACK, TAG)
        for registry in (b.source, b.target):
            registry.fail(STEPS[step].phase, delay=0.01, times=4)
        back = backwards(b)
        found: list[MirrorResult] = []

        async def return_trip() -> None:
            request = MirrorRequest(
                Reference.parse(f"{b.target.address}/other/app:{TAG}"), "copy/app"
            )
            found.append(await back.run(request, Need()))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(return_trip)
                success(b, "", await b.copy())

        assert [r.state for r in found] == ["protected"], found[0].message
        assert b.source.has("copy/app", BACK, TAG)
        assert b.source.ledger.max_concurrent[Phase.GET_BLOB] <= 1
        assert b.target.ledger.max_concurrent[Phase.UPLOAD_BODY] <= 1


# Row 45


@pytest.mark.parametrize("step", EACH)
async def test_45_cancelled(step: str) -> None:
    """A copy that is cancelled gives everything back at once, and leaves nothing that a tag names; the next completes."""
    async with bench() as b:
        fault = b.fail(step, hold=anyio.Event())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(b.act, step)
            await fault.reached.wait()
            tasks.cancel_scope.cancel()

        assert not any(b.permits().values())
        assert b.untouched()
        with anyio.fail_after(2):
            while b.target.sessions:  # noqa: ASYNC110 -- the server's own doing has no event
                await anyio.sleep(0.001)
        success(b, step, await b.act(step))


@pytest.mark.parametrize("step", ["Gb", "Rd", "U"])
async def test_45_cancelled_in_a_body(step: str) -> None:
    """The same in the middle of a body."""
    async with bench(source={"redirect_blobs": step == "Rd"}) as b:
        fault = b.fail(step, stall_at=100_000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(b.act, step)
            await fault.reached.wait()
            tasks.cancel_scope.cancel()

        assert not any(b.permits().values())
        with anyio.fail_after(2):
            while b.target.sessions:  # noqa: ASYNC110 -- the server's own doing has no event
                await anyio.sleep(0.001)
        success(b, step, await b.act(step))


#: What a copy does before its tag: referrers are looked for when the image is safe.
BEFORE_THE_TAG = [step for step in STEPS if step != "R"]


@asynccontextmanager
async def stopped_at(b: Bench, step: str, *, nth: int = 1) -> AsyncIterator[ForkServerProcess]:
    """A process that mirrors the image, and waits for the answer of this step."""
    fault = b.fail(step, nth=nth, hold=anyio.Event())
    flags = flags_of(b.source, b.target)
    async with mirroring(flags, f"{b.source.address}/{SOURCE}:{TAG}") as process:
        with anyio.fail_after(20):
            await fault.reached.wait()
        yield process


@pytest.mark.parametrize("step", BEFORE_THE_TAG)
async def test_45_terminated(step: str) -> None:
    """A process that SIGTERM ends leaves as little: no tag, no upload session, no connection; the next run completes."""
    async with bench() as b:
        async with stopped_at(b, step) as process:
            process.terminate()
            await anyio.to_thread.run_sync(process.join)
            assert process.exitcode == 128 + signal.SIGTERM
        assert b.untouched()
        with anyio.fail_after(2):
            # the server's own doing has no event
            while b.target.sessions or b.target.ledger.active or b.source.ledger.active:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        success(b, step, await b.copy())


# Row 46


def sent(b: Bench) -> int:
    """Bytes of blobs that the target took."""
    return b.target.ledger.bytes_in(Phase.UPLOAD_BODY)


@pytest.mark.parametrize("step", BEFORE_THE_TAG)
async def test_46_killed(step: str) -> None:
    """After a kill -9 no tag names anything; the next run sends what is missing, and nothing else."""
    async with bench() as b:
        async with stopped_at(b, step) as process:
            process.kill()
        with anyio.fail_after(2):
            while b.target.ledger.active or b.source.ledger.active:  # noqa: ASYNC110 -- see above
                await anyio.sleep(0.001)
        assert b.untouched()
        b.sessions_left = b.target.sessions
        assert b.sessions_left == (step in {"Gb", "Rd", "U", "C"})
        before = sent(b)
        success(b, step, await b.copy())

        missing = 0 if step == "M" else len(max(IMAGE.blobs.values(), key=len))
        assert sent(b) - before == missing


async def test_46_killed_after_the_tag() -> None:
    """[Hm] Killed when all is written, before it was looked at: the next run asks two things and writes nothing."""
    async with bench() as b:
        async with stopped_at(b, "Hm", nth=2) as process:
            process.kill()
        assert b.arrived()
        writes = b.count("M")
        success(b, "", await b.copy())
        assert b.count("M") == writes


# Row 49


def served(b: Bench) -> int:
    """Bytes of blobs that the source's store gave."""
    return b.source.ledger.bytes_out(Phase.REDIRECT)


STREAMS, EACH_SIZE = 8, 24 << 20
#: What eight streams may hold besides the program itself: the buffers of sockets and of the HTTP client.
BOUND = 32 << 20


def heavy() -> Image:
    """An image of eight large layers, quickly made."""
    layers = []
    for number in range(STREAMS):
        data = number.to_bytes(8, "big") + bytes(EACH_SIZE - 8)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        layers.append(
            Blob(media_type=OCI_LAYER, digest=digest, size=len(data), data=data, diff_id=digest)
        )
    return images.image(seed="heavy", layers=layers)


async def test_49_memory() -> None:
    """[Gb U] Eight large blobs whose target takes nothing for a while are held by it, not by us."""
    image = heavy()
    async with bench(image=image) as b:
        gate = b.fail("Gm", hold=anyio.Event())
        stall = b.fail(
            "U",
            stall_at=1 << 20,
            times=None,
            match=lambda r: int(r.headers["Content-Length"]) > 1 << 20,
        )
        async with mirroring(
            flags_of(b.source, b.target), f"{b.source.address}/{SOURCE}:{TAG}"
        ) as process:
            with anyio.fail_after(20):
                await gate.reached.wait()
                before = resident(process)
                gate.hold.set()  # type: ignore[union-attr] # the event above
                read = -1
                while sent(b) < STREAMS << 20 or read != served(b):
                    read = served(b)
                    await anyio.sleep(0.1)  # until nothing moves any more
                held = resident(process) - before
                stall.release()
                await anyio.to_thread.run_sync(process.join)
            assert process.exitcode == 0
        assert b.arrived()
        assert held < BOUND
