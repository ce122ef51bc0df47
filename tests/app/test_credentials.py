"""`registryCredentials` and Docker's config.json, from the configuration to a registry that asks for a login."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from copycat.app.oneshot import mirror
from copycat.app.wiring import Engine
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.errors import Unauthorized
from copycat.progress import Lines
from copycat.registry.keychain import Access
from copycat.registry.repository import Repository
from copycat.sandbox.registry import Registry
from tests.app.clouds import Clouds, open_clouds, pull
from tests.app.support import World, in_state, program_of
from tests.registry.helpers import calls, install, keeps

HUB = "registry-1.docker.io"
TARGET = "targetKind: docker\ndocker: {registry: target.example}\n"


@pytest.fixture
async def clouds(tmp_path: Path) -> AsyncIterator[Clouds]:
    """A world with names."""
    async with open_clouds(tmp_path) as clouds:
        yield clouds


def credentials(*rows: str, also: str = "") -> str:
    """A configuration with rows of registryCredentials; `also` are hosts that may be on this machine."""
    return f"{TARGET}allowedRegistries: [{also}]\nregistryCredentials: [{', '.join(rows)}]"


def logins(registry: Registry) -> set[str]:
    """The Authorization headers that it got, without the ping's."""
    return {r.headers.get("Authorization", "") for r in registry.requests if r.repository}


def basic(user: str, password: str) -> str:
    """A header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "spelling", ["docker.io", "index.docker.io", "https://index.docker.io/v1/"]
)
async def test_docker_hub(clouds: Clouds, spelling: str) -> None:
    """`registry` in any spelling of Docker Hub is a login for it, exchanged at its token service, and for nobody else."""
    text = credentials(
        f"{{registry: '{spelling}', username: me, password: secret}}",
        also="docker.io, other.example",
    )
    async with (
        clouds.any(HUB, profile="hub", username="me", password="secret") as hub,
        clouds.any("other.example", anonymous=True, auth="token") as other,
        clouds.engine(text) as engine,
    ):
        image = hub.add_image("library/alpine", "1")
        other.add("library/alpine", image, "1")

        assert str(await pull(engine, "docker.io", "library/alpine")) == image.digest
        assert str(await pull(engine, "other.example", "library/alpine")) == image.digest
        tokens = [r for r in other.requests if r.path == "/token"]
        assert tokens
        assert not any(r.authorized for r in tokens)


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("a.corp.example", True),
        ("a.b.corp.example", True),
        ("corp.example", False),
        ("a.corp.example.evil.org", False),
        ("x-7.io", True),
        ("x-a.io", False),
    ],
)
async def test_aliases(clouds: Clouds, host: str, fits: bool) -> None:
    """`registryAliases` are lower-cased and match as `filepath.Match` does: the whole host, `*` and classes."""
    row = "{registry: main.example, registryAliases: ['*.Corp.Example', 'X-[0-9].io'], username: me, password: secret}"
    async with (
        clouds.any(host, auth="basic", username="me", password="secret") as registry,
        clouds.engine(credentials(row, also=host)) as engine,
    ):
        image = registry.add_image("team/app", "1")
        if fits:
            assert str(await pull(engine, host)) == image.digest
        else:
            with pytest.raises(Unauthorized):
                await pull(engine, host)
            assert logins(registry) == {""}


async def test_env_wins_and_files_are_read_again(clouds: Clouds) -> None:
    """A variable wins over a file, that over the plain value; a file that changed counts after some seconds."""
    file = anyio.Path(clouds.folder / "password")
    await file.write_text("one\n")
    row = (
        "{registry: a.example, username: plain, usernameEnv: ROBOT, password: plain,"
        f" passwordFile: '{file}', passwordEnv: NOT_SET}}"
    )
    async with (
        clouds.any("a.example", auth="basic", username="robot$me", password="one") as registry,
        clouds.engine(credentials(row), {"ROBOT": "robot$me"}) as engine,
    ):
        await clouds_pull(engine, registry)
        registry.authority.set_password("robot$me", "the second")
        await file.write_text("the second\n")
        clouds.clock.now += 10
        await clouds_pull(engine, registry)

        assert logins(registry) - {""} == {
            basic("robot$me", "one"),
            basic("robot$me", "the second"),
        }


async def clouds_pull(engine: Engine, registry: Registry) -> None:
    """The image of a.example, which is put there if need be."""
    image = registry.add_image("team/app", "1", seed="a")
    assert str(await pull(engine, "a.example")) == image.digest


async def test_namespaces(clouds: Clouds) -> None:
    """A row with `namespaces` is for images that a workload there uses, and for no other's."""
    row = "{registry: a.example, username: me, password: secret, namespaces: [prod, stage]}"
    async with (
        clouds.any("a.example", auth="basic", username="me", password="secret") as registry,
        clouds.engine(credentials(row)) as engine,
    ):
        image = registry.add_image("team/app", "1")
        assert await pull_as(engine, "prod", "dev") == image.digest
        registry.ledger.requests.clear()
        for namespaces in ((), ("dev",), ("prod-2",)):
            with pytest.raises(Unauthorized):
                await pull_as(engine, *namespaces)

        assert not any(r.authorized for r in registry.requests)


