"""Which attempts are made for an image, with whose secrets, and what their results are made into."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from copycat.controller.pulls import LOOK, Pulls
from copycat.errors import (
    CopycatError,
    Denied,
    InvalidManifest,
    NotFound,
    Throttled,
    Unauthorized,
    Unavailable,
)
from copycat.kube.client import KubeClient
from copycat.kube.secrets import REREAD, Coverage, PullSecrets
from copycat.kube.workload import Workload
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.oci.reference import Reference
from copycat.registry.keychain import Access, AccessKeychain
from copycat.sandbox.kube_api import KubeApi
from copycat.sandbox.registry import Registry
from tests.kube.support import client_for
from tests.registry import support

Answer = MirrorResult | CopycatError | Callable[[], Awaitable[MirrorResult]]


def secret(
    host: str, *, name: str = "hub", namespace: str = "shop", user: str = "u"
) -> dict[str, Any]:
    """A pull secret for a host."""
    auth = base64.b64encode(f"{user}:pw".encode()).decode()
    content = json.dumps({"auths": {host: {"auth": auth}}}).encode()
    return {
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(content).decode()},
    }


def user(*secrets: str, namespace: str = "shop", kind: str = "Pod") -> Workload:
    """A Pod that names pull secrets."""
    return Workload(
        kind=kind,
        namespace=namespace,
        name="web",
        owner_kind=kind,
        owner_name="web",
        pull_secrets=secrets,
    )


@dataclass
class World:
    """Pulls, an API, a source, and a mirror that answers by a script."""

    api: KubeApi
    client: KubeClient
    source: Registry
    transport: Any
    answers: list[Answer] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)
    retried: list[MirrorRequest] = field(default_factory=list)
    now: float = 1000.0
    naps: list[float] = field(default_factory=list)
    told: anyio.Event = field(default_factory=anyio.Event)

    def pulls(self, *, shared: bool = False, separates: bool = True) -> Pulls:
        """With everything covered."""
        found = Pulls(
            secrets=PullSecrets(
                self.client, coverage=Coverage(everywhere=True), clock=lambda: self.now
            ),
            transport=self.transport,
            shared=shared,
            separates=separates,
            sleep=self.nap,
        )
        found.retry = self.retry
        return found

    def retry(self, request: MirrorRequest) -> None:
        """A change that may mend it."""
        self.retried.append(request)
        self.told.set()

    async def nap(self, seconds: float) -> None:
        """Time passes by."""
        self.naps.append(seconds)
        self.now += seconds
        if len(self.naps) > 40:
            await anyio.sleep_forever()

    @property
    def request(self) -> MirrorRequest:
        """For an image of the source."""
        return MirrorRequest(Reference.parse(f"{self.source.address}/team/app:1"), "copy/app")

    async def attempt(self, need: Need) -> MirrorResult:
        """The next answer."""
        self.needs.append(need)
        answer = self.answers.pop(0)
        if isinstance(answer, CopycatError):
            return MirrorResult(
                state="failed",
                target=Reference.parse("mirror.example/x:1"),
                error=answer,
                reason=answer.reason,
                message=str(answer),
            )
        return answer if isinstance(answer, MirrorResult) else await answer()

    async def run(self, pulls: Pulls, *users: Workload) -> MirrorResult:
        """One attempt of the controller's."""
        access = Access(namespaces=frozenset(u.namespace for u in users))
        return await pulls.run(self.request, Need(access=access), users, self.attempt)


