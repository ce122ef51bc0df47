"""A plan for ECR: repositories that do not exist are known, and none is made."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import anyio.to_thread
import pytest
import trustme
from moto.server import ThreadedMotoServer

from copycat.app.plan import plan
from copycat.app.plan_output import JsonPlan
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry
from tests.app.control_plane import ACCOUNT, HOST, REGION, ControlPlane
from tests.app.plans import Planned, files_of, manifest, read, untouched
from tests.app.support import World
from tests.app.times import Time
from tests.resolving import OneHost


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    """moto's server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An AWS account with its registry."""

    world: World
    plane: ControlPlane
    registry: Registry
    trust: ssl.SSLContext

    async def planned(self, *references: str, **flags: object) -> Planned:
        """Plan for these images."""

        def settings() -> Settings:
            variables = {"TARGET_KIND": "ecr", "ECR_ACCOUNT_ID": ACCOUNT, "AWS_REGION": REGION}
            quick = {"insecure_registries": self.world.source.address, "registry_retry_attempts": 1}
            path = str(self.world.folder / "no-config.yaml")
            return load(path=path, environ=variables, flags={**quick, **flags})

        wanted = await anyio.to_thread.run_sync(settings)
        return await read(
            lambda out: plan(
                wanted,
                manifests=files_of([manifest(*references)]),
                kubeconfig=None,
                context=None,
                printer=JsonPlan(out),
                resolver=OneHost(HOST, self.registry.port),
                ssl_context=self.trust,
            )
        )


@pytest.fixture
async def account(
    world: World, moto_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Account]:
    """Keys in the environment, an empty account, and its registry behind ECR's name."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nowhere = {
        n: str(world.folder / "none") for n in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
    }
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", **nowhere, **keys}.items():
        monkeypatch.setenv(name, value)
    time, authority = Time(), trustme.CA()
    plane = ControlPlane(moto_url, wall=time.wall)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(HOST).configure_cert(server)
    authority.configure_trust(client)
    async with (
        plane.serving() as url,
        Registry(
            profile="ecr",
            ssl_context=server,
            username="AWS",
            password="nobody knows",
            repository_exists=plane.exists,
            clock=time.wall,
        ) as registry,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        plane.new_password = lambda password: registry.authority.set_password("AWS", password)
        plane.layers = lambda repository: registry.blobs.get(repository, {})
        yield Account(world=world, plane=plane, registry=registry, trust=client)
        assert untouched(registry)
        assert registry.violations == []
        writing = {"CreateRepository", "PutLifecyclePolicy", "SetRepositoryPolicy", "PutImage"}
        assert writing.isdisjoint(plane.calls)


async def test_repositories_to_create(account: Account) -> None:
    """Those that do not exist are told apart from those that do, without a permission to list them, and none is made."""
    a = account.world.source.add_image("app", "1", seed="a")
    account.world.source.add_image("web", "1", seed="b")
    account.plane.make("app")
    names = [account.world.image("app:1"), account.world.image("web:1")]
    found = await account.planned(*names)
    assert found.good
    assert found.summary["repositories"] == [{"repository": "web", "how": "create", "note": ""}]
    assert [found.images[n]["target"] for n in names] == [f"{HOST}/app:1", f"{HOST}/web:1"]
    assert found.images[names[0]]["bytes"] == a.blob_bytes
    assert account.plane.calls["DescribeRepositories"] == 0
    assert not account.plane.exists("web")


async def test_blobs_that_stand(account: Account) -> None:
    """What ECR's own list of available layers shows is not counted."""
    image = account.world.source.add_image("app", "1", seed="a", layers=[20_000, 3_000])
    account.plane.make("app")
    digest, data = max(image.blobs.items(), key=lambda item: len(item[1]))
    account.registry.put_blob("app", data)
    found = await account.planned(account.world.image("app:1"))
    assert found.summary["bytes"] == image.blob_bytes - len(data)
    asked = account.plane.asked("BatchCheckLayerAvailability")
    assert digest in asked[0]["layerDigests"]
    heads = [r.reference for r in account.registry.ledger.select(Phase.HEAD_BLOB)]
    assert digest not in heads


async def test_without_mounting_each_repository_gets_its_own(account: Account) -> None:
    """An account that does not mount blobs has them sent to each repository."""
    image = account.world.source.add_image("app", "1", seed="a")
    account.world.source.add("web", image, "1")
    account.plane.make("app")
    account.plane.make("web")
    names = [account.world.image("app:1"), account.world.image("web:1")]
    account.plane.mounting = "DISABLED"
    assert (await account.planned(*names)).summary["bytes"] == 2 * image.blob_bytes
    account.plane.mounting = "ENABLED"
    assert (await account.planned(*names)).summary["bytes"] == image.blob_bytes


@pytest.mark.parametrize(
    ("create", "good", "how"),
    [
        pytest.param("false", False, "missing", id="never"),
        pytest.param("on-push", True, "on_push", id="by-a-template"),
    ],
)
async def test_who_makes_them(account: Account, create: str, good: bool, how: str) -> None:
    """With ecr.createRepo false the owner has to, and the image fails as in a run; on-push ECR does."""
    account.world.source.add_image("app", "1", seed="a")
    name = account.world.image("app:1")
    found = await account.planned(name, **{"ecr.create_repo": create})
    assert found.good is good
    [missing] = found.summary["repositories"]
    assert (missing["repository"], missing["how"]) == ("app", how)
    assert found.images[name]["reason"] == ("" if good else "repository_missing")


async def test_a_name_that_ecr_does_not_take(account: Account) -> None:
    """It is that image's failure, and nobody is told to make such a repository."""
    account.world.source.add_image("x", "1", seed="x")
    name = account.world.image("x:1")
    found = await account.planned(name)
    assert found.images[name]["reason"] == "invalid_reference"
    assert found.summary["repositories"] == []
