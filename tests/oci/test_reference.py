from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from copycat.errors import InvalidReference
from copycat.oci.digest import Digest
from copycat.oci.reference import (
    DOCKER_HUB,
    Reference,
    is_repository,
    is_tag,
    normalise_registry,
)
from tests.oci.strategies import references

A = "a" * 64
DIGEST = f"sha256:{A}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.19", "docker.io/library/alpine:3.19"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3.19@{DIGEST}", f"docker.io/library/alpine:3.19@{DIGEST}"),
        (f"alpine@sha512:{'b' * 128}", f"docker.io/library/alpine@sha512:{'b' * 128}"),
        ("grafana/loki", "docker.io/grafana/loki:latest"),
        ("a/b/c:1", "docker.io/a/b/c:1"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("registry-1.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("Docker.IO/alpine", "docker.io/library/alpine:latest"),
        ("quay.io/foo", "quay.io/foo:latest"),
        ("GHCR.io/a/b", "ghcr.io/a/b:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("LOCALHOST/x", "localhost/x:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("registry:5000/team/app", "registry:5000/team/app:latest"),
        ("10.0.0.1:443/x", "10.0.0.1:443/x:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("[FD00::1]/x", "[fd00::1]/x:latest"),
        ("x/a--b__c.d_e", "docker.io/x/a--b__c.d_e:latest"),
        (f"{A}:1", f"docker.io/library/{A}:1"),
        ("x:_.-A", "docker.io/library/x:_.-A"),
        (f"x:{'t' * 128}", f"docker.io/library/x:{'t' * 128}"),
        (f"ghcr.io/{'p' * 255}", f"ghcr.io/{'p' * 255}:latest"),
    ],
)
def test_names_are_normalised_as_docker_does(text: str, canonical: str) -> None:
    """Every spelling becomes the canonical one, which is read as the same value."""
    reference = Reference.parse(text)

    assert canonical == str(reference)
    assert reference == Reference.parse(canonical)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "the text is empty", id="empty"),
        pytest.param(" alpine", "before or after", id="leading space"),
        pytest.param("alpine\n", "before or after", id="trailing newline"),
        pytest.param("al pine", "white space inside", id="inner space"),
        pytest.param("https://ghcr.io/x", "URL scheme", id="URL"),
        pytest.param(A, "bare 64-hex string is not a name", id="bare hex"),
        pytest.param(DIGEST, "image ID is not a name", id="image ID"),
        pytest.param("Alpine", '"Alpine" has upper-case letters', id="upper case"),
        pytest.param("ghcr.io/a/B/c", '"B" has upper-case letters', id="upper-case component"),
        pytest.param("MyOrg/app", '"MyOrg" has upper-case letters', id="upper-case first part"),
        pytest.param("ghcr.io/", "repository is missing", id="host alone"),
        pytest.param("docker.io/", "repository is missing", id="hub alone"),
        pytest.param("@" + DIGEST, "repository is missing", id="digest alone"),
        pytest.param(":1", "repository is missing", id="tag alone"),
        pytest.param("a//b", "part of the repository is empty", id="double slash"),
        pytest.param("/a", "part of the repository is empty", id="leading slash"),
        pytest.param("a/", "part of the repository is empty", id="trailing slash"),
        pytest.param("a/-b", '"-b" may only have', id="leading dash"),
        pytest.param("a..b", '"a..b" may only have', id="two dots"),
        pytest.param("a___b", '"a___b" may only have', id="three underscores"),
        pytest.param("café", '"café" may only have', id="not ASCII"),
        pytest.param("alpine:", "tag after the colon is empty", id="empty tag"),
        pytest.param("alpine:-x", 'the tag "-x"', id="tag begins with a dash"),
        pytest.param(f"alpine:{'t' * 129}", "1 to 128", id="long tag"),
        pytest.param("a:b:c", 'the tag "b:c"', id="two colons"),
        pytest.param("alpine@", "after @", id="empty digest"),
        pytest.param("alpine@sha256:12", "64 hex digits", id="short digest"),
        pytest.param(f"alpine@{DIGEST}@{DIGEST}", "after @", id="two digests"),
        pytest.param("alpine@md5:12", "unknown", id="unknown algorithm"),
        pytest.param(f"ghcr.io/{'p' * 256}", "256 characters, 255 are allowed", id="long path"),
        pytest.param("-bad.io/x", '"-bad.io" is not a registry host', id="bad host"),
        pytest.param("a..io/x", '"a..io" is not a registry host', id="empty label"),
        pytest.param(f"{'a.' * 200}io/x", "is not a registry host", id="long host"),
        pytest.param("[::::]/x", "is not a registry host", id="bad IPv6"),
        pytest.param("host:/x", "is not a registry host", id="empty port"),
        pytest.param("host:0/x", "port 0 is not in 1 to 65535", id="port zero"),
        pytest.param("host:65536/x", "port 65536 is not", id="port too high"),
        pytest.param("user@host.io/x", "after @", id="user"),
    ],
)
def test_what_names_no_image_is_refused(text: str, message: str) -> None:
    """The message names the text, the place and the remedy."""
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)

    assert message in str(caught.value)
    assert "does not name an image" in str(caught.value)


