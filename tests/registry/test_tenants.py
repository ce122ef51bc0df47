"""Two who share a transport: what one's login opened stays shut for the other, whatever is remembered about the host."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from copycat.errors import RegistryError
from copycat.registry.credentials import Credentials
from copycat.registry.dockerconfig import DockerAuth
from copycat.registry.keychain import Access, AccessKeychain
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.registry.support import World, world

NAME = "team/app"


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    """Gives tokens to anybody; only u's are good for the repository."""
    async with Registry(
        auth="token",
        anonymous=True,
        username="u",
        password="pw",
        allow=lambda user, _repository, _action: user == "u",
    ) as found:
        found.add_image(NAME, "1")
        yield found


@pytest.fixture
async def here(registry: Registry) -> AsyncIterator[World]:
    """One transport for both."""
    async with world(registry.address, keys=AccessKeychain()) as found:
        yield found


def access(registry: Registry, user: str = "u") -> Access:
    """What a pull secret of a namespace gives."""
    login = Credentials(username=user, password="pw")
    return Access(secrets=(DockerAuth(host=registry.address, credentials=login),))


async def reads(here: World, registry: Registry, who: Access | None) -> bool:
    """Whether the manifest can be had."""
    try:
        await here.source(registry.address, NAME, access=who).get_manifest("1")
    except RegistryError:
        return False
    return True


@pytest.mark.parametrize("other", [None, "somebody"], ids=["no secret", "another secret"])
async def test_one_after_the_other(here: World, registry: Registry, other: str | None) -> None:
    """A token that is still good, the challenge and the ping are known; the other is refused all the same, twice."""
    who = access(registry, other) if other else None

    assert await reads(here, registry, access(registry))
    assert not await reads(here, registry, who)
    assert await reads(here, registry, access(registry))
    assert not await reads(here, registry, who)

    tokens = registry.ledger.select(Phase.TOKEN)
    assert len([t for t in tokens if t.authorized and t.status == 200]) == 1


async def test_at_once(here: World, registry: Registry) -> None:
    """Both ask for a token at one time: each gets its own."""
    found: dict[str, bool] = {}

    async def ask(name: str, who: Access | None) -> None:
        found[name] = await reads(here, registry, who)

    gate = anyio.Event()
    registry.fail(Phase.TOKEN, times=2, hold=gate)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "with", access(registry))
            tasks.start_soon(ask, "without", None)
            await registry.wait_for(lambda r: Phase.TOKEN in r.phases, count=2)
            gate.set()
    assert found == {"with": True, "without": False}
