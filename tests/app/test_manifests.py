"""Workloads from files."""

from __future__ import annotations

import json
import time

import pytest

from copycat.app.manifests import ManifestFile, read_files, read_manifests
from copycat.errors import ConfigError

POD = {
    "kind": "Pod",
    "apiVersion": "v1",
    "metadata": {"name": "p"},
    "spec": {"containers": [{"name": "c", "image": "a:1"}]},
}
CRON = """\
kind: CronJob
metadata: {name: c, namespace: ops}
spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: c, image: "b:1"}]}}}}}
"""


def test_documents_lists_and_json() -> None:
    """YAML documents, List objects (nested too) and JSON give their workloads; other kinds are passed over."""
    nested = {"kind": "List", "items": [POD, {"kind": "PodList", "items": [POD]}, None]}
    text = f"{json.dumps(nested)}\n---\n{CRON}---\nkind: ConfigMap\n---\n# a comment\n---\n{{}}\n"
    found = read_manifests(text.encode(), origin="m")
    assert [(w.kind, w.namespace, w.images[0].image) for w in found] == [
        ("Pod", "default", "a:1"),
        ("Pod", "default", "a:1"),
        ("CronJob", "ops", "b:1"),
    ]


@pytest.mark.parametrize("kind", ["Pod", "Job"])
def test_a_name_that_is_not_generated_yet(kind: str) -> None:
    """`generateName` gives the name that the placeholders of the prefix get, as it does in the cluster."""
    spec = POD["spec"] if kind == "Pod" else {"template": {"spec": POD["spec"]}}
    item = {"kind": kind, "metadata": {"generateName": "migrate-"}, "spec": spec}
    found = read_manifests(json.dumps(item).encode(), origin="m")
    names = [(w.name, w.owner_name) for w in found]
    assert names == [("migrate", "migrate")]


def test_json_is_read_as_json() -> None:
    """A large `kubectl get -o json` takes moments: it is no YAML until it fails as JSON, as two documents do."""
    items = [
        {**POD, "metadata": {"name": f"p{n}", "labels": {"x": "y" * 999}}} for n in range(5000)
    ]
    started = time.perf_counter()
    text = json.dumps({"kind": "List", "items": items}).encode()
    assert len(read_manifests(text, origin="m")) == 5000
    assert time.perf_counter() - started < 2
    two = f"{json.dumps(POD)}\n---\n{json.dumps(POD)}"
    assert len(read_manifests(two.encode(), origin="m")) == 2


def test_objects_of_one_name() -> None:
    """Two objects of one kind, namespace and name do not hide each other's images, also over several files."""
    jobs = [
        {
            "kind": "Job",
            "metadata": {"generateName": "run-"},
            "spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}},
        }
        for image in ("a:1", "b:1", "a:1", "no image")
    ]
    files = [ManifestFile(name="x", text=json.dumps(job).encode()) for job in [*jobs, POD]]
    found = read_files([*files, ManifestFile(name="cron", text=CRON.encode())])
    assert [(w.kind, [i.image for i in w.images]) for w in found] == [
        ("Job", ["a:1", "b:1", "no image"]),
        ("Pod", ["a:1"]),
        ("CronJob", ["b:1"]),
    ]


def test_items_of_a_typed_list() -> None:
    """A list as the API answers it: a PodList's items do not repeat their kind."""
    item = {"metadata": {"name": "p", "namespace": "n"}, "spec": POD["spec"]}
    for text in ({"kind": "PodList", "items": [item]}, {"kind": "List", "items": [item]}):
        found = read_manifests(json.dumps(text).encode(), origin="m")
        assert [w.images[0].image for w in found] == ["a:1"] * (text["kind"] == "PodList")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(b"a: [", "line", id="yaml"),
        pytest.param(b"\xff\xfe\xff", "not readable", id="bytes"),
        pytest.param(b'{"kind": "Pod",,}', "not readable as YAML or JSON at line 1", id="json"),
        pytest.param(b"kind: Pod\non: 2020-02-31", "not readable", id="no date"),
        pytest.param(b"[" * 5_000, "not readable", id="nested"),
        pytest.param(b'{"a":' * 5_000, "not readable", id="nested json"),
        pytest.param(b"---\n---\njust text", "document 2 is no Kubernetes object", id="text"),
        pytest.param(b"[1, 2]", "document 1 is no Kubernetes object", id="array"),
        pytest.param(b"image: {tag: 1}", "it has no kind", id="values"),
        pytest.param(b"kind: Pod\nspec: 7\nmetadata: {name: x}", "Pod x", id="type"),
        pytest.param(b"kind: Pod\nspec: 7\nmetadata: 7", "is not a Pod", id="metadata"),
        pytest.param(
            b"kind: Pod\nmetadata: {name: x}\nspec: {containers: 7}", "is not a Pod", id="list"
        ),
    ],
)
def test_what_cannot_be_read(text: bytes, words: str) -> None:
    """A text that is no YAML, or an object of wrong shape, is a ConfigError that names the file."""
    with pytest.raises(ConfigError) as caught:
        read_manifests(text, origin="manifest 3")
    assert words in str(caught.value)
    assert "manifest 3" in str(caught.value)
