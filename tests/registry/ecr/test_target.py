"""Repositories in ECR: made after a 404, once, with everything that belongs to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from copycat.errors import (
    Denied,
    InvalidReference,
    NotFound,
    RegistryError,
    Throttled,
    UploadRejected,
)
from copycat.metrics import Metrics
from copycat.oci.digest import Digest
from copycat.registry.ecr.aws import Aws
from copycat.registry.ecr.settings import EcrSettings
from copycat.registry.ecr.target import EcrTarget
from copycat.registry.hosts import HostPolicy
from copycat.registry.keychain import ChainKeychain
from copycat.registry.transport import Transport
from tests.registry.ecr.fake_aws import ACCOUNT, REGION, FakeAws

HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
LIFECYCLE = json.dumps(
    {
        "rules": [
            {
                "rulePriority": 1,
                "description": "only some of the tags",
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


class Time:
    """A clock that moves when somebody sleeps, or a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def time() -> Time:
    """The target's time."""
    return Time()


Make = Callable[..., EcrTarget]


@pytest.fixture
def make(time: Time) -> Make:
    """Makes targets with settings of the test's choice."""

    def make(aws: Aws, **settings: Any) -> EcrTarget:
        transport = Transport(
            keychain=ChainKeychain(),
            metrics=Metrics(version="test"),
            policy=HostPolicy(named=frozenset()),
            target_registries=frozenset({HOST}),
        )
        return EcrTarget(
            transport,
            HOST,
            aws=aws,
            settings=EcrSettings(account_id=ACCOUNT, region=REGION, **settings),
            clock=time.clock,
            sleep=time.sleep,
        )

    return make


async def test_kind(aws: Aws, make: Make) -> None:
    """ECR counts the name alone, up to 256 characters."""
    target = make(aws)

    assert (target.kind, target.max_repository, target.registry) == ("ecr", 256, HOST)


async def test_defaults(aws: Aws, fake: FakeAws, make: Make) -> None:
    """Without further keys a repository is made with ECR's own defaults, in the configured account."""
    await make(aws).provision("mirror/app")

    assert fake.bodies == [
        ("CreateRepository", {"registryId": ACCOUNT, "repositoryName": "mirror/app"})
    ]


async def test_everything(aws: Aws, fake: FakeAws, make: Make) -> None:
    """Every key of the configuration arrives at the new repository."""
    target = make(
        aws,
        lifecycle_policy=LIFECYCLE,
        tag_mutability="IMMUTABLE",
        mutability_exclusions=("latest", "dev-*"),
        scan_on_push=True,
        kms_key="alias/mirror",
        tags={"team": "platform"},
        repository_policy=POLICY,
    )
    await target.provision("mirror/app")
    names = {"registryId": ACCOUNT, "repositoryName": "mirror/app"}

    assert fake.asked("CreateRepository") == [
        {
            **names,
            "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
            "imageTagMutabilityExclusionFilters": [
                {"filterType": "WILDCARD", "filter": "latest"},
                {"filterType": "WILDCARD", "filter": "dev-*"},
            ],
            "imageScanningConfiguration": {"scanOnPush": True},
            "encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": "alias/mirror"},
            "tags": [{"Key": "team", "Value": "platform"}],
        }
    ]
    assert fake.asked("PutLifecyclePolicy") == [{**names, "lifecyclePolicyText": LIFECYCLE}]
    assert fake.asked("SetRepositoryPolicy") == [{**names, "policyText": POLICY}]


async def test_moto(moto: str, make: Make) -> None:
    """moto's ECR takes all of it and shows it; what exists already is left as it is."""
    async with Aws(region=REGION) as aws:
        target = make(
            aws,
            lifecycle_policy=LIFECYCLE,
            tag_mutability="IMMUTABLE",
            scan_on_push=True,
            tags={"team": "platform"},
            repository_policy=POLICY,
        )
        await target.provision("moto/app")
        await make(aws).provision("moto/app")
        made = await aws.ask(
            "ecr:DescribeRepositories",
            lambda ecr: ecr.describe_repositories(repositoryNames=["moto/app"]),
        )
        lifecycle = await aws.ask(
            "ecr:GetLifecyclePolicy",
            lambda ecr: ecr.get_lifecycle_policy(repositoryName="moto/app"),
        )
        known = await target.known_blobs("moto/app", [Digest.of(b"x")])
        nowhere = await target.known_blobs("moto/nowhere", [Digest.of(b"x")])

    (repository,) = made["repositories"]
    assert repository["imageTagMutability"] == "IMMUTABLE"
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    assert json.loads(lifecycle["lifecyclePolicyText"]) == json.loads(LIFECYCLE)
    assert known == set()
    assert nowhere == set()


