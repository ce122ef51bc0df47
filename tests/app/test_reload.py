"""A changed configuration is taken up while the program runs, or refused and the old one kept."""

from __future__ import annotations

import base64
import io
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
import yaml

from copycat import logs
from copycat.app.process import Program
from copycat.app.reload import POLL, Reload
from copycat.app.wiring import Engine, open_engine
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.kube.client import open_api
from copycat.metrics import Metrics
from copycat.sandbox.registry import Registry
from tests.app.support import World, fetch, in_state, program_of, protected, repository, until
from tests.app.times import Time

SUCCESSFUL = "k8s_copycat_config_last_reload_successful"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    yield stream
    root.setLevel(level)
    root.handlers[:] = handlers
    logs.unconfigure()


class Configured:
    """A program with a file of its own, which a test changes."""

    def __init__(self, world: World, **variables: str) -> None:
        self.world = world
        self.time = Time()
        self.path = world.folder / "config.yaml"
        self.variables = variables
        self.keys: dict[str, Any] = {
            "targetKind": "docker",
            "docker": {
                "registry": world.target.address,
                "repoPrefix": "mirror",
                "insecure": True,
            },
            "insecureRegistries": [world.source.address],
            "metricsAddr": "127.0.0.1:0",
            "adminAddr": "0",
            "healthAddr": "127.0.0.1:0",
            "leaderElect": False,
            "registryRetryAttempts": 1,
        }

    def write(self, **keys: Any) -> None:
        """Write the file with some keys changed; None leaves one out."""
        self.keys |= keys
        kept = {key: value for key, value in self.keys.items() if value is not None}
        self.path.write_text(yaml.safe_dump(kept))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Program]:
        """The program at work."""
        if not self.path.exists():
            self.write()
        again = partial(load, path=str(self.path), environ=self.variables)
        settings = await anyio.to_thread.run_sync(again)
        async with program_of(
            settings, self.world.kubeconfig, self.time, load=again, environ=self.variables
        ) as program:
            await until(lambda: program.facade.status().ready or not program.facade.leading)
            yield program

    def look(self) -> None:
        """Let the time pass until the next look."""
        self.time.jump(POLL + 0.1)

    async def seen(self, condition: Callable[[], bool]) -> None:
        """Let looks happen until the condition holds."""
        with anyio.fail_after(15):
            while not condition():
                self.look()
                await anyio.sleep(0.05)

    async def looked(self, program: Program) -> None:
        """Let a look happen that takes up a file, and wait for its end."""
        gauge = program._metrics.reload_success_time
        before = gauge._value.get()
        await self.seen(lambda: gauge._value.get() != before)


async def metric(program: Program, name: str) -> float:
    """A sample without labels."""
    _, text = await fetch(program, "metrics", "/metrics")
    [value] = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(value)


def lines(stream: io.StringIO, msg: str) -> list[dict[str, Any]]:
    """The log's lines with that message."""
    return [e for e in map(json.loads, stream.getvalue().splitlines()) if e["msg"] == msg]


async def test_a_changed_file_is_taken_up(world: World, stream: io.StringIO) -> None:
    """Another prefix: copies go there, from the cluster's present state; the listeners stay, and so does readiness."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    configured = Configured(world)
    async with configured.running() as program:
        await protected(program, 1)
        addresses = dict(program.server.addresses)
        controller = program.facade.controller
        configured.keys["docker"]["repoPrefix"] = "elsewhere"
        configured.write()
        await configured.seen(lambda: program.facade.controller not in {controller, None})
        assert (await fetch(program, "health", "/readyz"))[0] == 200
        await until(lambda: any(r.protected for r in program.facade.images()))
        [row] = program.facade.images()
        assert repository(row).startswith("elsewhere/")
        assert program.facade.status().target == f"{world.target.address}/elsewhere"
        assert program.server.addresses == addresses
        assert (await fetch(program, "health", "/healthz"))[0] == 200
        assert await metric(program, SUCCESSFUL) == 1
    [line] = lines(stream, "changed configuration in use")
    assert line["keys"] == ["docker.repoPrefix"]
    assert world.target.violations == []


async def test_a_config_map_that_is_swapped(world: World) -> None:
    """The kubelet renames a link beside the file's own link: the file itself never changes, and is taken up."""
    configured = Configured(world)
    folder = world.folder / "mounted"
    for version, dry in (("..1", True), ("..2", False)):
        (folder / version).mkdir(parents=True)
        configured.path = folder / version / "config.yaml"
        configured.write(dryRun=dry)
    (folder / "..data").symlink_to("..1")
    (folder / "config.yaml").symlink_to("..data/config.yaml")
    configured.path = folder / "config.yaml"
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    async with configured.running() as program:
        await in_state(program, world.image("a:1"), "dry_run")
        assert program.facade.status().mode == "dryRun"
        (folder / "..new").symlink_to("..2")
        (folder / "..new").rename(folder / "..data")
        configured.look()
        await in_state(program, world.image("a:1"), "protected")
        assert program.facade.status().mode == ""


