"""A rehearsal's target sends nothing, whatever is called on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from copycat.errors import NotFound, TooLarge
from copycat.metrics import Metrics
from copycat.mirror.stage import Notes, Presence, Stage, StagedRepository, StagedTarget
from copycat.oci.digest import Digest
from copycat.oci.manifest import MAX_PUSH, OCI_INDEX, Descriptor, Index
from copycat.registry.hosts import HostConfig, HostPolicy
from copycat.registry.keychain import StaticKeychain
from copycat.registry.target import Target
from copycat.registry.transport import Transport
from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.registry import Registry


class Scene:
    """A registry, and a staged repository of it."""

    def __init__(self, registry: Registry, transport: Transport) -> None:
        self.registry = registry
        self.target = Target(transport, registry.address)
        self.stage = Stage(self.target)
        self.notes = Notes()
        self.staged = StagedTarget(transport, self.stage, self.notes)

    def repository(self, name: str) -> StagedRepository:
        """One on the stage."""
        return self.staged.repository(name)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """An empty registry."""
    async with (
        Registry() as registry,
        Transport(
            keychain=StaticKeychain([]),
            metrics=Metrics(version="test"),
            policy=HostPolicy(named=frozenset({registry.address})),
            hosts={registry.address: HostConfig(host=registry.address, insecure=True)},
            target_registries=frozenset({registry.address}),
        ) as transport,
    ):
        yield Scene(registry, transport)
        assert {r.method for r in registry.requests} <= {"GET", "HEAD"}
        assert registry.ledger.count(Phase.GET_BLOB) == 0


def blob(number: int = 0) -> Descriptor:
    """Some blob's."""
    return Descriptor(media_type="text/plain", digest=Digest.of(bytes([number])), size=1)


async def test_what_is_written_is_seen_later(scene: Scene) -> None:
    """By tag and by digest, in later attempts too; other repositories do not have it."""
    document = images.image(seed="a").document
    repository = scene.repository("a")
    assert await repository.head_manifest("1") is None
    await repository.put_manifest(document, document.digest)
    await repository.put_manifest(document, "1")
    again = StagedTarget(scene.target.repository("a")._transport, scene.stage, Notes())
    for reference in ("1", document.digest):
        found = await again.repository("a").head_manifest(reference)
        assert found == document.descriptor
        assert await again.repository("a").get_manifest(reference) == document
    assert await again.repository("b").head_manifest("1") is None
    assert [(w.tag, w.before) for w in scene.notes.tags] == [("1", None)]
    assert scene.notes.manifests == 1
    assert scene.registry.manifests == {}


async def test_no_blob_is_sent_or_mounted(scene: Scene) -> None:
    """An upload is noted with its size and its body is never opened; a mount is refused."""

    def body() -> AsyncIterator[bytes]:
        raise AssertionError("opened")

    repository = scene.repository("a")
    assert not await repository.mount_blob(blob(), "b")
    await repository.upload_blob(blob(), body)
    assert scene.notes.blobs == {blob().digest: 1}
    assert scene.stage.presence == {"a": Presence.ABSENT}


async def test_blobs_are_asked_for_once(scene: Scene) -> None:
    """One HEAD for each blob of a repository that exists; none where there is no repository."""
    scene.registry.put_blob("a", b"\0")
    image = scene.registry.add_image("a", "1")
    repository = scene.repository("a")
    assert await repository.head_manifest("1") is not None
    for _ in range(2):
        assert await repository.has_blob(blob(0).digest)
        assert not await repository.has_blob(blob(1).digest)
        assert not await scene.repository("none").has_blob(blob(0).digest)
    assert scene.registry.ledger.count(Phase.HEAD_BLOB) == 2
    assert scene.stage.homes == {blob(0).digest: {""}}
    assert image.digest


async def test_presence_by_what_is_found(scene: Scene) -> None:
    """A manifest that is found proves its repository; a probe is sent only where nothing was."""
    image = scene.registry.add_image("a", "1")
    digest = Digest.parse(image.digest)
    assert await scene.repository("a").presence(digest) is Presence.THERE
    assert await scene.repository("b").presence(digest) is Presence.ABSENT
    assert await scene.repository("b").presence(digest) is Presence.ABSENT
    assert scene.registry.ledger.count(Phase.GET_MANIFEST) == 2


async def test_a_manifest_that_is_too_large(scene: Scene) -> None:
    """What no registry takes is refused as by a real target."""
    raw = b'{"schemaVersion":2,"manifests":[]}' + b" " * MAX_PUSH
    index = Index(
        raw=raw,
        media_type=OCI_INDEX,
        digest=Digest.of(raw),
        manifests=(),
        subject=None,
        artifact_type="",
        annotations={},
    )
    with pytest.raises(TooLarge):
        await scene.repository("a").put_manifest(index, "1")


class Picky(Target):
    """Makes no repositories."""

    def makes(self, repository: str) -> bool:
        """Never."""
        raise NotFound("make it yourself", side="target", reason="repository_missing")


async def test_a_target_that_makes_no_repositories(scene: Scene) -> None:
    """Where a run would be refused, the rehearsal is; where the repository is there, it is not."""
    scene.registry.add_image("there", "1")
    scene.stage.target = Picky(scene.target.repository("a")._transport, scene.registry.address)
    document = images.image(seed="a").document
    with pytest.raises(NotFound, match="make it yourself"):
        await scene.repository("a").put_manifest(document, "1")
    assert await scene.repository("there").head_manifest("1") is not None
    await scene.repository("there").put_manifest(document, "2")


async def test_the_target_is_the_real_one(scene: Scene) -> None:
    """Limits and what it knows of blobs are the real target's."""
    assert scene.staged.max_repository == scene.target.max_repository
    assert await scene.staged.known_blobs("a", [blob().digest]) is None
