"""What the inventory makes of workloads."""

from __future__ import annotations

from copycat.controller.inventory import EXTRA, Cause, Inventory, Platforms
from copycat.kube.owners import Owner
from copycat.kube.selection import Selection
from copycat.kube.workload import ContainerImage, Workload
from copycat.mirror.naming import Naming
from copycat.mirror.request import MirrorRequest
from copycat.oci.digest import Digest
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference

TARGET = "mirror.example"
APP = "quay.io/team/app:1"
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
AMD, ARM = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")


def inventory(prefix: str = "", platforms: Platforms | None = None, **lists: object) -> Inventory:
    """An inventory with a clock that stands at 100."""
    return Inventory(
        selection=Selection(**lists),  # type: ignore[arg-type] # the lists of the test
        naming=Naming(prefix=prefix),
        target_registry=TARGET,
        platforms=platforms,
        clock=lambda: 100.0,
    )


def workload(
    kind: str,
    name: str,
    *images: ContainerImage | str,
    namespace: str = "shop",
    owners: tuple[Owner, ...] = (),
    node: str = "",
    fingerprint: int = 0,
) -> Workload:
    """A workload with containers c0, c1, …"""
    owner_kind, owner_name = owners[-1] if owners else (kind, name)
    return Workload(
        kind=kind,
        namespace=namespace,
        name=name,
        owner_kind=owner_kind,
        owner_name=owner_name,
        owners=owners,
        node=node,
        fingerprint=fingerprint,
        images=tuple(
            ContainerImage(container=f"c{n}", image=i) if isinstance(i, str) else i
            for n, i in enumerate(images)
        ),
    )


def runs(digest: Digest, *, name: str = "quay.io/team/app", at: float = 1.0) -> ContainerImage:
    """A container that runs."""
    image_id = f"{name}@{digest}" if name else str(digest)
    return ContainerImage(container="c0", image=APP, image_id=image_id, running=True, started=at)


def only(known: Inventory) -> MirrorRequest:
    """The one request."""
    (request,) = known.entries
    return request


def test_causes_of_a_template() -> None:
    """A new template is new, the same again is nothing, other bytes are a change."""
    known = inventory()
    first = workload("Deployment", "app", APP, fingerprint=1)
    assert known.observe(None, first) == {only(known): Cause.NEW}
    assert known.observe(first, first) == {}
    changed = workload("Deployment", "app", APP, fingerprint=2)
    assert known.observe(first, changed) == {only(known): Cause.CHANGED}
    assert known.observe(None, None) == {}
    assert known.workloads() == 1


def test_causes_of_a_pod() -> None:
    """A Pod tells digests, that a container runs, and that a kubelet cannot pull, each once."""
    known = inventory()
    waits = workload("Pod", "p", APP)
    assert known.observe(None, waits) == {known_request(): Cause.NEW | Cause.DIGEST}
    bad = workload("Pod", "p", ContainerImage(container="c0", image=APP, failing_to_pull=True))
    assert known.observe(waits, bad) == {known_request(): Cause.FAILING}
    assert known.failing(known_request())
    assert known.observe(bad, bad) == {}
    good = workload("Pod", "p", runs(ONE), fingerprint=1)
    assert known.observe(bad, good) == {known_request(): Cause.DIGEST | Cause.RUNNING}
    assert not known.failing(known_request())


def known_request() -> MirrorRequest:
    """The request that `APP` means without a prefix."""
    reference = Reference.parse(APP)
    return MirrorRequest(reference, Naming().repository(reference))


def test_running_digests() -> None:
    """Newest first, each once by its best report; another name or a bare digest is uncertain."""
    known = inventory()
    known.observe(None, workload("Pod", "a", runs(ONE, name="", at=9)))
    known.observe(None, workload("Pod", "b", runs(ONE, at=1)))
    known.observe(None, workload("Pod", "c", runs(TWO, name="quay.io/other/app", at=5)))
    known.observe(None, workload("Pod", "d", runs(TWO, name="!!", at=4)))
    known.observe(None, workload("Pod", "e", runs(ONE, name="", at=0)))
    found = known.running(only(known))
    assert [(r.digest, r.certain, r.started) for r in found] == [(TWO, False, 5), (ONE, True, 1)]
    assert [r.digest for r in known.need(only(known), absent={TWO}).running] == [ONE]


def test_namespaces_of_those_who_ask() -> None:
    """The source is asked on behalf of every namespace that uses the image, and of no other."""
    known = inventory()
    for namespace in ("shop", "bank"):
        known.observe(None, workload("Deployment", "app", APP, namespace=namespace))
    request = only(known)
    assert known.need(request).access.namespaces == {"shop", "bank"}
    assert known.group(request) == "shop"
    gone = workload("Deployment", "app", APP, namespace="shop")
    known.observe(gone, None)
    assert known.need(request).access.namespaces == {"bank"}


def test_exclusions_denials_and_skipped_workloads() -> None:
    """The lists decide without asking anybody; a skipped workload leaves nothing."""
    known = inventory(
        exclude_registries=("ghcr.io",),
        allowed_registries=("quay.io", "ghcr.io"),
        skip_namespaces=("kube-*",),
    )
    known.observe(None, workload("Pod", "x", APP, "ghcr.io/a/b:1", "evil.example/a:1", "!bad!"))
    known.observe(None, workload("Pod", "y", APP, namespace="kube-system"))
    verdicts = {r.source.registry: e.verdict for r, e in known.entries.items()}
    assert verdicts == {"quay.io": "", "ghcr.io": "excluded", "evil.example": "denied"}
    assert known.states() == {"failed": 1, "excluded": 1, "denied": 1}
    assert known.workloads() == 1


