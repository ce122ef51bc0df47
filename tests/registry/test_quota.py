"""Pull quotas: what a registry advertises, and the part of it that stays with the nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio
import pytest
from aiohttp import encode_basic_auth, web

from copycat.errors import Throttled
from copycat.metrics import Metrics
from copycat.oci.digest import Digest
from copycat.registry.answers import Place
from copycat.registry.credentials import Credentials
from copycat.registry.endpoint import endpoint
from copycat.registry.limits import HostLimits
from copycat.registry.quota import PullQuotas, Quota
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.registry.support import Keys, Seen, World, scripted, world

LIMIT = 20
LOGIN = Credentials(username="me", password="secret")


@dataclass(slots=True)
class Hub:
    """A registry that counts pulls, a transport, and the time."""

    registry: Registry
    world: World
    digest: Digest
    now: float = 1000.0

    async def pull(self) -> None:
        """One manifest."""
        await self.world.source(self.registry.address).get_manifest(self.digest)

    async def held(self) -> Throttled:
        """A pull that is not made."""
        before = self.registry.ledger.count(Phase.GET_MANIFEST)
        with pytest.raises(Throttled) as caught:
            await self.pull()
        assert self.registry.ledger.count(Phase.GET_MANIFEST) == before
        assert caught.value.reason == "pull_quota"
        return caught.value

    async def crowd(self, count: int) -> int:
        """So many pulls at once; how many of them were not made."""
        held: list[Throttled] = []

        async def one() -> None:
            try:
                await self.pull()
            except Throttled as error:
                held.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(one)
        return len(held)

    @property
    def heads(self) -> int:
        """Questions that are free."""
        return self.registry.ledger.count(Phase.HEAD_MANIFEST)


@asynccontextmanager
async def hub(
    *credentials: Credentials, reserve: float | None = None, limit: int = LIMIT
) -> AsyncIterator[Hub]:
    """Docker Hub with a small quota."""
    profile = replace(PROFILES["hub"], rate_limit=limit)
    async with Registry(
        profile=profile, username="me", password="secret", anonymous=True
    ) as registry:
        image = registry.add_image("team/app", "1")
        found: list[Hub] = []
        async with world(
            registry.address,
            keys=Keys(*credentials),
            clock=lambda: found[0].now if found else 1000.0,
            pull_quota_reserve=reserve,
        ) as here:
            found.append(Hub(registry, here, Digest.parse(image.digest)))
            yield found[0]
        assert registry.violations == []


@pytest.mark.parametrize(
    ("credentials", "reserve", "pulls"),
    [
        pytest.param([], None, 10, id="half-without-credentials"),
        pytest.param([LOGIN], None, 16, id="a-fifth-with-credentials"),
        pytest.param([], 0.9, 2, id="as-configured"),
        pytest.param([LOGIN], 0.9, 2, id="as-configured-with-credentials"),
        pytest.param([], 0.0, LIMIT, id="nothing-is-left"),
    ],
)
async def test_reserve(credentials: list[Credentials], reserve: float | None, pulls: int) -> None:
    """So many pulls are made and not one more; the error says what is left, why, and until when to wait."""
    async with hub(*credentials, reserve=reserve) as here:
        for _ in range(pulls):
            await here.pull()
        error = await here.held()
        assert here.registry.core.pulls == pulls
        left = LIMIT - pulls
        assert f"has {left} of {LIMIT} pulls left" in error.message
        assert "pullQuotaReserve" in error.message
        # one of twenty comes back in a twentieth of six hours, and it shall be two
        assert error.retry_after == pytest.approx(2 * 21600 / LIMIT)
        assert (error.side, error.temporary) == ("source", True)
        assert (
            here.world.metric(
                "k8s_copycat_registry_pull_quota_remaining", registry=here.registry.address
            )
            == left
        )


async def test_together() -> None:
    """Pulls that are under way count: many at once take no more than there is."""
    async with hub() as here:
        await here.pull()
        held = await here.crowd(30)
        assert here.registry.core.pulls == LIMIT // 2
        assert held == 30 - (LIMIT // 2 - 1)


async def test_from_the_first_request_on() -> None:
    """Whoever begins with many at once first asks with one: at a registry that has no quota, too."""
    async with hub(reserve=0.9) as here:
        held = await here.crowd(30)
        assert (here.registry.core.pulls, held) == (2, 28)
    async with Registry() as free, world(free.address) as there:
        image = free.add_image("team/app", "1")
        source, hold = there.source(free.address), anyio.Event()
        free.fail(Phase.GET_MANIFEST, hold=hold, nth=2, times=None)
        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(source.get_manifest, Digest.parse(image.digest))
            await free.wait_for(lambda r: r.phase is Phase.GET_MANIFEST, count=8)
            hold.set()
        assert free.ledger.count(Phase.GET_MANIFEST) == 30


async def test_the_first_one_hangs() -> None:
    """A host that does not answer the first pull does not hold the others for long; one that fails does not at all."""
    async with Registry() as free, world(free.address, request_timeout=2.0) as there:
        image = free.add_image("team/app", "1")
        source = there.source(free.address)
        hold = anyio.Event()
        free.fail(Phase.GET_MANIFEST, hold=hold, nth=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.get_manifest, Digest.parse(image.digest))
            await free.wait_for(lambda r: r.phase is Phase.GET_MANIFEST)
            with anyio.fail_after(5):
                await source.get_manifest(Digest.parse(image.digest))
            hold.set()
    async with Registry() as free, world(free.address) as there:
        image = free.add_image("team/app", "1")
        free.fail(Phase.GET_MANIFEST, reset=True)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(
                    there.source(free.address).get_manifest, Digest.parse(image.digest)
                )


async def test_cancelled_pulls_count() -> None:
    """Whoever gives up a pull may have spent it: it is not spent again."""
    async with hub() as here:
        await here.pull()
        hold = anyio.Event()
        here.registry.fail(Phase.GET_MANIFEST, hold=hold, times=None)
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(here.pull)
            await here.registry.wait_for(lambda r: r.phase is Phase.GET_MANIFEST, count=6)
            tasks.cancel_scope.cancel()
        hold.set()
        here.registry.faults.clear()
        await anyio.wait_all_tasks_blocked()
        assert here.registry.core.pulls == 6
        await here.crowd(30)
        assert here.registry.core.pulls == LIMIT // 2


async def test_heads_are_free() -> None:
    """What does not count goes on: tags are still compared."""
    async with hub(reserve=1.0) as here:
        await here.pull()
        await here.held()
        assert await here.world.source(here.registry.address).head_manifest("1") is not None


async def test_after_the_wait() -> None:
    """When it is time one HEAD asks for all; only if enough came back are manifests fetched again."""
    async with hub() as here:
        for _ in range(LIMIT // 2):
            await here.pull()
        first = await here.held()
        assert here.heads == 0
        here.now += 100
        assert (await here.held()).retry_after == pytest.approx((first.retry_after or 0) - 100)
        assert here.heads == 0

        here.now += first.retry_after or 0
        again = await here.held()
        assert here.heads == 1
        assert again.retry_after == pytest.approx(first.retry_after)

        here.registry.core.pulls = 0
        here.now += again.retry_after or 0
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(here.pull)
        assert here.heads == 2
        assert here.registry.core.pulls == 5


async def test_exhausted_by_others() -> None:
    """A 429 that means the quota is told as the quota, and not asked again and again."""
    async with hub() as here:
        here.registry.core.pulls = LIMIT
        with pytest.raises(Throttled) as caught:
            await here.pull()
        assert caught.value.reason == "pull_quota"
        assert here.registry.ledger.count(Phase.GET_MANIFEST) == 1


async def test_accounts_and_registries() -> None:
    """A quota belongs to one registry and one account: others go on."""
    keys = Keys()
    async with hub(reserve=0.99) as here, Registry() as other:
        image = other.add_image("team/app", "1")
        hosts = (here.registry.address, other.address)
        async with world(*hosts, keys=keys, pull_quota_reserve=0.7) as both:
            source = both.source(here.registry.address)
            for _ in range(6):
                await source.get_manifest(here.digest)
            with pytest.raises(Throttled, match="pullQuotaReserve"):
                await source.get_manifest(here.digest)
            await both.source(other.address).get_manifest(Digest.parse(image.digest))
            keys.credentials.append(LOGIN)
            await source.get_manifest(here.digest)


async def test_the_next_login_has_its_reserve() -> None:
    """A login that is refused is no way around the reserve of the one after it."""
    body = (
        b'{"schemaVersion":2,"config":{"digest":"sha256:' + b"0" * 64 + b'","size":1},"layers":[]}'
    )
    wrong = Credentials(username="old", password="gone")
    pulls: list[str] = []

    def answer(seen: Seen) -> web.Response:
        login = seen.headers.get("Authorization", "")
        if login != encode_basic_auth("me", "secret"):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        pulls.append(seen.method)
        return web.Response(
            body=body,
            headers={
                "Content-Type": "application/vnd.oci.image.manifest.v1+json",
                "ratelimit-limit": "100;w=21600",
                "ratelimit-remaining": "10;w=21600",
            },
        )

    keys = Keys(LOGIN)
    async with scripted(answer) as script, world(script.address, keys=keys) as here:
        await here.source(script.address).get_manifest(Digest.of(body))
        keys.credentials.insert(0, wrong)
        with pytest.raises(Throttled, match="pullQuotaReserve"):
            await here.source(script.address).get_manifest(Digest.of(body))
    assert pulls == ["GET"]


async def test_the_target_has_no_reserve() -> None:
    """What is read back from the target is no pull of ours that the nodes could miss."""
    profile = replace(PROFILES["hub"], rate_limit=4, auth="none")
    async with Registry(profile=profile) as registry:
        image = registry.add_image("copy/app", "1")
        async with world(registry.address, target_registries=frozenset({registry.address})) as here:
            for _ in range(4):
                await here.target(registry.address).get_manifest(Digest.parse(image.digest))
        assert registry.core.pulls == 4


async def test_a_registry_that_stops_telling() -> None:
    """Without news where there were some, the old ones hold nobody for ever."""
    heads = {"ratelimit-remaining": "0;w=3600", "ratelimit-limit": "100;w=3600"}
    body = (
        b'{"schemaVersion":2,"config":{"digest":"sha256:' + b"0" * 64 + b'","size":1},"layers":[]}'
    )
    told = [heads]

    def answer(seen: Seen) -> web.Response:
        del seen
        return web.Response(
            body=body,
            headers={
                "Content-Type": "application/vnd.oci.image.manifest.v1+json",
                **(told.pop() if told else {}),
            },
        )

    now = [0.0]
    async with scripted(answer) as script, world(script.address, clock=lambda: now[0]) as here:
        source = here.source(script.address)
        await source.get_manifest(Digest.of(body))
        with pytest.raises(Throttled) as caught:
            await source.get_manifest(Digest.of(body))
        assert caught.value.retry_after == pytest.approx(3600 * 56 / 100)
        now[0] += 3600
        await source.get_manifest(Digest.of(body))


@pytest.mark.parametrize(
    ("remaining", "limit", "window", "lacking", "pause"),
    [
        pytest.param(51, 100, 21600.0, 0, 1080.0, id="one-to-spare"),
        pytest.param(50, 100, 21600.0, 1, 1296.0, id="at-the-reserve"),
        pytest.param(0, 100, 21600.0, 51, 3600.0, id="at-most-an-hour"),
        pytest.param(50, 100, 60.0, 1, 60.0, id="at-least-a-minute"),
        pytest.param(50, 100, None, 1, 1296.0, id="no-window"),
        pytest.param(3, None, 21600.0, 0, 3600.0, id="no-limit"),
        pytest.param(0, None, 21600.0, 1, 3600.0, id="no-limit-and-nothing-left"),
        pytest.param(2, 3, 21600.0, 1, 3600.0, id="rounded-up-for-the-nodes"),
    ],
)
def test_arithmetic(
    remaining: int, limit: int | None, window: float | None, lacking: int, pause: float
) -> None:
    """How much is lacking to make one pull with half of the quota kept, and how long that takes to come back."""
    quota = Quota(remaining=remaining, limit=limit, window=window, at=0.0)
    assert quota.lacking(0.5) == lacking
    assert quota.pause(0.5) == pytest.approx(pause)


@pytest.mark.parametrize(
    ("limit", "remaining", "told"),
    [
        ("100;w=21600", "76;w=21600", (76, 100, 21600)),
        ("100; w=21600", " 76 ; burst=5; w=21600", (76, 100, 21600)),
        ("100", "76", (76, 100, None)),
        (None, "5;w=60", (5, None, 60)),
        ("100;w=x", "76;w=-5", (76, 100, None)),
        ("0;w=0", "0;w=0", (0, 0, 0)),
        ("100;w=21600", "-3;w=21600", (0, 100, 21600)),
        ("many", "1;w=60", (1, None, 60)),
        ("100;w=21600", "--3", None),
        ("100;w=21600", "few", None),
        ("100;w=21600", "", None),
        ("9" * 40, "9" * 40, None),
    ],
)
def test_how_it_is_told(
    limit: str | None, remaining: str, told: tuple[int, int | None, float | None] | None
) -> None:
    """Both headers with and without windows, spaces and other parameters; overdrawn is nothing left; what is no count says nothing."""
    metrics = Metrics(version="test")
    quotas = PullQuotas(metrics=metrics)
    hub = endpoint("r.example", registry="r.example", config=None, label="r", limits=HostLimits())
    headers = {"ratelimit-remaining": remaining, **({"ratelimit-limit": limit} if limit else {})}

    quotas.note(hub, None, headers, sent=quotas.now())

    newest = quotas.newest("r.example")
    assert (newest and (newest.remaining, newest.limit, newest.window)) == told


def test_accounts_that_are_remembered() -> None:
    """Whoever may create a Pod chooses hosts: what is known about them is bounded, the newest stay."""
    quotas = PullQuotas(metrics=Metrics(version="test"), clock=lambda: 0.0)
    limits = HostLimits()
    places = [
        endpoint(f"r{n}.io", registry=f"r{n}.io", config=None, label="other", limits=limits)
        for n in range(300)
    ]
    told = {"ratelimit-remaining": "1;w=60", "ratelimit-limit": "100;w=60"}
    for place in places:
        quotas.note(place, None, told, sent=0.0)
    with quotas.pull(places[0], None, Place(registry="r0.io", what="manifest", side="source")):
        pass
    last = Place(registry="r299.io", what="manifest", side="source")
    with (
        pytest.raises(Throttled, match=r"r299.io has 1 of 100"),
        quotas.pull(places[-1], None, last),
    ):
        pass
