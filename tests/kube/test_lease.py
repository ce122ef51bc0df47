"""Leader election against the sandbox API: one leader at a time, whatever happens to the candidates and the server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.lowlevel import checkpoint

from copycat.errors import KubeDenied
from copycat.kube.client import KubeClient
from copycat.kube.lease import Lease
from copycat.metrics import Metrics
from copycat.sandbox.kube_api import Fault, KubeApi
from tests.kube.support import client_for, metrics, until

QUICK: dict[str, Any] = {"duration": 1.0, "renew": 0.5, "retry": 0.06}


def _lease(client: KubeClient, identity: str, **options: Any) -> Lease:
    chosen = {"metrics": metrics(), "clock": anyio.current_time, **QUICK, **options}
    return Lease(client, namespace="tools", name="copycat", identity=identity, **chosen)


def _spec(api: KubeApi) -> dict[str, Any]:
    item = api.get("leases", "tools", "copycat")
    assert item is not None
    spec: dict[str, Any] = item["spec"]
    return spec


class Candidate:
    """A process that stands for the Lease, with a token of its own, so that it can be cut off."""

    def __init__(self, lease: Lease, terms: list[list[Any]]) -> None:
        self.lease = lease
        self.scope = anyio.CancelScope()
        self.stopped = anyio.Event()
        self._terms = terms

    async def run(self) -> None:
        with self.scope:
            await self.lease.hold(self._work)
        self.stopped.set()

    async def _work(self) -> None:
        term = [self.lease.identity, anyio.current_time(), None]
        self._terms.append(term)
        try:
            await anyio.sleep_forever()
        finally:
            term[2] = anyio.current_time()


class Election:
    """Three candidates and the terms that they led."""

    def __init__(self, candidates: list[Candidate], terms: list[list[Any]]) -> None:
        self.candidates = candidates
        self.terms = terms

    async def leader(self, *, not_: Candidate | None = None) -> Candidate:
        await until(lambda: any(c.lease.is_leader and c is not not_ for c in self.candidates))
        return next(c for c in self.candidates if c.lease.is_leader and c is not not_)

    @property
    def overlaps(self) -> bool:
        ordered = sorted(self.terms, key=lambda term: float(term[1]))
        return any(a[2] is None or a[2] > b[1] for a, b in pairwise(ordered))


@asynccontextmanager
async def _election(api: KubeApi, directory: Path, **options: Any) -> AsyncIterator[Election]:
    api.access.tokens = {"a", "b", "c"}
    terms: list[list[Any]] = []
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        candidates = []
        for token in ("a", "b", "c"):
            (directory / token).mkdir()
            client = await stack.enter_async_context(
                client_for(api, directory / token, token=token)
            )
            candidate = Candidate(_lease(client, token, **options), terms)
            tasks.start_soon(candidate.run)
            candidates.append(candidate)
        yield Election(candidates, terms)
        for candidate in candidates:
            candidate.scope.cancel()
        for candidate in candidates:
            await candidate.stopped.wait()


async def test_release(api: KubeApi, tmp_path: Path) -> None:
    """Of three candidates one leads; when it stops it releases, and another leads at once."""
    async with _election(api, tmp_path) as election:
        first = await election.leader()
        assert sum(c.lease.is_leader for c in election.candidates) == 1
        await until(
            lambda: all(c.lease.holder == first.lease.identity for c in election.candidates)
        )
        begin = anyio.current_time()
        first.scope.cancel()
        await first.stopped.wait()
        assert not first.lease.is_leader
        await election.leader()
        assert anyio.current_time() - begin < 0.9  # well before the Lease would have ended
        assert _spec(api)["leaseTransitions"] == 1
        assert not election.overlaps
    assert _spec(api)["holderIdentity"] == ""


async def test_crash(api: KubeApi, tmp_path: Path) -> None:
    """A leader that vanishes is followed when its Lease has ended, and not before."""
    async with _election(api, tmp_path) as election:
        first = await election.leader()
        tokens = api.access.tokens
        assert tokens is not None
        tokens.remove(first.lease.identity)  # not even the release gets through
        renewed = anyio.current_time()
        first.scope.cancel()
        second = await election.leader(not_=first)
        assert second.lease.identity != first.lease.identity
        assert 0.8 < anyio.current_time() - renewed < 2.0
        assert not election.overlaps


async def test_wall_clocks_that_jump(api: KubeApi, tmp_path: Path) -> None:
    """Every look at the wall clock shows another day, ahead and back: nobody is deposed, and a crash is followed in time."""
    looks = 0

    def now() -> datetime:
        nonlocal looks
        looks += 1
        return datetime(2026, 1, 15, tzinfo=UTC) + timedelta(days=(-1) ** looks * looks % 300)

    async with _election(api, tmp_path, now=now) as election:
        first = await election.leader()
        await until(lambda: looks >= 20)  # written again and again, longer than a Lease lasts
        assert first.lease.is_leader
        assert len(election.terms) == 1
        tokens = api.access.tokens
        assert tokens is not None
        tokens.remove(first.lease.identity)
        gone = anyio.current_time()
        first.scope.cancel()
        await election.leader(not_=first)
        assert 0.8 < anyio.current_time() - gone < 5
        assert not election.overlaps


async def test_server_hangs(api: KubeApi, tmp_path: Path) -> None:
    """While the server hangs, the leader's work ends within `renew` seconds, and somebody leads when it is back."""
    async with _election(api, tmp_path) as election:
        await election.leader()
        begin = anyio.current_time()
        api.hang()
        await until(lambda: election.terms[-1][2] is not None)
        assert anyio.current_time() - begin < QUICK["renew"] + 0.2
        assert not any(c.lease.is_leader for c in election.candidates)
        api.resume()
        await election.leader()
        assert not election.overlaps