async def test_a_bad_file_changes_nothing(world: World, stream: io.StringIO) -> None:
    """Every problem in one line of the log, the metric 0, the work goes on as before; mended, it is 1 again."""
    configured = Configured(world)
    async with configured.running() as program:
        controller = program.facade.controller
        configured.write(includeNamespace=["x"], digestPull="perhaps")
        await configured.seen(lambda: bool(lines(stream, _REFUSED)))
        assert await metric(program, SUCCESSFUL) == 0
        [line] = lines(stream, _REFUSED)
        assert len(line["problems"]) == 2
        assert "includeNamespace" in line["problems"][1] + line["problems"][0]
        configured.look()  # the same file is not refused twice
        world.source.add_image("a", "1", seed="a")
        world.deployment("a", world.image("a:1"))
        await protected(program, 1)
        assert len(lines(stream, _REFUSED)) == 1
        configured.write(includeNamespace=None, digestPull=None)
        await configured.seen(lambda: bool(lines(stream, "configuration is the one in use again")))
        assert await metric(program, SUCCESSFUL) == 1
        assert program.facade.controller is controller


_REFUSED = "changed configuration refused; the one before stays in use"


async def test_a_refusal_tells_no_secrets(world: World, stream: io.StringIO) -> None:
    """What is wrong with a configuration is told by its keys: secrets that stand in the wrong place, too."""
    canary = "canary-Zq81-in-the-file"
    configured = Configured(world)
    async with configured.running():
        configured.keys["docker"] |= {"password": canary, "passwordFile": [canary]}
        configured.write(
            registryCredentials=[
                {"registry": "a.example", "passwrd": canary},
                {"registry": "b.example", "username": "u", "password": canary, "token": canary},
                {"registry": "c.example", "passwordEnv": f"{canary}!"},
            ],
            adminTokens=canary,
        )
        await configured.seen(lambda: bool(lines(stream, _REFUSED)))
    assert len(lines(stream, _REFUSED)[0]["problems"]) >= 4
    assert canary not in stream.getvalue()


async def test_a_file_that_cannot_be_read(world: World, stream: io.StringIO) -> None:
    """A file that is gone, so that what is required is not there any more, is refused as well."""
    configured = Configured(world)
    async with configured.running() as program:
        configured.path.unlink()
        await configured.seen(lambda: bool(lines(stream, _REFUSED)))
        assert await metric(program, SUCCESSFUL) == 0


async def test_a_change_while_one_is_taken_up(world: World) -> None:
    """A file that changes again while its last change is being taken up is read once more."""
    configured = Configured(world)
    configured.write()

    def again() -> Settings:
        found = load(path=str(configured.path), environ={})
        if found.repo_prefix == "one":
            configured.keys["docker"]["repoPrefix"] = "two"
            configured.write()
        return found

    settings = await anyio.to_thread.run_sync(again)
    async with program_of(settings, world.kubeconfig, configured.time, load=again) as program:
        await until(lambda: program.facade.status().ready)
        configured.keys["docker"]["repoPrefix"] = "one"
        configured.write()
        await configured.seen(lambda: program.facade.status().target.endswith("/two"))


async def test_a_bug_in_reading_ends_nothing(world: World, stream: io.StringIO) -> None:
    """Whatever goes wrong in reading a changed file, the program works on with the configuration before."""
    configured = Configured(world)
    configured.write()
    settings = await anyio.to_thread.run_sync(partial(load, path=str(configured.path), environ={}))

    def broken() -> Settings:
        raise RecursionError("too deep")

    async with program_of(settings, world.kubeconfig, configured.time, load=broken) as program:
        await until(lambda: bool(lines(stream, _REFUSED)))
        assert lines(stream, _REFUSED)[0]["problems"] == ["internal error: RecursionError"]
        assert await metric(program, SUCCESSFUL) == 0
        world.source.add_image("a", "1", seed="a")
        world.deployment("a", world.image("a:1"))
        await protected(program, 1)


async def test_keys_that_need_a_restart(world: World, stream: io.StringIO) -> None:
    """Listeners, Lease and the like stay as they are, and the log names the keys; nothing is interrupted."""
    configured = Configured(world)
    async with configured.running() as program:
        controller, addresses = program.facade.controller, dict(program.server.addresses)
        configured.write(metricsAddr="127.0.0.1:1", leaseName="other", logFormat="text")
        await configured.looked(program)
        await until(lambda: bool(lines(stream, _LATER)))
        [line] = lines(stream, _LATER)
        assert line["keys"] == ["leaseName", "logFormat", "metricsAddr"]
        assert program.facade.controller is controller
        assert program.server.addresses == addresses