async def test_race(aws: Aws, fake: FakeAws, make: Make) -> None:
    """Many who miss one repository at once make it once; another repository is not held up."""
    target = make(aws)
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(target.provision, "mirror/app")

        tasks.start_soon(target.provision, "mirror/other")

    assert fake.calls == {"CreateRepository": 2}


async def test_somebody_else_was_faster(aws: Aws, fake: FakeAws, make: Make) -> None:
    """That it exists already is success, and its policies are its maker's business."""
    fake.refuse("CreateRepository", "RepositoryAlreadyExistsException")
    target = make(aws, lifecycle_policy=LIFECYCLE)
    await target.provision("mirror/app")
    await target.provision("mirror/app")

    assert fake.calls == {"CreateRepository": 1}


async def test_made_again_after_deletion(aws: Aws, fake: FakeAws, make: Make, time: Time) -> None:
    """A repository that somebody deletes later is made again, with its policies."""
    target = make(aws, lifecycle_policy=LIFECYCLE)
    await target.provision("mirror/app")
    time.now += 3600
    await target.provision("mirror/app")

    assert fake.calls == {"CreateRepository": 2, "PutLifecyclePolicy": 2}


async def test_create_repo_false(aws: Aws, fake: FakeAws, make: Make) -> None:
    """With createRepo false the error names the repository and the key, and AWS is not asked."""
    with pytest.raises(NotFound, match=r"mirror/app does not exist.*ecr\.createRepo") as caught:
        await make(aws, create_repo=False).provision("mirror/app")

    assert (caught.value.reason, caught.value.temporary) == ("repository_missing", False)
    assert not fake.bodies


async def test_on_push(aws: Aws, fake: FakeAws, make: Make) -> None:
    """With on-push a creation template makes the repository, not we."""
    await make(aws, create_repo="on-push").provision("mirror/app")

    assert not fake.bodies


@pytest.mark.parametrize("name", ["a", "a" * 257, "Upper/case", "a//b"])
async def test_names(aws: Aws, fake: FakeAws, make: Make, name: str) -> None:
    """A name that ECR does not take is refused before AWS is asked."""
    with pytest.raises(InvalidReference, match="2 to 256 characters"):
        await make(aws).provision(name)

    assert not fake.bodies


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("AccessDeniedException", Denied, "does not allow ecr:CreateRepository on mirror/app"),
        ("ThrottlingException", Throttled, "limits the rate"),
        ("LimitExceededException", Denied, "quota"),
        ("TooManyTagsException", RegistryError, "ecr"),
    ],
)
async def test_refused(
    aws: Aws, fake: FakeAws, make: Make, *, code: str, kind: type[RegistryError], text: str
) -> None:
    """AWS's refusal comes out; the next one who needs the repository tries again."""
    fake.refuse("CreateRepository", code)
    target = make(aws)
    with pytest.raises(kind, match=text):
        await target.provision("mirror/app")

    await target.provision("mirror/app")

    assert fake.calls["CreateRepository"] == 2


async def test_policy_again(aws: Aws, fake: FakeAws, make: Make, time: Time) -> None:
    """A policy that cannot be put stops no copy, nor the other policy; it is put minutes later."""
    fake.refuse("PutLifecyclePolicy", "AccessDeniedException", times=2)
    target = make(aws, lifecycle_policy=LIFECYCLE, repository_policy=POLICY)
    await target.provision("mirror/app")
    await target.maintain()

    assert fake.calls == {"CreateRepository": 1, "PutLifecyclePolicy": 1, "SetRepositoryPolicy": 1}

    time.now += 301
    await target.maintain()

    assert fake.calls["PutLifecyclePolicy"] == 2

    time.now += 301
    await target.known_blobs("mirror/app", [])
    time.now += 301
    await target.maintain()

    assert fake.calls["PutLifecyclePolicy"] == 3
    assert fake.calls["SetRepositoryPolicy"] == 1


def digests(count: int) -> list[Digest]:
    """Different digests."""
    return [Digest.of(str(number).encode()) for number in range(count)]


async def test_known_blobs(aws: Aws, fake: FakeAws, make: Make) -> None:
    """250 blobs need three requests; archived ones and those not there are not known."""
    wanted = digests(250)
    fake.archived = {str(wanted[0])}
    fake.available = lambda digest: digest != str(wanted[1])
    known = await make(aws).known_blobs("mirror/app", wanted)

    assert known == set(wanted[2:])
    assert fake.calls["BatchCheckLayerAvailability"] == 3
    assert max(len(b["layerDigests"]) for b in fake.asked("BatchCheckLayerAvailability")) == 100  # type: ignore[arg-type] # a list


