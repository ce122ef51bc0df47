"""Large tenants and busy CronJobs: what they may cost the others."""

from __future__ import annotations

import anyio
import anyio.lowlevel
from anyio import wait_all_tasks_blocked
from msgspec.structs import replace

from copycat.kube.workload import ContainerImage, Workload
from tests.controller.test_controller import World, template

MANY = 10_000
NIGHTLY = "quay.io/team/nightly:1"


def deployment(namespace: str, number: int = 0) -> Workload:
    """A Deployment with an image of its own."""
    made = template(f"quay.io/{namespace}/app-{number}:1", name=f"app-{number}")
    return replace(made, namespace=namespace)


async def test_a_large_namespace_does_not_delay_a_small_one() -> None:
    """One namespace has 10,000 images in the queue; another's one image is the next but one."""
    gate = anyio.Event()
    world = World(gate)
    async with world.working() as controller:
        await world.see(deployment("large"))
        for number in range(1, MANY):
            controller.observe(None, deployment("large", number))
        controller.observe(None, deployment("small"))
        assert len(controller.queue) == MANY
        gate.set()
        while world.tried < 4:
            await anyio.lowlevel.checkpoint()
        order = [request.source.repository for request, _ in world.mirror.needs[:4]]
        assert "small/app-0" in order[1:3]


async def test_at_the_start_too() -> None:
    """The same for what the first lists bring."""
    world = World()
    for number in range(MANY):
        world.controller.observe(None, deployment("large", number))
    world.controller.observe(None, deployment("small"))
    async with world.working():
        order = [request.source.repository for request, _ in world.mirror.needs]
        assert len(order) == MANY + 1
        assert order.index("small/app-0") < 2


async def test_a_cron_job_with_thousands_of_jobs_is_one_image() -> None:
    """3,000 finished Jobs of one CronJob: one unit of work, one attempt, one line for its owner."""
    world = World()
    image = (ContainerImage(container="main", image=NIGHTLY),)
    cron = Workload(kind="CronJob", namespace="shop", name="nightly", owner_kind="CronJob",
                    owner_name="nightly", images=image, fingerprint=1)  # fmt: skip
    world.controller.observe(None, cron)
    for number in range(3000):
        job = replace(cron, kind="Job", name=f"nightly-{28_000_000 + number}")
        world.controller.observe(None, job)
    async with world.working() as controller:
        assert world.tried == 1
        (entry,) = controller.inventory.entries.values()
        owners = {(user.owner_kind, user.owner_name) for user in entry.users.values()}
        assert owners == {("CronJob", "nightly")}
        for number in range(3000):  # the history is cleaned up
            job = replace(cron, kind="Job", name=f"nightly-{28_000_000 + number}")
            controller.observe(job, None)
        await wait_all_tasks_blocked()
        assert world.tried == 1
        assert len(controller.inventory.entries) == 1
