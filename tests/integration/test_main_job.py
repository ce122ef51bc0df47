"""The main job, on real input: from workloads in a real cluster to copies in a real registry, by the real process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Setup
from tests.integration.images import (
    Image,
    bulky_image,
    library_image,
    push,
    sha256,
    single_image,
)
from tests.integration.process import run
from tests.integration.programs import Copycat, until
from tests.integration.registries import DockerRegistry, Request
from tests.integration.slow import SlowLine
from tests.integration.workloads import Workloads

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.needs(
        *("docker-registry", "skopeo", "kubectl", "openssl", "setpriv"),
        *("kube-apiserver", "etcd", "kube-controller-manager"),
    ),
]

MIB = 1024 * 1024

#: Repository and tag of each image of the small cluster.
APP, NIGHTLY, WAIT, TOOL = "team/app:1.4", "team/nightly:2", "tools/wait:latest", "tools/tool:7"


def repository(name: str) -> str:
    """`team/app` of `team/app:1.4`."""
    return name.partition(":")[0]


def tag(name: str) -> str:
    """`1.4` of `team/app:1.4`."""
    return name.partition(":")[2]


class Cluster:
    """A Deployment, a CronJob and a Pod with an init container, of four images in the source registry."""

    def __init__(self, source: DockerRegistry, workloads: Workloads) -> None:
        self.images: dict[str, Image] = {
            APP: library_image(salt="app"),
            NIGHTLY: single_image("nightly"),
            WAIT: single_image("wait"),
            TOOL: library_image(salt="tool"),
        }
        for name, image in self.images.items():
            push(image, source.address, repository(name), tag(name))
        self._address = source.address
        workloads.deployment("app", self.reference(APP), replicas=2)
        workloads.cron_job("nightly", self.reference(NIGHTLY))
        workloads.pod("tool", self.reference(TOOL), init=self.reference(WAIT))

    def reference(self, name: str) -> str:
        """What a workload writes."""
        return f"{self._address}/{name}"

    @property
    def protected(self) -> dict[str, str]:
        """Source → `protected`, for all images."""
        return {self.reference(name): "protected" for name in self.images}


@pytest.fixture
def cluster(source: DockerRegistry, workloads: Workloads) -> Cluster:
    """The small cluster, in the test's namespace."""
    return Cluster(source, workloads)


def assert_whole(target: DockerRegistry, name: str, image: Image, directory: Path) -> None:
    """The image can be fetched from the target by its tag, all platforms, with the source's digests."""
    where = f"mirror/{repository(name)}"
    assert sha256(target.raw_manifest(where, tag(name))) == image.digest
    assert target.digests(where)[image.anchor] == image.digest
    out = directory / f"out-{where.replace('/', '-')}"
    flags = ("--all", "--preserve-digests", "--src-tls-verify=false")
    run("skopeo", "copy", *flags, f"docker://{target.address}/{where}:{tag(name)}", f"dir:{out}")
    assert sha256((out / "manifest.json").read_bytes()) == image.digest
    for digest, data in image.blobs.items():
        assert (out / digest.removeprefix("sha256:")).read_bytes() == data
    for child in image.children:
        file = out / f"{child.removeprefix('sha256:')}.manifest.json"
        assert sha256(file.read_bytes()) == child


def transfers(requests: list[Request]) -> list[Request]:
    """The requests that move content: everything but HEAD."""
    return [request for request in requests if request.method != "HEAD"]


def test_images_arrive_and_a_second_start_moves_nothing(
    setup: Setup, cluster: Cluster, source: DockerRegistry, tmp_path: Path
) -> None:
    """Every image arrives with all its platforms; what the target then holds can be fetched without the source.

    A second start asks whether copies and tags still hold, and reads and writes nothing.
    """
    config = setup.config(source.address)
    with setup.copycat(config) as program:
        images = program.wait_states(cluster.protected)
        for name, image in cluster.images.items():
            assert images[cluster.reference(name)]["digest"] == image.digest
        assert program.terminate() == 0
    at_source, at_target = source.position(), setup.target.position()
    with setup.copycat(config) as program:
        program.wait_states(cluster.protected)
        assert program.terminate() == 0
    assert transfers(source.requests(start=at_source)) == []
    assert transfers(setup.target.requests(start=at_target)) == []
    source.stop()
    for name, image in cluster.images.items():
        assert_whole(setup.target, name, image, tmp_path)


def test_a_shared_blob_is_read_once(setup: Setup, cluster: Cluster, source: DockerRegistry) -> None:
    """Blobs that several images share leave the source once, however many images are copied side by side."""
    before = source.position()
    with setup.copycat(setup.config(source.address)) as program:
        program.wait_states(cluster.protected)
    read = [r.blob for r in source.requests(start=before) if r.method == "GET" and r.blob]
    assert sorted(read) == sorted(
        {blob for image in cluster.images.values() for blob in image.blobs}
    )


