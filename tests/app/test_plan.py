"""`copycat plan`: what it says of each image and of them all, and that it touches nothing."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from copycat import logs
from copycat.app.oneshot import make_inventory, workload_of
from copycat.app.plan import plan
from copycat.app.plan_look import look
from copycat.app.plan_output import JsonPlan, LinesPlan
from copycat.app.plan_summary import done_by
from copycat.app.wiring import open_engine
from copycat.errors import ConfigError, KubeUnavailable
from copycat.metrics import Metrics
from copycat.mirror.job import Progress
from copycat.mirror.rehearsal import Rehearsal
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.oci.digest import Digest
from copycat.program import RealProgram
from copycat.registry.quota import Quota
from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import profile_of
from copycat.sandbox.registry import Registry
from tests.app.plans import contents, files_of, manifest, planned, untouched
from tests.app.support import World

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


# What is looked at


async def test_manifests(world: World) -> None:
    """Manifests alone need no cluster; extraImages belong to it; each image is told with its users."""
    world.source.add_image("a", "1", seed="a")
    world.source.add_image("extra", "1", seed="extra")
    kubeconfig = world.kubeconfig
    await world.api.stop()
    out = io.StringIO()
    assert await RealProgram().plan(
        world.settings(extra_images=world.image("extra:1")),
        manifests=files_of([manifest(world.image("a:1"))]),
        kubeconfig=None,
        context=None,
        printer=JsonPlan(out),
    )
    first, second, _ = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["source"], first["users"]) == (world.image("a:1"), ["Deployment demo/web"])
    assert (second["source"], second["users"]) == (world.image("extra:1"), ["Configuration"])
    with pytest.raises(KubeUnavailable):
        await plan(
            world.settings(),
            manifests=None,
            kubeconfig=kubeconfig,
            context=None,
            printer=JsonPlan(out),
        )


async def test_a_manifest_that_is_no_yaml(world: World) -> None:
    """The file is named, and nobody is asked for anything."""
    with pytest.raises(ConfigError, match="manifest 2"):
        await planned(world, world.settings(), manifests=[b"", b"a: ["], cluster=True)
    assert world.source.requests == []
    assert world.api.requests == []


async def test_manifests_for_a_cluster(world: World) -> None:
    """With a cluster the manifests are seen as applied: one takes the place of the object of its name."""
    for name in ("old", "new", "kept"):
        world.source.add_image(name, "1", seed=name)
    world.deployment("web", world.image("old:1"))
    world.deployment("other", world.image("kept:1"))
    found = await planned(
        world, world.settings(), manifests=[manifest(world.image("new:1"))], cluster=True
    )
    assert sorted(found.images) == [world.image("kept:1"), world.image("new:1")]


async def test_kinds_that_may_not_be_listed(world: World) -> None:
    """They are named; the rest is planned all the same."""
    world.source.add_image("a", "1", seed="a")
    world.deployment("a", world.image("a:1"))
    world.api.forbid("cronjobs")
    found = await planned(world, world.settings())
    assert found.good
    assert list(found.images) == [world.image("a:1")]
    assert found.summary["deniedKinds"] == ["cronjobs"]


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        pytest.param({"check_node_platform": True}, "--kubeconfig", id="nodes"),
        pytest.param({"dry_run": True}, "dryRun is set", id="dry-run"),
    ],
)
async def test_notes(world: World, flags: dict[str, object], note: str) -> None:
    """What makes a run differ from the plan is said."""
    world.source.add_image("a", "1", seed="a")
    found = await planned(world, world.settings(**flags), manifests=[manifest(world.image("a:1"))])
    assert [note in text for text in found.summary["notes"]] == [True]
    assert found.images[world.image("a:1")]["action"] == "copy"


async def test_nodes_of_the_cluster(world: World) -> None:
    """With the nodes of a cluster no note is needed, and only their platforms are planned."""
    info = {"operatingSystem": "linux", "architecture": "arm64"}
    world.api.create("nodes", {"metadata": {"name": "n"}, "status": {"nodeInfo": info}})
    multi = images.index(platforms=("linux/amd64", "linux/arm64"))
    world.source.add("m", multi, "1")
    world.pod("p", world.image("m:1"), node="n")
    found = await planned(world, world.settings(check_node_platform=True))
    row = found.images[world.image("m:1")]
    assert (row["state"], found.summary["notes"]) == ("tag_only", [])
    assert row["digest"] in {m.digest for m in multi.manifests}


# Dry modes


async def test_without_the_sources(world: World) -> None:
    """With dryPull no source is asked and no size is known, and that is said."""
    stands = world.source.add_image("stands", "1", seed="stands")
    world.target.add("mirror/stands", stands, "1")
    names = [world.image("stands:1"), world.image("new:1")]
    found = await planned(world, world.settings(dry_pull=True), manifests=[manifest(*names)])
    assert found.good
    assert world.source.requests == []
    assert {r.phase for r in world.target.requests} == {Phase.PING, Phase.HEAD_MANIFEST}
    assert [found.images[n]["state"] for n in names] == ["dry_run", "dry_run"]
    assert found.summary["unmeasuredImages"] == 2
    assert any("dryPull is set" in note for note in found.summary["notes"])


async def test_without_any_registry(world: World) -> None:
    """With both dry modes nobody is asked."""
    found = await planned(
        world,
        world.settings(dry_pull=True, dry_run=True),
        manifests=[manifest(world.image("a:1"))],
    )
    assert world.source.requests == world.target.requests == []
    assert found.images[world.image("a:1")]["target"].startswith(world.target.address)


# Tags


async def test_tags_that_move(world: World) -> None:
    """A tag that would come to stand for something else is told with both digests; nothing else moves."""
    old = images.image(seed="old")
    for tag in ("1", Digest.parse(old.digest).anchor):
        world.target.add("mirror/a", old, tag)
    new = world.source.add_image("a", "1", seed="new")
    name = world.image("a:1")
    row = (await planned(world, world.settings(), manifests=[manifest(name)])).images[name]
    assert row["tagMoves"] == [{"tag": "1", "from": old.digest, "to": new.digest}]
    assert row["action"] == "copy"


async def test_an_image_that_has_all_but_its_tag(world: World) -> None:
    """Content that stands is not sent: only tags are written."""
    image = world.source.add_image("a", "1", seed="a")
    world.target.add("mirror/a", image)
    name = world.image("a:1")
    row = (await planned(world, world.settings(), manifests=[manifest(name)])).images[name]
    assert (row["action"], row["bytes"], row["state"]) == ("tag", 0, "protected")


async def test_what_stands(world: World) -> None:
    """An image that stands is left alone."""
    image = world.source.add_image("a", "1", seed="a")
    world.target.add("mirror/a", image, "1")
    name = world.image("a:1")
    found = await planned(world, world.settings(), manifests=[manifest(name)])
    row = found.images[name]
    assert (row["action"], row["message"], row["manifestReads"]) == ("none", "", 0)
    assert found.summary["sources"][0]["images"] == 0
    assert found.summary["repositories"] == []


# Bytes


async def test_shared_blobs_are_counted_once(world: World) -> None:
    """Within a repository, over repositories, and not at all where they stand anywhere at the target."""
    shared, there = images.layer(30_000, seed="shared"), images.layer(50_000, seed="there")
    a = world.source.add_image("a", "1", seed="a", layers=[shared, there])
    again = world.source.add_image("a", "2", seed="a2", layers=[shared])
    b = world.source.add_image("b", "1", seed="b", layers=[shared, there])
    world.target.put_blob("mirror/b", there.data or b"")
    names = [world.image(n) for n in ("a:1", "a:2", "b:1")]
    found = await planned(world, world.settings(), manifests=[manifest(*names)])
    configs = sum(image.blob_bytes for image in (a, again, b)) - 3 * shared.size - 2 * there.size
    assert found.summary["bytes"] == shared.size + configs
    assert [found.images[n]["bytes"] > shared.size for n in names] == [True, False, False]
    assert untouched(world.source)
    assert untouched(world.target)


async def test_a_failure_half_way(world: World) -> None:
    """What is sent before an image fails is counted, and the count is marked as not whole."""
    image = world.source.add_image("a", "1", seed="a")
    gone = images.image(seed="gone")
    name = world.image("a:1")
    world.pod("p", name, image_id=f"{world.image('a')}@{gone.digest}")
    found = await planned(world, world.settings())
    row = found.images[name]
    assert (row["state"], row["action"], row["measured"]) == ("failed", "copy", False)
    assert row["bytes"] == image.blob_bytes
    assert found.summary["unmeasuredImages"] == 1


async def test_the_architecture_in_a_name(world: World) -> None:
    """$arch is in the config of an image without an index: that small blob is read, and nothing else."""
    image = world.source.add_image("a", "1", seed="a", platform="linux/arm64")
    name = world.image("a:1")
    settings = world.settings(docker__repo_prefix="m/$arch")
    row = (await planned(world, settings, manifests=[manifest(name)])).images[name]
    assert row["target"] == f"{world.target.address}/m/arm64/a:1"
    read = [r.reference for r in world.source.ledger.select(Phase.GET_BLOB)]
    assert len(read) == 1
    assert len(image.blobs[read[0]]) < 1000
    assert untouched(world.target)


# Quotas


async def test_a_quota_that_is_told(world: World) -> None:
    """Counted requests stand beside what the registry says of its quota."""
    async with Registry(profile="hub", anonymous=True) as hub:
        names = []
        for number in range(3):
            hub.add_image(f"team/i{number}", "1", seed=number)
            names.append(f"{hub.address}/team/i{number}:1")
        settings = world.settings(insecure_registries=hub.address)
        found = await planned(world, settings, manifests=[manifest(*names)])
    [load] = found.summary["sources"]
    assert load["manifestReads"] == load["images"] == 3
    assert load["quota"] == {"limit": 100, "remaining": 97, "windowSeconds": 21600.0}
    assert datetime.fromisoformat(load["doneBy"]) <= datetime.now(UTC)


async def test_a_quota_that_is_left_to_the_nodes(world: World) -> None:
    """A plan leaves the nodes as much of a quota as a run does, and says what it therefore did not see."""
    profile = replace(profile_of("hub"), rate_limit=6)
    async with Registry(profile=profile, anonymous=True) as hub:
        names = []
        for number in range(8):
            hub.add_image("team/app", f"{number}", seed=number)
            names.append(f"{hub.address}/team/app:{number}")
        settings = world.settings(insecure_registries=hub.address)
        found = await planned(world, settings, manifests=[manifest(*names)])
        assert hub.ledger.count(Phase.GET_MANIFEST) == 3
    assert found.good
    assert [found.images[n]["state"] for n in names] == ["protected"] * 3 + ["waiting_quota"] * 5
    [load] = found.summary["sources"]
    assert (load["manifestReads"], load["atLeast"]) == (8, True)
    assert "5 images were not looked into" in load["note"]
    assert datetime.fromisoformat(load["doneBy"]) > datetime.now(UTC) + timedelta(hours=1)


async def test_no_quota(world: World) -> None:
    """A registry that tells of none has no "done by", and no figure is made up."""
    world.source.add_image("a", "1", seed="a")
    found = await planned(world, world.settings(), manifests=[manifest(world.image("a:1"))])
    [load] = found.summary["sources"]
    assert (load["quota"], load["doneBy"]) == (None, None)
    assert load["note"] == "tells of no pull quota"


async def test_docker_hub_without_a_figure(world: World) -> None:
    """Docker Hub has a quota: where it does not say which, it is not known."""
    world.source.add_image("library/a", "1", seed="a")
    hub = {"host": "docker.io", "endpoints": [world.source.address], "insecure": True}
    found = await planned(world, world.settings(registries=[hub]), manifests=[manifest("a:1")])
    [load] = found.summary["sources"]
    assert (load["registry"], load["quota"], load["manifestReads"]) == ("docker.io", None, 1)
    assert load["note"] == "its pull quota is not known: it did not say"


@pytest.mark.parametrize(
    ("requests", "quota", "reserve", "hours"),
    [
        pytest.param(10, (50, 100, 21600.0), 0.0, 0.0, id="enough"),
        pytest.param(50, (50, 100, 21600.0), 0.0, 0.0, id="just-enough"),
        pytest.param(150, (50, 100, 21600.0), 0.0, 6.0, id="a-window-more"),
        pytest.param(100, (50, 100, 21600.0), 0.5, 12.0, id="half-is-left-to-others"),
        pytest.param(60, (20, 100, 21600.0), 0.5, 7.2, id="less-than-the-reserve-is-left"),
        pytest.param(60, (50, None, 21600.0), 0.0, None, id="no-limit-told"),
        pytest.param(60, (50, 100, None), 0.0, None, id="no-window-told"),
        pytest.param(60, (50, 100, 21600.0), 1.0, None, id="all-is-left-to-others"),
    ],
)
def test_done_by(
    requests: int,
    quota: tuple[int, int | None, float | None],
    reserve: float,
    hours: float | None,
) -> None:
    """What is left is spent first, down to the reserve; then the rest at the quota's rate."""
    remaining, limit, window = quota
    told = Quota(remaining=remaining, limit=limit, window=window, at=0.0, share=reserve)
    when = done_by(requests, told, now=NOW)
    assert when == (None if hours is None else NOW + timedelta(hours=hours))


