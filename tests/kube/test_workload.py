"""What becomes of the API server's objects: images, owners, and when two of them count as equal."""

from __future__ import annotations

import json
import sys
import tracemalloc
from typing import Any

import msgspec
import pytest

from copycat.kube.workload import KINDS, Workload, project, read, resolve_owner

POD = KINDS["pods"]


def encode(document: dict[str, Any]) -> bytes:
    """JSON as the API server writes it."""
    return json.dumps(document, separators=(",", ":")).encode()


def pod(name: str = "web-1", **parts: Any) -> dict[str, Any]:
    """A Pod; `metadata`, `spec` and `status` are merged into a plain one."""
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", **parts.get("metadata", {})},
        "spec": {"containers": [{"name": "app", "image": "nginx:1.27"}], **parts.get("spec", {})},
    }
    if "status" in parts:
        document["status"] = parts["status"]
    return document


def owned(kind: str, name: str, *, controller: bool = True) -> dict[str, Any]:
    """A metadata part with one owner."""
    return {"ownerReferences": [{"kind": kind, "name": name, "controller": controller}]}


def templated(resource: str, **metadata: Any) -> dict[str, Any]:
    """An object of a kind that has a pod template."""
    template: dict[str, Any] = {
        "metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "app", "image": "nginx:1.27"}]},
    }
    spec: dict[str, Any] = {"template": template}
    if resource == "cronjobs":
        spec = {"schedule": "@daily", "jobTemplate": {"spec": spec}}
    kind = KINDS[resource].kind
    return {
        "kind": kind,
        "metadata": {"name": "thing", "namespace": "shop", **metadata},
        "spec": spec,
    }


def must(document: dict[str, Any], resource: str = "pods") -> Workload:
    """The workload of a document that has one."""
    workload = project(KINDS[resource])(encode(document))
    assert workload is not None
    return workload


def owner(workload: Workload) -> tuple[str, str]:
    """The top owner."""
    return workload.owner_kind, workload.owner_name


@pytest.mark.parametrize("resource", sorted(KINDS))
def test_every_kind_has_its_images_and_its_path(resource: str) -> None:
    """Each of the six kinds yields the image of its pod template and knows where it is served."""
    kind = KINDS[resource]
    document = pod("thing") if resource == "pods" else templated(resource)
    workload = must(document, resource)
    assert (workload.kind, workload.namespace, workload.name) == (kind.kind, "shop", "thing")
    assert [i.image for i in workload.images] == ["nginx:1.27"]
    assert owner(workload) == (kind.kind, "thing")
    assert kind.path().endswith(f"/{resource}")
    assert kind.path("shop").endswith(f"/namespaces/shop/{resource}")


def test_paths_are_those_of_the_api() -> None:
    """Core, apps and batch are served where Kubernetes serves them."""
    assert KINDS["pods"].path() == "/api/v1/pods"
    assert KINDS["deployments"].path("a") == "/apis/apps/v1/namespaces/a/deployments"
    assert KINDS["cronjobs"].path() == "/apis/batch/v1/cronjobs"
    assert KINDS["pods"].field_selector == "status.phase!=Succeeded,status.phase!=Failed"


def test_every_place_of_an_image_counts() -> None:
    """Init, plain and ephemeral containers and image volumes are found, in this order, with their names."""
    spec = {
        "initContainers": [{"name": "init", "image": "busybox"}],
        "containers": [{"name": "app", "image": "nginx"}, {"name": "webhook"}],
        "ephemeralContainers": [{"name": "debug", "image": "alpine"}],
        "volumes": [
            {"name": "model", "image": {"reference": "quay.io/models/x:1", "pullPolicy": "Always"}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "odd", "image": {}},
        ],
        "imagePullSecrets": [{"name": "hub"}, {}],
        "serviceAccountName": "runner",
        "nodeName": "node-1",
    }
    workload = must(pod(spec=spec))
    assert [(i.container, i.image) for i in workload.images] == [
        ("init", "busybox"),
        ("app", "nginx"),
        ("debug", "alpine"),
        ("model", "quay.io/models/x:1"),
    ]
    assert workload.pull_secrets == ("hub",)
    assert (workload.service_account, workload.node) == ("runner", "node-1")


