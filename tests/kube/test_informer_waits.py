"""How long the informer waits after each thing that can go wrong, and from where it goes on: at its version, or with a list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from copycat.kube.backoff import Backoff
from copycat.kube.client import KubeClient
from copycat.sandbox.kube_api import Fault, KubeApi
from tests.kube.support import Follower, Thing, client_for, pod, until

#: With this jitter a failure waits for 15, 30, 45 (the cap), and one that may be tried again soon for 5 at first.
JITTER = 0.5
FIRST, SECOND, CAP, SOON = 15.0, 30.0, 45.0, 5.0


def recorded(waits: list[float]) -> Callable[[float], Awaitable[None]]:
    """A sleep that only notes how long it was asked for."""

    async def sleep(seconds: float) -> None:
        if seconds:
            waits.append(seconds)
        await checkpoint()

    return sleep


def follower(client: KubeClient, waits: list[float], *, base: float = 10.0) -> Follower:
    """One that begins with a list, and waits in no time."""
    return Follower(
        client,
        watch_list=False,
        silence=0.3,
        sleep=recorded(waits),
        jitter=lambda: JITTER,
        backoff=Backoff(base=base, cap=30.0, jitter=lambda: JITTER),
    )


def asked(api: KubeApi) -> list[str]:
    """The verbs of the requests for Pods, in order."""
    return [r.verb for r in api.requests if r.resource == "pods"]


@pytest.mark.parametrize(
    ("faults", "waits", "then"),
    [
        pytest.param([Fault.END], [FIRST], "watch", id="ends-at-once"),
        pytest.param([Fault.END, Fault.END], [FIRST, SECOND], "watch", id="ends-at-once-twice"),
        pytest.param([Fault.ABORT], [FIRST], "watch", id="broken"),
        pytest.param([Fault.WATCH_ABORT], [FIRST], "watch", id="no-answer"),
        pytest.param([Fault.STALL], [], "watch", id="silence"),
        pytest.param([Fault.ERROR_410], [SOON], "list", id="expired-event"),
        pytest.param([Fault.WATCH_410], [SOON], "list", id="expired-answer"),
        pytest.param([Fault.ERROR_500], [FIRST], "list", id="error-event"),
        pytest.param([Fault.WATCH_400], [FIRST], "list", id="refused-version"),
        pytest.param([Fault.WATCH_500], [FIRST], "watch", id="error-answer"),
        pytest.param([Fault.WATCH_429], [FIRST], "watch", id="throttled"),
        pytest.param([Fault.ERROR_504], [FIRST], "watch", id="too-large-event"),
        pytest.param([Fault.WATCH_504] * 2, [FIRST, SECOND], "watch", id="too-large-twice"),
        pytest.param([Fault.WATCH_504] * 3, [FIRST, SECOND, CAP], "list", id="too-large-thrice"),
    ],
)
async def test_after_a_failure(
    api: KubeApi, client: KubeClient, faults: list[Fault], waits: list[float], then: str
) -> None:
    """The wait, and whether the watch goes on or the state is listed anew."""
    api.create("pods", pod("p"))
    for fault in faults:
        api.fail(fault)
    found: list[float] = []
    one = follower(client, found)
    async with one.running():
        if faults[0] in {Fault.ABORT, Fault.STALL, Fault.ERROR_410, Fault.ERROR_500}:
            api.create("pods", pod("q"))  # an open watch fails when it has something to say
        await until(lambda: not len(api.faults) and api.watching("pods") == 1)
        await until(lambda: one.matches(api))
        await until(lambda: asked(api)[-1] == "watch")
    assert found == waits
    tries = ["watch"] * len(faults)
    assert asked(api) == ["list", *tries, *(["list"] if then == "list" else []), "watch"]


async def test_retry_after_is_not_waited_for_alone(api: KubeApi, client: KubeClient) -> None:
    """The server's wish (a second) counts where the back-off is shorter."""
    api.fail(Fault.WATCH_429)
    found: list[float] = []
    async with follower(client, found, base=0.01).running():
        await until(lambda: asked(api) == ["list", "watch", "watch"])
    assert found == [1.0]


async def test_three_in_a_row(api: KubeApi, client: KubeClient) -> None:
    """Versions that were too large before the watch worked again do not count."""
    found: list[float] = []
    one = follower(client, found)
    for _ in range(2):
        api.fail(Fault.WATCH_504)
    async with one.running():
        await until(lambda: api.watching("pods") == 1)
        api.create("pods", pod("p"))
        await until(lambda: one.matches(api))
        api.fail(Fault.ABORT)
        api.fail(Fault.WATCH_504)
        api.create("pods", pod("q"))
        await until(lambda: one.matches(api))
    assert asked(api).count("list") == 1
    assert one.value("watch_errors_total", resource="pods", reason="504") == 3