# Repositories


async def test_repositories_that_a_push_makes(world: World) -> None:
    """Plain registries make them; that nothing more can be known by reading is said, once."""
    world.source.add_image("a", "1", seed="a")
    world.source.add_image("b", "1", seed="b")
    names = [world.image("a:1"), world.image("b:1")]
    found = await planned(world, world.settings(), manifests=[manifest(*names)])
    assert found.summary["repositories"] == [
        {"repository": f"mirror/{n}", "how": "on_push", "note": ""} for n in ("a", "b")
    ]
    # one question for each, and none for their blobs
    assert world.target.ledger.count(Phase.GET_MANIFEST) == 2
    assert world.target.ledger.count(Phase.HEAD_BLOB) == 0


async def test_a_registry_that_does_not_tell(world: World) -> None:
    """Some say of a missing repository only that the manifest is unknown."""
    world.source.add_image("a", "1", seed="a")
    world.target.fail(Phase.GET_MANIFEST, status=404, code="MANIFEST_UNKNOWN")
    found = await planned(world, world.settings(), manifests=[manifest(world.image("a:1"))])
    [missing] = found.summary["repositories"]
    assert missing["how"] == "on_push"
    assert "does not tell" in missing["note"]


async def test_a_project_that_is_missing(world: World) -> None:
    """A registry that says so is believed: nothing would arrive there, and the project is named."""
    world.source.add_image("a", "1", seed="a")
    body = json.dumps({"errors": [{"code": "NOT_FOUND", "message": "project mirror not found"}]})
    world.target.fail(Phase.GET_MANIFEST, status=404, body=body.encode(), times=None)
    name = world.image("a:1")
    found = await planned(world, world.settings(), manifests=[manifest(name)])
    assert not found.good
    row = found.images[name]
    assert (row["state"], row["reason"], row["action"]) == ("failed", "missing_project", "none")
    [missing] = found.summary["repositories"]
    assert (missing["repository"], missing["how"]) == ("mirror/a", "no_project")
    assert "project mirror not found" in missing["note"]


