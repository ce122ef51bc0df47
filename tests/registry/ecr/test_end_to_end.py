"""An image into ECR: AWS's API beside a registry that behaves as ECR, on the account's host name, over TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest
import trustme

from copycat.errors import Denied, NotFound, Unauthorized, Unsupported, UploadRejected
from copycat.metrics import Metrics
from copycat.oci.manifest import Document, Manifest, parse_document
from copycat.registry.ecr.aws import Aws
from copycat.registry.ecr.keychain import EcrKeychain
from copycat.registry.ecr.settings import EcrSettings
from copycat.registry.ecr.target import EcrTarget
from copycat.registry.hosts import HostPolicy
from copycat.registry.keychain import ANONYMOUS
from copycat.registry.transport import Transport
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.registry.ecr.fake_aws import ACCOUNT, REGION, FakeAws
from tests.resolving import OneHost

HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
HOUR = 3600.0


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A registry and the target that reaches it."""

    registry: Registry
    target: EcrTarget
    keychain: EcrKeychain


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the registry's certificate."""
    return trustme.CA()


@pytest.fixture
def clock() -> Clock:
    """The time of AWS and of the registry."""
    return Clock()


@asynccontextmanager
async def opened(
    aws: Aws,
    authority: trustme.CA,
    clock: Clock,
    *,
    ours: Callable[[], float],
    exists: Callable[[str], bool | Awaitable[bool]],
    settings: EcrSettings | None = None,
) -> AsyncIterator[World]:
    """The registry behind ECR's name, and a target as the program builds it. Args: `ours` is the client's clock."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with Registry(
        profile="ecr",
        ssl_context=server,
        username="AWS",
        password="nobody knows",
        repository_exists=exists,
        clock=clock,
    ) as registry:
        keychain = EcrKeychain(target=aws, clock=ours)
        keychain.target_registry = await keychain.discover(ACCOUNT)
        async with Transport(
            keychain=keychain,
            metrics=Metrics(version="test"),
            policy=HostPolicy(named=frozenset({HOST})),
            target_registries=frozenset({HOST}),
            resolver=OneHost(HOST, registry.port),
            ssl_context=client,
        ) as transport:
            wanted = settings or EcrSettings(account_id=ACCOUNT, region=REGION)
            target = EcrTarget(transport, keychain.target_registry, aws=aws, settings=wanted)
            yield World(registry=registry, target=target, keychain=keychain)


def document(image: Image) -> Document:
    """The image's root."""
    return parse_document(image.root.data, content_type=image.root.media_type)


async def push(world: World, repository: str, image: Image, tag: str = "1.0") -> None:
    """What a copy does at the target: blobs that are not there, the manifest by digest, then the tag."""
    root = document(image)
    assert isinstance(root, Manifest)
    manifest: Manifest = root
    there = world.target.repository(repository)

    async def anew() -> None:
        known = await world.target.known_blobs(repository, [b.digest for b in manifest.blobs()])
        for blob in manifest.blobs():
            if known is None or blob.digest not in known:

                async def body(data: bytes = image.blobs[str(blob.digest)]) -> AsyncIterator[bytes]:
                    yield data

                await there.upload_blob(blob, body)

        await there.put_manifest(manifest, manifest.digest)
        await there.put_manifest(manifest, tag)

    await world.target.provisioned(repository, anew)


@pytest.fixture
async def world(
    aws: Aws, fake: FakeAws, authority: trustme.CA, clock: Clock
) -> AsyncIterator[World]:
    """The registry lets in whoever has the newest token; AWS knows no blob."""
    fake.now = clock
    exists = fake.repositories.__contains__
    async with opened(aws, authority, clock, ours=clock, exists=exists) as world:
        fake.on_password = lambda password: world.registry.authority.set_password("AWS", password)
        world.registry.authority.set_password("AWS", "password-1")
        fake.available = lambda digest: digest in world.registry.blobs["mirror/app"]
        yield world


async def test_moto(moto: str, authority: trustme.CA, clock: Clock) -> None:
    """With moto as AWS: the host and the login from its answer, the repository in its list, the image in the registry."""
    made: set[str] = set()
    async with Aws(region=REGION) as aws:

        async def exists(name: str) -> bool:
            answer = await aws.ask(
                "ecr:DescribeRepositories", lambda ecr: ecr.describe_repositories()
            )
            made.update(row["repositoryName"] for row in answer["repositories"])
            return name in made

        async with opened(aws, authority, clock, ours=clock, exists=exists) as world:
            world.registry.authority.set_password("AWS", f"{ACCOUNT}-auth-token")
            image = images.image(seed="moto")
            await push(world, "mirror/moto", image)

            assert world.target.registry == HOST
            assert "mirror/moto" in made
            assert world.registry.tags["mirror/moto"]["1.0"] == image.digest
            assert world.registry.manifests["mirror/moto"][image.digest].data == image.data
            assert world.registry.violations == []