async def test_isolated_leader(api: KubeApi, tmp_path: Path) -> None:
    """A leader that is cut off stops before another begins, and stands by afterwards."""
    async with _election(api, tmp_path) as election:
        first = await election.leader()
        tokens = api.access.tokens
        assert tokens is not None
        tokens.remove(first.lease.identity)
        second = await election.leader(not_=first)
        tokens.add(first.lease.identity)
        await until(lambda: first.lease.holder == second.lease.identity)
        assert not first.stopped.is_set()
        assert not election.overlaps


async def test_record(api: KubeApi, client: KubeClient) -> None:
    """The Lease is written as other tools expect it, renewed, and kept from its release to its next term."""
    lease = _lease(client, "me")
    api.create(
        "leases", {"metadata": {"namespace": "tools", "name": "copycat", "labels": {"a": "b"}}}
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: lease.is_leader)
        before = _spec(api)
        assert before["leaseDurationSeconds"] == 1
        assert before["acquireTime"].endswith("Z")
        await until(lambda: _spec(api)["renewTime"] != before["renewTime"])
        assert _spec(api)["acquireTime"] == before["acquireTime"]
        tasks.cancel_scope.cancel()
    item = api.get("leases", "tools", "copycat")
    assert item is not None
    assert item["metadata"]["labels"] == {"a": "b"}
    assert item["spec"]["holderIdentity"] == ""


async def test_release_waits_for_the_work(api: KubeApi, client: KubeClient) -> None:
    """The Lease is released only when the work has stopped."""
    lease = _lease(client, "me")
    finish = anyio.Event()
    seen: list[str] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await finish.wait()
                seen.append(_spec(api)["holderIdentity"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, work)
        await until(lambda: lease.is_leader)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.1)
            finish.set()
    assert seen == ["me"]
    assert _spec(api)["holderIdentity"] == ""


async def test_metrics(api: KubeApi, client: KubeClient) -> None:
    """The gauge says whether this process leads, the counter how often that changed."""
    numbers = metrics()
    lease = _lease(client, "me", metrics=numbers)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: _value(numbers, "leader") == 1)
        tasks.cancel_scope.cancel()
    assert _value(numbers, "leader") == 0
    assert _value(numbers, "leader_transitions_total") == 2


def _value(numbers: Metrics, name: str) -> float | None:
    return numbers.registry.get_sample_value(f"k8s_copycat_{name}")