async def test_a_target_that_lets_nobody_in(world: World) -> None:
    """A refusal to read is each image's failure, as in a run; what exists is not guessed."""
    world.source.add_image("a", "1", seed="a")
    world.target.fail(Phase.HEAD_MANIFEST, status=403, times=None)
    world.target.fail(Phase.GET_MANIFEST, status=403, times=None)
    name = world.image("a:1")
    found = await planned(world, world.settings(), manifests=[manifest(name)])
    assert (found.images[name]["state"], found.images[name]["reason"]) == ("failed", "denied")
    assert found.summary["repositories"] == []


# Secrets


async def test_pull_secrets(world: World) -> None:
    """Where a source shows nothing and the workload has pull secrets, the namespace is named; elsewhere not."""
    async with Registry(auth="token", username="u", password="p") as private:
        world.source.add_image("public", "1", seed="p")
        private.add_image("team/app", "1", seed="app")
        secret, public = f"{private.address}/team/app:1", world.image("public:1")
        gone = world.image("gone:1")
        found = await planned(
            world,
            world.settings(insecure_registries=f"{private.address},{world.source.address}"),
            manifests=[
                manifest(secret, public, name="a", secrets=["regcred", "another"]),
                manifest(gone, name="b"),
            ],
        )
    assert found.summary["pullSecrets"] == [
        {
            "namespace": "demo",
            "secrets": ["another", "regcred"],
            "images": [secret],
            "covered": False,
        }
    ]