def test_invalid_references_go_with_their_users() -> None:
    """A text that names no image is shown as long as somebody has it, and costs the others nothing."""
    known = inventory()
    one, two = workload("Pod", "one", APP, "!bad!"), workload("Pod", "two", "!bad!")
    known.observe(None, one)
    known.observe(None, two)
    assert [u[2] for u in known.invalid["!bad!"].users] == ["one", "two"]
    assert not known.failing(known_request())
    known.observe(one, workload("Pod", "one", APP))
    assert [u[2] for u in known.invalid["!bad!"].users] == ["two"]
    known.observe(two, None)
    assert not known.invalid


def test_jobs_name_the_owners_of_their_pods() -> None:
    """A watched Job moves its Pods to the real CronJob's name, whichever comes first; nothing of it stays behind."""
    known = inventory("$podname/")
    pod = workload("Pod", "p", APP, owners=(("Job", "nightly-123"),))
    known.observe(None, pod)
    before = only(known)
    job = workload("Job", "nightly-123", owners=(("CronJob", "nightly"),))
    causes = known.observe(None, job)
    (request,) = causes
    assert request != before
    assert "nightly/" in request.repository
    assert [e.request for e in known.orphans()] == [before]
    assert known.observe(job, job) == {}
    known.observe(job, None)
    known.observe(pod, None)
    assert known._job_pods == {}
    assert known._job_owners == {}


def test_what_nothing_uses_claims_nothing() -> None:
    """A claimant whose last user is gone stands back behind those in use; among those that are all gone nobody does."""
    known = inventory("all/", allowed_registries=())
    images = ("quay.io/a/b:1", "ghcr.io/a/b:1")
    pods = [workload("Pod", name, image) for name, image in zip("xy", images, strict=True)]
    for pod in pods:
        known.observe(None, pod)
    first, second = known.entries
    known.observe(pods[0], None)
    assert (known.rivals(first), known.rivals(second)) == ((second,), ())
    known.observe(pods[1], None)
    assert (known.rivals(first), known.rivals(second)) == ((second,), (first,))


def test_images_of_the_configuration_are_no_workloads() -> None:
    """What extraImages names is mirrored and is no workload of the cluster."""
    known = inventory()
    known.observe(None, workload(EXTRA, "pause", "registry.k8s.io/pause:3.10"))
    known.observe(None, workload("Pod", "x", "quay.io/a/b:1"))
    assert (known.workloads(), len(known.entries)) == (1, 2)


def test_rivals() -> None:
    """Sources that share a repository and tag know of each other until one is forgotten; the copy itself is none."""
    known = inventory("all/", allowed_registries=())
    # without the host in the name two registries meet
    first, second = Reference.parse("quay.io/a/b:1"), Reference.parse("ghcr.io/a/b:1")
    where = Naming(prefix="all/").repository(first)
    known.observe(None, workload("Pod", "x", str(first), str(second), f"{TARGET}/{where}:1"))
    requests = {r.source: r for r in known.entries}
    assert len({r.repository for r in requests.values()}) == 1
    assert known.need(requests[first]).rivals == (second,)
    known.forget(requests[second])
    assert known.need(requests[first]).rivals == ()
    known.forget(requests[first])
    assert known._claims == {}
    known.forget(requests[first])


def test_orphans_and_their_return() -> None:
    """What nobody uses is an orphan from then on, until it is used again."""
    known = inventory()
    pod = workload("Pod", "p", APP)
    known.observe(None, pod)
    known.observe(pod, None)
    (orphan,) = known.orphans()
    assert orphan.orphaned_at == 100
    known.observe(None, pod)
    assert not list(known.orphans())
    known.forget(orphan.request)
    known.observe(pod, None)
    assert known.running(orphan.request) == ()
    assert known.group(orphan.request) == ""


def test_extra_images_have_no_owner() -> None:
    """An image of the configuration is named without a workload."""
    known = inventory("$namespace/")
    known.observe(None, workload(EXTRA, "extra", APP, namespace=""))
    assert "shop" not in only(known).repository


def test_platforms_of_nodes() -> None:
    """Nodes decide once each template that uses the image runs somewhere; digests are never narrowed."""
    known = inventory(platforms=Platforms(mirror=frozenset({AMD}), check_nodes=True))
    known.node("n1", ARM)
    pod = workload("Pod", "p", APP, owners=(("ReplicaSet", "r"), ("Deployment", "app")), node="n1")
    known.observe(None, workload("Deployment", "app", APP))
    request = only(known)
    assert known.need(request).platforms == frozenset({AMD})
    known.observe(None, pod)
    need = known.need(request)
    assert (need.platforms, need.required) == (frozenset({AMD, ARM}), frozenset({ARM}))
    known.observe(None, workload("Deployment", "idle", APP))
    assert known.need(request).required == frozenset()
    known.node("n1", None)
    assert known.need(request).platforms == frozenset({AMD})
    pinned = workload("Pod", "q", f"quay.io/team/app@{ONE}")
    known.observe(None, pinned)
    assert all(known.need(r).platforms is None for r in known.entries if r.source.digest)


def test_platforms_without_nodes() -> None:
    """No list means the whole image, and a list alone asks for what it names."""
    whole, listed = inventory(), inventory(platforms=Platforms(mirror=frozenset({AMD})))
    for known, wanted in ((whole, None), (listed, frozenset({AMD}))):
        known.observe(None, workload("Pod", "p", APP))
        assert known.need(only(known)).platforms == wanted
