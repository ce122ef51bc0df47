"""Each profile shows the oddities of its product: the table row by row, over sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import MIB, PROFILES, Profile, profile_of
from copycat.sandbox.registry import Registry
from tests.sandbox.driver import Driver, driving

BLOB = images.layer(5000, seed="profile")
DATA = BLOB.data or b""
PLAIN = images.image(layers=())


def open_registry(profile: str | Profile, **options: object) -> Registry:
    """Without authentication, for the oddities that have nothing to do with it."""
    return Registry(profile=profile, auth="none", **options)  # type: ignore[arg-type] # each test's own


async def started(driver: Driver) -> str:
    return (await driver.start("a")).headers["Location"]


def test_names() -> None:
    """A profile is chosen by its name; an unknown one is refused with the names that there are."""
    expected = "distribution ecr ecr-public hub ghcr gar quay harbor acr zot body-limit gitlab artifactory-old nexus"
    assert set(expected.split()) == set(PROFILES)
    assert PROFILES["ecr"] is profile_of("ecr")
    assert PROFILES["ecr"] is profile_of(PROFILES["ecr"])
    with pytest.raises(ValueError, match=r"no profile 'docker'; there are acr, artifactory-old,"):
        profile_of("docker")


@pytest.mark.parametrize("name", PROFILES)
async def test_every_profile_serves_and_most_take_an_image(name: str) -> None:
    """The default way (one PUT per blob, everything by digest, the tag last) works wherever the product has it."""
    profile = PROFILES[name]
    image = images.index(docker=False, layers=(700,))
    registry = open_registry(profile, redirect_blobs=False)
    registry.add("b", image, tag="1")
    registry.create_repository("a")
    async with driving(registry) as driver:
        reads = profile.visible_after and 1
        assert image.data == (await driver.manifest("b", "1")).body
        for digest, data in image.blobs.items():
            assert data == (await driver.blob("b", digest)).body
            expected = 404 if name == "artifactory-old" else 201
            assert expected == (await driver.upload("a", digest, data)).status
        if name == "artifactory-old":
            return
        await driver.push("c" if profile.create_on_push else "a", images.image(layers=(9,)), "1")
        assert reads == profile.visible_after
        assert registry.violations == []


# Uploads


async def test_ecr_chunks() -> None:
    """ECR answers a PATCH with 201 and the Range of before, has no status and no cancel; the commit works."""
    registry = open_registry("ecr")
    registry.create_repository("a")
    async with driving(registry) as driver:
        first = await driver.patch(await started(driver), DATA[:2000], "0-1999")
        location = first.headers["Location"]
        second = await driver.patch(location, DATA[2000:], f"2000-{len(DATA) - 1}")
        location = second.headers["Location"]

        assert (first.status, first.headers["Range"]) == (201, "0-0")
        assert (second.status, second.headers["Range"]) == (201, "0-1999")
        assert (await driver.call("GET", location)).status == 404
        assert (await driver.call("DELETE", location)).status == 405
        assert (await driver.put(location, BLOB.digest)).status == 201


@pytest.mark.parametrize(("name", "status"), [("ecr", 400), ("ecr-public", 400), ("harbor", 500)])
async def test_no_zero_byte_blobs(name: str, status: int) -> None:
    """Some products cannot keep a blob of no bytes."""
    registry = open_registry(name)
    registry.create_repository("a")
    async with driving(registry) as driver:
        assert status == (await driver.upload("a", images.empty_layer().digest, b"")).status


@pytest.mark.parametrize("name", ["ecr", "ecr-public", "harbor"])
async def test_repositories_must_exist(name: str) -> None:
    """Without create-on-push, a push is NAME_UNKNOWN until the repository is made, here or where the hook looks."""
    known: set[str] = set()
    registry = open_registry(name, repository_exists=known.__contains__)
    async with driving(registry) as driver:
        before = await driver.start("a")
        manifest = await driver.put_manifest("a", "1", PLAIN.data, PLAIN.media_type)
        assert (before.status, before.code) == (404, "NAME_UNKNOWN")
        assert manifest.code == "NAME_UNKNOWN"
        known.add("a")
        assert (await driver.start("a")).status == 202
        assert (await driver.start("b")).status == 404
        registry.create_repository("b")
        assert (await driver.start("b")).status == 202


async def test_asynchronous_repository_hook() -> None:
    """The hook may be a coroutine function: it may ask another server."""

    async def exists(name: str) -> bool:
        return name == "a"

    async with driving(open_registry("ecr", repository_exists=exists)) as driver:
        assert [(await driver.start(name)).status for name in ("a", "b")] == [202, 404]


async def test_ghcr_limits_chunks_only() -> None:
    """GHCR takes a large body without Content-Range, and with one at most 4 MiB."""
    data = b"\0" * (4 * MIB + 1)
    async with driving(open_registry("ghcr")) as driver:
        refused = await driver.patch(await started(driver), data, f"0-{4 * MIB}")

        assert (refused.status, refused.code) == (416, "REQUESTED_RANGE_NOT_SATISFIABLE")
        assert (await driver.patch(await started(driver), data)).status == 202


async def test_gar_has_no_chunks() -> None:
    """GAR takes whole blobs alone."""
    async with driving(open_registry("gar")) as driver:
        assert (await driver.patch(await started(driver), DATA)).status == 404
        assert len(driver.registry.violations) == 1
        assert (await driver.upload("a", BLOB.digest, DATA)).status == 201


async def test_old_artifactory_wants_a_patch() -> None:
    """A PUT with the body is 404; POST, PATCH, PUT works."""
    async with driving(open_registry("artifactory-old")) as driver:
        assert (await driver.upload("a", BLOB.digest, DATA)).status == 404
        patched = await driver.patch(await started(driver), DATA)
        assert (await driver.put(patched.headers["Location"], BLOB.digest)).status == 201


async def test_body_limit() -> None:
    """A proxy refuses a body over its limit with 413 and a page; chunks below it pass."""
    blob = images.layer(2 * MIB)
    data = blob.data or b""
    async with driving(open_registry("body-limit")) as driver:
        refused = await driver.upload("a", blob.digest, data)
        assert (refused.status, refused.headers["Content-Type"]) == (413, "text/html")
        location = await started(driver)
        for at in range(0, len(data), MIB):
            part = data[at : at + MIB]
            found = await driver.patch(location, part, f"{at}-{at + len(part) - 1}")
            location = found.headers["Location"]
        assert (await driver.put(location, blob.digest)).status == 201


async def test_acr_sessions_die() -> None:
    """A connection that breaks in a body takes ACR's session with it."""
    async with driving(open_registry("acr")) as driver:
        driver.registry.fail(Phase.UPLOAD_BODY, status=500, answer_at=1000)
        location = await started(driver)
        assert (await driver.put(location, BLOB.digest, DATA)).status == 500
        gone = await driver.call("GET", location)

        assert (gone.status, gone.code) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_nexus_and_a_blob_that_is_there() -> None:
    """Nexus refuses to commit what it has."""
    async with driving(open_registry("nexus")) as driver:
        statuses = [(await driver.upload("a", BLOB.digest, DATA)).status for _ in range(2)]

        assert statuses == [201, 400]
        assert (await driver.blob("a", BLOB.digest)).status == 200


