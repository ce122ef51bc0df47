"""Digest modes, platforms and names at the target, by the whole program."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from copycat.oci.digest import Digest
from copycat.oci.manifest import Index, Manifest
from copycat.sandbox.images import Image, image, index
from copycat.sandbox.ledger import Phase
from tests.app.support import World, in_state, protected, repository, row_of, until

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")


def child(content: Image, position: int) -> Digest:
    """The digest of one of an index's children."""
    document = content.document
    assert isinstance(document, Index)
    return document.manifests[position].digest


def node(world: World, name: str, architecture: str) -> None:
    """A node."""
    info = {"operatingSystem": "linux", "architecture": architecture}
    world.api.create("nodes", {"metadata": {"name": name}, "status": {"nodeInfo": info}})


def anchor(digest: object) -> str:
    """The tag that keeps a digest."""
    return Digest.parse(str(digest)).anchor


async def test_a_tag_is_its_whole_index(world: World) -> None:
    """Without digestPull a tag is copied with every platform and attestation, unchanged byte by byte."""
    content = index(seed="a", platforms=PLATFORMS, attestations=True)
    world.source.add("a", content, "3.19")
    world.deployment("a", world.image("a:3.19"))
    async with world.running() as program:
        [row] = await protected(program, 1)
        assert world.holds(row, content, "3.19")
    assert set(world.target.tags["mirror/a"]) == {"3.19", anchor(content.digest)}


@pytest.mark.parametrize("digest_pull", [False, True])
async def test_what_a_kubelet_reports(world: World, digest_pull: bool) -> None:
    """With digestPull the tag stands for what the Pod runs, here one platform's image; without, for what the registry says.

    What runs is kept either way.
    """
    content = index(seed="a", platforms=PLATFORMS)
    world.source.add("a", content, "3.19")
    reference = world.image("a:3.19")
    arm = child(content, 1)
    world.pod("p", reference, image_id=f"{world.image('a')}@{arm}")
    async with world.running(digest_pull=digest_pull) as program:
        await protected(program, 1)
        tags = world.target.tags["mirror/a"]
        assert tags["3.19"] == (str(arm) if digest_pull else content.digest)
        assert tags[anchor(arm)] == str(arm)


@pytest.mark.parametrize("digest_pull", [False, True])
async def test_an_index_that_runs(world: World, digest_pull: bool) -> None:
    """A kubelet that reports the index's digest runs one of its children: the index is copied whole."""
    content = index(seed="a", platforms=PLATFORMS)
    world.source.add("a", content, "3.19")
    world.pod("p", world.image("a:3.19"), image_id=f"{world.image('a')}@{content.digest}")
    async with world.running(digest_pull=digest_pull) as program:
        [row] = await protected(program, 1)
        assert world.holds(row, content, "3.19")


async def test_digest_pull_for_templates_and_ignored_tags(world: World) -> None:
    """What never ran is resolved at the registry; tags in digestPullIgnoredTags follow it though another digest runs."""
    old, new = image(seed="old"), image(seed="new")
    for name in ("a", "b", "c"):
        world.source.add(name, old)
        world.source.add(name, new, "stable" if name == "c" else "1")
    world.deployment("a", world.image("a:1"))
    world.pod("b", world.image("b:1"), image_id=f"{world.image('b')}@{old.digest}")
    world.pod("c", world.image("c:stable"), image_id=f"{world.image('c')}@{old.digest}")
    async with world.running(digest_pull=True, digest_pull_ignored_tags="stable") as program:
        await protected(program, 3)
        tags = world.target.tags
        assert tags["mirror/a"]["1"] == new.digest
        assert tags["mirror/b"]["1"] == old.digest
        assert tags["mirror/c"]["stable"] == new.digest
        assert tags["mirror/c"][anchor(old.digest)] == old.digest


async def test_forms_of_an_image_id(world: World) -> None:
    """Docker's form and a bare digest of the repository are understood; what is a config's digest is let go, logged once."""
    for name in ("docker", "bare", "config"):
        world.source.add(name, image(seed=f"old {name}"))
        world.source.add(name, image(seed=f"new {name}"), "1")
    old = {name: image(seed=f"old {name}") for name in ("docker", "bare")}
    new = image(seed="new config").document
    assert isinstance(new, Manifest)
    assert new.config is not None
    ids = {
        "docker": f"docker-pullable://{world.image('docker')}@{old['docker'].digest}",
        "bare": old["bare"].digest,
        "config": f"docker://{new.config.digest}",
    }
    for name, identity in ids.items():
        world.pod(name, world.image(f"{name}:1"), image_id=identity)
    with capture_logs() as logs:
        async with world.running() as program:
            await protected(program, 3)
            for name, content in old.items():
                tags = world.target.tags[f"mirror/{name}"]
                assert tags[anchor(content.digest)] == content.digest
            assert row_of(program, world.image("config:1")).digest == str(new.digest)
            await program.facade.force_reconcile()
    told = [e for e in logs if e["event"] == "reported digest is not in the repository"]
    assert [e["digest"] for e in told] == [str(new.config.digest)]


