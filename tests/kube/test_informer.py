"""The informer against the sandbox API: what it knows, what it tells, and what it asks the server for."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from copycat.kube.backoff import Backoff
from copycat.kube.client import KubeClient, open_api
from copycat.sandbox.kube_api import Fault, KubeApi
from copycat.sandbox.kube_store import Key
from tests.kube.support import Follower, Thing, client_for, pod, project, until

BOTH = pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "list"])


@BOTH
async def test_first_state_and_changes(api: KubeApi, client: KubeClient, watch_list: bool) -> None:
    """The store is complete when the informer is synced, and follows every kind of change."""
    for number in range(7):
        api.create("pods", pod(f"p{number}"))
    follower = Follower(client, watch_list=watch_list, page=3)
    async with follower.running() as informer:
        assert informer.synced
        assert not informer.denied
        assert follower.matches(api)
        api.create("pods", pod("late", "other"))
        api.patch("pods", "shop", "p1", {"metadata": {"labels": {"a": "b"}}})
        api.delete("pods", "shop", "p2")
        await until(lambda: follower.matches(api))
    old, new = follower.calls[-1]
    assert (old is not None, new) == (True, None)
    assert api.count("list", "pods") == (0 if watch_list else 3)


async def test_only_changes_are_told(api: KubeApi, client: KubeClient) -> None:
    """A new version whose projection is the same is no change."""
    api.create("pods", pod("p"))

    def blind(data: bytes) -> Thing | None:
        thing = project(data)
        return thing and Thing(thing.namespace, thing.name, 0, thing.note)

    follower = Follower(client, project=blind)
    async with follower.running():
        for number in range(3):
            api.patch("pods", "shop", "p", {"status": {"message": str(number)}})
        api.patch("pods", "shop", "p", {"metadata": {"annotations": {"note": "new"}}})
        await until(lambda: len(follower.calls) == 2)
    assert follower.calls == [
        (None, Thing("shop", "p", 0)),
        (Thing("shop", "p", 0), Thing("shop", "p", 0, "new")),
    ]


@BOTH
async def test_uninteresting(api: KubeApi, client: KubeClient, watch_list: bool) -> None:
    """An object whose projection is None is not kept, one that becomes so is told as gone."""
    ignored = {"annotations": {"note": "ignored"}}
    api.create("pods", pod("a", metadata=ignored))
    api.create("pods", pod("b"))
    follower = Follower(client, watch_list=watch_list)
    async with follower.running() as informer:
        assert list(informer.store) == [("shop", "b")]
        api.patch("pods", "shop", "b", {"metadata": ignored})
        await until(lambda: not informer.store)


@BOTH
async def test_leaves_selector(api: KubeApi, client: KubeClient, watch_list: bool) -> None:
    """A Pod that finishes is gone for an informer that does not select finished ones."""
    api.create("pods", pod("job"))
    api.create("pods", pod("done", status={"phase": "Succeeded"}))
    selector = "status.phase!=Succeeded,status.phase!=Failed"
    follower = Follower(client, field_selector=selector, watch_list=watch_list)
    async with follower.running() as informer:
        assert list(informer.store) == [("shop", "job")]
        api.patch("pods", "shop", "job", {"status": {"phase": "Failed"}})
        await until(lambda: not informer.store)


async def test_line_separators(api: KubeApi, client: KubeClient) -> None:
    """U+0085 and U+2028 stand in an annotation unescaped; the stream is cut at newlines alone."""
    note = "one\x85two\u2028three"
    follower = Follower(client, watch_list=False)
    async with follower.running() as informer:
        api.create("pods", pod("p", metadata={"annotations": {"note": note}}))
        await until(lambda: bool(informer.store))
        assert informer.store["shop", "p"].note == note
        assert api.watching("pods") == 1
    assert follower.value("watch_errors_total", resource="pods", reason="decode") == 0


@BOTH
async def test_unreadable_object(api: KubeApi, client: KubeClient, watch_list: bool) -> None:
    """An object that the projection cannot read counts as absent; the others are followed."""

    def choosy(data: bytes) -> Thing | None:
        thing = project(data)
        if thing and thing.name == "odd":
            raise msgspec.ValidationError("Expected `int`, got `str`")
        return thing

    api.create("pods", pod("odd"))
    api.create("pods", pod("even"))
    follower = Follower(client, watch_list=watch_list, project=choosy)
    async with follower.running() as informer:
        assert list(informer.store) == [("shop", "even")]
    assert follower.value("watch_errors_total", resource="pods", reason="object") == 1


@pytest.mark.parametrize("known", [True, False], ids=["gate-off", "unknown-parameter"])
async def test_no_watch_list(api: KubeApi, client: KubeClient, known: bool) -> None:
    """A server that refuses initial events, or ignores the wish, is listed: once."""
    api.watch_settings.watch_list = not known
    api.watch_settings.ignore_watch_list = not known
    api.create("pods", pod("p"))
    follower = Follower(client, guard=0.1)
    async with follower.running():
        await until(lambda: api.watching("pods") == 1)
        assert follower.matches(api)
        api.fail(Fault.ERROR_410)
        await until(lambda: api.count("list", "pods") == 2)
        api.create("pods", pod("q"))
        await until(lambda: follower.matches(api))
    asked = [r for r in api.requests if "sendInitialEvents" in r.query]
    assert len(asked) == 1


async def test_bookmark_before_end(api: KubeApi, client: KubeClient) -> None:
    """A bookmark before the initial events are complete shows a server that ignores the wish."""
    api.watch_settings.ignore_watch_list = True
    api.watch_settings.bookmark_every = 0.05
    api.create("pods", pod("p"))
    follower = Follower(client)
    async with follower.running():
        assert follower.matches(api)
    assert api.count("list", "pods") == 1


async def test_initial_watch_ends(api: KubeApi, client: KubeClient) -> None:
    """A watch that ends before its initial events are complete is followed by a list."""
    api.watch_settings.ignore_watch_list = True
    api.fail(Fault.END)
    api.create("pods", pod("p"))
    follower = Follower(client)
    async with follower.running():
        assert follower.matches(api)
    assert api.count("list", "pods") == 1


async def test_quiet_renewals(api: KubeApi, client: KubeClient) -> None:
    """Watches that end by their timeout go on at their version, moved by bookmarks, without a list or a wait."""
    api.create("pods", pod("p"))
    follower = Follower(client, watch_timeout=(1, 1))
    async with follower.running():
        api.create("deployments", {"metadata": {"name": "d"}})  # moves the version, not the kind
        await until(lambda: api.count("watch", "pods") == 2)
        renewal = next(r for r in reversed(api.requests) if r.verb == "watch")
        assert renewal.query["resourceVersion"] == str(api.store.version)
        assert renewal.query["allowWatchBookmarks"] == "true"
    assert api.count("list", "pods") == 0
    assert follower.value("watch_errors_total", resource="pods", reason="short") == 0


async def test_short_watch(api: KubeApi, client: KubeClient) -> None:
    """A watch that ends at once without an event is backed off from, not listed anew."""
    follower = Follower(client, watch_timeout=(300, 600))
    async with follower.running():
        api.fail(Fault.END, times=2)
        await until(lambda: api.count("watch", "pods") == 3)
        api.create("pods", pod("p"))
        await until(lambda: follower.matches(api))
    assert follower.value("watch_errors_total", resource="pods", reason="short") == 1


async def test_silence(api: KubeApi, client: KubeClient) -> None:
    """A stream that says nothing for too long is opened again at once, at the same version."""
    api.create("pods", pod("p"))
    follower = Follower(client, silence=0.2, backoff=Backoff(base=60))
    async with follower.running():
        api.fail(Fault.STALL)
        api.create("pods", pod("q"))
        await until(lambda: follower.matches(api))
    assert follower.value("watch_errors_total", resource="pods", reason="silence") >= 1
    assert follower.value("watch_relists_total", resource="pods", reason="start") == 1


@pytest.mark.parametrize("fault", [Fault.WATCH_504, Fault.ERROR_504], ids=["answer", "event"])
async def test_version_too_large(api: KubeApi, client: KubeClient, fault: Fault) -> None:
    """Three answers in a row that the version is too large mean a restored etcd: list again, once."""
    api.create("pods", pod("p"))
    follower = Follower(client, watch_list=False)
    async with follower.running():
        await until(lambda: api.watching("pods") == 1)
        api.fail(Fault.ERROR_504)
        api.fail(fault, times=2)
        await until(lambda: api.count("list", "pods") == 2)
        api.create("pods", pod("q"))
        await until(lambda: follower.matches(api))
    assert follower.value("watch_relists_total", resource="pods", reason="version") == 1
    assert api.count("list", "pods") == 2


async def test_denied_and_given_back(api: KubeApi, client: KubeClient) -> None:
    """A kind that is forbidden settles as denied and is tried again; the watch of another never notices."""
    rule = api.forbid("pods")
    shared = Follower(client).metrics
    pods = Follower(client, metrics=shared)
    deployments = Follower(
        client, metrics=shared, resource="deployments", path="/apis/apps/v1/deployments"
    )
    async with deployments.running(), pods.running() as informer:
        await until(lambda: api.count("watch", "pods") >= 3)
        assert (informer.denied, informer.synced, informer.settled) == (True, False, True)
        assert pods.value("rbac_denied", resource="pods") == 1
        assert api.count("watch", "deployments") == 1
        assert api.watching("deployments") == 1
        api.permit(rule)
        api.create("pods", pod("p"))
        await until(lambda: informer.synced)
        assert not informer.denied
        assert pods.value("rbac_denied", resource="pods") == 0
        assert pods.matches(api)
        api.forbid("pods")
        api.fail(Fault.ABORT, resource="pods")
        await until(lambda: informer.denied)
        assert pods.matches(api)  # what was known stays known
    assert api.count("watch", "deployments") == 1


async def test_missing_kind(api: KubeApi, client: KubeClient) -> None:
    """A kind that the server does not have holds nobody up."""
    follower = Follower(client, path="/apis/apps/v1/widgets")
    async with follower.running() as informer:
        assert informer.missing
        assert not informer.denied


async def test_invalid_token(api: KubeApi, tmp_path: Path) -> None:
    """A refused token is no missing permission: the informer is not settled, and recovers with the token."""
    api.access.tokens = {"right"}
    path = tmp_path / "token"
    path.write_text("wrong")
    async with client_for(api, tmp_path, user={"tokenFile": str(path)}) as client:
        follower = Follower(client)
        async with follower.running(settled=False) as informer:
            await until(lambda: len(api.requests) >= 2)
            assert not informer.settled
            path.write_text("right")
            await until(lambda: informer.synced)


async def test_slow_relist(api: KubeApi, client: KubeClient) -> None:
    """After `resync` the state is listed once more, and nothing is told that did not change."""
    now = 0.0
    api.create("pods", pod("p"))
    follower = Follower(client, resync=(10, 20), clock=lambda: now, jitter=lambda: 0.5)
    async with follower.running():
        now = 14.9
        api.fail(Fault.ABORT)
        await until(lambda: api.count("watch", "pods") == 2)
        assert follower.value("watch_relists_total", resource="pods", reason="resync") == 0
        now = 15.1
        api.fail(Fault.ABORT)
        await until(
            lambda: follower.value("watch_relists_total", resource="pods", reason="resync") == 1
        )
        assert len(follower.calls) == 1


async def test_drift_is_repaired(api: KubeApi, client: KubeClient) -> None:
    """A change that no watch told is found by the slow relist."""
    now = 0.0
    api.create("pods", pod("p"))
    follower = Follower(client, resync=(10, 10), clock=lambda: now)
    async with follower.running():
        lost = api.store["pods"].objects.pop(Key("shop", "p"))
        now = 11.0
        api.fail(Fault.ABORT)
        await until(lambda: lost.key not in follower.informer.store)
        assert follower.matches(api)


async def test_retry_after(api: KubeApi, client: KubeClient) -> None:
    """429 with Retry-After: the longer of that and the back-off is waited, and the version kept."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await checkpoint()

    api.create("pods", pod("p"))
    follower = Follower(client, sleep=sleep)
    async with follower.running():
        api.fail(Fault.WATCH_429)
        api.fail(Fault.ABORT)
        await until(lambda: api.watching("pods") == 1 and api.count("watch", "pods") == 3)
    assert 1.0 in waits
    assert follower.value("watch_relists_total", resource="pods", reason="start") == 1


