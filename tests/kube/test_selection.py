"""The lists of the configuration that say what is mirrored and which registries are left alone."""

from __future__ import annotations

import pytest

from copycat.kube.selection import Selection
from copycat.kube.workload import KINDS, Owner, Workload
from copycat.oci.reference import Reference


def workload(
    kind: str = "Deployment",
    name: str = "web",
    *,
    namespace: str = "shop",
    owners: tuple[Owner, ...] = (),
) -> Workload:
    """A workload without images."""
    top = owners[-1] if owners else (kind, name)
    return Workload(
        kind=kind,
        namespace=namespace,
        name=name,
        owner_kind=top[0],
        owner_name=top[1],
        owners=owners,
    )


@pytest.mark.parametrize(
    ("include", "skip", "namespace", "admitted"),
    [
        (("*",), (), "shop", True),
        ((), (), "shop", True),
        (("shop",), (), "shop", True),
        (("shop",), (), "shop-2", False),
        (("shop",), (), "a-shop", False),
        (("team-*",), (), "team-a", True),
        (("team-*",), (), "team-", True),
        (("team-*",), (), "my-team-a", False),
        (("team-?",), (), "team-a", True),
        (("team-?",), (), "team-ab", False),
        (("*",), ("kube-*",), "kube-system", False),
        (("shop",), ("shop",), "shop", False),
        ((" shop ", ""), (), "shop", True),
        (("a.b",), (), "axb", False),
        (("[st]hop",), (), "shop", False),
    ],
)
def test_namespaces(
    include: tuple[str, ...], skip: tuple[str, ...], namespace: str, *, admitted: bool
) -> None:
    """Names and wildcards of whole namespaces; skipping wins; only `*` and `?` are special."""
    selection = Selection(include_namespaces=include, skip_namespaces=skip)
    assert selection.admits(workload(namespace=namespace)) is admitted


@pytest.mark.parametrize("resource", sorted(KINDS))
@pytest.mark.parametrize("entry", ["web", "shop/web", "*", "shop/*", "we?", " web "])
def test_every_kind_can_be_skipped_by_name(resource: str, entry: str) -> None:
    """`name`, `namespace/name` and `*` skip an object of that kind."""
    selection = Selection(skip_names={resource: (entry,)})
    assert not selection.admits(workload(KINDS[resource].kind))


@pytest.mark.parametrize("entry", ["we", "web2", "other/web", "", "/web"])
def test_other_names_are_not_skipped(entry: str) -> None:
    """An entry names a whole object, in its namespace."""
    assert Selection(skip_names={"deployments": (entry,)}).admits(workload())


def test_a_list_is_of_its_kind_alone() -> None:
    """Skipping StatefulSets called web leaves the Deployment called web."""
    assert Selection(skip_names={"statefulSets": ("web",)}).admits(workload())


def test_resources_are_written_in_any_case() -> None:
    """The configuration's own spelling works as it is."""
    assert not Selection(skip_names={"statefulSets": ("web",)}).admits(workload("StatefulSet"))


@pytest.mark.parametrize(
    ("skip", "admitted"),
    [
        ({"pods": ("nightly-28000001-x",)}, False),
        ({"jobs": ("nightly-28000001",)}, False),
        ({"cronjobs": ("nightly",)}, False),
        ({"cronjobs": ("shop/nightly",)}, False),
        ({"jobs": ("nightly",)}, True),
        ({"deployments": ("*",)}, True),
    ],
    ids=["itself", "its Job", "its CronJob", "with namespace", "not its Job", "another kind"],
)
def test_a_pod_is_skipped_with_any_of_its_owners(
    skip: dict[str, tuple[str, ...]], *, admitted: bool
) -> None:
    """A Pod of a skipped Job or of a skipped CronJob is skipped."""
    owners = (("Job", "nightly-28000001"), ("CronJob", "nightly"))
    pod = workload("Pod", "nightly-28000001-x", owners=owners)
    assert Selection(skip_names=skip).admits(pod) is admitted


def test_owners_of_unwatched_kinds_are_no_obstacle() -> None:
    """A Pod of an operator's resource is admitted."""
    pod = workload("Pod", "x", owners=(("Workflow", "build"),))
    assert Selection(skip_names={"jobs": ("*",)}).admits(pod)


@pytest.mark.parametrize(
    ("entry", "image", "matches"),
    [
        ("quay.io", "quay.io/team/app:1", True),
        ("quay.io", "quay.io.example.com/team/app", False),
        ("quay.io/", "quay.io/team/app", True),
        ("QUAY.io", "quay.io/team/app", True),
        ("https://quay.io", "quay.io/team/app", True),
        ("quay.io/team", "quay.io/team/app", True),
        ("quay.io/team", "quay.io/team", True),
        ("quay.io/team", "quay.io/team-b/app", False),
        ("quay.io/team/app", "quay.io/team", False),
        ("localhost", "localhost/app", True),
        ("registry.local:5000", "registry.local:5000/app", True),
        ("registry.local", "registry.local:5000/app", False),
        ("docker.io", "alpine", True),
        ("docker.io", "quay.io/alpine", False),
        ("index.docker.io", "alpine", True),
        ("registry-1.docker.io", "docker.io/bitnami/redis", True),
        ("docker.io", "index.docker.io/library/alpine", True),
        ("docker.io/library", "alpine", True),
        ("docker.io/alpine", "alpine:3", True),
        ("docker.io/alpine", "docker.io/alpine/git", True),
        ("bitnami", "bitnami/redis", True),
        ("bitnami", "quay.io/bitnami/redis", False),
        ("quay.io/alpine", "quay.io/library/alpine", False),
    ],
)
def test_registries_match_at_segment_boundaries(entry: str, image: str, *, matches: bool) -> None:
    """A host, or a host and a path; Docker Hub in every spelling. Both lists match alike."""
    reference = Reference.parse(image)
    assert Selection(exclude_registries=(entry,)).excluded(reference) is matches
    assert Selection(allowed_registries=(entry,)).allowed(reference) is matches


def test_empty_lists_exclude_nothing_and_allow_all() -> None:
    """Without lists every registry is mirrored."""
    reference = Reference.parse("quay.io/team/app")
    assert not Selection().excluded(reference)
    assert Selection().allowed(reference)


@pytest.mark.parametrize(
    ("include", "skip", "literal"),
    [
        (("*",), (), None),
        ((), (), None),
        (("shop", "team-*"), (), None),
        (("shop", "team-?"), (), None),
        (("shop", "bank", "shop"), (), ("bank", "shop")),
        (("shop", "bank"), ("b*",), ("shop",)),
    ],
    ids=["all", "empty", "star", "question mark", "names", "skipped"],
)
def test_literal_namespaces(
    include: tuple[str, ...], skip: tuple[str, ...], literal: tuple[str, ...] | None
) -> None:
    """Only a list of plain names can be watched namespace by namespace."""
    selection = Selection(include_namespaces=include, skip_namespaces=skip)
    assert selection.literal_namespaces() == literal


def test_equal_lists_are_equal_selections() -> None:
    """What is derived from the lists takes no part in comparing or printing."""
    assert Selection(skip_namespaces=("a",)) == Selection(skip_namespaces=("a",))
    assert Selection() != Selection(skip_namespaces=("a",))
    assert "_included" not in repr(Selection())
