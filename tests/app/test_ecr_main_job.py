"""ECR from end to end: from a Pod to a copy, by the whole program.

The control plane is moto's server; the registry is the sandbox's with ECR's behaviour, on the account's host name
over TLS; the time is the test's.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trustme
import yaml
from moto.server import ThreadedMotoServer

from copycat.app.process import Program
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.sandbox.images import Image, image, index, layer
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import profile_of
from copycat.sandbox.registry import Registry
from tests.app.control_plane import ACCOUNT, HOST, REGION, ControlPlane
from tests.app.support import World, in_state, program_of, protected, row_of, until
from tests.app.times import Time
from tests.resolving import OneHost

HOUR = 60.0
#: Characters enough for ECR, and nothing that it expires is of ours.
LIFECYCLE = json.dumps(
    {
        "rules": [
            {
                "rulePriority": 1,
                "description": "throw away what was only a test",
                "selection": {
                    "tagStatus": "tagged",
                    "tagPrefixList": ["test"],
                    "countType": "imageCountMoreThan",
                    "countNumber": 9,
                },
                "action": {"type": "expire"},
            }
        ]
    }
)
POLICY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "pull",
                "Effect": "Allow",
                "Principal": {"AWS": "arn:aws:iam::999999999999:root"},
                "Action": ["ecr:BatchGetImage"],
            }
        ],
    }
)


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    """moto's server, one for all tests here: it takes a second to start."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the registry's certificate."""
    return trustme.CA()


class RegistryClock:
    """The registry's own clock: ours, or ahead of it."""

    def __init__(self, time: Time) -> None:
        self._time = time
        self.ahead = 0.0

    def __call__(self) -> float:
        return self._time.wall() + self.ahead


@dataclass(slots=True)
class Account:
    """An AWS account with its registry, and a cluster that is to be copied into it."""

    world: World
    plane: ControlPlane
    registry: Registry
    time: Time
    trust: ssl.SSLContext
    clock: RegistryClock
    config: dict[str, Any] = field(default_factory=dict)
    """config.yaml."""
    variables: Mapping[str, str] = field(
        default_factory=lambda: {
            "TARGET_KIND": "ecr",
            "ECR_ACCOUNT_ID": ACCOUNT,
            "AWS_REGION": REGION,
        }
    )

    @asynccontextmanager
    async def running(self, host: str = HOST) -> AsyncIterator[Program]:
        """The program with the variables and the file, and what a test needs to watch it."""
        async with program_of(
            await anyio.to_thread.run_sync(self._settings),
            self.world.kubeconfig,
            self.time,
            resolver=OneHost(host, self.registry.port),
            ssl_context=self.trust,
        ) as program:
            yield program

    def _settings(self) -> Settings:
        file = self.world.folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.config))
        listeners = {"metrics_addr": "127.0.0.1:0", "admin_addr": "0", "health_addr": "127.0.0.1:0"}
        quick = {"registry_retry_backoff": "10ms", "insecure_registries": self.world.source.address}
        return load(path=str(file), environ=self.variables, flags={**listeners, **quick})

    def push(self, name: str, tag: str, content: Image) -> str:
        """An image at the source; its reference."""
        self.world.source.add(name, content, tag)
        return self.world.image(f"{name}:{tag}")

    def copied(self, repository: str, content: Image, tag: str) -> bool:
        """The whole image is in the registry, under its tag and its anchor."""
        anchor = content.digest.replace(":", "-").replace("sha256", "digest")
        tags = self.registry.tags[repository]
        return self.registry.has(repository, content, tag) and tags[anchor] == content.digest

    def refused(self) -> list[int]:
        """The registry's refusals of logins; the first question, which needs none, is answered 401."""
        asked = [r for r in self.registry.requests if r.phase is not Phase.PING]
        return [r.status for r in asked if r.status in (401, 403)]

    def only_calls(self, *operations: str) -> dict[str, int]:
        """How often each of these was called."""
        return {operation: self.plane.calls[operation] for operation in operations}