async def test_known_blobs_of_a_missing_repository(aws: Aws, fake: FakeAws, make: Make) -> None:
    """A repository that is not there has no blobs, and is made before any is read for it, if it may be."""
    fake.refuse("BatchCheckLayerAvailability", "RepositoryNotFoundException", times=2)

    assert await make(aws).known_blobs("mirror/app", digests(1)) == set()
    assert fake.repositories == {"mirror/app"}
    with pytest.raises(NotFound, match=r"ecr\.createRepo"):
        await make(aws, create_repo=False).known_blobs("mirror/other", digests(1))


async def test_known_blobs_not_allowed(aws: Aws, fake: FakeAws, make: Make, time: Time) -> None:
    """Without permission for the fast path each blob is asked for; AWS is left alone for minutes."""
    fake.refuse("BatchCheckLayerAvailability", "AccessDeniedException")
    target = make(aws)

    assert await target.known_blobs("mirror/app", digests(1)) is None
    assert await target.known_blobs("mirror/app", digests(1)) is None
    assert fake.calls["BatchCheckLayerAvailability"] == 1

    time.now += 301

    assert await target.known_blobs("mirror/app", digests(1)) == set(digests(1))


@pytest.mark.parametrize(("setting", "mounts"), [("ENABLED", True), ("DISABLED", False)])
async def test_mounts(
    aws: Aws, fake: FakeAws, make: Make, time: Time, *, setting: str, mounts: bool
) -> None:
    """The account's setting says whether mounting is worth a request; it is asked for once an hour."""
    fake.settings["BLOB_MOUNTING"] = setting
    target = make(aws)

    assert target.mounts

    for _ in range(3):
        await target.known_blobs("mirror/app", [])

    assert target.mounts is mounts
    assert fake.calls["GetAccountSetting"] == 1

    time.now += 3601
    fake.settings["BLOB_MOUNTING"] = "ENABLED"
    await target.known_blobs("mirror/app", [])

    assert target.mounts


async def test_mounts_unknown(aws: Aws, fake: FakeAws, make: Make) -> None:
    """Who may not read the setting finds out by trying."""
    fake.refuse("GetAccountSetting", "AccessDeniedException")
    target = make(aws)
    await target.known_blobs("mirror/app", [])

    assert target.mounts


MISSING = NotFound("no", side="target", code="NAME_UNKNOWN")


class Attempts:
    """Fails as listed, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.made = 0

    async def __call__(self) -> str:
        self.made += 1
        if self.failures:
            raise self.failures.pop(0)

        return "done"


async def test_no_repository_is_made_without_need(aws: Aws, fake: FakeAws, make: Make) -> None:
    """As long as nothing is missing, AWS is not asked."""
    assert await make(aws).provisioned("mirror/app", Attempts()) == "done"
    assert not fake.bodies


async def test_made_after_404(aws: Aws, fake: FakeAws, make: Make, time: Time) -> None:
    """A missing repository is made and the attempt repeated, with patience until it is seen."""
    attempts = Attempts(MISSING, MISSING, MISSING)

    assert await make(aws).provisioned("mirror/app", attempts) == "done"
    assert fake.calls == {"CreateRepository": 1}
    assert time.slept == [1.0, 1.0]


async def test_never_seen(aws: Aws, fake: FakeAws, make: Make, time: Time) -> None:
    """A repository that does not appear is an error after five attempts."""
    attempts = Attempts(*[MISSING] * 9)
    with pytest.raises(NotFound):
        await make(aws).provisioned("mirror/app", attempts)

    assert attempts.made == 1 + 5
    assert len(time.slept) == 4


@pytest.mark.parametrize("after", [0, 1])
async def test_other_things_missing(aws: Aws, make: Make, after: int) -> None:
    """A missing manifest or blob is no missing repository, before and after one was made."""
    blob = NotFound("no", side="target", code="BLOB_UNKNOWN")
    with pytest.raises(NotFound) as caught:
        await make(aws).provisioned("mirror/app", Attempts(*[MISSING] * after, blob))

    assert caught.value is blob


async def test_explained_answers(aws: Aws, make: Make) -> None:
    """What the registry refuses while pushing comes out with ECR's remedy, and the answer as its cause."""
    answer = UploadRejected("the tag is immutable", side="target", code="TAG_INVALID")
    with pytest.raises(UploadRejected, match=r"ecr\.mutabilityExclusions") as caught:
        await make(aws).provisioned("mirror/app", Attempts(answer))

    assert caught.value.__cause__ is answer
