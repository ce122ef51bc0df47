"""Failures are told where people look: as Events on the workloads, and never when nothing was tried."""

from __future__ import annotations

from typing import Any

import pytest

from copycat.app.failures import MAX_WORKLOADS, FailureEvents
from copycat.controller.inventory import Inventory
from copycat.errors import CopycatError, Denied, Throttled, Unauthorized
from copycat.kube.events import EventWriter, Notice
from copycat.kube.selection import Selection
from copycat.kube.workload import ContainerImage, Workload
from copycat.mirror.naming import Naming
from copycat.mirror.request import MirrorRequest, MirrorResult
from copycat.oci.reference import Reference
from tests.app.support import World, named, protected, until


class Heard(EventWriter):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def report(self, notice: Notice) -> None:
        """One more."""
        self.notices.append(notice)


IMAGE = "ghcr.io/team/app:1"


def workload(kind: str, name: str, owner_kind: str = "", owner: str = "") -> Workload:
    """A workload that uses the image."""
    return Workload(
        kind=kind,
        namespace="shop",
        name=name,
        owner_kind=owner_kind or kind,
        owner_name=owner or name,
        images=(ContainerImage(container="main", image=IMAGE),),
    )


def finished(*workloads: Workload, **result: Any) -> list[Notice]:
    """What is reported when the attempt for their image ends so."""
    naming = Naming(prefix="mirror", rules=(), max_length=255)
    inventory = Inventory(
        selection=Selection(include_namespaces=("*",)), naming=naming, target_registry="t.example"
    )
    for one in workloads:
        inventory.observe(None, one)
    heard = Heard()
    request = MirrorRequest(Reference.parse(IMAGE), "mirror/team/app")
    target = Reference.parse("t.example/mirror/team/app:1")
    events = FailureEvents(inventory, Selection(include_namespaces=("*",)), heard)
    events.started(request)
    events.moved(request, "pull", 1)
    events.finished(request, MirrorResult(target=target, **result))
    return heard.notices


def failure(error: CopycatError, **more: Any) -> dict[str, Any]:
    """The fields of a result that failed with this error."""
    return {
        "state": "failed",
        "reason": error.reason,
        "message": str(error),
        "error": error,
        **more,
    }


def test_the_top_owner() -> None:
    """Pods report under what people call the workload; where that is no watched object a Pod stands for it."""
    notices = finished(
        workload("Pod", "web-5d-x", "Deployment", "web"),
        workload("Pod", "web-5d-y", "Deployment", "web"),
        workload("Deployment", "web"),
        workload("Pod", "broker-0", "Kafka", "broker"),
        **failure(Unauthorized("no", side="source")),
    )
    assert [(n.owner, n.candidates) for n in notices] == [
        (("Deployment", "shop", "web"), (("Deployment", "shop", "web"),)),
        (("Kafka", "shop", "broker"), (("Pod", "shop", "broker-0"),)),
    ]


@pytest.mark.parametrize(
    ("result", "reason", "words"),
    [
        pytest.param(
            failure(Unauthorized("secret words of a server", side="source")),
            "ImageMirrorFailed",
            f"{IMAGE} is not mirrored: the credentials are missing or not accepted at the source (unauthorized);"
            " there is no copy; see k8s-copycat's status page or log",
            id="terminal",
        ),
        pytest.param(
            failure(Throttled("secret words of a server", side="source"), protected=True),
            "ImageMirrorFailed",
            f"{IMAGE} is not mirrored: there were too many requests at the source (throttled);"
            " an earlier copy stands; it is tried again soon",
            id="temporary",
        ),
        pytest.param(
            failure(CopycatError("secret words of a server", reason="something_new")),
            "ImageMirrorFailed",
            f"{IMAGE} is not mirrored: the attempt failed (something_new);"
            " there is no copy; see k8s-copycat's status page or log",
            id="unknown",
        ),
        pytest.param(
            {"state": "conflict"},
            "ImageMirrorFailed",
            f"{IMAGE} is not mirrored: another image wants the same tag at the mirror (conflict);"
            " there is no copy; see k8s-copycat's status page or log",
            id="conflict",
        ),
        pytest.param(
            {"state": "denied", "reason": "private_image"},
            "ImageMirrorDenied",
            f"{IMAGE} is not mirrored: it needs a pull secret, and its copy would be open to others (private_image);"
            " there is no copy; see k8s-copycat's status page or log",
            id="denied",
        ),
        pytest.param(
            failure(Denied("secret words", side="source", reason="pull_secret_not_allowed")),
            "PullSecretUnusable",
            f"{IMAGE} is not mirrored: access is denied without a pull secret, which may not be read, at the source (pull_secret_not_allowed);"
            " there is no copy; see k8s-copycat's status page or log",
            id="pull-secret",
        ),
    ],
)
def test_words(result: dict[str, Any], reason: str, words: str) -> None:
    """An Event has a fixed reason and our own words; what a server said is not repeated to tenants."""
    [notice] = finished(workload("Deployment", "web"), **result)
    assert (notice.reason, notice.message) == (reason, words)
    assert "secret words" not in notice.message