@pytest.fixture
async def account(
    world: World, moto_url: str, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Account]:
    """Keys in the environment, an empty account, and its registry behind ECR's name."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(world.folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(world.folder / "no-credentials"),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    time = Time()
    plane = ControlPlane(moto_url, wall=time.wall)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(HOST, "ecr.example.com").configure_cert(server)
    authority.configure_trust(client)
    clock = RegistryClock(time)
    async with (
        plane.serving() as url,
        Registry(
            profile=replace(profile_of("ecr"), mount="yes"),
            ssl_context=server,
            username="AWS",
            password="nobody knows",
            repository_exists=plane.exists,
            clock=clock,
        ) as registry,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        account = Account(
            world=world, plane=plane, registry=registry, time=time, trust=client, clock=clock
        )
        plane.new_password = lambda password: registry.authority.set_password("AWS", password)
        plane.layers = lambda repository: registry.blobs.get(repository, {})
        yield account
        assert registry.violations == []


async def test_from_a_pod_to_a_copy(account: Account) -> None:
    """Two variables are enough: the Pod's image, what it runs and its tag, is in the account's registry.

    The host and the login are AWS's answer, asked for once; the repository is made once, with ECR's own defaults.
    """
    old, new = index(seed="old"), index(seed="new")
    account.push("team/app", "1", old)
    reference = account.push("team/app", "1", new)
    running = f"{account.world.image('team/app')}@{old.digest}"
    account.world.pod("app", reference, image_id=running)
    async with account.running() as program:
        [row] = await protected(program, 1)
        assert row.target == f"{HOST}/team/app:1"
        assert account.copied("team/app", new, "1")
        assert account.registry.has("team/app", old)
    assert account.refused() == []
    read = [r.path for r in account.world.source.ledger.select(Phase.GET_BLOB)]
    assert sorted(read) == sorted(set(read))
    calls = account.only_calls("GetAuthorizationToken", "CreateRepository", "PutLifecyclePolicy")
    assert calls == {
        "GetAuthorizationToken": 1,
        "CreateRepository": 1,
        "PutLifecyclePolicy": 0,
    }
    [request] = account.plane.asked("CreateRepository")
    assert request == {"registryId": ACCOUNT, "repositoryName": "team/app"}


async def test_every_key(account: Account) -> None:
    """Repositories are made once each, however many images go there at once, with every `ecr.*` key; a role is assumed."""
    account.config = {
        "ecr": {
            "repoPrefix": "mirror/$namespace",
            "assumeRoleArn": f"arn:aws:iam::{ACCOUNT}:role/copycat",
            "tagMutability": "IMMUTABLE",
            "mutabilityExclusions": ["latest", "nightly-*"],
            "scanOnPush": True,
            "kmsKey": "alias/mirror",
            "tags": {"team": "platform"},
            "lifecyclePolicy": LIFECYCLE,
            "repositoryPolicy": POLICY,
        }
    }
    contents = {f"{name}:{n}": image(seed=f"{name}{n}") for name in ("aa", "bb") for n in range(5)}
    for name, content in contents.items():
        path, _, tag = name.partition(":")
        account.world.deployment(name.replace(":", "-"), account.push(path, tag, content))
    async with account.running() as program:
        await protected(program, 10)
        for name, content in contents.items():
            path, _, tag = name.partition(":")
            assert account.copied(f"mirror/demo/{path}", content, tag)
    operations = ("CreateRepository", "PutLifecyclePolicy", "SetRepositoryPolicy")
    assert account.only_calls(*operations) == dict.fromkeys(operations, 2)
    assert account.only_calls("AssumeRole", "GetAuthorizationToken") == {
        "AssumeRole": 1,
        "GetAuthorizationToken": 1,
    }
    made = account.plane.repository("mirror/demo/aa")
    assert made.image_tag_mutability == "IMMUTABLE_WITH_EXCLUSION"
    filters = [f["filter"] for f in made.image_tag_mutability_exclusion_filters]
    assert filters == ["latest", "nightly-*"]
    assert made.image_scanning_configuration == {"scanOnPush": True}
    assert made.encryption_configuration == {"encryptionType": "KMS", "kmsKey": "alias/mirror"}
    assert json.loads(made.lifecycle_policy)["rules"][0]["rulePriority"] == 1
    assert "999999999999" in json.dumps(made.policy)
    [request, _] = account.plane.asked("CreateRepository")
    assert request["tags"] == [{"Key": "team", "Value": "platform"}]


async def test_twelve_hours(account: Account) -> None:
    """After its half life a login is followed by one other, before the registry has refused anything."""
    reference = account.push("app", "1", image(seed="1"))
    account.world.deployment("app", reference)
    async with account.running() as program:
        await protected(program, 1)
        for hours, logins in ((5, 1), (2, 2), (5, 2), (13, 3)):
            account.time.pass_by(program, minutes=hours * HOUR)
            assert (await program.facade.force_reconcile()).failure == ""
            assert account.plane.calls["GetAuthorizationToken"] == logins
    assert account.refused() == []


async def test_the_registry_says_expired(account: Account) -> None:
    """If only the registry knows that the login is over, all who are told so get one new login, and nothing fails."""
    references = [account.push(f"app{n}", "1", image(seed=n)) for n in range(6)]
    for number, reference in enumerate(references):
        account.world.deployment(f"app{number}", reference)
    async with account.running() as program:
        await protected(program, 6)
        account.clock.ahead = 13 * 3600.0
        account.time.pass_by(program, minutes=1)
        assert (await program.facade.force_reconcile()).failure == ""
    assert set(account.refused()) == {403}
    assert account.plane.calls["GetAuthorizationToken"] == 2


async def test_throttled(account: Account) -> None:
    """AWS and the registry that ask for patience get it: the copy comes all the same, and nothing cools down."""
    account.plane.refuse("CreateRepository", "ThrottlingException")
    account.plane.refuse("BatchCheckLayerAvailability", "ThrottlingException")
    limited = account.registry.fail(Phase.PUT_MANIFEST, status=429, code="TOOMANYREQUESTS", times=2)
    reference = account.push("app", "1", content := image(seed="1"))
    account.world.deployment("app", reference)
    async with account.running() as program:
        await protected(program, 1)
        assert account.copied("app", content, "1")
        assert row_of(program, reference).attempts == 0
    assert limited.hits == 2
    assert account.plane.calls["CreateRepository"] == 2


async def test_somebody_else_makes_the_repository(account: Account) -> None:
    """That it exists already is success; what belongs on it is for its maker to say."""
    account.config = {"ecr": {"lifecyclePolicy": LIFECYCLE}}

    async def faster(operation: str, body: dict[str, Any]) -> None:
        if operation == "CreateRepository" and not account.plane.exists(body["repositoryName"]):
            account.plane.make(body["repositoryName"])

    account.plane.first = faster
    account.world.deployment("app", account.push("app", "1", content := image(seed="1")))
    async with account.running() as program:
        await protected(program, 1)
        assert account.copied("app", content, "1")
    assert account.only_calls("CreateRepository", "PutLifecyclePolicy") == {
        "CreateRepository": 1,
        "PutLifecyclePolicy": 0,
    }


async def test_a_policy_that_could_not_be_put(account: Account) -> None:
    """The copy does not wait for the lifecycle policy, which is put again minutes later."""
    account.config = {"ecr": {"lifecyclePolicy": LIFECYCLE}}
    account.plane.refuse("PutLifecyclePolicy", "AccessDeniedException")
    account.world.deployment("app", account.push("app", "1", image(seed="1")))
    async with account.running() as program:
        await protected(program, 1)
        assert account.plane.repository("app").lifecycle_policy is None
        account.time.pass_by(program, minutes=6)
        await until(lambda: account.plane.repository("app").lifecycle_policy is not None)
    assert account.plane.calls["PutLifecyclePolicy"] == 2
    assert account.plane.calls["CreateRepository"] == 1


async def test_immutable_tags(account: Account) -> None:
    """A tag that ECR does not let move stays; the new content is kept under its anchor, and nothing fails."""
    account.config = {"ecr": {"tagMutability": "IMMUTABLE"}}
    account.registry.core.immutable_tags = True
    reference = account.push("app", "1", old := image(seed="old"))
    account.world.deployment("app", reference)
    async with account.running() as program:
        await protected(program, 1)
        account.push("app", "1", new := image(seed="new"))
        assert (await program.facade.force_reconcile()).failure == ""
        row = row_of(program, reference)
        assert (row.state, row.reason, row.protected) == ("tag_held", "tag_immutable", True)
        assert account.copied("app", old, "1")
        assert account.registry.has("app", new)


async def test_what_the_account_has_is_found_in_one_request(account: Account) -> None:
    """After a restart BatchCheckLayerAvailability says which layers are there: no HEAD for them, no byte of them again."""
    shared = layer(4096, seed="shared")
    reference = account.push("app", "1", image(seed="1", layers=(shared, 1024)))
    account.world.deployment("app", reference)
    async with account.running() as program:
        await protected(program, 1)
    assert account.plane.calls["BatchCheckLayerAvailability"] == 1
    account.registry.ledger.clear()
    account.world.source.ledger.clear()
    account.push("app", "1", new := image(seed="2", layers=(shared, 2048)))
    async with account.running() as program:
        await until(lambda: account.registry.has("app", new, "1"))
    assert account.plane.calls["BatchCheckLayerAvailability"] == 2
    for registry in (account.registry, account.world.source):
        assert [r for r in registry.requests if shared.digest in r.path + r.query] == []


@pytest.mark.parametrize("setting", ["ENABLED", "DISABLED"])
async def test_mounting(account: Account, setting: str) -> None:
    """A layer of two repositories is sent once if the account mounts blobs; if not, nobody asks for it."""
    account.plane.mounting = setting
    shared = layer(4096, seed="shared")
    contents = {name: image(seed=name, layers=(shared,)) for name in ("aa", "bb")}
    for name, content in contents.items():
        account.world.deployment(name, account.push(name, "1", content))
    async with account.running() as program:
        await protected(program, 2)
        assert all(account.copied(name, content, "1") for name, content in contents.items())
    mounts = [r for r in account.registry.requests if "mount=" in r.query]
    sent = [r for r in account.world.source.ledger.select(Phase.GET_BLOB) if shared.digest in r.path]  # fmt: skip
    assert (len(mounts) > 0, len(sent)) == ((True, 1) if setting == "ENABLED" else (False, 2))
    assert account.plane.calls["GetAccountSetting"] == 1


async def test_repositories_that_others_make(account: Account) -> None:
    """With createRepo false a missing repository fails its own image with the remedy; the others arrive."""
    account.config = {"ecr": {"createRepo": False}}
    account.plane.make("there")
    account.world.deployment("there", account.push("there", "1", content := image(seed="1")))
    missing = account.push("missing", "1", image(seed="2"))
    account.world.deployment("missing", missing)
    async with account.running() as program:
        await protected(program, 1)
        assert account.copied("there", content, "1")
        row = await in_state(program, missing, "failed")
        assert row.reason == "repository_missing"
        assert "set ecr.createRepo to true" in row.message
    assert account.plane.calls["CreateRepository"] == 0


async def test_a_creation_template(account: Account) -> None:
    """With createRepo on-push the registry makes the repository itself, and AWS is not asked to."""
    account.config = {"ecr": {"createRepo": "on-push"}}
    account.registry.core.exists = lambda _repository: True
    account.world.deployment("app", account.push("app", "1", content := image(seed="1")))
    async with account.running() as program:
        await protected(program, 1)
        assert account.copied("app", content, "1")
    assert account.plane.calls["CreateRepository"] == 0


async def test_an_endpoint_of_the_network(account: Account) -> None:
    """With ECR_ENDPOINT everything goes to that host, with the account's login."""
    account.variables = {**account.variables, "ECR_ENDPOINT": "ecr.example.com"}
    reference = account.push("app", "1", content := image(seed="1"))
    account.world.deployment("app", reference)
    async with account.running("ecr.example.com") as program:
        [row] = await protected(program, 1)
        assert row.target == "ecr.example.com/app:1"
        assert account.copied("app", content, "1")
    assert account.refused() == []


