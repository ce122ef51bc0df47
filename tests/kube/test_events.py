"""Events on workloads: one for a failure and hour, its count, and what stops them."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from copycat import logs
from copycat.errors import KubeDenied
from copycat.kube.client import KubeClient
from copycat.kube.events import EVENT_HOUR, EventWriter, Notice, ObjectKey
from copycat.sandbox.kube_api import Fault, KubeApi
from tests.kube.support import until

WEB: ObjectKey = ("Deployment", "shop", "web")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged."""
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    yield stream
    logs.unconfigure()


def notice(
    subject: str = "docker.io/library/nginx:1",
    *candidates: ObjectKey,
    owner: ObjectKey = WEB,
    message: str = "it does not exist",
) -> Notice:
    """A failure."""
    return Notice(
        owner=owner,
        candidates=candidates or (owner,),
        reason="ImageMirrorFailed",
        subject=subject,
        message=message,
    )


class Hours:
    """A clock and a calendar that are set by hand; the writer's pauses last one turn of the loop."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await checkpoint()


def create(api: KubeApi, key: ObjectKey = WEB) -> str:
    """Make the object; its uid."""
    resource = {"Deployment": "deployments", "Pod": "pods"}[key[0]]
    item = api.create(resource, {"metadata": {"namespace": key[1], "name": key[2]}})
    uid: str = item["metadata"]["uid"]
    return uid


@asynccontextmanager
async def writing(client: KubeClient, hours: Hours, **options: Any) -> AsyncIterator[EventWriter]:
    """A writer that runs."""
    writer = EventWriter(client, clock=hours.clock, now=hours.now, sleep=hours.sleep, **options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run)
        yield writer
        tasks.cancel_scope.cancel()


def asked(api: KubeApi) -> int:
    """How many requests there were about Events."""
    return sum(1 for r in api.requests if r.resource == "events")


async def settled(writer: EventWriter, api: KubeApi, hours: Hours) -> None:
    """Wait until a failure that is reported last has been dealt with."""
    pauses = len(hours.pauses)
    writer.report(notice("last", owner=("Deployment", "shop", "none")))
    await until(lambda: len(hours.pauses) > pauses and not writer._waiting)


async def test_an_event(api: KubeApi, client: KubeClient) -> None:
    """A failure becomes a Warning on its object, with the uid by which `kubectl describe` finds it."""
    uid = create(api)
    hours = Hours()
    async with writing(client, hours, instance="copycat-0") as writer:
        writer.report(notice())
        await until(lambda: bool(api.objects("events")))
    [event] = api.objects("events")
    assert event["involvedObject"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "namespace": "shop",
        "name": "web",
        "uid": uid,
    }
    assert event["metadata"]["name"].startswith("web.")
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "ImageMirrorFailed", 1)
    assert event["message"] == "it does not exist"
    assert event["source"] == {"component": "k8s-copycat"}
    assert event["reportingInstance"] == "copycat-0"
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2026-01-01T00:00:00Z"


async def test_one_event_for_a_failure_and_hour(api: KubeApi, client: KubeClient) -> None:
    """Within the hour further failures cost no request; the first after it says how many there were."""
    create(api)
    hours = Hours()
    async with writing(client, hours) as writer:
        for _ in range(5):
            writer.report(notice())
            await until(lambda: bool(api.objects("events")))
            hours.seconds += EVENT_HOUR / 10
        assert asked(api) == 1
        hours.seconds = EVENT_HOUR + 1
        writer.report(notice(message="another reason"))
        await until(lambda: api.objects("events")[0]["count"] == 6)
    [event] = api.objects("events")
    assert event["firstTimestamp"] == "2026-01-01T00:00:00Z"
    assert event["lastTimestamp"] == "2026-01-01T01:00:01Z"
    assert event["message"] == "another reason"
    assert asked(api) == 2


async def test_an_event_that_expired_is_made_again(api: KubeApi, client: KubeClient) -> None:
    """The API forgets Events after an hour; the count goes on."""
    create(api)
    hours = Hours()
    async with writing(client, hours) as writer:
        writer.report(notice())
        await until(lambda: bool(api.objects("events")))
        [event] = api.objects("events")
        api.delete("events", "shop", event["metadata"]["name"])
        hours.seconds = EVENT_HOUR
        writer.report(notice())
        await until(lambda: bool(api.objects("events")))
    assert api.objects("events")[0]["count"] == 2


async def test_a_restart_goes_on_counting(api: KubeApi, client: KubeClient) -> None:
    """Another process finds the Event of the same failure, and adds to it."""
    create(api)
    for expected in (1, 2):
        async with writing(client, Hours()) as writer:
            writer.report(notice())
            await until(lambda: [e["count"] for e in api.objects("events")] == [expected])  # noqa: B023 -- awaited at once


async def test_the_first_candidate_that_exists(api: KubeApi, client: KubeClient) -> None:
    """An owner that is no object leaves its Event to what it owns; a workload that is gone has none."""
    pod: ObjectKey = ("Pod", "shop", "web-x7k2p")
    create(api, pod)
    hours = Hours()
    async with writing(client, hours) as writer:
        writer.report(notice("a", WEB, pod))
        writer.report(notice("b", WEB))
        await settled(writer, api, hours)
    [event] = api.objects("events")
    assert event["involvedObject"]["name"] == "web-x7k2p"
    assert event["involvedObject"]["apiVersion"] == "v1"


async def test_an_owner_that_may_not_be_seen(api: KubeApi, client: KubeClient) -> None:
    """Where Deployments may not be listed the Event is put on the Pod, which may."""
    pod: ObjectKey = ("Pod", "shop", "web-x7k2p")
    create(api, pod)
    create(api)
    api.forbid("deployments")
    async with writing(client, Hours()) as writer:
        writer.report(notice("a", WEB, pod))
        await until(lambda: bool(api.objects("events")))
    assert api.objects("events")[0]["involvedObject"]["kind"] == "Pod"


async def test_one_workload_is_spared(api: KubeApi, client: KubeClient) -> None:
    """Of one workload at most 25 different failures are told at once, then one in five minutes; others are heard."""
    other: ObjectKey = ("Deployment", "shop", "other")
    create(api)
    create(api, other)
    hours = Hours()
    async with writing(client, hours) as writer:
        for number in range(40):
            writer.report(notice(f"image-{number}"))
        writer.report(notice(owner=other))
        await settled(writer, api, hours)
        assert len(api.objects("events")) == 26
        hours.seconds += 300
        writer.report(notice("one"))
        writer.report(notice("two"))
        await settled(writer, api, hours)
    assert len(api.objects("events")) == 27
    assert set(hours.pauses) == {1.0}


async def test_a_refusal_is_said_once(
    api: KubeApi, client: KubeClient, stream: io.StringIO
) -> None:
    """403 is told once, with the permission that is missing, and nothing is asked any more."""
    create(api)
    api.forbid("events")
    hours = Hours()
    async with writing(client, hours) as writer:
        writer.report(notice("a"))
        writer.report(notice("b"))
        await until(lambda: not writer._waiting and bool(hours.pauses))
        hours.seconds += 2 * EVENT_HOUR
        writer.report(notice("a"))
        writer.report(notice("c", owner=("Deployment", "elsewhere", "x")))
        assert not writer._waiting
    assert asked(api) == 1
    [line] = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert line["level"] == "warn"
    assert "create and patch on events" in line["remedy"]


async def test_a_refusal_of_one_namespace(api: KubeApi, client: KubeClient) -> None:
    """Where namespaces have Roles of their own, a refusal speaks for its namespace alone."""
    other: ObjectKey = ("Deployment", "garden", "web")
    create(api)
    create(api, other)
    api.forbid("events", namespace="shop")
    hours = Hours()
    async with writing(client, hours, cluster_wide=False) as writer:
        writer.report(notice("a"))
        writer.report(notice("a", owner=other))
        await until(lambda: bool(api.objects("events")))
        writer.report(notice("b"))
        assert not writer._waiting
    assert [e["metadata"]["namespace"] for e in api.objects("events")] == ["garden"]


class Refused(KubeClient):
    """A client of an API where something else than a missing permission refuses every new Event."""

    def __init__(self, client: KubeClient, why: str) -> None:
        self.refused = 0
        self._client = client
        self._why = why

    async def request(self, method: str, path: str, **options: Any) -> bytes:
        """403, in the words of the real one (there `reason` is Forbidden too)."""
        if method != "POST":
            return await self._client.request(method, path, **options)
        self.refused += 1
        raise KubeDenied(
            f'events "web.1" is forbidden: {self._why}', status=403, reason="Forbidden"
        )


@pytest.mark.parametrize(
    "why",
    [
        "unable to create new content in namespace shop because it is being terminated",
        "exceeded quota: few, requested: count/events=1, used: count/events=5, limited: count/events=5",
    ],
    ids=["ending", "quota"],
)
async def test_refusals_that_are_no_missing_permission(
    api: KubeApi, client: KubeClient, why: str
) -> None:
    """A namespace that is being deleted or full says nothing about permissions: later Events are tried."""
    create(api)
    refused = Refused(client, why)
    async with writing(refused, Hours()) as writer:
        writer.report(notice("a"))
        await until(lambda: refused.refused == 1)
        writer.report(notice("b"))
        await until(lambda: refused.refused == 2)


async def test_an_outage_is_no_refusal(api: KubeApi, client: KubeClient) -> None:
    """If the API does not answer, the next failure tries again, and counts the one that was not written."""
    create(api)
    hours = Hours()
    async with writing(client, hours) as writer:
        await api.stop()
        writer.report(notice())
        await until(lambda: bool(hours.pauses))
        await api.start()
        writer.report(notice())
        await until(lambda: bool(api.objects("events")))
    assert api.objects("events")[0]["count"] == 2


@pytest.mark.parametrize("fault", [Fault.NO_JSON, Fault.CONFLICT])
async def test_strange_answers(api: KubeApi, client: KubeClient, fault: Fault) -> None:
    """An answer that is no JSON, or a conflict with an Event that then is not there, stops nothing."""
    create(api)
    api.fail(fault, resource="deployments" if fault is Fault.NO_JSON else "events")
    hours = Hours()
    async with writing(client, hours) as writer:
        writer.report(notice())
        await until(lambda: bool(hours.pauses))
        writer.report(notice("another"))
        await until(lambda: bool(api.objects("events")))


async def test_messages_are_bounded(api: KubeApi, client: KubeClient) -> None:
    """A message is one line of at most 600 characters, and no secret is in it; a long name fits."""
    owner: ObjectKey = ("Deployment", "shop", "w" * 240 + ".x.y")
    create(api, owner)
    hours = Hours()
    async with writing(client, hours) as writer:
        writer.report(notice(owner=owner, message="a\nb Bearer abcdefghijklmnop " + "x" * 5000))
        await until(lambda: bool(api.objects("events")))
    [event] = api.objects("events")
    assert len(event["message"]) == 600
    assert event["message"].startswith("a b Bearer *** x")
    assert len(event["metadata"]["name"]) <= 253


async def test_memory_is_bounded(client: KubeClient) -> None:
    """However many failures there are, only some thousands are remembered, and a thousand wait."""
    writer = EventWriter(client)
    for number in range(5000):
        writer.report(notice(str(number), owner=("Deployment", "shop", str(number))))
    assert len(writer._series) == 4096
    assert len(writer._buckets) <= 4096
    assert len(writer._waiting) == 1000
