"""Logins for ECR: from AWS's answer to credentials, per region, in time."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import anyio
import pytest

from copycat.errors import Denied, Throttled, Unauthorized, Unavailable
from copycat.registry.ecr.aws import Aws
from copycat.registry.ecr.keychain import EcrKeychain, NamedHost
from copycat.registry.keychain import ANONYMOUS, Credentials
from copycat.registry.renewable import Asker
from tests.registry.ecr.fake_aws import ACCOUNT, REGION, FakeAws

HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
OTHER = f"999999999999.dkr.ecr.{REGION}.amazonaws.com"


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(fake: FakeAws) -> Clock:
    """The clock of keychain and fake AWS."""
    clock = Clock()
    fake.now = clock
    return clock


@pytest.fixture
def keychain(aws: Aws, clock: Clock) -> EcrKeychain:
    """For the account's own registry as target, and all others as sources."""
    return EcrKeychain(target=aws, target_registry=HOST, sources=aws, clock=clock)


def named(region: str = "") -> NamedHost:
    """A host that a row of the configuration gives AWS's login."""
    return NamedHost(asker=Asker(key="registries[3].auth"), region=region)


async def login(keychain: EcrKeychain, registry: str = HOST) -> Credentials:
    """The one candidate."""
    (credentials,) = await keychain.resolve(registry, "a/b", ANONYMOUS)
    return credentials


async def test_login(keychain: EcrKeychain) -> None:
    """AWS's token becomes user name and password; neither repr nor source show the password."""
    credentials = await login(keychain)

    assert (credentials.username, credentials.password) == ("AWS", "password-1")
    assert "password-1" not in repr(credentials)
    assert REGION in credentials.source


async def test_one_token_for_fifty(keychain: EcrKeychain, fake: FakeAws) -> None:
    """Fifty requests at once need one token."""
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(login, keychain)

    assert fake.calls["GetAuthorizationToken"] == 1


async def test_twelve_hours(keychain: EcrKeychain, fake: FakeAws, clock: Clock) -> None:
    """A token of twelve hours is renewed after six, not before, and never used after its end."""
    await login(keychain)
    clock.now += 6 * 3600 - 60

    assert (await login(keychain)).password == "password-1"

    clock.now += 61

    assert (await login(keychain)).password == "password-2"

    clock.now += 13 * 3600

    assert (await login(keychain)).password == "password-3"
    assert fake.calls["GetAuthorizationToken"] == 3


async def test_expired_early(keychain: EcrKeychain, clock: Clock) -> None:
    """When the registry says "expired", the next login is another one, for the one who knows and once."""
    old = await login(keychain)
    clock.now += 3600
    keychain.expired(HOST, old)
    new = await login(keychain)
    keychain.expired(HOST, old)

    assert new.password == "password-2"
    assert new == await login(keychain)


async def test_expiry_of_a_foreign_host(keychain: EcrKeychain) -> None:
    """Other registries' expiries are nothing to this keychain."""
    keychain.expired("docker.io", Credentials())

    assert await keychain.resolve("docker.io", "library/alpine", ANONYMOUS) == ()


async def test_strange_expiry(keychain: EcrKeychain, fake: FakeAws, clock: Clock) -> None:
    """An end that cannot be right by our clock counts as twelve hours."""
    fake.life = -10
    await login(keychain)
    clock.now += 5 * 3600

    assert (await login(keychain)).password == "password-1"


@pytest.mark.parametrize("registry", [HOST, "public.ecr.aws"])
@pytest.mark.parametrize("life", [3600, 100])
async def test_short_life(
    keychain: EcrKeychain, fake: FakeAws, clock: Clock, registry: str, life: int
) -> None:
    """A token of a session that ends soon is renewed before its own end, and never used after it."""
    fake.life = life
    assert (await login(keychain, registry)).password == "password-1"
    clock.now += life / 2 + 1

    assert (await login(keychain, registry)).password == "password-2"