async def test_quay_refuses_optional_endpoints() -> None:
    """405 on status, cancel, referrers and a mount without source."""
    async with driving(open_registry("quay")) as driver:
        location = await started(driver)
        found = [
            await driver.call("GET", location),
            await driver.call("DELETE", location),
            await driver.call("GET", f"/v2/a/referrers/{BLOB.digest}"),
            await driver.start("a", f"?mount={BLOB.digest}"),
        ]

        assert [answer.status for answer in found] == [405] * 4


async def test_chunk_minimum() -> None:
    """The minimum is announced; a small chunk must be the last."""
    async with driving(open_registry(Profile(chunk_minimum=1000))) as driver:
        opened = await driver.start("a")
        assert opened.headers["OCI-Chunk-Min-Length"] == "1000"
        location = opened.headers["Location"]
        first = await driver.patch(location, DATA[:1000], "0-999")
        found = await driver.patch(first.headers["Location"], DATA[1000:1010], "1000-1009")
        location = found.headers["Location"]
        refused = await driver.patch(location, DATA[1010:], f"1010-{len(DATA) - 1}")

        assert (found.status, refused.status) == (202, 416)
        assert len(driver.registry.violations) == 1


async def test_chunk_minimum_allows_a_small_last_chunk() -> None:
    """The last chunk may come with the commit, below the minimum."""
    async with driving(open_registry(Profile(chunk_minimum=1000))) as driver:
        found = await driver.patch(await started(driver), DATA[:-10], f"0-{len(DATA) - 11}")
        span = {"Content-Range": f"{len(DATA) - 10}-{len(DATA) - 1}"}
        done = await driver.put(found.headers["Location"], BLOB.digest, DATA[-10:], **span)

        assert done.status == 201
        assert driver.registry.violations == []


async def test_single_post_may_be_ignored() -> None:
    """A server without form A answers 202, having dropped the body; the session is empty."""
    async with driving(open_registry(Profile(single_post=202))) as driver:
        kind = {"Content-Type": "application/octet-stream"}
        path = f"/v2/a/blobs/uploads/?digest={BLOB.digest}"
        found = await driver.call("POST", path, kind, DATA)

        assert found.status == 202
        assert (await driver.put(found.headers["Location"], BLOB.digest, DATA)).status == 201


