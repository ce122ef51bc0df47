"""Namespaces that are kept apart: what only one's pull secret could read never comes to another by way of the target."""

from __future__ import annotations

from urllib.parse import unquote

import anyio
import pytest

from copycat.errors import NotFound
from copycat.mirror.copy import Copy
from copycat.registry.credentials import Credentials
from copycat.registry.dockerconfig import DockerAuth
from copycat.registry.keychain import Access
from copycat.registry.repository import Repository
from copycat.sandbox import images
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase
from tests.mirror.conftest import Bench

SECRET = images.layer(1000, seed="secret")


def access(home: str, *, secret: bool) -> Access:
    """Of a namespace, with or without what a pull secret of it holds."""
    auth = DockerAuth(host="reg.example.com", credentials=Credentials(username=home or "u"))
    return Access(namespaces=frozenset({home}), home=home, secrets=(auth,) if secret else ())


def job(bench: Bench, name: str, who: Access) -> Copy:
    """A copy of `<name>` of the source to the target's `<home>/<name>`."""
    source = Repository(bench.world.transport, bench.source.address, name, access=who)
    target = bench.plain.repository(f"{who.home or 'all'}/{name}")
    return Copy(source=source, target=target, image=name)


def bait(bench: Bench) -> Image:
    """An image that names the secret layer; its own repository does not have it."""
    image = bench.source.add("b/bait", images.image(seed="bait", layers=(SECRET, 50)))
    del bench.source.blobs["b/bait"][SECRET.digest]
    return image


@pytest.fixture
def private(bench: Bench) -> Image:
    """What only namespace a may read."""
    return bench.source.add("a/private", images.image(seed="private", layers=(SECRET, 100)))


@pytest.mark.parametrize("secret", [False, True], ids=["without a secret", "with its own secret"])
async def test_a_digest_is_no_key(bench: Bench, private: Image, secret: bool) -> None:
    """Who knows a digest of another namespace's private layer gets it from his own source or not at all."""
    image = bait(bench)
    await bench.copier.copy(job(bench, "a/private", access("a", secret=True)), private.document)

    with pytest.raises(NotFound):
        await bench.copier.copy(job(bench, "b/bait", access("b", secret=secret)), image.document)

    assert SECRET.digest in bench.target.blobs["a/a/private"]
    assert SECRET.digest not in bench.target.blobs.get("b/b/bait", {})
    mounts = [r for r in bench.target.requests if "mount=" in r.query]
    assert all(unquote(r.query).endswith(f"&from={r.repository}") for r in mounts)


async def test_nor_while_it_is_copied(bench: Bench, private: Image) -> None:
    """The other's private layer is on its way: nobody of another namespace waits for it to have it mounted."""
    image = bait(bench)
    gate = anyio.Event()
    held = bench.source.fail(
        Phase.GET_BLOB, match=lambda r: r.reference == SECRET.digest, hold=gate
    )
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            whose = access("a", secret=True)
            tasks.start_soon(bench.copier.copy, job(bench, "a/private", whose), private.document)
            await held.reached.wait()
            with pytest.raises(NotFound):
                await bench.copier.copy(
                    job(bench, "b/bait", access("b", secret=False)), image.document
                )
            gate.set()
    assert bench.target.has("a/a/private", private)
    assert SECRET.digest not in bench.target.blobs.get("b/b/bait", {})


async def test_nor_what_was_found(bench: Bench, private: Image) -> None:
    """A layer that a restarted program finds in a namespace's repository is that namespace's."""
    image = bait(bench)
    first = job(bench, "a/private", access("a", secret=True))
    await bench.copier.copy(first, private.document)
    bench.use(bench.plain)
    del bench.target.manifests["a/a/private"]
    await bench.copier.copy(job(bench, "a/private", access("a", secret=False)), private.document)

    with pytest.raises(NotFound):
        await bench.copier.copy(job(bench, "b/bait", access("b", secret=False)), image.document)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(access("a", secret=True), access("a", secret=False), id="one namespace"),
        pytest.param(access("a", secret=False), access("b", secret=False), id="public content"),
        pytest.param(
            access("a", secret=False), access("b", secret=True), id="public, then private"
        ),
        pytest.param(access("", secret=True), access("", secret=False), id="shared"),
    ],
)
async def test_what_may_be_shared_is_mounted(
    bench: Bench, private: Image, first: Access, second: Access
) -> None:
    """Everything else is sent once, as ever."""
    other = bench.source.add("b/other", images.image(seed="other", layers=(SECRET, 50)))
    await bench.copier.copy(job(bench, "a/private", first), private.document)

    found = job(bench, "b/other", second)
    await bench.copier.copy(found, other.document)

    assert found.moved.mounted == 1


async def test_what_was_mounted_stays_of_its_kind(bench: Bench, private: Image) -> None:
    """A private layer that was mounted within its namespace is not public there either."""
    image = bait(bench)
    own = bench.source.add("a/own", images.image(seed="own", layers=(SECRET, 70)))
    await bench.copier.copy(job(bench, "a/private", access("a", secret=True)), private.document)
    await bench.copier.copy(job(bench, "a/own", access("a", secret=False)), own.document)

    with pytest.raises(NotFound):
        await bench.copier.copy(job(bench, "b/bait", access("b", secret=False)), image.document)