_LATER = "these changes take effect at the next start"


async def test_the_log_level(world: World, stream: io.StringIO) -> None:
    """logLevel changes at once and interrupts nothing."""
    configured = Configured(world)
    async with configured.running() as program:
        controller = program.facade.controller
        configured.write(logLevel="debug")
        await configured.looked(program)
        await until(lambda: logging.getLogger().level == logging.DEBUG)
        assert program.facade.controller is controller


async def test_a_variable_goes_before_the_file(world: World) -> None:
    """What the environment sets cannot be changed in the file, as at the start."""
    configured = Configured(world, DRY_RUN="true")
    async with configured.running() as program:
        controller = program.facade.controller
        configured.write(dryRun=False)
        await configured.looked(program)
        assert program.facade.status().mode == "dryRun"
        assert program.facade.controller is controller


async def test_certificates(world: World, stream: io.StringIO) -> None:
    """A renewed CA bundle is used without a restart; one that is none is refused, and the old one stays."""
    bundle = world.folder / "ca.pem"
    good = trustme.CA()
    bundle.write_bytes(trustme.CA().cert_pem.bytes())
    context = _server_context(good)
    async with Registry(ssl_context=context) as source:
        source.add_image("a", "1", seed="a")
        world.deployment("a", f"{source.address}/a:1")
        configured = Configured(world)
        configured.write(
            registryCAFile=str(bundle), registries=[{"host": source.address}], insecureRegistries=[]
        )
        async with configured.running() as program:
            await in_state(program, f"{source.address}/a:1", "failed")
            bundle.write_text("no certificate")
            await configured.seen(lambda: bool(lines(stream, _REFUSED)))
            assert "registryCAFile" in lines(stream, _REFUSED)[0]["problems"][0]
            assert await metric(program, SUCCESSFUL) == 0
            bundle.write_bytes(good.cert_pem.bytes())
            configured.look()
            await in_state(program, f"{source.address}/a:1", "protected")
            assert await metric(program, SUCCESSFUL) == 1


def _server_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_a_login_that_is_mended(world: World, tmp_path: Path, stream: io.StringIO) -> None:
    """An image that cools down for a bad login is tried again soon after the file has another."""
    async with Registry(auth="basic", username="u", password="right") as source:
        source.add_image("a", "1", seed="a")
        world.deployment("a", f"{source.address}/a:1")
        secret = tmp_path / "password"
        secret.write_text("wrong")
        entry = {
            "registry": source.address,
            "username": "u",
            "passwordFile": str(secret),
        }
        configured = Configured(world)
        configured.write(registryCredentials=[entry], insecureRegistries=[source.address])
        configured.write(failureCooldownMinutes=600)
        async with configured.running() as program:
            await in_state(program, f"{source.address}/a:1", "failed")
            controller = program.facade.controller
            secret.write_text("right")
            await configured.seen(lambda: bool(lines(stream, "login files changed")))
            configured.look()
            await in_state(program, f"{source.address}/a:1", "protected")
            assert program.facade.controller is controller


async def test_a_login_that_cannot_be_read(
    world: World, tmp_path: Path, stream: io.StringIO
) -> None:
    """A login file that is gone leaves the login before in use; the metric is 0 until the file is back."""
    async with Registry(auth="basic", username="u", password="right") as source:
        source.add_image("a", "1", seed="a")
        source.add_image("b", "1", seed="b")
        world.deployment("a", f"{source.address}/a:1")
        secret = tmp_path / "password"
        secret.write_text("right")
        entry = {"registry": source.address, "username": "u", "passwordFile": str(secret)}
        configured = Configured(world)
        configured.write(registryCredentials=[entry], insecureRegistries=[source.address])
        async with configured.running() as program:
            await in_state(program, f"{source.address}/a:1", "protected")
            secret.unlink()
            await configured.seen(lambda: "login files cannot be read" in stream.getvalue())
            assert await metric(program, SUCCESSFUL) == 0
            world.deployment("b", f"{source.address}/b:1")
            await in_state(program, f"{source.address}/b:1", "protected")
            secret.write_text("right")
            await configured.seen(lambda: len(lines(stream, "login files changed")) == 2)
            assert await metric(program, SUCCESSFUL) == 1