async def test_namespaces_add_up(api: KubeApi, client: KubeClient) -> None:
    """Informers of several namespaces share one series, which is their sum, and leave it when they end."""
    for namespace in ("a", "b", "b", "c"):
        api.create("pods", pod(f"p{api.store.version}", namespace))
    shared = Follower(client).metrics
    first = Follower(client, metrics=shared, path="/api/v1/namespaces/a/pods")
    second = Follower(client, metrics=shared, path="/api/v1/namespaces/b/pods")
    async with first.running():
        async with second.running():
            assert first.value("watch_objects", resource="pods") == 3
            assert first.value("watch_synced", resource="pods") == 2
        assert first.value("watch_objects", resource="pods") == 1
    assert first.value("watch_synced", resource="pods") == 0


async def test_more_watches_than_a_pool(api: KubeApi, client: KubeClient) -> None:
    """150 watches are open at once, and requests go through beside them."""
    followers = [
        Follower(client, path=f"/api/v1/namespaces/n{n}/pods", backoff=Backoff(base=60))
        for n in range(150)
    ]
    async with anyio.create_task_group() as tasks:
        for follower in followers:
            tasks.start_soon(follower.informer.run)
        await until(lambda: all(f.informer.synced for f in followers), timeout=10)
        assert api.watching("pods") == 150
        await client.request("GET", "/version")
        api.create("pods", pod("p", "n149"))
        await until(lambda: bool(followers[149].told))
        tasks.cancel_scope.cancel()