async def test_nodes_of_two_architectures(world: World) -> None:
    """checkNodePlatform: the children for the nodes that run it with their attestations; a restart knows the copy again."""
    content = index(seed="a", platforms=PLATFORMS, attestations=True)
    world.source.add("a", content, "1")
    reference = world.image("a:1")
    for name, architecture in (("n1", "amd64"), ("n2", "arm64")):
        node(world, name, architecture)
        world.pod(f"p-{name}", reference, node=name)
    async with world.running(check_node_platform=True) as program:
        row = await in_state(program, reference, "tag_only")
        kept = world.target.store.manifest("mirror/a", "1")
        assert kept is not None
        narrowed = Image(root=kept, manifests=(), blobs={}).document
        assert isinstance(narrowed, Index)
        assert [str(p) for p in narrowed.platforms()] == ["linux/amd64", "linux/arm64"]
        assert len(narrowed.manifests) == 4
        assert row.digest == kept.digest != content.digest
    world.source.ledger.clear()
    world.target.ledger.clear()
    async with world.running(check_node_platform=True) as program:
        await in_state(program, reference, "tag_only")
    assert world.source.ledger.count(Phase.GET_MANIFEST, Phase.GET_BLOB) == 0
    assert {r.method for r in world.target.requests} <= {"GET", "HEAD"}
    assert world.target.ledger.count(Phase.PUT_MANIFEST) == 0


async def test_a_narrowed_copy_never_shrinks(world: World) -> None:
    """A node's platform stays when its last Pod is gone, and the whole index when its idle template runs; restarts too."""
    content = index(seed="a", platforms=PLATFORMS)
    world.source.add("a", content, "1")
    reference = world.image("a:1")
    node(world, "n1", "amd64")
    node(world, "n2", "arm64")
    for name in ("n1", "n2"):
        world.pod(f"p-{name}", reference, node=name)
    flags = {"check_node_platform": True}
    async with world.running(**flags) as program:
        both = (await in_state(program, reference, "tag_only")).digest
        world.api.delete("pods", "demo", "p-n2")
        await until(lambda: program.facade.status().workloads == 1)
        await program.facade.force_reconcile()
        assert world.target.tags["mirror/a"]["1"] == both
    async with world.running(**flags) as program:
        await in_state(program, reference, "tag_only")
        assert world.target.tags["mirror/a"]["1"] == both
        world.deployment("idle", reference)
        await in_state(program, reference, "protected")
        world.api.delete("deployments", "demo", "idle")
        await until(lambda: program.facade.status().workloads == 1)
        await program.facade.force_reconcile()
        assert world.target.tags["mirror/a"]["1"] == content.digest
    async with world.running(**flags) as program:
        await in_state(program, reference, "protected")
    assert world.target.tags["mirror/a"]["1"] == content.digest


async def test_a_narrowed_tag_is_what_runs(world: World) -> None:
    """digestPull and checkNodePlatform together: the tag is the node's part of what runs, before and after a restart."""
    old = index(seed="old", platforms=PLATFORMS)
    world.source.add("a", old, "1")
    world.source.add("a", index(seed="new", platforms=PLATFORMS), "1")
    node(world, "n1", "arm64")
    world.pod("p", world.image("a:1"), node="n1", image_id=f"{world.image('a')}@{old.digest}")
    for _ in range(2):
        async with world.running(check_node_platform=True, digest_pull=True) as program:
            row = await in_state(program, world.image("a:1"), "tag_only")
            assert row.digest == str(child(old, 1)) == world.target.tags["mirror/a"]["1"]


async def test_a_platform_that_an_index_lacks(world: World) -> None:
    """A node's platform that is not there is a failure that names it, never another one instead; unless it is ignored."""
    content = index(seed="a", platforms=("linux/amd64", "linux/arm64"))
    world.source.add("a", content, "1")
    reference = world.image("a:1")
    node(world, "n1", "amd64")
    node(world, "n2", "s390x")
    for name in ("n1", "n2"):
        world.pod(f"p-{name}", reference, node=name)
    async with world.running(check_node_platform=True) as program:
        row = await in_state(program, reference, "failed")
        assert "linux/s390x" in row.message
        assert "ignoreMissingPlatforms" in row.message
    assert not world.target.tags["mirror/a"]
    async with world.running(
        check_node_platform=True, ignore_missing_platforms="linux/s390x"
    ) as program:
        row = await in_state(program, reference, "tag_only")
        assert row.digest == str(child(content, 0))


async def test_mirror_platforms(world: World) -> None:
    """One wanted platform is that image itself; variants count; images without an index and digests stay whole."""
    content = index(seed="a", platforms=PLATFORMS)
    world.source.add("a", content, "1")
    world.source.add("plain", plain := image(seed="plain"), "1")
    for name in ("a:1", f"a@{content.digest}", "plain:1"):
        world.deployment(f"d{len(name)}", world.image(name))
    async with world.running(mirror_platforms="linux/arm/v7") as program:
        await protected(program, 3)
        tags = world.target.tags["mirror/a"]
        assert tags["1"] == str(child(content, 2))
        assert world.target.has("mirror/a", content)
        assert tags[anchor(content.digest)] == content.digest
        assert world.target.has("mirror/plain", plain, "1")
        assert row_of(program, world.image("a:1")).state == "tag_only"