async def test_forbidden(api: KubeApi, client: KubeClient) -> None:
    """Without permission the start fails, with the Role that is missing and the way around it."""
    api.forbid("leases", verbs=["create"])
    with pytest.raises(KubeDenied, match=r"Role.*--leader-elect=false"):
        await _lease(client, "me").hold(anyio.sleep_forever)


async def test_forbidden_later(api: KubeApi, client: KubeClient) -> None:
    """A permission that is taken away while leading costs the Lease, not the process."""
    lease = _lease(client, "me")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: lease.is_leader)
        rule = api.forbid("leases")
        await until(lambda: not lease.is_leader)
        count = len(api.requests)
        await until(lambda: len(api.requests) > count + 1)
        api.permit(rule)
        await until(lambda: lease.is_leader)
        tasks.cancel_scope.cancel()


async def test_server_comes_late(api: KubeApi, client: KubeClient) -> None:
    """A candidate waits for a server that is down."""
    await api.stop()
    lease = _lease(client, "me")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await anyio.sleep(0.1)
        await api.start()
        await until(lambda: lease.is_leader)
        tasks.cancel_scope.cancel()


async def test_deleted_lease(api: KubeApi, client: KubeClient) -> None:
    """A Lease that somebody deletes is made again by its holder."""
    lease = _lease(client, "me")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: lease.is_leader)
        api.delete("leases", "tools", "copycat")
        await until(lambda: api.get("leases", "tools", "copycat") is not None)
        assert lease.is_leader
        tasks.cancel_scope.cancel()


async def test_touched_lease(api: KubeApi, client: KubeClient) -> None:
    """A Lease that somebody annotates keeps its holder, and its release survives the conflict."""
    lease = _lease(client, "me", retry=0.2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: lease.is_leader)
        api.patch("leases", "tools", "copycat", {"metadata": {"labels": {"a": "b"}}})
        before = _spec(api)["renewTime"]
        await until(lambda: _spec(api)["renewTime"] != before)
        assert lease.is_leader
        api.patch("leases", "tools", "copycat", {"metadata": {"labels": {"a": "c"}}})
        tasks.cancel_scope.cancel()
    assert _spec(api)["holderIdentity"] == ""
    assert _spec(api)["leaseTransitions"] == 0


async def test_stolen_lease(api: KubeApi, client: KubeClient) -> None:
    """A leader that finds another name in the Lease stops at once and does not release it."""
    lease = _lease(client, "me")
    ended = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, work)
        await until(lambda: lease.is_leader)
        spec = {"holderIdentity": "thief", "leaseDurationSeconds": 3600}
        api.patch("leases", "tools", "copycat", {"spec": spec})
        await until(ended.is_set)
        assert lease.holder == "thief"
        tasks.cancel_scope.cancel()
    assert _spec(api)["holderIdentity"] == "thief"


async def test_same_identity_again(api: KubeApi, client: KubeClient) -> None:
    """Whoever finds its own name in a Lease has it, without a transition."""
    spec = {"holderIdentity": "me", "leaseDurationSeconds": 3600, "leaseTransitions": 4}
    api.create("leases", {"metadata": {"namespace": "tools", "name": "copycat"}, "spec": spec})
    lease = _lease(client, "me")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: lease.is_leader)
        assert _spec(api)["leaseTransitions"] == 4
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("verb", ["create", "update"])
async def test_lost_race(api: KubeApi, client: KubeClient, verb: str) -> None:
    """A candidate that another one overtakes between its reading and its writing stands by."""
    if verb == "update":
        api.create("leases", {"metadata": {"namespace": "tools", "name": "copycat"}})
    api.fail(Fault.CONFLICT, resource="leases")
    lease = _lease(client, "me")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: lease.is_leader)
        tasks.cancel_scope.cancel()
    statuses = [r.status for r in api.requests if r.verb == verb][:1]
    assert statuses == [409]


async def test_work_ends(api: KubeApi, client: KubeClient) -> None:
    """Work that ends by itself ends the holding, and the Lease is released."""
    await _lease(client, "me").hold(_nothing)
    assert _spec(api)["holderIdentity"] == ""


async def _nothing() -> None:
    """Work that is done at once."""


