"""Credentials, clients and errors of AWS, against real sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
from aiohttp import web

from copycat.errors import Denied, NotFound, RegistryError, Throttled, Unauthorized, Unavailable
from copycat.registry.ecr.aws import Aws
from tests.registry.ecr.fake_aws import REGION, FakeAws

ROLE = "arn:aws:iam::123456789012:role/Mirror"


async def token(aws: Aws, *, about: str = "", registry: str = "", fips: bool = False) -> str:
    """One request that needs no argument."""
    answer = await aws.ask(
        "ecr:GetAuthorizationToken",
        lambda ecr: ecr.get_authorization_token(),
        about=about,
        registry=registry,
        fips=fips,
    )
    return answer["authorizationData"][0]["authorizationToken"]


async def test_keys_of_the_environment(aws: Aws, fake: FakeAws) -> None:
    """Access keys in the environment sign the requests, and one client serves them all."""
    await token(aws)
    await token(aws)

    assert fake.signers == ["KEY-OF-ENVIRONMENT"] * 2


async def test_concurrent_first_requests(aws: Aws, fake: FakeAws) -> None:
    """Requests that come at once while the client is made all get their answer."""
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(token, aws)

    assert fake.calls["GetAuthorizationToken"] == 10


async def test_nothing_is_asked_before_it_is_needed(no_aws: None) -> None:
    """Without a request there is no look for credentials: dry modes contact no AWS."""
    async with Aws(region=REGION):
        pass


async def test_no_credentials(fake: FakeAws) -> None:
    """Without any credentials the error says what to give the Pod, and nothing was sent."""
    async with Aws(region=REGION) as aws:
        with pytest.raises(
            Unauthorized, match=r"No AWS credentials for ecr:GetAuth.*Pod Identity"
        ) as caught:
            await token(aws)

    assert caught.value.reason == "no_credentials"
    assert not caught.value.temporary
    assert not fake.bodies


async def test_no_credentials_below_the_role(fake: FakeAws) -> None:
    """A role to assume does not help who has nothing to assume it with."""
    async with Aws(region=REGION, role_arn=ROLE) as aws:
        with pytest.raises(Unauthorized, match="No AWS credentials"):
            await token(aws)


async def test_profile(fake: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named profile of the shared files signs the requests."""
    file = tmp_path / "credentials"
    file.write_text("[work]\naws_access_key_id = KEY-OF-PROFILE\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "work")
    async with Aws(region=REGION) as aws:
        await token(aws)

    assert fake.signers == ["KEY-OF-PROFILE"]


async def test_missing_profile(fake: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that does not exist is an error about credentials that names it."""
    monkeypatch.setenv("AWS_PROFILE", "elsewhere")
    async with Aws(region=REGION) as aws:
        with pytest.raises(Unauthorized, match="elsewhere"):
            await token(aws)


def irsa(monkeypatch: pytest.MonkeyPatch, file: Path, role: str = "Pod") -> None:
    """What EKS puts into a Pod whose service account has a role."""
    monkeypatch.setenv("AWS_ROLE_ARN", f"arn:aws:iam::123456789012:role/{role}")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))


async def test_irsa(fake: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token file of the service account is exchanged for the role's keys, in the configured region."""
    file = tmp_path / "token"
    file.write_text("web-identity")
    irsa(monkeypatch, file)
    async with Aws(region=REGION) as aws:
        await token(aws)

    assert fake.signers == ["", "KEY-OF-Pod"]
    assert fake.asked("AssumeRoleWithWebIdentity")[0]["WebIdentityToken"] == "web-identity"


async def test_irsa_rotation(
    fake: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys about to end are renewed with what the token file holds by then; the client stays."""
    file = tmp_path / "token"
    file.write_text("first")
    irsa(monkeypatch, file)
    fake.session_life = 14 * 60  # botocore renews what has less than 15 minutes left
    async with Aws(region=REGION) as aws:
        await token(aws)
        file.write_text("second")
        fake.session_life = 3600
        await token(aws)
        await token(aws)

    exchanged = [body["WebIdentityToken"] for body in fake.asked("AssumeRoleWithWebIdentity")]
    assert exchanged[0] == "first"
    assert exchanged[-1] == "second"
    assert fake.signers[-1] == "KEY-OF-Pod"


async def test_irsa_without_its_file(
    fake: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token file that is not there is an error about credentials that names the file."""
    irsa(monkeypatch, tmp_path / "nowhere")
    async with Aws(region=REGION) as aws:
        with pytest.raises(Unauthorized, match="nowhere"):
            await token(aws)


async def test_irsa_refused(fake: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If STS refuses the role, the message names the action of STS, not of ECR."""
    file = tmp_path / "token"
    file.write_text("web-identity")
    irsa(monkeypatch, file)
    fake.refuse("AssumeRoleWithWebIdentity", "AccessDenied", status=403, times=9)
    async with Aws(region=REGION, attempts=1) as aws:
        with pytest.raises(Denied, match="does not allow sts:AssumeRoleWithWebIdentity"):
            await token(aws)


async def test_role_on_top(aws: Aws, fake: FakeAws) -> None:
    """A configured role is assumed with the base credentials and signs the requests."""
    async with Aws(region=REGION, role_arn=ROLE) as with_role:
        await token(with_role)
        await token(with_role)

    assert fake.signers == ["KEY-OF-ENVIRONMENT", "KEY-OF-Mirror", "KEY-OF-Mirror"]
    assert fake.asked("AssumeRole")[0]["RoleArn"] == ROLE
    assert fake.asked("AssumeRole")[0]["RoleSessionName"] == "k8s-copycat"


async def test_role_on_top_of_irsa(
    fake: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roles chain: the Pod's role assumes the target's."""
    file = tmp_path / "token"
    file.write_text("web-identity")
    irsa(monkeypatch, file)
    async with Aws(region=REGION, role_arn=ROLE) as aws:
        await token(aws)

    assert fake.signers == ["", "KEY-OF-Pod", "KEY-OF-Mirror"]


async def test_pod_identity(fake: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EKS Pod Identity: the agent's endpoint is asked with the token from the file."""
    seen: list[str] = []

    async def agent(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        keys = {
            "AccessKeyId": "KEY-OF-AGENT",
            "SecretAccessKey": "s",
            "Token": "t",
            "Expiration": "2999-01-01T00:00:00Z",
        }
        return web.Response(text=json.dumps(keys), content_type="application/json")

    app = web.Application()
    app.router.add_get("/v1/credentials", agent)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    file = tmp_path / "pod-token"
    file.write_text("pod-token")
    port = runner.addresses[0][1]
    monkeypatch.setenv(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/v1/credentials"
    )
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(file))
    async with Aws(region=REGION) as aws:
        await token(aws)

    await runner.cleanup()
    assert seen == ["pod-token"]
    assert fake.signers == ["KEY-OF-AGENT"]


async def test_throttled_then_served(fake: FakeAws, keys: None) -> None:
    """A throttled request is made again by the client itself."""
    fake.refuse("GetAuthorizationToken", "ThrottlingException", status=400)
    async with Aws(region=REGION, attempts=2) as aws:
        await token(aws)

    assert fake.calls["GetAuthorizationToken"] == 2


class Refused(NamedTuple):
    """A refusal of AWS, and what becomes of it."""

    code: str
    kind: type[RegistryError]
    reason: str
    text: str
    status: int = 400
    temporary: bool = False


@pytest.mark.parametrize(
    "refused",
    [
        Refused("ThrottlingException", Throttled, "throttled", "limits the rate", temporary=True),
        Refused("Whatever", Throttled, "throttled", "limits the rate", 429, temporary=True),
        Refused(
            "AccessDeniedException",
            Denied,
            "aws_denied",
            "does not allow ecr:GetAuthorizationToken on here: allow this action",
        ),
        Refused("UnrecognizedClientException", Unauthorized, "aws_credentials", "does not accept"),
        Refused("ExpiredTokenException", Unauthorized, "aws_credentials", "check the role"),
        Refused("LimitExceededException", Denied, "quota", "Service Quotas"),
        Refused("KmsException", Denied, "kms", "ecr.kmsKey"),
        Refused("RepositoryNotFoundException", NotFound, "not_found", "no such repository"),
        Refused("ServerException", Unavailable, "unavailable", "has trouble", 500, temporary=True),
        Refused("InvalidParameterException", RegistryError, "aws", r"check the ecr\.\* settings"),
    ],
    ids=lambda refused: refused.code,
)
async def test_refusals(aws: Aws, fake: FakeAws, refused: Refused) -> None:
    """Each refusal becomes an error that says who must do what, with AWS's own words behind it."""
    fake.refuse("GetAuthorizationToken", refused.code, "in its words", status=refused.status)
    with pytest.raises(refused.kind, match=refused.text) as caught:
        await token(aws, about="here", registry="host")

    error = caught.value
    assert type(error) is refused.kind
    assert (error.reason, error.temporary) == (refused.reason, refused.temporary)
    assert f"AWS answered {refused.code}: in its words" in str(error)
    assert (error.reference, error.registry, error.side) == ("here", "host", "target")


async def test_no_answer(keys: None, monkeypatch: pytest.MonkeyPatch, free_tcp_port: int) -> None:
    """An endpoint that nobody listens on is trouble that may pass."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_tcp_port}")
    async with Aws(region=REGION, attempts=1) as aws:
        with pytest.raises(
            Unavailable, match="AWS does not answer ecr:GetAuthorizationToken"
        ) as caught:
            await token(aws)

    assert caught.value.temporary


async def test_bad_arguments(aws: Aws, fake: FakeAws) -> None:
    """What the client itself refuses to send is an error of ours too."""
    with pytest.raises(RegistryError, match="cannot be asked for ecr:CreateRepository"):
        await aws.ask("ecr:CreateRepository", lambda ecr: ecr.create_repository(repositoryName=""))

    assert not fake.bodies


async def test_fips(aws: Aws, fake: FakeAws) -> None:
    """A FIPS request has a client of its own."""
    await token(aws)
    await token(aws, fips=True)

    assert fake.calls["GetAuthorizationToken"] == 2