def test_what_the_kubelet_says_is_kept_per_container() -> None:
    """imageID, running since when, and a failing pull belong to their container."""
    status = {
        "phase": "Running",
        "initContainerStatuses": [
            {
                "name": "init",
                "imageID": "docker.io/library/busybox@sha256:aa",
                "state": {"terminated": {}},
            }
        ],
        "containerStatuses": [
            {
                "name": "app",
                "imageID": "docker.io/library/nginx@sha256:bb",
                "image": "docker.io/library/nginx:1.27",
                "state": {"running": {"startedAt": "2024-01-01T00:00:10Z"}},
            },
            {"name": "side", "imageID": "", "state": {"waiting": {"reason": "ImagePullBackOff"}}},
            {"name": "new", "state": {"waiting": {"reason": "ContainerCreating"}}},
            {"name": "odd", "imageID": "x", "state": {"running": {}}},
            {"name": "bare"},
        ],
        "ephemeralContainerStatuses": [{"name": "debug", "imageID": "sha256:cc", "state": {}}],
    }
    names = ["app", "side", "new", "odd", "bare"]
    spec = {
        "initContainers": [{"name": "init", "image": "busybox"}],
        "containers": [{"name": n, "image": n} for n in names],
        "ephemeralContainers": [{"name": "debug", "image": "alpine"}],
    }
    workload = must(pod(spec=spec, status=status))
    found = {i.container: i for i in workload.images}
    assert found["init"].image_id == "docker.io/library/busybox@sha256:aa"
    assert not found["init"].running
    assert (found["app"].running, found["app"].started) == (True, 1704067210.0)
    assert (found["odd"].running, found["odd"].started) == (True, 0.0)
    assert [n for n in names if found[n].failing_to_pull] == ["side"]
    assert found["debug"].image_id == "sha256:cc"
    assert workload.phase == "Running"
    assert workload.failing_to_pull
    assert not must(pod()).failing_to_pull


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_finished_pods_are_no_workload(phase: str) -> None:
    """A Pod that has finished counts as gone even where the server ignores the field selector."""
    assert project(POD)(encode(pod(status={"phase": phase}))) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b"{}",
        encode({"metadata": {"name": 1}}),
        encode({"metadata": {}, "spec": {"containers": "x"}}),
    ],
    ids=["truncated", "array", "no metadata", "name is a number", "containers is text"],
)
def test_an_object_that_cannot_be_decoded_stops_nothing(raw: bytes) -> None:
    """`project` takes it for absent, `read` says what is wrong."""
    assert project(POD)(raw) is None
    with pytest.raises(msgspec.DecodeError):
        read(POD, raw)


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": {"name": "x"}},
        {"metadata": {"name": "x"}, "spec": {}},
        {"metadata": {"name": "x"}, "spec": {"template": {}}},
        {"metadata": {"name": "x"}, "spec": {"template": {"spec": {"containers": None}}}},
    ],
    ids=["no spec", "no template", "no pod spec", "null"],
)
def test_a_template_may_be_empty(document: dict[str, Any]) -> None:
    """Missing and null parts mean no images, not an error."""
    assert must(document, "deployments").images == ()


def test_a_pod_may_be_empty() -> None:
    """A Pod without spec and status is a Pod without images."""
    assert must({"metadata": {"name": "x"}}).images == ()


def test_raw_messages_are_accepted() -> None:
    """The informer hands over the undecoded part of an envelope as it is."""
    assert project(POD)(msgspec.Raw(encode(pod()))) == must(pod())