def test_with_the_source_gone_the_copies_stand(
    setup: Setup, cluster: Cluster, source: DockerRegistry
) -> None:
    """Restarted with every source down: all images protected with unknown freshness, ready, nothing cooling down."""
    config = setup.config(source.address)
    with setup.copycat(config) as program:
        program.wait_states(cluster.protected)
    source.stop()
    with setup.copycat(config) as program:
        # The attempt comes to its end at each image, and only then says since when nothing is known.
        images = program.wait_states(cluster.protected)
        program.wait_ready()
        assert all(image["protected"] for image in images.values())
        until(
            lambda: all(i.get("unknownSince") for i in program.images().values()),
            "unknown freshness",
        )
        answer = program.reset_cooldown()
        assert answer["clearedTargets"] == 0


def test_annotating_and_scaling_cost_nothing(
    setup: Setup, cluster: Cluster, workloads: Workloads, source: DockerRegistry
) -> None:
    """Metadata, status and scale are no change: no registry is asked about images that are known."""
    with setup.copycat(setup.config(source.address)) as program:
        program.wait_states(cluster.protected)
        at_source, at_target = source.position(), setup.target.position()
        for pod in workloads.scale("app", 6):
            workloads.annotate("pod", pod, "seen")
        workloads.annotate("deployment", "app", "seen")
        workloads.annotate("cronjob", "nightly", "seen")
        # One of each kind with a new image: when they are there, everything before them was looked at.
        last = push(single_image("last"), source.address, "last/one", "1")
        workloads.deployment("last", f"{source.address}/last/one:1")
        workloads.cron_job("last", f"{source.address}/last/one@{last}")
        workloads.pod("last", f"{source.address}/last/one:1")
        wanted = {
            f"{source.address}/last/one:1": "protected",
            f"{source.address}/last/one@{last}": "protected",
        }
        program.wait_states(wanted)
    after = source.requests(start=at_source) + setup.target.requests(start=at_target)
    assert [r for r in after if "/last/one/" not in r.path] == []


def test_a_tag_that_moves(setup: Setup, cluster: Cluster, source: DockerRegistry) -> None:
    """When a tag means something new at the source, the copy's tag follows and the old content keeps its anchor."""
    old, new = cluster.images[APP], library_image(salt="app, next build")
    with setup.copycat(setup.config(source.address)) as program:
        program.wait_states(cluster.protected)
        push(new, source.address, repository(APP), tag(APP))
        answer = program.force_reconcile()
        assert answer["success"] is True
        assert program.images()[cluster.reference(APP)]["digest"] == new.digest
    tags = setup.target.digests("mirror/team/app")
    assert tags == {tag(APP): new.digest, new.anchor: new.digest, old.anchor: old.digest}


@contextlib.contextmanager
def halfway(
    setup: Setup, source: DockerRegistry, workloads: Workloads
) -> Iterator[tuple[Copycat, SlowLine, Image]]:
    """The program in the middle of a copy: the small layers are at the target, the big one is under way."""
    image = bulky_image(100_000, 200_000, 300_000, 24 * MIB)
    push(image, source.address, "big/data", "1")
    with SlowLine(source.port, rate=1 * MIB) as line:
        workloads.pod("big", f"{line.address}/big/data:1")
        with setup.copycat(setup.config(line.address)) as program:
            until(lambda: len(committed(setup.target)) >= 3, "three blobs at the target")
            assert len(committed(setup.target)) < len(image.blobs)
            yield program, line, image


def committed(target: DockerRegistry, *, start: int = 0) -> list[str]:
    """The blobs whose upload the target has answered with 201."""
    asked = target.requests(start=start)
    return [r.blob for r in asked if r.writes and r.status == 201 and r.blob]


def test_killed_in_the_middle(setup: Setup, source: DockerRegistry, workloads: Workloads) -> None:
    """kill -9 during a copy: the next start completes it, and sends no blob again that was finished."""
    with halfway(setup, source, workloads) as (program, line, image):
        program.kill()
        assert setup.target.digests("mirror/big/data") == {}
        finished = set(committed(setup.target))
        at_source, at_target = source.position(), setup.target.position()
        line.rate = None
        program.start()
        program.wait_states({f"{line.address}/big/data:1": "protected"})
    assert finished.isdisjoint(committed(setup.target, start=at_target))
    read = {r.blob for r in source.requests(start=at_source) if r.method == "GET"}
    assert finished.isdisjoint(read)
    assert setup.target.digests("mirror/big/data") == {
        "1": image.digest,
        image.anchor: image.digest,
    }


def test_stopped_in_the_middle(setup: Setup, source: DockerRegistry, workloads: Workloads) -> None:
    """SIGTERM during a copy that cannot end in time: exit 0 within the grace period, and no tag that points to half."""
    with halfway(setup, source, workloads) as (program, _, _):
        code = program.terminate(patience=30)
    assert code == 0
    assert setup.target.digests("mirror/big/data") == {}


def test_stopped_shortly_before_the_end(
    setup: Setup, source: DockerRegistry, workloads: Workloads
) -> None:
    """SIGTERM during a copy that can end in time: it ends, the tag is there, exit 0."""
    with halfway(setup, source, workloads) as (program, line, image):
        program.process.terminate()
        line.rate = None
        code = program.ended()
    assert code == 0
    assert setup.target.digests("mirror/big/data") == {
        "1": image.digest,
        image.anchor: image.digest,
    }
