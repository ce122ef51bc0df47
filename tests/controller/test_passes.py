"""Forced passes, without a controller."""

from __future__ import annotations

import anyio
from anyio import wait_all_tasks_blocked

from copycat.controller.passes import Pass, Passes
from copycat.mirror.request import MirrorRequest
from copycat.oci.reference import Reference

A = MirrorRequest(Reference.parse("quay.io/team/a:1"), "quay.io/team/a")
B = MirrorRequest(Reference.parse("quay.io/team/b:1"), "quay.io/team/b")


async def test_a_pass_waits_for_every_image_and_joins_late_comers() -> None:
    """Whoever asks while a pass runs gets the same pass, which ends when each image was tried."""
    begun: list[int] = []
    ended: list[Pass] = []

    def begin() -> list[MirrorRequest]:
        begun.append(1)
        return [A, B]

    passes = Passes(begin)

    async def ask() -> None:
        ended.append(await passes.run())

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
        await wait_all_tasks_blocked()
        passes.tried(A, failed=True)
        passes.tried(A, failed=False)
        await wait_all_tasks_blocked()
        assert not ended
        passes.tried(B, failed=False)

    assert len(begun) == 1
    assert ended[0] is ended[1]
    assert ended[0].failed == {A}


async def test_a_client_that_leaves_does_not_end_the_pass() -> None:
    """The pass goes on without the one that started it, and the next asks for a new one only when it is over."""
    passes = Passes(lambda: [A])
    ended: list[Pass] = []

    async def ask() -> None:
        ended.append(await passes.run())

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await wait_all_tasks_blocked()
        passes.tried(A, failed=False)
    assert len(ended) == 1


async def test_nothing_to_do_is_over_at_once() -> None:
    """A pass over no image ends immediately, and results without a pass concern nobody."""
    passes = Passes(list)
    passes.tried(A, failed=True)
    assert (await passes.run()).failed == set()