class TestChange:
    """What makes a workload another one."""

    @pytest.mark.parametrize("resource", sorted(set(KINDS) - {"pods"}))
    def test_metadata_status_and_scale_are_no_change(self, resource: str) -> None:
        """Annotating, scaling, suspending and status leave the workload equal."""
        before = templated(resource, resourceVersion="1")
        after = templated(resource, resourceVersion="2", annotations={"a": "b"}, labels={"c": "d"})
        after["spec"] |= {"replicas": 5, "suspend": True}
        after["status"] = {"readyReplicas": 5}
        assert must(before, resource) == must(after, resource)

    def test_the_templates_bytes_are_the_change(self) -> None:
        """Anything in the pod template, even a restart annotation, changes the fingerprint."""
        before, after = templated("deployments"), templated("deployments")
        after["spec"]["template"]["metadata"]["annotations"] = {"restartedAt": "now"}
        first, second = must(before, "deployments"), must(after, "deployments")
        assert first.fingerprint != second.fingerprint
        assert first != second

    def test_an_annotated_pod_is_no_change(self) -> None:
        """A Pod's metadata and conditions leave it equal."""
        after = pod(
            metadata={"annotations": {"a": "b"}, "labels": {"x": "y"}, "resourceVersion": "9"}
        )
        assert must(pod()) == must(after)

    def test_a_running_digest_is_a_change_and_a_restart_is_none(self) -> None:
        """The imageID changes the fingerprint; that the container runs is told apart from it."""

        def state(image_id: str, state: dict[str, Any]) -> Workload:
            entry = {"name": "app", "imageID": image_id, "state": state}
            return must(pod(status={"phase": "Running", "containerStatuses": [entry]}))

        running = state("a@sha256:1", {"running": {"startedAt": "2024-01-01T00:00:00Z"}})
        crashed = state("a@sha256:1", {"waiting": {"reason": "CrashLoopBackOff"}})
        moved = state("a@sha256:2", {"running": {"startedAt": "2024-01-01T00:00:00Z"}})
        assert running.fingerprint == crashed.fingerprint
        assert running != crashed
        assert running.fingerprint != moved.fingerprint

    def test_a_pods_new_image_is_a_change(self) -> None:
        """A Pod's image may be patched in place."""
        after = pod(spec={"containers": [{"name": "app", "image": "nginx:1.28"}]})
        assert must(pod()).fingerprint != must(after).fingerprint


class TestOwners:
    """Who a Pod belongs to, found without asking for ReplicaSets."""

    @pytest.mark.parametrize(
        ("metadata", "expected"),
        [
            ({}, ("Pod", "web-1")),
            (owned("ReplicaSet", "web-5d4f"), ("ReplicaSet", "web-5d4f")),
            (
                owned("ReplicaSet", "web-5d4f") | {"labels": {"pod-template-hash": "5d4f"}},
                ("Deployment", "web"),
            ),
            (
                owned("ReplicaSet", "web-5d4f") | {"labels": {"app": "web"}},
                ("ReplicaSet", "web-5d4f"),
            ),
            (
                owned("ReplicaSet", "web-5d4f") | {"labels": {"pod-template-hash": "other"}},
                ("ReplicaSet", "web-5d4f"),
            ),
            (owned("StatefulSet", "db"), ("StatefulSet", "db")),
            (owned("StatefulSet", "db-bcdfg"), ("StatefulSet", "db-bcdfg")),
            (owned("DaemonSet", "agent"), ("DaemonSet", "agent")),
            (owned("Job", "nightly-28000001"), ("CronJob", "nightly")),
            (owned("Job", "nightly-1680000060"), ("CronJob", "nightly")),
            (owned("Job", "migrate-2"), ("Job", "migrate-2")),
            (owned("Workflow", "build"), ("Workflow", "build")),
            (owned("Workflow", "build-x7k2p"), ("Workflow", "build")),
            (owned("ReplicationController", "old", controller=False), ("Pod", "web-1")),
            ({"generateName": "web-"}, ("Pod", "web")),
            ({"generateName": "other-"}, ("Pod", "web-1")),
        ],
        ids=[
            "alone",
            "ReplicaSet without label",
            "Deployment",
            "ReplicaSet with other labels",
            "label of another hash",
            "StatefulSet",
            "StatefulSet that looks generated",
            "DaemonSet",
            "CronJob minutes",
            "CronJob seconds",
            "Job",
            "other controller",
            "generated controller",
            "owner that is no controller",
            "generated Pod",
            "renamed Pod",
        ],
    )
    def test_top_owner_of_a_pod(self, metadata: dict[str, Any], expected: tuple[str, str]) -> None:
        """Each way of owning a Pod leads to the name that people know."""
        workload = must(pod(metadata=metadata))
        assert owner(workload) == expected
        resolved = resolve_owner(workload, {})
        assert (resolved.owner_kind, resolved.owner_name) == expected

    @pytest.mark.parametrize(
        "metadata",
        [
            {"annotations": {"kubernetes.io/config.mirror": "abc"}},
            owned("Node", "node-1"),
        ],
        ids=["mirror annotation", "owned by its node"],
    )
    def test_static_pods_lose_their_nodes_name(self, metadata: dict[str, Any]) -> None:
        """The same static Pod on every node is one workload."""
        workload = must(pod("etcd-node-1", metadata=metadata, spec={"nodeName": "node-1"}))
        assert owner(workload) == ("Pod", "etcd")
        assert workload.name == "etcd-node-1"

    def test_all_owners_are_kept(self) -> None:
        """The direct controller stands first: skip lists name any of them."""
        workload = must(pod(metadata=owned("Job", "nightly-28000001")))
        assert workload.owners == (("Job", "nightly-28000001"), ("CronJob", "nightly"))

    @pytest.mark.parametrize(
        ("metadata", "expected"),
        [
            (owned("CronJob", "nightly"), ("CronJob", "nightly")),
            (owned("CronJob", "nightly", controller=False), ("CronJob", "nightly")),
            (owned("ScaledJob", "worker"), ("ScaledJob", "worker")),
            (owned("Release", "x", controller=False), ("Job", "thing")),
            ({"name": "hook-abcde", "generateName": "hook-"}, ("Job", "hook")),
            ({}, ("Job", "thing")),
        ],
        ids=[
            "CronJob",
            "kubectl --from",
            "other controller",
            "no controller",
            "generated",
            "alone",
        ],
    )
    def test_top_owner_of_a_job(self, metadata: dict[str, Any], expected: tuple[str, str]) -> None:
        """3,000 Jobs of one CronJob are one name."""
        assert owner(must(templated("jobs", **metadata), "jobs")) == expected

    def test_a_deployment_of_an_operator_is_itself(self) -> None:
        """Its Pods lead to the Deployment, so it must not lead further."""
        metadata = owned("Cluster", "pg")
        assert owner(must(templated("deployments", **metadata), "deployments")) == (
            "Deployment",
            "thing",
        )

    def test_the_watched_job_knows_better_than_the_name(self) -> None:
        """A Job by hand from a CronJob, and one whose name only looks scheduled, are told right."""
        jobs = {
            ("shop", "manual"): ("CronJob", "nightly"),
            ("shop", "import-20240115"): ("Job", "import-20240115"),
            ("shop", "hook-abcde"): ("Job", "hook"),
        }
        manual = resolve_owner(must(pod(metadata=owned("Job", "manual"))), jobs)
        dated = resolve_owner(must(pod(metadata=owned("Job", "import-20240115"))), jobs)
        hook = resolve_owner(must(pod(metadata=owned("Job", "hook-abcde"))), jobs)
        assert manual.owners == (("Job", "manual"), ("CronJob", "nightly"))
        assert dated.owners == (("Job", "import-20240115"),)
        assert owner(dated) == ("Job", "import-20240115")
        assert hook.owners == (("Job", "hook-abcde"), ("Job", "hook"))

    def test_what_is_known_already_stays(self) -> None:
        """Workloads that no Job controls, or whose owner is right, are handed back as they are."""
        jobs = {("shop", "nightly-28000001"): ("CronJob", "nightly")}
        for metadata in ({}, owned("Job", "nightly-28000001"), owned("Job", "unknown")):
            workload = must(pod(metadata=metadata))
            assert resolve_owner(workload, jobs) is workload
        job = must(templated("jobs", **owned("CronJob", "nightly")), "jobs")
        assert resolve_owner(job, jobs) is job