@pytest.mark.parametrize(
    ("flags", "pulled", "path"),
    [
        pytest.param({"digest_pull": True}, True, "amd64/demo/alpine", id="digestPull"),
        pytest.param({}, False, "amd64-arm-arm64/demo/alpine", id="whole index"),
    ],
)
async def test_architectures_in_the_prefix(
    world: World, flags: dict[str, bool], pulled: bool, path: str
) -> None:
    """`$arch/$namespace` as the original's README shows it: one architecture for one manifest, all of them for an index."""
    content = index(seed="a", platforms=PLATFORMS)
    world.source.add("alpine", content, "3.19")
    one = child(content, 0)
    identity = f"{world.image('alpine')}@{one if pulled else content.digest}"
    world.pod("p", world.image("alpine:3.19"), image_id=identity)
    async with world.running(docker__repo_prefix="$arch/$namespace", **flags) as program:
        [row] = await protected(program, 1)
        assert repository(row) == path
        assert world.target.tags[path]["3.19"] == (str(one) if pulled else content.digest)


async def test_workloads_in_the_prefix(world: World) -> None:
    """`$namespace/$podname/$container_name`: each workload has its own repository, named by its top owner."""
    world.source.add("app", image(seed="app"), "1")
    world.deployment("one", world.image("app:1"))
    world.deployment("two", world.image("app:1"), init=world.image("app:1"))
    async with world.running(docker__repo_prefix="$namespace/$podname/$container_name") as program:
        rows = await protected(program, 3)
        found = sorted(map(repository, rows))
        assert found == ["demo/one/main/app", "demo/two/init/app", "demo/two/main/app"]


async def test_pods_are_named_by_their_owner(world: World) -> None:
    """`$podname` is the Deployment's name for its Pods too, and the Pod's own where nothing owns it."""
    world.source.add("app", image(seed="app"), "1")
    world.deployment("web", reference := world.image("app:1"))
    owner = {"kind": "ReplicaSet", "name": "web-6d4b", "controller": True, "apiVersion": "apps/v1", "uid": "u"}  # fmt: skip
    metadata = {
        "name": "web-6d4b-x7k2p",
        "namespace": "demo",
        "labels": {"pod-template-hash": "6d4b"},
        "ownerReferences": [owner],
    }
    spec = {"containers": [{"name": "main", "image": reference}]}
    world.api.create("pods", {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}})
    world.pod("alone", reference)
    async with world.running(docker__repo_prefix="$namespace/$podname") as program:
        rows = await protected(program, 2)
        assert sorted(map(repository, rows)) == ["demo/alone/app", "demo/web/app"]


@pytest.mark.parametrize("tag", ["1", "latest"])
async def test_tags_that_stay(world: World, tag: str) -> None:
    """allowDifferentDigestRepush false: a tag with other content stays, `latest` moves; the new content is kept."""
    world.source.add("a", old := image(seed="old"), tag)
    world.deployment("a", reference := world.image(f"a:{tag}"))
    async with world.running(allow_different_digest_repush=False) as program:
        await protected(program, 1)
        world.source.add("a", new := image(seed="new"), tag)
        assert (await program.facade.force_reconcile()).failure == ""
        tags = world.target.tags["mirror/a"]
        assert tags[anchor(new.digest)] == new.digest
        assert tags[tag] == (new if tag == "latest" else old).digest
        wanted = "protected" if tag == "latest" else "tag_held"
        assert row_of(program, reference).state == wanted


async def test_tags_of_somebody_else(world: World) -> None:
    """overwriteForeignTags false: a tag that has no anchor of ours stays and is a conflict; by default it is overwritten."""
    world.target.add("mirror/a", theirs := image(seed="theirs"), "1")
    world.source.add("a", ours := image(seed="ours"), "1")
    world.deployment("a", reference := world.image("a:1"))
    async with world.running(overwrite_foreign_tags=False) as program:
        row = await in_state(program, reference, "conflict")
        assert row.protected
        assert "overwriteForeignTags" in row.message
        assert world.target.tags["mirror/a"]["1"] == theirs.digest
        assert world.target.has("mirror/a", ours)
    async with world.running() as program:
        await in_state(program, reference, "protected")
        assert world.target.tags["mirror/a"]["1"] == ours.digest


async def test_digests_are_never_latest(world: World) -> None:
    """A digest gets its anchor alone; a tag and a digest together get the tag where there is none."""
    content = world.source.add("a", image(seed="a"), "1")
    world.source.add("b", image(seed="b"), "1")
    world.deployment("a", world.image(f"a@{content.digest}"))
    world.deployment("b", world.image(f"b:9@{image(seed='b').digest}"))
    async with world.running() as program:
        await protected(program, 2)
        await until(lambda: "9" in world.target.tags["mirror/b"])
    assert set(world.target.tags["mirror/a"]) == {anchor(content.digest)}
    assert set(world.target.tags["mirror/b"]) == {"9", anchor(image(seed="b").digest)}
