"""Logins that a cloud hands out: one fetch for all, renewed in time, kept while renewal fails."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from copycat.errors import Unavailable
from copycat.registry.keychain import Credentials
from copycat.registry.renewable import Issued, Renewable


class Cloud:
    """Hands out numbered passwords, or fails; the clock is its own."""

    def __init__(self, *, wait: float = 10.0) -> None:
        self.now = 0.0
        self.fetched = 0
        self.failing = False
        self.life = 100.0
        self.gate = anyio.Event()
        self.gate.set()
        self.login = Renewable(self.fetch, wait=wait, clock=lambda: self.now)

    async def fetch(self) -> Issued:
        self.fetched += 1
        number = self.fetched
        await self.gate.wait()
        if self.failing:
            raise Unavailable("not now")

        return Issued(credentials=Credentials(username="u", password=f"p{number}"), life=self.life)

    async def password(self) -> str:
        return (await self.login.get()).password


async def test_cached() -> None:
    """Until half of its life the login is not fetched again."""
    cloud = Cloud()

    assert await cloud.password() == "p1"

    cloud.now = 49

    assert await cloud.password() == "p1"
    assert cloud.fetched == 1


async def test_renewed_at_half_life() -> None:
    """At half of its life the login is renewed."""
    cloud = Cloud()
    await cloud.password()
    cloud.now = 50

    assert await cloud.password() == "p2"


async def test_single_flight() -> None:
    """Fifty who come at once make one fetch."""
    cloud = Cloud()
    cloud.gate = anyio.Event()
    got: list[str] = []

    async def one() -> None:
        got.append(await cloud.password())

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(one)

        await anyio.wait_all_tasks_blocked()
        cloud.gate.set()

    assert got == ["p1"] * 50


async def test_old_login_during_renewal() -> None:
    """While one renews, the others go on with the old login."""
    cloud = Cloud()
    await cloud.password()
    cloud.now = 50
    cloud.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cloud.password)
        await anyio.wait_all_tasks_blocked()

        assert await cloud.password() == "p1"

        cloud.gate.set()

    assert await cloud.password() == "p2"


async def test_failed_renewal_keeps_the_old_login() -> None:
    """A renewal that fails is tried again after a while; until its end the old login serves."""
    cloud = Cloud()
    await cloud.password()
    cloud.failing = True
    cloud.now = 50

    assert await cloud.password() == "p1"

    cloud.now = 79

    assert await cloud.password() == "p1"
    assert cloud.fetched == 2

    cloud.now = 81

    assert await cloud.password() == "p1"
    assert cloud.fetched == 3

    cloud.now = 111
    with pytest.raises(Unavailable):
        await cloud.password()


async def test_slow_renewal() -> None:
    """Nobody waits long for a renewal while the old login is good; without one there is nothing else to do."""
    cloud = Cloud(wait=0.01)
    await cloud.password()
    cloud.gate = anyio.Event()
    cloud.now = 50
    with anyio.fail_after(10):
        assert await cloud.password() == "p1"

    assert await cloud.password() == "p1"
    assert cloud.fetched == 2

    cloud.now = 100
    with anyio.move_on_after(0.1) as patient:
        await cloud.password()

    assert patient.cancelled_caught


async def test_failure_is_remembered() -> None:
    """Those who come right after a failure get it too, without another request; later ones try."""
    cloud = Cloud()
    cloud.failing = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            await cloud.password()

    assert cloud.fetched == 1

    cloud.failing = False
    cloud.now = 31

    assert await cloud.password() == "p2"


async def test_expired() -> None:
    """An expired login is replaced once, however many say that it has expired."""
    cloud = Cloud()
    old = await cloud.login.get()
    cloud.now = 20
    cloud.login.expired(old)

    assert await cloud.password() == "p2"

    cloud.login.expired(old)

    assert await cloud.password() == "p2"


async def test_expired_is_old_news() -> None:
    """Who says of the login before the present one that it has expired says nothing new."""
    cloud = Cloud()
    old = await cloud.login.get()
    cloud.now = 20
    cloud.login.expired(old)
    await cloud.password()
    cloud.now = 69
    cloud.login.expired(old)

    assert await cloud.password() == "p2"
    assert cloud.fetched == 2


async def test_expired_at_once() -> None:
    """A registry that calls a new login expired does not make us fetch one after the other."""
    cloud = Cloud()
    cloud.login.expired(await cloud.login.get())

    assert await cloud.password() == "p1"


async def test_expired_while_waiting() -> None:
    """A login that is declared expired the moment it arrives is fetched once more."""
    cloud = Cloud()
    first = await cloud.login.get()
    cloud.now = 50
    cloud.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cloud.password)
        await anyio.wait_all_tasks_blocked()
        cloud.login.expired(first)
        tasks.start_soon(cloud.password)
        await anyio.wait_all_tasks_blocked()
        cloud.gate.set()

    assert await cloud.password() == "p2"


async def test_expired_and_not_to_be_renewed() -> None:
    """If nobody can renew a login that a registry refuses, it serves on: the registry may have meant one repository."""
    cloud = Cloud()
    old = await cloud.login.get()
    cloud.failing = True
    cloud.now = 20
    for _ in range(3):
        cloud.login.expired(old)

        assert await cloud.password() == "p1"

    assert cloud.fetched == 2

    cloud.failing = False
    cloud.now = 51

    assert await cloud.password() == "p3"


async def test_expired_waits_for_the_new_one() -> None:
    """While a refused login is replaced, nobody is given it."""
    cloud = Cloud()
    cloud.login.expired(old := await cloud.login.get())
    cloud.now = 20
    cloud.gate = anyio.Event()
    got: list[str] = []

    async def one() -> None:
        cloud.login.expired(old)
        got.append(await cloud.password())

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        cloud.gate.set()

    assert got == ["p2"] * 5


async def test_the_clock_is_set_back() -> None:
    """A login, a refusal and a failure from a time that lies ahead of the clock are nothing to rely on."""
    cloud = Cloud()
    cloud.now = 1_000_000
    old = await cloud.login.get()
    cloud.now = 0

    assert await cloud.password() == "p2"

    cloud.now = 1_000_000
    old = await cloud.login.get()
    cloud.now = 1_000_040
    cloud.failing = True
    cloud.login.expired(old)
    await cloud.password()
    cloud.failing = False
    cloud.now = 0
    cloud.login.expired(old)

    assert await cloud.password() == "p5"


async def test_cancelled_fetch() -> None:
    """If the one who fetches gives up, the next one fetches."""
    cloud = Cloud()
    cloud.gate = anyio.Event()
    with anyio.move_on_after(0.01):
        await cloud.password()

    cloud.gate.set()

    assert await cloud.password() == "p2"


async def test_stillborn() -> None:
    """A login without any life is an error, not a loop."""
    cloud = Cloud()
    cloud.life = 0
    with pytest.raises(Unavailable):
        await cloud.password()

    assert cloud.fetched == 1