async def pull_as(engine: Engine, *namespaces: str) -> str:
    """Ask for the image of a.example on behalf of workloads."""
    access = Access(namespaces=frozenset(namespaces))
    repository = Repository(engine.transport, "a.example", "team/app", access=access)
    document = await repository.get_manifest("1")
    return str(document.digest)


@pytest.mark.parametrize(("namespace", "state"), [("demo", "protected"), ("other", "failed")])
async def test_namespaces_of_workloads(world: World, namespace: str, state: str) -> None:
    """In a cluster the namespaces are those of the workloads that use the image."""
    async with Registry(username="me", password="secret") as source:
        source.add_image("a", "1")
        row = f"{{registry: '{source.address}', username: me, password: secret, namespaces: [{namespace}]}}"
        settings = await clouds_settings(
            world,
            f"""\
targetKind: docker
docker: {{registry: '{world.target.address}', insecure: true}}
insecureRegistries: ['{source.address}']
registryCredentials: [{row}]
leaderElect: false
metricsAddr: 127.0.0.1:0
adminAddr: 0
healthAddr: 127.0.0.1:0
""",
        )
        world.deployment("a", f"{source.address}/a:1")
        async with program_of(settings, world.kubeconfig) as program:
            await in_state(program, f"{source.address}/a:1", state)

        assert any(r.authorized for r in source.requests) is (state == "protected")


async def clouds_settings(world: World, text: str) -> Settings:
    """Of a file."""
    file = anyio.Path(world.folder / "config.yaml")
    await file.write_text(text)
    return await anyio.to_thread.run_sync(lambda: load(path=str(file), environ={}))


async def test_token_as_bearer(clouds: Clouds) -> None:
    """A `token` is sent as Bearer as it is, and not exchanged where that is accepted."""
    row = "{registry: a.example, tokenEnv: TOKEN}"
    async with (
        clouds.any("a.example", auth="token") as registry,
        clouds.engine(credentials(row), {"TOKEN": "static-token"}) as engine,
    ):
        registry.authority.static_tokens["static-token"] = "me"
        await clouds_pull(engine, registry)

        assert logins(registry) == {"Bearer static-token"}
        assert not [r for r in registry.requests if r.path == "/token"]


async def test_token_exchanged(clouds: Clouds) -> None:
    """If the registry answers 401 with a Bearer challenge, the token is exchanged there; once, then that is remembered."""
    row = "{registry: a.example, username: me, token: a-password-really}"
    async with (
        clouds.any(
            "a.example", auth="token", username="me", password="a-password-really"
        ) as registry,
        clouds.engine(credentials(row)) as engine,
    ):
        await clouds_pull(engine, registry)

        tokens = [r for r in registry.requests if r.path == "/token"]
        assert len(tokens) == 1
        assert "Bearer a-password-really" in logins(registry)