async def test_too_many_tags_of_one_image(account: Account) -> None:
    """ECR's limit of tags fails the one image, and the message says what to do about it."""
    limit = b'{"errors":[{"code":"LIMIT_EXCEEDED","message":"The number of tags per image exceeds the limit"}]}'
    reference = account.push("app", "1", image(seed="1"))
    account.world.deployment("app", reference)
    account.registry.fail(
        Phase.PUT_MANIFEST, status=400, body=limit, match=lambda r: r.reference == "1"
    )
    async with account.running() as program:
        row = await in_state(program, reference, "failed")
        assert row.reason == "tag_limit"
        assert "Service Quotas" in row.message


@pytest.mark.parametrize(
    ("modes", "logins"),
    [
        pytest.param({"dryRun": True}, 1, id="run"),
        pytest.param({"dryPull": True}, 1, id="pull"),
        pytest.param({"dryRun": True, "dryPull": True}, 0, id="both"),
    ],
)
async def test_dry_modes(account: Account, modes: dict[str, bool], logins: int) -> None:
    """In a dry mode AWS is asked for the login alone, in both together for nothing at all; no repository is made."""
    account.config = {**modes, "ecr": {"lifecyclePolicy": LIFECYCLE}}
    account.world.deployment("app", reference := account.push("app", "1", image(seed="1")))
    async with account.running() as program:
        await in_state(program, reference, "dry_run")
        await program.facade.force_reconcile()
        account.time.pass_by(program, minutes=60)
    assert dict(account.plane.calls) == ({"GetAuthorizationToken": 1} if logins else {})
    assert {r.method for r in account.registry.requests} == ({"GET", "HEAD"} if logins else set())
    assert bool(account.world.source.requests) is (modes == {"dryRun": True})
    assert not account.plane.exists("app")