async def test_new_repository(world: World, fake: FakeAws) -> None:
    """The first push makes the repository after one refused upload; the second asks AWS for nothing but layers."""
    image = images.image(seed=1)
    await push(world, "mirror/app", image)

    assert fake.calls["CreateRepository"] == 1
    assert fake.calls["GetAuthorizationToken"] == 1
    assert dict(world.registry.blobs["mirror/app"]) == dict(image.blobs)

    world.registry.ledger.clear()
    await push(world, "mirror/app", image, tag="2.0")

    assert world.registry.ledger.count(Phase.START_UPLOAD, Phase.HEAD_BLOB) == 0
    assert fake.calls["CreateRepository"] == 1
    assert world.registry.tags["mirror/app"] == {"1.0": image.digest, "2.0": image.digest}
    assert world.registry.violations == []


async def test_many_at_once(world: World, fake: FakeAws) -> None:
    """Ten images for one new repository: one token, one repository, ten tags."""
    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(push, world, "mirror/app", images.image(seed=number), f"1.{number}")

    assert fake.calls["GetAuthorizationToken"] == 1
    assert fake.calls["CreateRepository"] == 1
    assert len(world.registry.tags["mirror/app"]) == 10
    assert world.registry.violations == []


async def test_twelve_hours(world: World, fake: FakeAws, clock: Clock) -> None:
    """A day of pushes, one an hour: a token each six hours, and never a refusal."""
    await push(world, "mirror/app", images.image(seed="first"))
    world.registry.ledger.clear()
    for hour in range(24):
        clock.now += HOUR
        await push(world, "mirror/app", images.image(seed=hour), tag=f"h{hour}")

    assert [r.status for r in world.registry.requests if r.status in {401, 403}] == []
    assert fake.calls["GetAuthorizationToken"] == 5


async def test_expired_all_the_same(
    aws: Aws, fake: FakeAws, authority: trustme.CA, clock: Clock
) -> None:
    """If the registry says "expired" (403) while we think otherwise, there is one new token, for all who are told so."""
    fake.now = clock
    ours = Clock()
    exists = fake.repositories.__contains__
    async with opened(aws, authority, clock, ours=ours, exists=exists) as world:
        fake.on_password = lambda password: world.registry.authority.set_password("AWS", password)
        world.registry.authority.set_password("AWS", "password-1")
        fake.available = lambda _digest: False
        await push(world, "mirror/app", images.image(seed="first"))
        clock.now += 13 * HOUR
        ours.now += 60
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(push, world, "mirror/app", images.image(seed=number), f"{number}")

        refused = [r.status for r in world.registry.requests if r.status == 403]
        assert refused
        assert fake.calls["GetAuthorizationToken"] == 2
        assert len(world.registry.tags["mirror/app"]) == 11


async def test_wrong_for_good(world: World, fake: FakeAws) -> None:
    """A registry that never takes the login gives an error, not a storm of token requests."""
    await world.keychain.resolve(HOST, "", ANONYMOUS)
    fake.on_password = lambda _password: None
    world.registry.authority.set_password("AWS", "another")
    with pytest.raises((Unauthorized, Denied)):
        await push(world, "mirror/app", images.image())

    assert fake.calls["GetAuthorizationToken"] <= 2


async def test_not_to_be_made(aws: Aws, fake: FakeAws, authority: trustme.CA, clock: Clock) -> None:
    """With createRepo false nothing is made, and the error names the key."""
    settings = EcrSettings(account_id=ACCOUNT, region=REGION, create_repo=False)
    exists = fake.repositories.__contains__
    async with opened(aws, authority, clock, ours=clock, exists=exists, settings=settings) as world:
        world.registry.authority.set_password("AWS", "password-1")
        fake.available = lambda _digest: False
        with pytest.raises(NotFound, match=r"ecr\.createRepo"):
            await push(world, "mirror/app", images.image())

    assert fake.calls["CreateRepository"] == 0


async def test_immutable(world: World) -> None:
    """In an immutable repository a tag keeps its content: the same again is fine, other content says what to do."""
    first = images.image(seed=1)
    await push(world, "mirror/app", first)
    world.registry.core.immutable_tags = True
    await push(world, "mirror/app", first)
    with pytest.raises(UploadRejected, match="mutabilityExclusions") as caught:
        await push(world, "mirror/app", images.image(seed=2))

    assert caught.value.reason == "tag_immutable"
    assert world.registry.tags["mirror/app"]["1.0"] == first.digest


async def test_empty_layer(world: World) -> None:
    """An empty blob, which ECR cannot hold, is a clear error for this image."""
    image = images.image(layers=[images.empty_layer(), 1024])
    with pytest.raises(Unsupported, match="does not store empty blobs") as caught:
        await push(world, "mirror/app", image)

    assert not caught.value.temporary
    assert not world.registry.tags["mirror/app"]