async def test_forbidden(api: KubeApi, client: KubeClient) -> None:
    """A kind that may not be watched any more is asked for every half minute or so, at the version that is known."""
    found: list[float] = []
    one = follower(client, found)
    async with one.running():
        await until(lambda: api.watching("pods") == 1)
        rule = api.forbid("pods")
        api.fail(Fault.ABORT)
        await until(lambda: len(found) > 5)
        api.permit(rule)
        api.create("pods", pod("p"))
        await until(lambda: one.matches(api))
    assert found[:3] == [FIRST, SECOND, CAP]
    assert set(found[2:]) == {CAP}
    assert asked(api).count("list") == 1


async def test_a_token_that_ends(api: KubeApi, tmp_path: Path) -> None:
    """A refused token costs no list: the watch goes on at its version when there is another one."""
    api.access.tokens = {"old"}
    path = tmp_path / "token"
    await anyio.Path(path).write_text("old")
    found: list[float] = []
    async with client_for(api, tmp_path, user={"tokenFile": str(path)}) as client:
        one = follower(client, found)
        async with one.running():
            await until(lambda: api.watching("pods") == 1)
            api.access.tokens = {"new"}
            api.fail(Fault.ABORT)
            api.create("pods", pod("p"))
            await until(lambda: len(found) > 2)
            await anyio.Path(path).write_text("new")
            await until(lambda: one.matches(api))
            assert not one.informer.denied
    assert asked(api).count("list") == 1


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, "300"), (0.5, "450"), (1.0, "600")])
async def test_how_long_a_watch_lasts(
    api: KubeApi, client: KubeClient, jitter: float, seconds: str
) -> None:
    """Five to ten minutes, so that the watches of many kinds and replicas do not end together."""
    one = Follower(client, watch_list=False, jitter=lambda: jitter)
    async with one.running():
        await until(lambda: api.watching("pods") == 1)
    assert api.requests[-1].query["timeoutSeconds"] == seconds


async def test_pages_change_nothing(api: KubeApi, client: KubeClient) -> None:
    """What is known stays as it was until the last page of a list has come."""
    for number in range(5):
        api.create("pods", pod(f"p{number}"))
    between: list[dict[tuple[str, str], Thing]] = []

    async def sleep(_seconds: float) -> None:
        between.append(dict(one.told))
        await checkpoint()

    one = Follower(client, watch_list=False, page=2, sleep=sleep)
    async with one.running():
        await until(lambda: api.watching("pods") == 1)
        told = dict(one.told)
        between.clear()
        api.fail(Fault.ERROR_410)
        api.delete("pods", "shop", "p0")
        api.create("pods", pod("a"))
        await until(lambda: one.matches(api))
    # before the list, and after its first and second page
    assert between[:3] == [told] * 3
    assert api.count("list", "pods") == 6


@pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "list"])
async def test_an_older_copy_of_etcd(api: KubeApi, client: KubeClient, watch_list: bool) -> None:
    """After an outage versions may have gone back: a watch would say nothing, so the version is asked for."""
    for number in range(3):
        api.create("pods", pod(f"p{number}"))
    copied = api.store.version
    one = Follower(client, watch_list=watch_list)
    async with one.running():
        await until(lambda: api.watching("pods") == 1)
        for number in range(3, 9):
            api.create("pods", pod(f"p{number}"))
        api.patch("pods", "shop", "p1", {"status": {"message": "lost"}})
        api.delete("pods", "shop", "p2")
        await until(lambda: one.matches(api))
        await api.stop()
        await until(
            lambda: one.value("watch_errors_total", resource="pods", reason="connection") >= 2
        )
        api.rewind(copied)
        await api.start()
        await until(lambda: one.matches(api))
        api.create("pods", pod("new"))
        await until(lambda: one.matches(api))
    assert one.value("watch_relists_total", resource="pods", reason="version") == 1


async def test_an_outage_costs_one_question(api: KubeApi, client: KubeClient) -> None:
    """One object is asked for when the server is back, not a list; if that is not allowed, the watch goes on without."""
    api.create("pods", pod("p"))
    one = Follower(client)

    def failures() -> float:
        return one.value("watch_errors_total", resource="pods", reason="connection")

    async with one.running():
        for number in range(2):
            await until(lambda: api.watching("pods") == 1)
            wanted = failures() + 3
            await api.stop()
            with anyio.fail_after(5):
                while failures() < wanted:  # noqa: ASYNC110 -- a metric sets no event
                    await anyio.sleep(0.005)
            if number == 1:
                api.forbid("pods", verbs=["list"])
            await api.start()
            api.create("pods", pod(f"p{number}"))
            await until(lambda: one.matches(api))
    lists = [r.query for r in api.requests if r.verb == "list"]
    assert [query["limit"] for query in lists] == ["1", "1"]
    assert one.value("watch_relists_total", resource="pods", reason="start") == 1
    assert not one.informer.denied