async def test_target_refused(keychain: EcrKeychain, fake: FakeAws) -> None:
    """Without a login the target cannot be written: the error comes out."""
    fake.refuse("GetAuthorizationToken", "ThrottlingException")
    with pytest.raises(Throttled):
        await login(keychain)


async def test_source_refused(aws: Aws, fake: FakeAws, clock: Clock) -> None:
    """A source without a login is tried without, and AWS is asked again after minutes, not each time."""
    keychain = EcrKeychain(sources=aws, clock=clock)
    fake.refuse("GetAuthorizationToken", "AccessDeniedException")
    for _ in range(3):
        assert await keychain.resolve(OTHER, "a", ANONYMOUS) == ()

    assert fake.calls["GetAuthorizationToken"] == 1

    clock.now += 301

    assert (await login(keychain, OTHER)).password == "password-2"


async def test_sources_of_a_region_share(keychain: EcrKeychain, fake: FakeAws) -> None:
    """One token opens all registries of a region; another region has its own."""
    await login(keychain, OTHER)
    await login(keychain, "888888888888.dkr.ecr.eu-central-1.amazonaws.com")
    await login(keychain, "888888888888.dkr.ecr.eu-west-1.amazonaws.com")
    await login(keychain, "888888888888.dkr.ecr-fips.us-east-1.amazonaws.com")

    assert fake.calls["GetAuthorizationToken"] == 3


async def test_named_hosts(aws: Aws, clock: Clock) -> None:
    """A host with `auth: ecr` (an endpoint of the owner's network) gets the login of its region."""
    hosts = {"registry.corp.example": named("eu-west-1")}
    keychain = EcrKeychain(sources=aws, hosts=hosts, clock=clock)

    assert (await login(keychain, "registry.corp.example")).password == "password-1"
    assert await keychain.resolve("other.corp.example", "a", ANONYMOUS) == ()


async def test_named_host_refused(aws: Aws, fake: FakeAws, clock: Clock) -> None:
    """A host that the configuration names must get its login: the error says which key wants it."""
    keychain = EcrKeychain(sources=aws, hosts={OTHER: named()}, clock=clock)
    fake.refuse("GetAuthorizationToken", "AccessDeniedException")
    with pytest.raises(Denied, match=rf"{OTHER} \(registries\[3\]\.auth\).*GetAuthorization"):
        await login(keychain, OTHER)


async def test_named_only(aws: Aws, clock: Clock) -> None:
    """For another kind of target, hosts of ECR that the configuration does not name get nothing."""
    hosts = {OTHER: named("ignored"), "public.ecr.aws": named()}
    keychain = EcrKeychain(sources=aws, hosts=hosts, named_only=True, clock=clock)

    assert "AWS credentials (eu-central-1)" in (await login(keychain, OTHER)).source
    assert (await login(keychain, "public.ecr.aws")).username == "AWS"
    assert await keychain.resolve(HOST, "a", ANONYMOUS) == ()


async def test_needed_logins_are_tried_soon(aws: Aws, fake: FakeAws, clock: Clock) -> None:
    """A login that one cannot do without is asked for again after half a minute, not after five."""
    keychain = EcrKeychain(sources=aws, hosts={OTHER: named()}, named_only=True, clock=clock)
    fake.refuse("GetAuthorizationToken", "ThrottlingException")
    with pytest.raises(Throttled) as caught:
        await login(keychain, OTHER)
    clock.now += 31

    assert caught.value.retry_after == 30
    assert (await login(keychain, OTHER)).username == "AWS"