@pytest.mark.parametrize(
    "auth", [pytest.param("basic", id="401"), pytest.param("token", id="token service")]
)
async def test_next_candidate(clouds: Clouds, auth: str) -> None:
    """What a registry refuses is followed by the next: an exact host before an alias, then Docker's file."""
    config = clouds.folder / "docker"
    write_config(config, {"auths": {"a.example": entry("me", "good")}})
    rows = (
        "{registry: x.example, registryAliases: ['a.*'], username: alias, password: bad}",
        "{registry: a.example, username: exact, password: bad}",
    )
    async with (
        clouds.any("a.example", auth=auth, username="me", password="good") as registry,
        clouds.engine(credentials(*rows), {"DOCKER_CONFIG": str(config)}) as engine,
    ):
        await clouds_pull(engine, registry)
        seen = [r.headers["Authorization"] for r in registry.requests if r.authorized]
        tried = [h for h in seen if h.startswith("Basic ")]

        assert tried == [basic("exact", "bad"), basic("alias", "bad"), basic("me", "good")]


async def test_next_candidate_after_403(clouds: Clouds) -> None:
    """A login that is known but may not read this repository gives way too."""
    rows = (
        "{registry: a.example, username: other-team, password: pw}",
        "{registry: a.example, username: team, password: pw}",
    )
    async with (
        clouds.any(
            "a.example", auth="basic", allow=lambda user, _name, _do: user == "team"
        ) as registry,
        clouds.engine(credentials(*rows)) as engine,
    ):
        for user in ("other-team", "team"):
            registry.authority.set_password(user, "pw")
        await clouds_pull(engine, registry)

        assert {403, 200} <= {r.status for r in registry.requests}


async def test_target_password_wins_over_its_file(clouds: Clouds) -> None:
    """TARGET_PASSWORD wins over docker.passwordFile, as its documentation says."""
    file = anyio.Path(clouds.folder / "password")
    await file.write_text("from the file")
    text = (
        f"targetKind: docker\ndocker: {{registry: a.example, username: me, passwordFile: '{file}'}}"
    )
    async with clouds.any("a.example", auth="basic", username="me", password="secret") as registry:
        settings = await clouds.settings(text, TARGET_PASSWORD="secret")
        async with clouds.engine("", settings=settings) as engine:
            assert await engine.target.repository("x").head_manifest("1") is None

        assert logins(registry) - {""} == {basic("me", "secret")}


# Docker's config.json