async def test_work_fails(api: KubeApi, client: KubeClient) -> None:
    """An error of the work leaves as it is, after the release."""

    async def fail() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await _lease(client, "me").hold(fail)
    assert _spec(api)["holderIdentity"] == ""


async def test_everything_fails(api: KubeApi, client: KubeClient) -> None:
    """If the renewing fails in a way that is not foreseen, and the work with it, both errors are told."""

    async def sleep(_: float) -> None:
        await checkpoint()
        raise ValueError("no timer")

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("mine")

    with pytest.raises(BaseExceptionGroup) as caught:
        await _lease(client, "me", sleep=sleep).hold(work)
    assert {type(error) for error in caught.value.exceptions} == {ValueError, LookupError}
    assert _spec(api)["holderIdentity"] == ""


async def test_release_is_bounded(api: KubeApi, client: KubeClient) -> None:
    """A release that the server does not take is given up, and does not hold up the end."""
    lease = _lease(client, "me")
    begin = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: lease.is_leader)
        await api.stop()
        tasks.cancel_scope.cancel()
    assert anyio.current_time() - begin < 2.0
    assert _spec(api)["holderIdentity"] == "me"


async def test_garbage(api: KubeApi, client: KubeClient) -> None:
    """An answer that is no Lease is a failed attempt."""
    api.create("leases", {"metadata": {"namespace": "tools", "name": "copycat"}})
    api.fail(Fault.NO_JSON, resource="leases")
    lease = _lease(client, "me")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: lease.is_leader)
        tasks.cancel_scope.cancel()
    assert not len(api.faults)


async def test_time_bound(api: KubeApi, client: KubeClient) -> None:
    """Leading is believed only for `renew` seconds after the last renewal was sent, whatever the loop does."""
    time = {"now": 50.0}
    lease = _lease(client, "me", clock=lambda: time["now"], duration=15, renew=10, retry=2)

    def leads_at(now: float) -> bool:
        time["now"] = now
        return lease.is_leader

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.hold, anyio.sleep_forever)
        await until(lambda: lease.is_leader)
        assert [leads_at(now) for now in (50.0, 59.9, 60.0)] == [True, True, False]
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "times",
    [(10, 10, 2), (15, 2.4, 2), (15, 10, 0)],
    ids=["renew-too-long", "retry-too-long", "no-retry"],
)
def test_times(times: tuple[float, float, float]) -> None:
    """Times with which two could lead at once are refused."""
    duration, renew, retry = times
    with pytest.raises(ValueError, match="duration > renew"):
        Lease(
            None,  # type: ignore[arg-type]  # refused before anything is sent
            namespace="n",
            name="l",
            identity="me",
            metrics=metrics(),
            duration=duration,
            renew=renew,
            retry=retry,
        )


async def test_cancelled_standby(api: KubeApi, client: KubeClient) -> None:
    """A standby that stops leaves the Lease alone."""
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 3600}
    api.create("leases", {"metadata": {"namespace": "tools", "name": "copycat"}, "spec": spec})
    lease = _lease(client, "me")
    with contextlib.suppress(TimeoutError), anyio.fail_after(0.2):
        await lease.hold(anyio.sleep_forever)
    assert lease.holder == "other"
    assert api.count("update", "leases") == 0


async def test_work_that_outlasts_the_lease_is_overdue(api: KubeApi, client: KubeClient) -> None:
    """While work goes on that did not heed its cancellation, `overdue` counts from the end of the Lease."""
    ahead = [0.0]
    lease = _lease(client, "a", clock=lambda: anyio.current_time() + ahead[0])
    finish = anyio.Event()
    begun = anyio.Event()

    async def stubborn() -> None:
        begun.set()
        with anyio.CancelScope(shield=True):
            await finish.wait()

    async with anyio.create_task_group() as tasks:
        assert lease.overdue == 0
        tasks.start_soon(lease.hold, stubborn)
        await begun.wait()
        assert lease.overdue == 0
        api.hang()
        ahead[0] = 100.0
        assert lease.overdue > 90
        api.resume()
        finish.set()
        await until(lambda: not lease.overdue)
        tasks.cancel_scope.cancel()