@pytest.mark.parametrize("state", ["protected", "tag_held", "waiting_quota", "dry_run", "in_place"])
def test_what_is_no_failure(state: str) -> None:
    """Copies that stand, and states that somebody chose, are told nobody."""
    assert finished(workload("Deployment", "web"), state=state) == []


def test_an_image_of_many_workloads() -> None:
    """Only some of the workloads that share a bad image get an Event."""
    many = [workload("Deployment", f"web-{n:03}") for n in range(3 * MAX_WORKLOADS)]
    assert len(finished(*many, **failure(Unauthorized("no", side="source")))) == MAX_WORKLOADS


def test_an_image_that_is_forgotten() -> None:
    """An attempt whose image nothing uses any more is told nobody."""
    assert finished(**failure(Unauthorized("no", side="source"))) == []


async def test_failures_become_events(world: World) -> None:
    """A Deployment whose image does not exist, and one whose text names none, get an Event each; a good one none."""
    world.source.add_image("good", "1", seed="good")
    world.deployment("good", world.image("good:1"))
    world.deployment("absent", world.image("absent:1"))
    world.deployment("broken", "UPPER CASE//bad")
    async with world.running() as program:
        await until(lambda: len(world.api.objects("events")) == 2)
        await protected(program, 1)
    events = {e["involvedObject"]["name"]: e for e in world.api.objects("events")}
    assert events.keys() == {"absent", "broken"}
    assert "not_found" in events["absent"]["message"]
    assert "UPPER CASE//bad" in events["broken"]["message"]
    assert events["absent"]["reportingInstance"].startswith("copycat_")


async def test_a_registry_that_is_not_allowed(world: World) -> None:
    """Whoever uses an image that policy denies is told that there is no copy; skipped and excluded ones are not."""
    world.source.add_image("good", "1", seed="good")
    world.deployment("good", world.image("good:1"))
    world.deployment("denied", "ghcr.io/team/app:1")
    world.deployment("excluded", "quay.io/team/app:1")
    world.deployment("skipped", "ghcr.io/team/app:2")
    flags = {
        "allowed_registries": world.source.address,
        "exclude_registries": "quay.io",
        "skip_names__deployments": "skipped",
    }
    async with world.running(**flags) as program:
        await protected(program, 1)
        await until(lambda: bool(world.api.objects("events")))
    [event] = world.api.objects("events")
    assert event["involvedObject"]["name"] == "denied"
    assert event["reason"] == "ImageMirrorDenied"
    assert event["message"] == (
        "ghcr.io/team/app:1 is not mirrored: its registry is not one of those that may be mirrored (not_allowed)"
    )


async def test_a_sidecar_is_told_on_the_deployment(world: World) -> None:
    """What was injected into a Pod alone is told on the Pod's Deployment, where people look."""
    world.source.add_image("good", "1", seed="good")
    world.deployment("web", world.image("good:1"))
    owner = {"kind": "ReplicaSet", "name": "web-5d9f", "controller": True}
    metadata = {
        **named("web-5d9f-x"),
        "labels": {"pod-template-hash": "5d9f"},
        "ownerReferences": [owner],
    }
    spec = {"containers": [{"name": "sidecar", "image": world.image("absent:1")}]}
    world.api.create("pods", {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}})
    async with world.running():
        await until(lambda: bool(world.api.objects("events")))
    [event] = world.api.objects("events")
    assert event["involvedObject"]["kind"] == "Deployment"
    assert event["involvedObject"]["name"] == "web"


@pytest.mark.parametrize("mode", ["dry_run", "dry_pull"])
async def test_none_in_dry_modes(world: World, mode: str) -> None:
    """A dry mode writes nothing, Events included."""
    world.deployment("absent", world.image("absent:1"))
    world.deployment("broken", "UPPER CASE//bad")
    async with world.running(**{mode: True}) as program:
        await until(lambda: len(program.facade.images()) == 2)
        await until(lambda: not program.facade.status().queued)
    assert not any(r.resource == "events" for r in world.api.requests)


async def test_none_on_standby(world: World) -> None:
    """Who stands by tells nothing: the Event is the leader's."""
    world.deployment("absent", world.image("absent:1"))
    async with world.running(leader_elect=True) as leader:
        await until(lambda: bool(world.api.objects("events")))
        async with world.running(leader_elect=True) as standby:
            await until(lambda: bool(standby.facade.holder()))
            assert standby.facade.holder() == leader.facade.holder()
        [event] = world.api.objects("events")
        assert event["reportingInstance"] == leader.facade.holder()
    assert sum(1 for r in world.api.requests if r.resource == "events") == 1


async def test_without_permission_the_work_goes_on(world: World) -> None:
    """Without the right to write Events everything is copied all the same, and one request found out."""
    world.api.forbid("events")
    world.source.add_image("good", "1", seed="good")
    world.deployment("absent", world.image("absent:1"))
    world.deployment("absent2", world.image("absent:2"))
    world.deployment("good", world.image("good:1"))
    async with world.running() as program:
        await until(lambda: any(r.resource == "events" for r in world.api.requests))
        await until(lambda: sum(row.state == "failed" for row in program.facade.images()) == 2)
        await protected(program, 1)
    assert sum(1 for r in world.api.requests if r.resource == "events") == 1