async def test_single_post_obeys_the_limits() -> None:
    """The body of form A meets the same refusals."""
    async with driving(open_registry(Profile(body_limit=10))) as driver:
        kind = {"Content-Type": "application/octet-stream"}
        path = f"/v2/a/blobs/uploads/?digest={BLOB.digest}"

        assert (await driver.call("POST", path, kind, DATA)).status == 413


# Mounts


@pytest.mark.parametrize(
    ("profile", "seen", "unseen"),
    [
        (PROFILES["distribution"], 201, 202),
        (PROFILES["ecr"], 202, 202),
        (replace(PROFILES["ecr"], mount="yes"), 201, 202),
        (PROFILES["harbor"], 201, 401),
        (PROFILES["hub"], 201, 401),
        (Profile(mount_unseen="404"), 201, 404),
        (Profile(mount="405"), 405, 405),
    ],
    ids=["distribution", "ecr", "ecr-enabled", "harbor", "hub", "404", "405"],
)
async def test_mounts(profile: Profile, seen: int, unseen: int) -> None:
    """A mount of what is there and of what is not."""
    registry = open_registry(profile)
    registry.put_blob("base", DATA)
    registry.create_repository("a")
    async with driving(registry) as driver:
        found = [
            (await driver.start("a", f"?mount={BLOB.digest}&from={name}")).status
            for name in ("base", "other")
        ]

        assert [seen, unseen] == found


async def test_mount_needs_the_right_to_read_its_source() -> None:
    """With a token that does not cover the source, Harbor asks for both scopes."""
    registry = Registry(profile="harbor", auth="token")
    registry.put_blob("base", DATA)
    registry.create_repository("a")
    token = registry.authority.issue("u", ("a", "pull"), ("a", "push"))
    async with driving(registry, f"Bearer {token}") as driver:
        found = await driver.start("a", f"?mount={BLOB.digest}&from=base")

        assert found.status == 401
        scope = 'scope="repository:a:pull,push repository:base:pull"'
        assert scope in found.headers["WWW-Authenticate"]
        assert (await driver.start("a")).status == 202


# Reading


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("distribution", 404, "NAME_UNKNOWN"),
        ("hub", 401, "UNAUTHORIZED"),
        ("ghcr", 403, "DENIED"),
    ],
)
async def test_missing_repositories(name: str, status: int, code: str) -> None:
    """A missing repository is 404, 401 or 403."""
    async with driving(open_registry(name)) as driver:
        for found in (await driver.manifest("a", "1"), await driver.blob("a", BLOB.digest)):
            assert (status, code) == (found.status, found.code)
        assert (status == 401) == ("WWW-Authenticate" in found.headers)


async def test_hub_counts_manifest_reads() -> None:
    """GETs of manifests count, HEADs do not; headers say what is left; then comes 429."""
    registry = open_registry(replace(PROFILES["hub"], rate_limit=2))
    registry.add("a", PLAIN, tag="1")
    async with driving(registry) as driver:
        found = [
            await driver.manifest("a", "1", method)
            for method in ("HEAD", "GET", "GET", "GET", "HEAD")
        ]

        assert [answer.status for answer in found] == [200, 200, 200, 429, 200]
        left = [answer.headers["RateLimit-Remaining"] for answer in found]
        assert left == ["2;w=21600", "1;w=21600", "0;w=21600", "0;w=21600", "0;w=21600"]
        missing = await driver.manifest("a", "2", "HEAD")
        assert missing.headers["RateLimit-Limit"] == "2;w=21600"


@pytest.mark.parametrize(
    ("name", "status"),
    [("ghcr", 303), ("gitlab", 404), ("quay", 405), ("nexus", 404), ("zot", 200)],
)
async def test_referrers(name: str, status: int) -> None:
    """The referrers API, and what products without one answer; only those with it say OCI-Subject."""
    registry = open_registry(name)
    image = registry.add("a", PLAIN, tag="1")
    referrer = registry.add("a", images.artifact(subject=image))
    async with driving(registry) as driver:
        found = await driver.call("GET", f"/v2/a/referrers/{image.digest}")
        pushed = await driver.put_manifest("a", referrer.digest, referrer.data, referrer.media_type)

        assert status == found.status
        assert (status == 200) == ("OCI-Subject" in pushed.headers)


async def test_gitlab_resolves_the_fallback_tag_to_the_subject() -> None:
    """GitLab answers the fallback tag with the image itself; other unknown tags are missing."""
    registry = open_registry("gitlab")
    image = registry.add("a", PLAIN, tag="1")
    async with driving(registry) as driver:
        assert image.data == (await driver.manifest("a", images.cosign_tag(image, ""))).body
        assert (await driver.manifest("a", images.cosign_tag(image))).status == 404