def entry(user: str, password: str) -> dict[str, str]:
    """A login of `auths`."""
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write_config(folder: Path, content: object) -> None:
    """A config.json in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))


async def test_docker_config_in_a_cluster(clouds: Clouds) -> None:
    """DOCKER_CONFIG names the folder; a login is for its host and path, and other hosts and paths get none."""
    config = clouds.folder / "docker"
    write_config(config, {"auths": {"a.example/team": entry("me", "good")}})
    text = f"{TARGET}allowedRegistries: [a.example, a.example.evil.org]"
    async with (
        clouds.any("a.example", auth="basic", username="me", password="good") as registry,
        clouds.any("a.example.evil.org", auth="basic", username="me", password="good") as evil,
        clouds.engine(text, {"DOCKER_CONFIG": str(config)}) as engine,
    ):
        await clouds_pull(engine, registry)
        for host, name in (("a.example", "team-b/app"), ("a.example.evil.org", "team/app")):
            with pytest.raises(Unauthorized):
                await pull(engine, host, name)

        assert {r.repository for r in registry.requests if r.authorized} == {"team/app"}
        assert not any(r.authorized for r in evil.requests)


async def test_no_docker_config_in_a_cluster(clouds: Clouds) -> None:
    """Without DOCKER_CONFIG a controller reads nobody's home."""
    write_config(clouds.folder / ".docker", {"auths": {"a.example": entry("me", "good")}})
    async with (
        clouds.any("a.example", auth="basic", username="me", password="good") as registry,
        clouds.engine(
            f"{TARGET}allowedRegistries: [a.example]", {"HOME": str(clouds.folder)}
        ) as engine,
    ):
        with pytest.raises(Unauthorized):
            await pull(engine, "a.example")

        assert not any(r.authorized for r in registry.requests)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param({"auths": {"a.example": {"identitytoken": "refresh-me"}}}, "identity", id="identity"),
        pytest.param({"auths": {"a.example": {"registrytoken": "static-token"}}}, "static", id="registry token"),
        pytest.param({"credHelpers": {"a.example": "id"}}, "identity", id="helper"),
    ],
)  # fmt: skip
async def test_tokens_of_docker_config(clouds: Clouds, content: object, kind: str) -> None:
    """Identity tokens are exchanged by POST, registry tokens sent as Bearer, also where a helper keeps them."""
    config = clouds.folder / "docker"
    write_config(config, content)
    environ = install(clouds.folder, "id", keeps("'<token>'", "refresh-me"))
    environ["DOCKER_CONFIG"] = str(config)
    async with (
        clouds.any("a.example", profile="acr", auth="token", redirect_blobs=False) as registry,
        clouds.engine(f"{TARGET}allowedRegistries: [a.example]", environ) as engine,
    ):
        registry.authority.identity_tokens["refresh-me"] = "me"
        registry.authority.static_tokens["static-token"] = "me"
        await clouds_pull(engine, registry)

        posted = [r.method for r in registry.requests if r.path == "/token"]
        assert posted == (["POST"] if kind == "identity" else [])


async def test_docker_login_on_a_workstation(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`copycat mirror` uses what `docker login` left in the home, for source and target; a helper that fails gives way."""
    path = install(clouds.folder, "store", keeps("me", "source-secret"))["PATH"]
    install(clouds.folder, "broken", "exit 1")
    async with (
        Registry(username="me", password="source-secret") as source,
        Registry(username="you", password="target-secret") as target,
    ):
        write_config(
            clouds.folder / ".docker",
            {
                "credsStore": "store",
                "credHelpers": {source.address: "broken", target.address: "broken"},
                "auths": {source.address: {}, target.address: entry("you", "target-secret")},
            },
        )
        monkeypatch.delenv("DOCKER_CONFIG")
        monkeypatch.setenv("HOME", str(clouds.folder))
        monkeypatch.setenv("PATH", path)
        image = source.add_image("team/app", "1")
        settings = await clouds.settings(
            f"targetKind: docker\ndocker: {{registry: '{target.address}', insecure: true}}\n"
            f"insecureRegistries: ['{source.address}']"
        )
        reference = f"{source.address}/team/app:1"
        out = io.StringIO()

        assert await mirror(settings, references=[reference], manifests=[], reporter=Lines(out))
        assert target.has("team/app", image, "1")
        assert f"get {source.address}" in calls(clouds.folder, "store")


async def test_a_new_docker_login(clouds: Clouds) -> None:
    """Who logs in anew while the program runs need not restart it."""
    config = clouds.folder / "docker"
    write_config(config, {"auths": {"a.example": entry("me", "old")}})
    async with (
        clouds.any("a.example", auth="basic", username="me", password="old") as registry,
        clouds.engine(
            f"{TARGET}allowedRegistries: [a.example]", {"DOCKER_CONFIG": str(config)}
        ) as engine,
    ):
        await clouds_pull(engine, registry)
        registry.authority.set_password("me", "a new one")
        await anyio.to_thread.run_sync(
            write_config, config, {"auths": {"a.example": entry("me", "a new one")}}
        )
        clouds.clock.now += 10
        await clouds_pull(engine, registry)