GOOD = MirrorResult(state="protected", target=Reference.parse("mirror.example/x:1"), protected=True)
#: privateImages: shared, and whether the prefix separates namespaces.
SEPARATES, NEITHER, SHARED = (False, True), (False, False), (True, True)
REFUSED = Unauthorized("No.", side="source", registry="reg.io", status=401, code="UNAUTHORIZED")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A source that lets user u in."""
    async with (
        KubeApi() as api,
        client_for(api, tmp_path) as client,
        Registry(auth="basic", username="u", password="pw") as source,
        support.world(source.address, keys=AccessKeychain()) as registries,
    ):
        source.add_image("team/app", "1")
        yield World(api, client, source, registries.transport)


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        Unauthorized("no", side="target"),
        Throttled("later", side="source"),
        Unavailable("later", side="source"),
        InvalidManifest("bad", side="source"),
    ],
    ids=lambda a: type(a).__name__ + getattr(a, "side", ""),
)
async def test_who_is_not_refused_needs_no_secret(world: World, answer: Answer) -> None:
    """One attempt, and the result is passed on; the API is asked nothing."""
    world.answers = [answer]

    found = await world.run(world.pulls(), user("hub"))

    assert found.error is answer or found is answer
    assert [n.access.secrets for n in world.needs] == [()]
    assert world.api.requests == []


@pytest.mark.parametrize(
    "refusal",
    [REFUSED, Denied("no", side="source"), NotFound("no", side="source")],
    ids=["401", "403", "404"],
)
async def test_refused_without_let_in_with(world: World, refusal: CopycatError) -> None:
    """The second attempt has the secrets; from then on it is the first. Some registries hide behind 404."""
    world.api.create("secrets", secret(world.source.address))
    world.answers = [refusal, GOOD, GOOD]
    pulls = world.pulls()

    assert await world.run(pulls, user("hub")) is GOOD
    assert await world.run(pulls, user("hub")) is GOOD

    assert [len(n.access.secrets) for n in world.needs] == [0, 1, 1]
    assert {n.access.home for n in world.needs} == {"shop"}


async def test_a_secret_that_lets_in_no_more(world: World) -> None:
    """Refused with the secret: the next time it is asked without again; it may be public now."""
    world.api.create("secrets", secret(world.source.address))
    world.answers = [REFUSED, GOOD, REFUSED, GOOD]
    pulls = world.pulls()

    await world.run(pulls, user("hub"))
    assert (await world.run(pulls, user("hub"))).error is REFUSED
    await world.run(pulls, user("hub"))

    assert [len(n.access.secrets) for n in world.needs] == [0, 1, 1, 0]


async def test_known_to_need_a_secret_and_there_is_none(world: World) -> None:
    """The secret is gone: it is asked for as anybody would."""
    world.api.create("secrets", secret(world.source.address))
    world.answers = [REFUSED, GOOD, REFUSED]
    pulls = world.pulls()
    await world.run(pulls, user("hub"))

    found = await world.run(pulls, user())

    assert found.error is REFUSED
    assert [len(n.access.secrets) for n in world.needs] == [0, 1, 0]


@pytest.mark.parametrize(
    ("setting", "namespaces", "home", "copies"),
    [
        (SEPARATES, ("shop",), "shop", True),
        (SEPARATES, ("shop", "other"), "", False),
        (NEITHER, ("shop",), "", False),
        (SHARED, ("shop", "other"), "", True),
        (SHARED, ("shop",), "", True),
    ],
)
async def test_where_it_may_go(
    world: World,
    setting: tuple[bool, bool],
    namespaces: tuple[str, ...],
    home: str,
    *,
    copies: bool,
) -> None:
    """Copied to a place of one namespace alone, or with the owner's consent; else denied once the secret is proved."""
    world.api.create("secrets", secret(world.source.address))
    world.answers = [REFUSED, GOOD]
    users = [user("hub", namespace=n) for n in namespaces]

    found = await world.run(world.pulls(shared=setting[0], separates=setting[1]), *users)

    assert {n.access.home for n in world.needs} == {home}
    if copies:
        assert found is GOOD
    else:
        assert (found.state, found.reason) == ("denied", "private_image")
        assert (
            f"(namespace{'s' * (len(namespaces) > 1)} {', '.join(sorted(namespaces))})"
            in found.message
        )
        assert len(world.needs) == 1
        # one question, whose answer is not read
        assert {r.method for r in world.source.requests} <= {"GET", "HEAD"}
        assert [r.method for r in world.source.requests if r.repository] == ["HEAD"]


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        pytest.param("password", Unauthorized, id="refused"),
        pytest.param("missing", Unauthorized, id="not there"),
        pytest.param("down", Unavailable, id="down"),
    ],
)
async def test_denial_needs_proof(world: World, trouble: str, expected: type[CopycatError]) -> None:
    """Only what the secret really opens is called private."""
    world.api.create("secrets", secret(world.source.address))
    world.answers = [REFUSED]
    if trouble == "password":
        world.source.authority.set_password("u", "other")
    elif trouble == "missing":
        del world.source.tags["team/app"]["1"]
    else:
        await world.source.stop()

    found = await world.run(world.pulls(separates=False), user("hub"))

    assert found.state == "failed"
    assert isinstance(found.error, expected)
    assert found.error.reason != "private_image"