async def test_artifactory_and_nexus_are_late_and_silent() -> None:
    """A fresh manifest is missing at first, and its answers name no digest; what is pushed again stays."""
    for name in ("artifactory-old", "nexus"):
        registry = open_registry(name)
        for digest, data in PLAIN.blobs.items():
            registry.store.put_blob("a", data, digest)
        async with driving(registry) as driver:
            await driver.put_manifest("a", "1", PLAIN.data, PLAIN.media_type)
            assert (await driver.manifest("a", "1", "HEAD")).status == 404
            await driver.put_manifest("a", "1", PLAIN.data, PLAIN.media_type)
            found = await driver.manifest("a", "1", "HEAD")
            assert found.status == 200
            assert "Docker-Content-Digest" not in found.headers


async def test_head_may_not_be_there() -> None:
    """HEAD of a manifest can be 405 while GET works."""
    registry = open_registry(Profile(head_manifest="405"))
    registry.add("a", PLAIN, tag="1")
    async with driving(registry) as driver:
        statuses = [(await driver.manifest("a", "1", m)).status for m in ("HEAD", "GET")]

        assert statuses == [405, 200]


async def test_ecr_answers_and_limits() -> None:
    """ECR's answer to a manifest names nothing, a page of tags has a limit, blobs are redirected."""
    registry = open_registry("ecr")
    image = registry.add("a", images.image(), tag="1")
    async with driving(registry) as driver:
        pushed = await driver.put_manifest("a", "1", image.data, image.media_type)
        assert pushed.status == 201
        assert not {"Location", "Docker-Content-Digest"} & set(pushed.headers)
        assert (await driver.call("GET", "/v2/a/tags/list?n=1001")).status == 400
        assert (await driver.call("GET", "/v2/a/tags/list?n=1000")).status == 200
        assert (await driver.blob("a", next(iter(image.blobs)))).status == 307
        index = images.index()
        refused = await driver.put_manifest("a", "2", index.data, index.media_type)
        assert refused.code == "ReferencedImagesNotFound"


@pytest.mark.parametrize(
    ("name", "make", "status"),
    [
        ("zot", lambda: images.image(docker=True), 415),
        ("zot", images.image, 201),
        ("quay", images.image, 201),
        ("quay", lambda: images.index(docker=True), 201),
        ("quay", lambda: images.index(images.image(docker=True)), 400),
        ("quay", images.artifact, 201),
        ("distribution", lambda: images.index(images.image(docker=True)), 201),
    ],
    ids=[
        "zot-docker",
        "zot-oci",
        "quay-oci",
        "quay-docker",
        "quay-mixed",
        "quay-artifact",
        "mixed",
    ],
)
async def test_types(name: str, make: Callable[[], images.Image], status: int) -> None:
    """zot takes no docker types, Quay no docker manifest in an OCI index."""
    registry = open_registry(name)
    image = registry.add("a", make())
    async with driving(registry) as driver:
        found = await driver.put_manifest("a", "1", image.data, image.media_type)

        assert status == found.status


async def test_quay_refuses_unknown_configs() -> None:
    """Quay takes well-known config types alone."""
    registry = open_registry("quay")
    data = images.image().data.replace(b"vnd.oci.image.config.v1", b"vnd.example.config.v1")
    async with driving(registry) as driver:
        found = await driver.put_manifest("a", "1", data, images.OCI_MANIFEST)

        assert (found.status, found.code) == (400, "MANIFEST_INVALID")


async def test_harbor_sets_a_cookie() -> None:
    """Harbor's session cookie must not come back."""
    async with driving(open_registry("harbor")) as driver:
        found = await driver.call("GET", "/v2/")
        cookie = found.headers["Set-Cookie"].partition(";")[0]
        driver.session.cookie_jar.clear()
        await driver.call("GET", "/v2/", {"Cookie": cookie})

        assert driver.registry.violations == ["GET /v2/: a cookie sent back"]


@pytest.mark.parametrize(
    ("name", "password", "anonymous", "auth"),
    [
        ("ecr", "", False, "none"),
        ("ecr", "p", False, "basic"),
        ("hub", "", True, "token"),
        ("distribution", "p", False, "basic"),
    ],
    ids=["ecr-open", "ecr", "hub", "distribution"],
)
def test_default_authentication(name: str, password: str, anonymous: bool, auth: str) -> None:
    """Without a word about it nobody logs in; a password or anonymous access asks for the product's way."""
    registry = Registry(profile=name, password=password, anonymous=anonymous)

    assert auth == registry.authority.mode