async def test_a_docker_login_that_is_mended(
    world: World, tmp_path: Path, stream: io.StringIO
) -> None:
    """The same for the file that DOCKER_CONFIG names."""
    async with Registry(auth="basic", username="u", password="right") as source:
        source.add_image("a", "1", seed="a")
        world.deployment("a", f"{source.address}/a:1")
        file = tmp_path / "config.json"

        def login(password: str) -> None:
            auth = base64.b64encode(f"u:{password}".encode()).decode()
            file.write_text(json.dumps({"auths": {source.address: {"auth": auth}}}))

        login("wrong")
        configured = Configured(world, DOCKER_CONFIG=str(tmp_path))
        configured.write(insecureRegistries=[source.address], failureCooldownMinutes=600)
        async with configured.running() as program:
            await in_state(program, f"{source.address}/a:1", "failed")
            controller = program.facade.controller
            login("right")
            await configured.seen(lambda: bool(lines(stream, "login files changed")))
            configured.look()
            await in_state(program, f"{source.address}/a:1", "protected")
            assert program.facade.controller is controller


async def test_the_lease_is_kept(world: World) -> None:
    """A leader that takes up a configuration goes on leading: nobody takes over in between."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    configured = Configured(world)
    configured.write(leaderElect=True)
    async with configured.running() as program:
        await protected(program, 1)
        [before] = world.api.objects("leases")
        controller = program.facade.controller
        configured.write(digestPull=True)
        await configured.seen(lambda: program.facade.controller not in {controller, None})
        await protected(program, 1)
        [after] = world.api.objects("leases")
        for field in ("holderIdentity", "leaseTransitions", "acquireTime"):
            assert after["spec"][field] == before["spec"][field]


async def test_a_standby_takes_it_up_too(world: World) -> None:
    """A standby goes on standing by, and leads under the new configuration when its time comes."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    configured = Configured(world)
    configured.write(leaderElect=True)
    async with world.running(leader_elect=True) as leader:
        await until(lambda: leader.facade.leading)
        await protected(leader, 1)
        async with configured.running() as standby:
            for prefix in ("one", "two"):
                configured.keys["docker"]["repoPrefix"] = prefix
                configured.write()
                await configured.seen(
                    lambda: standby.facade.status().target == f"{world.target.address}/{prefix}"  # noqa: B023 -- awaited at once
                )
            assert not standby.facade.leading
            assert (await fetch(standby, "health", "/readyz"))[0] == 200
            leader.stop()
            await until(lambda: standby.facade.leading)
            [row] = await protected(standby, 1)
            assert repository(row).startswith("two/")


async def test_running_copies_get_the_grace_period(world: World) -> None:
    """A copy that is under way when the configuration changes is finished, not cut."""
    world.source.add_image("slow", "1", seed="slow")
    world.deployment("slow", world.image("slow:1"))
    hang = world.source.fail("get_blob", stall_at=10, times=1)
    configured = Configured(world)
    async with configured.running() as program:
        with anyio.fail_after(10):
            await hang.reached.wait()
        controller = program.facade.controller
        configured.keys["docker"]["repoPrefix"] = "elsewhere"
        configured.write()
        await configured.seen(lambda: program.facade.status().target.endswith("/elsewhere"))
        assert program.facade.controller is controller
        hang.release()
        await until(lambda: program.facade.controller not in {controller, None})
        await protected(program, 1)
    assert world.target.violations == []
    repositories = [name for name, tags in world.target.tags.items() if tags]
    assert sorted(name.partition("/")[0] for name in repositories) == ["elsewhere", "mirror"]


async def test_engines_are_closed(world: World) -> None:
    """What an earlier configuration had open is closed when nobody copies with it any more, the rest at the end."""
    configured = Configured(world)
    configured.write()
    again = partial(load, path=str(configured.path), environ={})
    settings = await anyio.to_thread.run_sync(again)
    metrics = Metrics(version="test")
    counts = {"opened": 0, "closed": 0}

    @asynccontextmanager
    async def engines(settings: Settings) -> AsyncIterator[Engine]:
        async with open_engine(settings, metrics=metrics) as engine:
            counts["opened"] += 1
            yield engine
        counts["closed"] += 1

    async with (
        open_engine(settings, metrics=metrics) as engine,
        open_api(world.kubeconfig, environ={}) as client,
        anyio.create_task_group() as tasks,
    ):
        time = configured.time
        program = Program(
            settings,
            engine=engine,
            client=client,
            reload=Reload(load=again, engines=engines),
            environ={},
            clock=time.clock,
            wall=time.wall,
            sleep=time.sleep,
        )
        tasks.start_soon(program.run)
        await until(lambda: program.facade.status().ready)
        for number in (1, 2, 3):
            configured.write(maxConcurrentReconciles=number + 2)
            await configured.seen(lambda: counts == {"opened": number, "closed": number - 1})  # noqa: B023 -- awaited at once
            await until(lambda: program.facade.status().ready)
        program.stop()
    assert counts == {"opened": 3, "closed": 3}