def test_equal_texts_are_stored_once() -> None:
    """Two Pods of one image share its texts, whatever buffers they came from."""
    first, second = must(pod("a")).images[0], must(pod("b")).images[0]
    assert first.image is second.image
    assert first.image is sys.intern("nginx:1.27")


def test_a_pod_takes_little_memory() -> None:
    """A Pod of two containers with status keeps less than 1.5 KiB, its store entry included."""
    digest = "docker.io/library/nginx@sha256:" + "a" * 64

    def raw(number: int) -> bytes:
        names = ["app", "proxy"]
        statuses = [
            {
                "name": n,
                "imageID": digest,
                "state": {"running": {"startedAt": "2024-01-01T00:00:00Z"}},
            }
            for n in names
        ]
        metadata = owned("ReplicaSet", "web-5d4f") | {"labels": {"pod-template-hash": "5d4f"}}
        spec = {"containers": [{"name": n, "image": "nginx:1.27"} for n in names], "nodeName": "n"}
        status = {"phase": "Running", "containerStatuses": statuses}
        return encode(pod(f"web-5d4f-{number}", metadata=metadata, spec=spec, status=status))

    bodies = [raw(n) for n in range(2000)]
    read_pod = project(POD)
    tracemalloc.start()
    store = {("shop", f"{n}"): read_pod(body) for n, body in enumerate(bodies)}
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(store) < 1536