async def test_pull_secrets_that_only_a_cluster_has(world: World) -> None:
    """Where pullSecrets covers the namespace a run reads them; manifests alone do not have them."""
    async with Registry(auth="token", username="u", password="p") as private:
        name = f"{private.address}/team/app:1"
        settings = world.settings(insecure_registries=private.address, pull_secrets="demo")
        found = await planned(world, settings, manifests=[manifest(name, secrets=["regcred"])])
    assert [item["covered"] for item in found.summary["pullSecrets"]] == [True]


async def test_a_digest_that_is_gone_needs_no_secret(world: World) -> None:
    """Who is shown the tag has access: what is missing then is missing."""
    world.source.add_image("a", "1", seed="a")
    gone = images.image(seed="gone")
    name = world.image("a:1")
    spec = {
        "containers": [{"name": "main", "image": name}],
        "imagePullSecrets": [{"name": "regcred"}],
    }
    status = {
        "phase": "Running",
        "containerStatuses": [
            {"name": "main", "image": name, "imageID": f"{world.image('a')}@{gone.digest}"}
        ],
    }
    metadata = {"name": "p", "namespace": "demo"}
    world.api.create("pods", {"metadata": metadata, "spec": spec, "status": status})
    found = await planned(world, world.settings())
    assert found.images[name]["reason"] == "not_found"
    assert found.summary["pullSecrets"] == []


