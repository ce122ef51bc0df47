from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat.errors import InvalidReference
from copycat.oci.platform import Platform
from tests.oci.strategies import platforms


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/X86-64", "linux/amd64"),
        ("linux/i386", "linux/386"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v8.0", "linux/arm64"),
        ("linux/arm64/v9.0", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("macos/arm64", "darwin/arm64"),
        ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_one_spelling(text: str, canonical: str) -> None:
    """Every spelling of a machine becomes the same value."""
    assert canonical == str(Platform.parse(text))
    assert Platform.parse(canonical) == Platform.parse(text)


@pytest.mark.parametrize(
    "text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux amd64", "linux/amd64\n"]
)
def test_what_is_no_platform_is_refused(text: str) -> None:
    """The error shows the form that is expected."""
    with pytest.raises(InvalidReference, match="os/architecture") as caught:
        Platform.parse(text)

    assert caught.value.reason == "invalid_platform"


@given(platforms)
def test_a_platform_survives_being_written(platform: Platform) -> None:
    """What `str` writes, `parse` reads as the same value, and normalising twice changes nothing."""
    again = Platform(platform.os, platform.architecture, platform.variant, platform.os_version)

    assert platform == again == Platform.parse(str(platform))
    assert platform.matches(platform)


@given(st.text())
def test_any_text_is_a_platform_or_invalid(text: str) -> None:
    """No text makes `parse` fail in another way."""
    with suppress(InvalidReference):
        assert Platform.parse(str(Platform.parse(text))) == Platform.parse(text)


@pytest.mark.parametrize(
    ("wanted", "candidate", "matches"),
    [
        pytest.param("linux/arm64", "linux/arm64/v8", True, id="v8 is the base of arm64"),
        pytest.param("linux/arm64/v8", "linux/arm64", True, id="and the other way round"),
        pytest.param("linux/arm", "linux/arm/v7", True, id="arm means v7"),
        pytest.param("linux/arm", "linux/arm/v6", False, id="never a merely compatible one"),
        pytest.param("linux/amd64", "linux/amd64/v3", False, id="the base is not v3"),
        pytest.param("linux/amd64/v3", "linux/amd64", False, id="v3 is not the base"),
        pytest.param("linux/amd64", "linux/arm64", False, id="another architecture"),
        pytest.param("linux/amd64", "windows/amd64", False, id="another system"),
        pytest.param("windows/amd64", "windows(10.0.17763.1)/amd64", True, id="any version"),
        pytest.param("windows(10.0.17763)/amd64", "windows(10.0.17763.1)/amd64", True, id="prefix"),
        pytest.param("windows(10.0.17)/amd64", "windows(10.0.17763)/amd64", False, id="part"),
        pytest.param("windows(10.0.17763)/amd64", "windows/amd64", False, id="version unknown"),
    ],
)
def test_matching(wanted: str, candidate: str, matches: bool) -> None:
    """`wanted.matches(candidate)`: the same machine, in any spelling."""
    assert matches == Platform.parse(wanted).matches(Platform.parse(candidate))


@pytest.mark.parametrize(
    ("platform", "unknown"),
    [
        pytest.param(Platform("unknown", "unknown"), True, id="attestation"),
        pytest.param(Platform("linux", "unknown"), False, id="half"),
        pytest.param(Platform("linux", "amd64"), False, id="image"),
    ],
)
def test_unknown(platform: Platform, unknown: bool) -> None:
    """Only `unknown/unknown` is BuildKit's mark."""
    assert unknown == platform.is_unknown