async def test_a_copy_that_stands_is_not_denied(world: World) -> None:
    """It stays protected, and says why it is not renewed."""
    world.api.create("secrets", secret(world.source.address))
    stands = MirrorResult(
        state="protected", target=GOOD.target, protected=True, error=REFUSED, reason="unauthorized"
    )
    world.answers = [stands]

    found = await world.run(world.pulls(separates=False), user("hub"))

    assert (found.state, found.protected, found.reason) == ("protected", True, "private_image")


async def test_what_is_said_of_secrets(world: World) -> None:
    """Forbidden before unusable; a name that is not found keeps its reason; three are named."""
    world.api.forbid("secrets", verbs=("get",), names=("no",))
    pulls = world.pulls()
    world.answers = [REFUSED, REFUSED, NotFound("Gone.", side="source"), REFUSED]

    forbidden = await world.run(pulls, user("no", "gone"))
    unusable = await world.run(pulls, user("gone"))
    lost = await world.run(pulls, user("no"))
    many = await world.run(pulls, user(*(f"gone-{n}" for n in range(5))))

    assert forbidden.reason == "pull_secret_not_allowed"
    assert forbidden.message.startswith("No. The pull secret shop/no may not be read: allow `get`")
    assert forbidden.message.endswith("The pull secret shop/gone does not exist.")
    error = forbidden.error
    assert isinstance(error, Unauthorized)
    assert (error.status, error.code, error.side, error.temporary) == (
        401,
        "UNAUTHORIZED",
        "source",
        False,
    )
    assert unusable.reason == "pull_secret_unusable"
    assert (lost.reason, type(lost.error)) == ("not_found", NotFound)
    assert "may not be read" in lost.message
    assert many.message.endswith("The pull secret shop/gone-2 does not exist. And 2 more.")


async def test_an_api_that_is_down(world: World) -> None:
    """It is not the image's fault: temporary, so nothing cools down."""
    await world.api.stop()
    world.answers = [REFUSED]

    found = await world.run(world.pulls(), user("hub"))

    assert found.error is not None
    assert (found.reason, found.error.temporary) == ("pull_secret_unavailable", True)


async def test_a_change_while_it_is_tried(world: World) -> None:
    """The Secret changes during the attempt: it is made once more with the new one, not after a cool-down."""
    world.api.create("secrets", secret(world.source.address, user="old"))
    pulls = world.pulls()

    async def meanwhile() -> MirrorResult:
        world.api.update("secrets", secret(world.source.address, user="new"))
        world.now += REREAD
        await pulls._secrets.keys([user("hub")])
        return await world.attempt(world.needs[-1])

    world.answers = [REFUSED, meanwhile, REFUSED, REFUSED, GOOD]

    assert await world.run(pulls, user("hub")) is GOOD
    names = [[a.credentials.username for a in n.access.secrets] for n in world.needs]
    assert names == [[], ["old"], ["old"], [], ["new"]]
    assert world.retried == []


async def test_a_change_while_it_goes_well(world: World) -> None:
    """Nothing is made again."""
    world.api.create("secrets", secret(world.source.address))
    pulls = world.pulls()

    async def meanwhile() -> MirrorResult:
        world.api.update("secrets", secret(world.source.address, user="new"))
        world.now += REREAD
        await pulls._secrets.keys([user("hub")])
        return GOOD

    world.answers = [REFUSED, meanwhile]

    assert await world.run(pulls, user("hub")) is GOOD
    assert world.retried == []


async def test_watching_what_fails(world: World) -> None:
    """Secrets of failed images are read every five minutes, a change makes the image be tried; others are not read."""
    world.api.create("secrets", secret(world.source.address))
    world.api.create("secrets", secret(world.source.address, name="fine"))
    pulls = world.pulls()
    world.answers = [REFUSED, GOOD, REFUSED, REFUSED]
    await world.run(pulls, user("fine"))
    await world.run(pulls, user("hub"))
    world.api.update("secrets", secret(world.source.address, user="new"))
    read = world.api.count("get", "secrets")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pulls.watch)
        with anyio.fail_after(5):
            await world.told.wait()
            await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert world.retried == [world.request]
    assert world.naps[: int(REREAD / LOOK)] == [LOOK] * int(REREAD / LOOK)
    assert world.api.count("get", "secrets") == read + 1


async def test_what_is_forgotten_is_not_watched(world: World) -> None:
    """An image that nothing wants keeps no Secret being read."""
    world.answers = [REFUSED, GOOD]
    pulls = world.pulls()
    await world.run(pulls, user("hub"))

    pulls.forget(world.request)

    assert (pulls._waiting, pulls._refs) == ({}, {})
    pulls.forget(world.request)
