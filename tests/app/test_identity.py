"""`docker.auth` and `registries[].auth`: the Pod's identity in a cloud, from the configuration to the registry."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from copycat.errors import RegistryError, Unauthorized, Unavailable
from copycat.mirror.request import MirrorRequest, Need
from copycat.oci.reference import Reference
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.app.clouds import ACR, GAR, GAR_US, HOUR, Clouds, open_clouds, pull
from tests.registry.ecr.fake_aws import ACCOUNT, REGION, FakeAws

ECR = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
TARGET = "targetKind: docker\ndocker: {registry: registry.example}\n"


@pytest.fixture
async def clouds(tmp_path: Path) -> AsyncIterator[Clouds]:
    """Google and Azure."""
    async with open_clouds(tmp_path) as clouds:
        yield clouds


@pytest.fixture
async def aws(monkeypatch: pytest.MonkeyPatch, clouds: Clouds) -> AsyncIterator[FakeAws]:
    """Amazon, with keys in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    async with FakeAws() as fake:
        fake.now = clouds.clock
        monkeypatch.setenv("AWS_ENDPOINT_URL", fake.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY-OF-ENVIRONMENT")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield fake


def registries(*rows: str) -> str:
    """A configuration with rows of the registries table."""
    return f"{TARGET}registries: [{', '.join(rows)}]"


async def test_google_as_a_source(clouds: Clouds) -> None:
    """`auth: gcp`: the service account's token opens the registry; it is renewed before it ends, and one serves all hosts."""
    text = registries(f"{{host: {GAR}, auth: gcp}}", f"{{host: {GAR_US}, auth: gcp}}")
    async with clouds.google(GAR, GAR_US) as registry, clouds.engine(text) as engine:
        image = registry.add_image("team/app", "1")
        registry.add("team/other", image, "1")
        assert str(await pull(engine, GAR)) == image.digest
        assert str(await pull(engine, GAR_US)) == image.digest
        assert len(clouds.asked) == 1

        clouds.clock.now += HOUR / 2
        registry.authority.expire_tokens()
        assert str(await pull(engine, GAR, "team/other")) == image.digest
        assert len(clouds.asked) == 2
        assert not registry.violations


async def test_google_said_to_have_expired(clouds: Clouds) -> None:
    """A registry that no longer knows the token gets another one, without an error."""
    text = registries(f"{{host: {GAR}, auth: gcp}}")
    async with clouds.google(GAR) as registry, clouds.engine(text) as engine:
        image = registry.add_image("team/app", "1")
        await pull(engine, GAR)
        clouds.clock.now += 60
        registry.authority.expire()

        assert str(await pull(engine, GAR)) == image.digest


async def test_refused_by_a_token_service(clouds: Clouds) -> None:
    """A login that ended before its time is renewed when the token service for another repository refuses it, too."""
    text = registries(f"{{host: {GAR}, auth: gcp}}")
    async with clouds.google(GAR) as registry, clouds.engine(text) as engine:
        image = registry.add_image("team/app", "1")
        registry.add("team/other", image, "1")
        await pull(engine, GAR)
        clouds.clock.now += 60
        registry.authority.set_password("oauth2accesstoken", "another")

        assert str(await pull(engine, GAR, "team/other")) == image.digest
        assert len(clouds.asked) == 2


async def test_refused_while_nobody_renews(clouds: Clouds) -> None:
    """One repository that the identity may not read takes it from no other, while the metadata server is in trouble."""
    text = registries(f"{{host: {GAR}, auth: gcp}}")
    async with clouds.google(GAR) as registry, clouds.engine(text) as engine:
        image = registry.add_image("team/app", "1")
        await pull(engine, GAR)
        clouds.clock.now += 60
        clouds.status = 503
        for _ in range(3):
            registry.fail(Phase.GET_MANIFEST, status=401, times=2)
            with pytest.raises(Unauthorized):
                await pull(engine, GAR)

            assert str(await pull(engine, GAR)) == image.digest

        assert len(clouds.asked) == 2


async def test_one_request_for_all(clouds: Clouds) -> None:
    """Thirty images at once ask the metadata server once."""
    text = registries(f"{{host: {GAR}, auth: gcp}}")
    async with clouds.google(GAR) as registry, clouds.engine(text) as engine:
        image = registry.add_image("team/app0", "1")
        for number in range(30):
            registry.add(f"team/app{number}", image, "1")
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(pull, engine, GAR, f"team/app{number}")

        assert len(clouds.asked) == 1
        assert all(r.status < 400 or not r.repository for r in registry.requests)


async def test_never_for_another_host(clouds: Clouds) -> None:
    """A host that no key names gets no identity: not one of the same cloud, not one whose name only resembles it."""
    text = registries(f"{{host: {GAR}, auth: gcp}}", f"{{host: {ACR}, auth: azure}}")
    others = [GAR_US, f"{GAR}.evil.example", f"evil-{GAR}", f"other.{ACR}"]
    async with (
        clouds.google(*others) as registry,
        clouds.engine(text + "\nallowedRegistries: [" + ", ".join(others) + "]") as engine,
    ):
        registry.add_image("team/app", "1")
        for host in others:
            with pytest.raises(Unauthorized):
                await pull(engine, host)

        assert not any(request.authorized for request in registry.requests)
        assert not clouds.asked


async def test_azure_as_a_source(clouds: Clouds) -> None:
    """`auth: azure`: the federated token becomes one of Entra, that the registry's own; renewed at half of its three hours."""
    text = registries(f"{{host: {ACR}, auth: azure}}")
    environ = clouds.federated()
    async with clouds.azure() as registry, clouds.engine(text, environ) as engine:
        image = registry.add_image("team/app", "1")
        registry.add("team/other", image, "1")
        assert str(await pull(engine, ACR)) == image.digest
        assert str(await pull(engine, ACR)) == image.digest
        assert len(clouds.exchanges) == 1

        clouds.clock.now += 1.5 * HOUR
        assert str(await pull(engine, ACR, "team/other")) == image.digest
        assert clouds.asked == ["/tenant/oauth2/v2.0/token"] * 2
        assert [form["service"] for form in clouds.exchanges] == [ACR, ACR]
        assert not registry.violations


async def test_azure_managed_identity_as_a_target(clouds: Clouds) -> None:
    """`docker.auth: azure`: with the node's identity a whole image goes into the registry."""
    text = f"targetKind: docker\ndocker: {{registry: {ACR}, auth: azure}}\n"
    text += "allowedRegistries: [registry.example]\n"
    async with (
        clouds.any("registry.example", auth="none") as source,
        clouds.azure() as registry,
        clouds.engine(text) as engine,
    ):
        image = source.add_image("team/app", "1")
        reference = Reference.parse("registry.example/team/app:1")
        request = MirrorRequest(source=reference, repository="team/app")
        result = await engine.mirror.run(request, Need())

        assert (result.state, result.message) == ("protected", "")
        assert registry.has("team/app", image, "1")
        assert clouds.asked == ["/metadata/identity/oauth2/token"]
        assert not any(request.authorized for request in source.requests)


async def test_amazon_as_a_source(clouds: Clouds, aws: FakeAws) -> None:
    """`auth: ecr` with another kind of target: AWS's token opens the host that is named, and no other of ECR."""
    other = f"999999999999.dkr.ecr.{REGION}.amazonaws.com"
    text = registries(f"{{host: {ECR}, auth: ecr}}") + f"\nallowedRegistries: [{ECR}, {other}]"
    async with (
        clouds.any(ECR, profile="ecr", auth="basic", redirect_blobs=False) as registry,
        clouds.any(other, profile="ecr", auth="basic") as foreign,
        clouds.engine(text) as engine,
    ):
        believe(aws, registry)
        image = registry.add_image("team/app", "1")
        assert str(await pull(engine, ECR)) == image.digest
        with pytest.raises(Unauthorized):
            await pull(engine, other)
        assert not any(request.authorized for request in foreign.requests)
        assert aws.calls["GetAuthorizationToken"] == 1

        clouds.clock.now += 6 * HOUR
        assert str(await pull(engine, ECR)) == image.digest
        assert aws.calls["GetAuthorizationToken"] == 2
        assert all(request.status != 403 for request in registry.requests)


async def test_amazon_public(clouds: Clouds, aws: FakeAws) -> None:
    """`auth: ecr` for ECR Public: its own token, exchanged at its token service."""
    host = "public.ecr.aws"
    async with (
        clouds.any(host, profile="ecr-public", auth="token", redirect_blobs=False) as registry,
        clouds.engine(registries(f"{{host: {host}, auth: ecr}}")) as engine,
    ):
        believe(aws, registry)
        image = registry.add_image("team/app", "1")

        assert str(await pull(engine, host)) == image.digest
        assert list(aws.calls) == ["PublicGetAuthorizationToken"]


async def test_amazon_under_another_name(clouds: Clouds, aws: FakeAws) -> None:
    """A private name in front of ECR gets the login of `ecr.region`, as source and as target."""
    text = (
        "targetKind: docker\necr: {region: eu-west-1}\ndocker: {registry: out.example, auth: ecr}\n"
        "registries: [{host: in.example, auth: ecr}]"
    )
    async with (
        clouds.any("in.example", profile="ecr", auth="basic", redirect_blobs=False) as source,
        clouds.any("out.example", profile="ecr", auth="basic", redirect_blobs=False) as target,
        clouds.engine(text) as engine,
    ):
        aws.token = base64.b64encode(b"AWS:the-one-password").decode()
        for registry in (source, target):
            registry.authority.set_password("AWS", "the-one-password")
        image = source.add_image("team/app", "1")
        target.create_repository("team/app")
        reference = Reference.parse("in.example/team/app:1")
        request = MirrorRequest(source=reference, repository="team/app")
        result = await engine.mirror.run(request, Need())

        assert (result.state, result.message) == ("protected", "")
        assert target.has("team/app", image, "1")


async def test_amazon_beside_an_ecr_target(clouds: Clouds, aws: FakeAws) -> None:
    """With ECR as the target a row for a private name works too, and its errors name the key."""
    text = (
        f"targetKind: ecr\necr: {{accountID: '{ACCOUNT}', region: {REGION}, endpoint: {ECR}}}\n"
        "registries: [{host: in.example, auth: ecr}]"
    )
    async with (
        clouds.any("in.example", profile="ecr", auth="basic", redirect_blobs=False) as source,
        clouds.engine(text) as engine,
    ):
        believe(aws, source)
        image = source.add_image("team/app", "1")
        aws.refuse("GetAuthorizationToken", "AccessDeniedException")
        with pytest.raises(RegistryError, match=r"in\.example \(registries\[0\]\.auth is ecr\)"):
            await pull(engine, "in.example")
        clouds.clock.now += 31

        assert str(await pull(engine, "in.example")) == image.digest


def believe(aws: FakeAws, *registries: Registry) -> None:
    """The registries take the password that AWS handed out last."""

    def told(password: str) -> None:
        for registry in registries:
            registry.authority.set_password("AWS", password)

    aws.on_password = told


@pytest.mark.parametrize(
    ("status", "kind", "remedy"),
    [
        pytest.param(403, Unauthorized, "Workload Identity", id="forbidden"),
        pytest.param(404, Unauthorized, "Workload Identity", id="no-account"),
        pytest.param(503, Unavailable, "answers 503", id="trouble"),
    ],
)
async def test_google_refuses(
    clouds: Clouds, status: int, kind: type[RegistryError], remedy: str
) -> None:
    """An identity that is not to be had is an error that names key, host and remedy, and no anonymous request."""
    clouds.status = status
    text = registries("{host: a.example}", f"{{host: {GAR}, auth: gcp}}")
    async with clouds.google(GAR) as registry, clouds.engine(text) as engine:
        with pytest.raises(kind) as caught:
            await pull(engine, GAR)

        text = str(caught.value)
        assert "registries[1].auth is gcp" in text
        assert GAR in text
        assert remedy in text
        assert "canary" not in text
        assert (caught.value.side, caught.value.registry) == ("source", GAR)
        assert not [request for request in registry.requests if request.repository]


async def test_trouble_frees_the_worker(clouds: Clouds) -> None:
    """A metadata server in trouble is not asked again and again while a worker waits: the error says when to come back."""
    clouds.status = 503
    text = registries(f"{{host: {GAR}, auth: gcp}}")
    settings = await clouds.settings(f"{text}\nregistryRetryAttempts: 5\nregistryRetryBackoff: 5")
    async with clouds.google(GAR), clouds.engine("", settings=settings) as engine:
        with anyio.fail_after(10), pytest.raises(Unavailable) as caught:
            await pull(engine, GAR)

        assert caught.value.retry_after == 30
        assert len(clouds.asked) == 1


async def test_no_metadata_server(clouds: Clouds, free_tcp_port: int) -> None:
    """Outside of the cloud nobody answers: the error says which key asked, as the target's error."""
    environ = {"GCE_METADATA_HOST": f"127.0.0.1:{free_tcp_port}"}
    text = f"targetKind: docker\ndocker: {{registry: {GAR}, auth: gcp}}"
    async with clouds.google(GAR), clouds.engine(text, environ) as engine:
        with pytest.raises(Unavailable, match=r"docker\.auth is gcp.*does not answer") as caught:
            await engine.target.repository("team/app").head_manifest("1")

        assert caught.value.side == "target"


async def test_azure_refuses(clouds: Clouds) -> None:
    """A registry that gives the identity no token is named, with the role that is missing."""
    clouds.refuse_exchange = True
    async with (
        clouds.azure(),
        clouds.engine(registries(f"{{host: {ACR}, auth: azure}}")) as engine,
    ):
        with pytest.raises(Unauthorized, match=r"registries\[0\]\.auth is azure.*AcrPull"):
            await pull(engine, ACR)


async def test_amazon_refuses(clouds: Clouds, aws: FakeAws) -> None:
    """AWS's refusal names the key too: the host is not tried anonymously."""
    aws.refuse("GetAuthorizationToken", "AccessDeniedException")
    async with (
        clouds.any(ECR, profile="ecr", auth="basic") as registry,
        clouds.engine(registries(f"{{host: {ECR}, auth: ecr}}")) as engine,
    ):
        with pytest.raises(RegistryError, match=r"registries\[0\]\.auth is ecr.*not allow"):
            await pull(engine, ECR)

        assert not [request for request in registry.requests if request.repository]


async def test_other_credentials_help(clouds: Clouds, capsys: pytest.CaptureFixture[str]) -> None:
    """If the cloud gives no identity, registryCredentials for the host are used; a warning says so once."""
    clouds.status = 404
    text = registries(f"{{host: {GAR}, auth: gcp}}") + (
        f"\nregistryCredentials: [{{registry: {GAR}, username: _json_key, password: key}}]"
    )
    async with clouds.google(GAR) as registry, clouds.engine(text) as engine:
        registry.authority.set_password("_json_key", "key")
        image = registry.add_image("team/app", "1")
        for _ in range(3):
            assert str(await pull(engine, GAR)) == image.digest

    assert capsys.readouterr().out.count("registries[0].auth is gcp") == 1