@given(references())
def test_a_reference_survives_being_written(reference: Reference) -> None:
    """What `str` writes, `parse` reads as the same value."""
    assert Reference.parse(str(reference)) == reference
    assert is_repository(reference.repository)


@given(references())
def test_spellings_of_docker_hub_are_equal(reference: Reference) -> None:
    """The three hosts, and none, name the same image."""
    path = str(Reference.parse(str(reference)))[len(reference.registry) + 1 :]
    hub = {
        Reference.parse(f"{host}/{path}")
        for host in ("docker.io", "index.docker.io", "registry-1.docker.io", "DOCKER.io")
    }

    assert len(hub) == 1
    assert {r.registry for r in hub} == {DOCKER_HUB}


@given(
    st.text()
    | st.text("aZ0._-:/@[] \n" + "sha256")
    | st.from_regex(r"[a-zA-Z.:/@\[\]]+", fullmatch=True)
)
@example("\x00")
@example("\ud800")
@example("@@:/")
def test_any_text_is_a_reference_or_invalid(text: str) -> None:
    """No text makes `parse` fail in another way, and what it accepts is stable."""
    with suppress(InvalidReference):
        reference = Reference.parse(text)

        assert Reference.parse(str(reference)) == reference
        assert is_repository(reference.repository)
        assert reference.registry == normalise_registry(reference.registry)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("docker.io", DOCKER_HUB),
        ("index.docker.io", DOCKER_HUB),
        ("registry-1.docker.io", DOCKER_HUB),
        ("https://index.docker.io/v1/", DOCKER_HUB),
        ("Index.Docker.io", DOCKER_HUB),
        ("https://GHCR.io", "ghcr.io"),
        ("localhost:5000", "localhost:5000"),
        ("quay.io/", "quay.io"),
    ],
)
def test_registries_have_one_name(host: str, expected: str) -> None:
    """As people and Docker's config.json write them."""
    assert expected == normalise_registry(host)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("a/b-c", True),
        ("a" * 255, True),
        ("a" * 256, False),
        ("", False),
        ("A", False),
        ("a\n", False),
    ],
)
def test_is_repository(text: str, valid: bool) -> None:
    """Grammar and length."""
    assert valid == is_repository(text)


@pytest.mark.parametrize(
    ("text", "valid"), [("1.0", True), ("_", True), (".a", False), ("", False), ("a\n", False)]
)
def test_is_tag(text: str, valid: bool) -> None:
    """Grammar and length."""
    assert valid == is_tag(text)


def test_parts_and_variations() -> None:
    """Names, and the same reference at a digest."""
    reference = Reference.parse("alpine:3.19")
    digest = Digest.parse(DIGEST)

    assert reference.name == "docker.io/library/alpine"
    assert str(reference.with_digest(digest)) == f"docker.io/library/alpine:3.19@{DIGEST}"


def test_references_sort() -> None:
    """By name, then tag, then digest, absent ones first."""
    texts = [
        "docker.io/library/a:1",
        f"docker.io/library/a:1@{DIGEST}",
        "docker.io/library/b:1",
        "ghcr.io/a:1",
    ]
    tagless = Reference.parse(f"a@{DIGEST}")

    expected = [tagless, *map(Reference.parse, texts)]
    mixed = [expected[i] for i in (3, 1, 4, 0, 2)]

    assert expected == sorted(mixed)