async def test_docker_login(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan uses what `docker login` left in the home, as `copycat mirror` does."""
    async with Registry(auth="token", username="u", password="p") as private:
        private.add_image("team/app", "1", seed="app")
        folder = world.folder / ".docker"
        folder.mkdir()
        login = {"auth": base64.b64encode(b"u:p").decode()}
        (folder / "config.json").write_text(json.dumps({"auths": {private.address: login}}))
        monkeypatch.delenv("DOCKER_CONFIG", raising=False)
        monkeypatch.setenv("HOME", str(world.folder))
        settings = world.settings(insecure_registries=private.address)
        name = f"{private.address}/team/app:1"
        assert (await planned(world, settings, manifests=[manifest(name)])).good


async def test_what_is_logged_is_marked(world: World) -> None:
    """What an attempt logs sounds as if it were done: in a plan each line says that it is not."""
    signed = world.source.add_image("a", "1", seed="a")
    world.source.add("a", images.signature(signed), images.cosign_tag(signed))
    name = world.image("a:1")
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    try:
        await planned(world, world.settings(), manifests=[manifest(name)])
    finally:
        logs.unconfigure()
    lines = map(json.loads, stream.getvalue().splitlines())
    [line] = [line for line in lines if line["msg"] == "signatures copied"]
    assert (line["rehearsal"], line["image"]) == (True, name)


# Robustness


class Broken(Rehearsal):
    """Has a bug that one image meets."""

    async def run(
        self, request: MirrorRequest, need: Need, *, progress: Progress | None = None
    ) -> MirrorResult:
        """As any, but for the image `a`."""
        if request.source.repository == "a":
            raise ZeroDivisionError("oops")
        return await super().run(request, need, progress=progress)


async def test_a_bug_costs_one_image(world: World) -> None:
    """Whatever breaks an attempt, the other images are planned."""
    world.source.add_image("b", "1", seed="b")
    settings = world.settings()
    metrics = Metrics(version="test")
    async with open_engine(settings, metrics=metrics) as engine:
        inventory = make_inventory(settings, engine)
        for name in ("a:1", "b:1"):
            inventory.observe(None, workload_of(world.image(name)))
        broken = Broken(
            transport=engine.transport,
            target=engine.target,
            naming=engine.naming,
            policy=engine.mirror.policy,
        )
        with capture_logs() as logs:
            results = await look(broken, inventory, JsonPlan(io.StringIO()))
    told = {r.source.repository: (res.state, res.message) for r, res in results.items()}
    assert told["a"] == ("failed", "internal error: ZeroDivisionError: oops")
    assert told["b"][0] == "protected"
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["attempt broke"]


async def test_nothing_is_written_however_it_is_called(world: World) -> None:
    """The plan for a whole image leaves the target as it was, to the last byte."""
    world.source.add_image("a", "1", seed="a")
    before = contents(world.target)
    out = io.StringIO()
    assert await plan(
        world.settings(),
        manifests=files_of([manifest(world.image("a:1"))]),
        kubeconfig=None,
        context=None,
        printer=LinesPlan(out),
    )
    assert contents(world.target) == before
    assert world.source.violations == world.target.violations == []
    assert out.getvalue().startswith(f"copy          {world.image('a:1')} → ")
