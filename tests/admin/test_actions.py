"""The two actions: JSON, messages, joins, standby."""

from __future__ import annotations

from typing import Any

import aiohttp
import anyio
import pytest
from anyio import wait_all_tasks_blocked

from copycat.admin.actions import ActionRunner, ForceReply, Standing
from copycat.errors import KubeUnavailable
from tests.admin.stubs import Controller, serve

BOTH = pytest.mark.parametrize("method", ["GET", "POST"])


@BOTH
@pytest.mark.parametrize(
    ("enabled", "cleared", "expected"),
    [
        (True, 2, {"reset": True, "clearedTargets": 2, "message": "failure cooldown reset"}),
        (True, 0, {"reset": False, "clearedTargets": 0, "message": "no cooldown entries to reset"}),
        (False, 0, {"reset": False, "clearedTargets": 0, "message": "failure cooldown disabled"}),
    ],
    ids=["some", "none", "disabled"],
)
async def test_reset(method: str, enabled: bool, cleared: int, expected: dict[str, Any]) -> None:
    """`/reset-cooldown` answers what the original answers."""
    async with serve(Controller(enabled=enabled, cleared=cleared)) as served:
        status, body, headers = await served.call("/reset-cooldown", method=method)

    assert (status, body) == (200, expected)
    assert list(body) == ["reset", "clearedTargets", "message"]
    assert headers["Content-Type"] == "application/json"


@BOTH
async def test_force(method: str) -> None:
    """`/force-reconcile` answers once everything was tried, with the numbers."""
    async with serve() as served:
        status, body, _ = await served.call("/force-reconcile", method=method)

    assert status == 200
    assert body == {
        "triggered": True,
        "success": True,
        "workloadsProcessed": 3,
        "imagesMirrored": 5,
        "message": "force reconcile completed",
    }


async def test_force_with_failures() -> None:
    """A pass in which something failed says what, and still counts."""
    async with serve(Controller(failure="1 of 6 images: ghcr.io/a/b:1 is missing")) as served:
        status, body, _ = await served.call("/force-reconcile")

    assert status == 200
    assert (body["triggered"], body["success"], body["imagesMirrored"]) == (True, False, 5)
    assert body["message"] == "force reconcile failed: 1 of 6 images: ghcr.io/a/b:1 is missing"


async def test_force_that_breaks() -> None:
    """A pass that cannot be made is a failed one, not an error of the server; the next one is a new one."""
    controller = Controller(error=KubeUnavailable("the lease was lost"))
    async with serve(controller) as served:
        _, body, _ = await served.call("/force-reconcile")
        assert (body["success"], body["message"]) == (
            False,
            "force reconcile failed: the lease was lost",
        )
        controller.error = None
        _, body, _ = await served.call("/force-reconcile")
        assert body["success"]

    assert controller.passes == 2


async def test_later_calls_join() -> None:
    """Calls during a pass join it: one pass, the same answer for all; a call after it is a new one."""
    controller = Controller(gate=anyio.Event())
    answers: list[tuple[int, ForceReply]] = []
    async with anyio.create_task_group() as server:
        runner = ActionRunner(controller, Standing, server)

        async def call() -> None:
            answers.append(await runner.force())

        async with anyio.create_task_group() as callers:
            for _ in range(3):
                callers.start_soon(call)
            await wait_all_tasks_blocked()
            assert controller.gate is not None
            controller.gate.set()
        assert (controller.passes, len(answers), len(set(answers))) == (1, 3, 1)
        await call()

    assert controller.passes == 2


async def test_other_requests_go_on() -> None:
    """A pass holds up neither probes nor the API."""
    controller = Controller(gate=anyio.Event())
    async with serve(controller) as served, anyio.create_task_group() as group:
        group.start_soon(served.call, "/force-reconcile")
        await controller.entered.wait()
        assert (await served.call("/healthz", on="health"))[0] == 200
        assert (await served.call("/api/v1/images"))[0] == 200
        assert controller.gate is not None
        controller.gate.set()


async def test_client_that_leaves() -> None:
    """A client that leaves does not end the pass; a later one joins it."""
    controller = Controller(gate=anyio.Event())
    async with serve(controller) as served:
        async with anyio.create_task_group() as group:
            group.start_soon(served.call, "/force-reconcile")
            await controller.entered.wait()
            group.cancel_scope.cancel()
        assert controller.finished == 0
        assert controller.gate is not None
        controller.gate.set()
        _, body, _ = await served.call("/force-reconcile")

    assert body["success"]
    assert controller.finished == controller.passes


async def test_end_of_the_program() -> None:
    """The end of the program does not wait for a pass; whoever waits for it is told."""
    controller = Controller(gate=anyio.Event())
    answers: list[Any] = []
    with anyio.fail_after(5):
        async with aiohttp.ClientSession() as session, anyio.create_task_group() as group:

            async def call(url: str) -> None:
                async with session.get(url) as response:
                    answers.append(await response.json())

            async with serve(controller) as served:
                group.start_soon(call, f"http://{served.addresses['admin']}/force-reconcile")
                await controller.entered.wait()

    assert controller.finished == 0
    [answer] = answers
    assert (answer["success"], answer["message"]) == (
        False,
        "force reconcile failed: it was cut off",
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/reset-cooldown", "cooldown reset service not ready"),
        ("/force-reconcile", "force reconcile service not ready"),
    ],
)
async def test_not_ready(path: str, message: str) -> None:
    """Before the controller takes orders: 503 and the original's message."""
    async with serve(Controller(standing=Standing(ready=False))) as served:
        status, body, _ = await served.call(path)

    assert (status, body["message"]) == (503, message)
    assert not any(body[key] for key in body if key != "message")


@pytest.mark.parametrize("path", ["/reset-cooldown", "/force-reconcile", "/api/v1/images"])
@pytest.mark.parametrize(
    ("holder", "named"), [("pod-7", "pod-7"), ("", "not elected yet")], ids=["elected", "nobody"]
)
async def test_standby(path: str, holder: str, named: str) -> None:
    """A standby does nothing, shows no images as if it knew them, and names the leader."""
    controller = Controller(standing=Standing(leading=False, holder=holder))
    async with serve(controller) as served:
        status, body, _ = await served.call(path)
        whole, _, _ = await served.call("/api/v1/status")

    assert status == 503
    assert named in body["message"]
    assert whole == 200
    assert (controller.resets, controller.passes) == (0, 0)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/reset-cooldown", "/force-reconcile"])
async def test_other_methods(method: str, path: str) -> None:
    """Other methods than GET and POST are refused with 405 and do nothing."""
    async with serve() as served:
        status, _, headers = await served.call(path, method=method)

    assert status == 405
    assert headers["Allow"] == "GET,POST"
    assert (served.controller.resets, served.controller.passes) == (0, 0)