async def test_server_comes_late(api: KubeApi, tmp_path: Path) -> None:
    """A client opens and an informer starts while the API server is down; it syncs when that is up, and after a restart."""
    path = api.kubeconfig(tmp_path / "kubeconfig")
    await api.stop()
    async with open_api(str(path), environ={}) as client:
        follower = Follower(client)
        async with follower.running(settled=False) as informer:
            await until(
                lambda: (
                    follower.value("watch_errors_total", resource="pods", reason="connection") >= 2
                )
            )
            api.create("pods", pod("p"))
            await api.start()
            await until(lambda: informer.synced)
            await api.stop()
            await api.start()
            api.create("pods", pod("q"))
            await until(lambda: follower.matches(api))
    assert follower.value("watch_relists_total", resource="pods", reason="start") == 1


async def test_last_contact(api: KubeApi, client: KubeClient) -> None:
    """`last_contact` moves with each byte from the server, and only then."""
    now = 1.0
    follower = Follower(client, clock=lambda: now)
    async with follower.running() as informer:
        assert informer.last_contact == 1.0
        now = 2.0
        api.create("pods", pod("p"))
        await until(lambda: bool(informer.store))
        assert informer.last_contact == 2.0
        assert follower.value("watch_last_contact_timestamp_seconds", resource="pods") > 0


async def test_large_state_lets_others_run(api: KubeApi, client: KubeClient) -> None:
    """While a large state replaces the old one, other tasks get their turn."""
    for number in range(450):
        api.create("pods", pod(f"p{number}"))
    turns = 0

    async def sleep(seconds: float) -> None:
        nonlocal turns
        turns += seconds == 0
        await anyio.sleep(seconds)

    follower = Follower(client, sleep=sleep)
    async with follower.running():
        assert turns >= 2
