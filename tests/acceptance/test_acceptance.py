"""Every case between two registries of every profile has the outcome that the table says, and nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from copycat.oci.digest import Digest
from copycat.sandbox import images
from copycat.sandbox.ledger import Phase
from copycat.sandbox.profiles import PROFILES
from copycat.sandbox.registry import Registry
from tests.acceptance.cases import CASES, Case
from tests.acceptance.table import OUTCOMES, parsed
from tests.faults.support import SOURCE, TAG, TARGET, Bench, bench

PASSWORD = "pw-of-me"
#: Registries that let nobody cancel an upload: what failed stays with them until they clear it up.
KEEPS_SESSIONS = {"ecr", "ecr-public", "quay"}


def options(profile: str, case: str) -> dict[str, Any]:
    """A registry of the profile, with its own kind of login and one account."""
    row = PROFILES[profile]
    if case == "mount-refused":
        row = replace(row, mount="401")
    login = {"username": row.basic_user or "me", "password": PASSWORD} if row.auth != "none" else {}
    return {"profile": row, "auth": row.auth, "redirect_blobs": row.redirects, **login}


def flags(profile: str, case: Case) -> dict[str, Any]:
    """A configuration with both logins."""
    user = PROFILES[profile].basic_user or "me"
    return {
        "docker__username": user,
        "signatures": case.signatures,
        "registry_credentials": lambda source, _: [
            {"registry": source.address, "username": user, "password": PASSWORD}
        ],
    }


def expiring(registry: Registry) -> Callable[[object], None]:
    """Ends all its tokens when it is called."""

    def expire(_: object) -> None:
        registry.authority.expire_tokens()

    return expire


def prepare(b: Bench, name: str, case: Case) -> None:
    """What the case needs besides the image at the source."""
    for image in case.more:
        b.source.add(SOURCE, image)
    b.source.tags[SOURCE] |= case.tags or {}
    if name == "referrers" and b.source.profile.referrers != "api":
        # whoever signed there wrote the list under a tag
        for subject, referrer in zip((case.image, case.more[0]), case.more, strict=True):
            row = referrer.root.descriptor(artifactType="application/vnd.example.thing")
            body = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [row]}
            tag = images.cosign_tag(subject, "")
            b.source.put_manifest(SOURCE, json.dumps(body).encode(), images.OCI_INDEX, tag)
    if name == "token-expiry":
        for registry, phase in ((b.source, Phase.GET_BLOB), (b.target, Phase.UPLOAD_BODY)):
            registry.fail(phase, run=expiring(registry))
    if name == "mount-refused":
        b.source.add("team/other", case.image, TAG)
        if not b.target.profile.create_on_push:
            b.target.create_repository("mirror/team/other")


@pytest.mark.parametrize(
    ("name", "profile", "word"), [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in parsed()]
)
async def test_case(name: str, profile: str, word: str) -> None:
    """The state and reason of the table, bit-exact content where it is ok, whole content where anything has a tag."""
    case = CASES[name]()
    registry = options(profile, name)
    async with bench(
        source=registry, target=registry, image=case.image, **flags(profile, case)
    ) as b:
        prepare(b, name, case)
        found = await b.copy(f"{SOURCE}@{case.image.digest}" if case.by_digest else "")

        assert (found.state, found.reason) == OUTCOMES[word], found.message
        if word == "ok":
            assert b.arrived(tag=None if case.by_digest else TAG)
            await check_more(b, name, case)
        else:
            assert found.message
        b.sessions_left = b.target.sessions if profile in KEEPS_SESSIONS else 0


async def check_more(b: Bench, name: str, case: Case) -> None:
    """What came with the image."""
    assert all(b.target.has(TARGET, image) for image in case.more)
    for tag, digest in (case.tags or {}).items():
        assert b.target.tags[TARGET][tag] == digest
    if name == "referrers":
        for subject, referrer in zip((case.image, case.more[0]), case.more, strict=True):
            listing = await b.to_target().referrers(Digest.parse(subject.digest))
            assert [str(d.digest) for d in listing.descriptors] == [referrer.digest]
    if name == "token-expiry" and b.target.profile.auth == "token":
        assert b.count("T-target") >= 2
        assert b.count("T-source") >= 2
    if name == "mount-refused":
        other = await b.copy(f"team/other:{TAG}")
        assert (other.state, other.reason, other.moved.mounted) == ("protected", "", 0)
        assert b.target.has("mirror/team/other", case.image, TAG)
    again = await b.copy(f"{SOURCE}@{case.image.digest}" if case.by_digest else "")
    assert again.state == "protected"
    assert again.moved.bytes_pushed == 0


def test_every_profile_and_case() -> None:
    """The table has a column for each profile of the sandbox and a row for each case."""
    rows = parsed()
    assert {profile for _, profile, _ in rows} == set(PROFILES)
    assert {case for case, _, _ in rows} == set(CASES)
    assert {word for _, _, word in rows} == set(OUTCOMES)
