"""Whatever happens to lists and watches, the informer ends up with the server's state, and asks for no more than it needs."""

from __future__ import annotations

import random

import anyio
import pytest

from copycat.kube.client import KubeClient
from copycat.sandbox.kube_api import Fault, KubeApi
from tests.kube.support import Follower, pod, until

OPEN = [Fault.ABORT, Fault.END, Fault.ERROR_410, Fault.ERROR_500, Fault.STALL, Fault.TRUNCATE]
ANSWERS = [Fault.WATCH_410, Fault.WATCH_429, Fault.WATCH_500, Fault.WATCH_ABORT]
LISTS = [Fault.LIST_429, Fault.LIST_500, Fault.LIST_ABORT, Fault.NO_JSON, Fault.CONTINUE_410]
#: Faults after which events may be lost.
RELIST = {
    Fault.ERROR_410: "expired",
    Fault.WATCH_410: "expired",
    Fault.ERROR_500: "error",
}


async def _no_long_sleep(seconds: float) -> None:
    await anyio.sleep(min(seconds, 0.05))


def _follower(client: KubeClient, *, watch_list: bool) -> Follower:
    return Follower(client, watch_list=watch_list, page=20, silence=0.4, sleep=_no_long_sleep)


def _change(api: KubeApi, choice: random.Random, count: int) -> None:
    """Create, patch and delete some Pods."""
    for _ in range(count):
        keys = sorted(api.versions("pods"))
        match choice.randrange(4):
            case 0 if keys:
                api.delete("pods", *choice.choice(keys))
            case 1:
                name = f"p{api.store.version}"
                api.create("pods", pod(name, choice.choice(["a", "b"])))
            case _ if keys:
                patch = {"status": {"message": str(api.store.version)}}
                api.patch("pods", *choice.choice(keys), patch)
            case _:
                pass


@pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "list"])
@pytest.mark.parametrize("fault", OPEN + ANSWERS)
async def test_watch_fault(
    api: KubeApi, client: KubeClient, fault: Fault, watch_list: bool
) -> None:
    """A watch that fails costs nothing, or one list where events may be lost."""
    choice = random.Random(1)
    _change(api, choice, 100)
    follower = _follower(client, watch_list=watch_list)
    async with follower.running():
        await until(lambda: api.watching("pods") == 1)
        lists = api.count("list", "pods")
        api.fail(fault)
        if fault in ANSWERS:
            api.fail(Fault.ABORT)  # so that there is a next request to answer
        _change(api, choice, 60)
        await until(lambda: not len(api.faults))
        await until(lambda: follower.matches(api))
    relists = RELIST.get(fault)
    for cause in ("expired", "error", "version", "resync"):
        counted = follower.value("watch_relists_total", resource="pods", reason=cause)
        assert counted == (cause == relists)
    if not watch_list and not relists:
        assert api.count("list", "pods") == lists


@pytest.mark.parametrize("fault", LISTS)
async def test_list_fault(api: KubeApi, client: KubeClient, fault: Fault) -> None:
    """A list that fails is tried again; one whose pages expire is read in one piece."""
    choice = random.Random(2)
    for number in range(50):
        api.create("pods", pod(f"first{number}"))
    api.fail(fault)
    follower = _follower(client, watch_list=False)
    async with follower.running():
        assert not len(api.faults)
        assert follower.matches(api)
        _change(api, choice, 30)
        await until(lambda: follower.matches(api))
    if fault is Fault.CONTINUE_410:
        lists = [r.query for r in api.requests if r.verb == "list"]
        assert ["limit" in query for query in lists] == [True, True, False]
        assert follower.value("watch_errors_total", resource="pods", reason="410") == 0
    assert follower.value("watch_relists_total", resource="pods", reason="start") == 1


async def test_garbage(api: KubeApi, client: KubeClient) -> None:
    """A complete line that is no event breaks the stream, and nothing is lost."""
    follower = _follower(client, watch_list=True)
    async with follower.running():
        await until(lambda: api.watching("pods") == 1)
        api.fail(Fault.GARBAGE)
        _change(api, random.Random(4), 20)
        await until(lambda: follower.matches(api))
    assert follower.value("watch_errors_total", resource="pods", reason="decode") == 1
    assert follower.value("watch_relists_total", resource="pods", reason="start") == 1


async def test_unknown_event(api: KubeApi, client: KubeClient) -> None:
    """An event of a type that is not known is passed over."""
    follower = _follower(client, watch_list=True)
    async with follower.running():
        await until(lambda: api.watching("pods") == 1)
        api.fail(Fault.UNKNOWN_EVENT)
        _change(api, random.Random(5), 20)
        await until(lambda: follower.matches(api))
    assert api.count("watch", "pods") == 1


async def test_compaction_and_restart(api: KubeApi, client: KubeClient) -> None:
    """History that is gone when the server comes back costs each kind one list."""
    choice = random.Random(6)
    _change(api, choice, 50)
    follower = _follower(client, watch_list=True)
    async with follower.running():
        await until(lambda: follower.matches(api))
        await api.stop()
        _change(api, choice, 50)
        api.compact()
        await api.start()
        await until(lambda: follower.matches(api))
    assert follower.value("watch_relists_total", resource="pods", reason="expired") == 1


@pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "list"])
@pytest.mark.parametrize("seed", range(3))
async def test_chaos(api: KubeApi, client: KubeClient, seed: int, watch_list: bool) -> None:
    """Under random changes, faults and compactions the store and its mirror end up equal to the server."""
    choice = random.Random(seed)
    _change(api, choice, 200)
    follower = _follower(client, watch_list=watch_list)
    async with follower.running(settled=False):
        for _ in range(40):
            _change(api, choice, choice.randrange(20))
            if choice.random() < 0.5:
                api.fail(choice.choice(OPEN + ANSWERS + LISTS))
            if choice.random() < 0.05:
                api.compact()
            await anyio.sleep(0.01)
        api.faults.clear()
        await until(lambda: follower.matches(api))