async def test_refusals_are_told_once(
    aws: Aws, fake: FakeAws, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source that is tried without a login is warned of once, not with every request."""
    keychain = EcrKeychain(sources=aws, clock=clock)
    fake.refuse("GetAuthorizationToken", "AccessDeniedException")
    for _ in range(5):
        await keychain.resolve(OTHER, "a", ANONYMOUS)

    assert capsys.readouterr().out.count("no_aws_login") == 1


async def test_no_sources(aws: Aws, clock: Clock) -> None:
    """A keychain for the target alone has nothing for others."""
    keychain = EcrKeychain(target=aws, target_registry=HOST, clock=clock)

    assert await keychain.resolve(OTHER, "a", ANONYMOUS) == ()


async def test_public(keychain: EcrKeychain, fake: FakeAws) -> None:
    """ECR Public has a token of its own."""
    credentials = await login(keychain, "public.ecr.aws")

    assert (credentials.username, credentials.password) == ("AWS", "password-1")
    assert list(fake.calls) == ["PublicGetAuthorizationToken"]


async def test_public_refused(keychain: EcrKeychain, fake: FakeAws) -> None:
    """Without permission ECR Public is read anonymously."""
    fake.refuse("PublicGetAuthorizationToken", "AccessDeniedException")

    assert await keychain.resolve("public.ecr.aws", "nginx/nginx", ANONYMOUS) == ()


@pytest.fixture
async def nobody(fake: FakeAws) -> AsyncIterator[Aws]:
    """Access without credentials."""
    async with Aws(region=REGION) as aws:
        yield aws


async def test_no_credentials(nobody: Aws) -> None:
    """A process without AWS credentials reads ECR anonymously, and cannot have it as a target."""
    keychain = EcrKeychain(target=nobody, target_registry=HOST, sources=nobody)

    assert await keychain.resolve("public.ecr.aws", "a", ANONYMOUS) == ()
    with pytest.raises(Unauthorized, match="No AWS credentials"):
        await login(keychain)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("%%%", id="no-base64"),
        pytest.param(base64.b64encode(b"no colon").decode(), id="no-colon"),
        pytest.param(base64.b64encode(b"\xff\xfe:x").decode(), id="no-text"),
    ],
)
async def test_unreadable_token(keychain: EcrKeychain, fake: FakeAws, token: str) -> None:
    """A token that is none is trouble at AWS, and does not show in the message."""
    fake.token = token
    with pytest.raises(Unavailable) as caught:
        await login(keychain)

    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "account", "expected"),
    [
        pytest.param(f"https://{HOST}", ACCOUNT, HOST, id="own-account"),
        pytest.param(f"https://{HOST}", "999999999999", OTHER, id="other-account"),
        pytest.param(
            f"https://{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn",
            ACCOUNT,
            f"{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn",
            id="china",
        ),
        pytest.param(
            f"https://{ACCOUNT}.dkr.ecr-fips.us-east-1.amazonaws.com",
            ACCOUNT,
            f"{ACCOUNT}.dkr.ecr-fips.us-east-1.amazonaws.com",
            id="fips",
        ),
        pytest.param("https://localhost:4510", ACCOUNT, "localhost:4510", id="an-imitation"),
    ],
)
async def test_discover(
    keychain: EcrKeychain, fake: FakeAws, answer: str, account: str, expected: str
) -> None:
    """The registry's host is what AWS says, for the account of the target."""
    fake.endpoint = answer

    assert expected == await keychain.discover(account)


async def test_discovery_is_the_first_login(keychain: EcrKeychain, fake: FakeAws) -> None:
    """The token that came with the answer is used: one request for both."""
    await keychain.discover(ACCOUNT)
    await login(keychain)

    assert fake.calls["GetAuthorizationToken"] == 1


async def test_discover_without_target() -> None:
    """Who has no ECR target has nothing to discover."""
    with pytest.raises(ValueError, match="no target"):
        await EcrKeychain().discover(ACCOUNT)


async def test_moto(moto: str) -> None:
    """moto's imitation of the API, whose tokens end in 2015, gives a login and the usual host."""
    async with Aws(region=REGION) as aws:
        keychain = EcrKeychain(target=aws, target_registry=HOST)

        assert await keychain.discover(ACCOUNT) == HOST
        assert (await login(keychain)).username == "AWS"
