"""Hosts, prefixes and endpoints as people write them."""

from __future__ import annotations

import pytest

from copycat.config.hosts import endpoint, host_of, registry_host, registry_prefix


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("ghcr.io", "ghcr.io"),
        ("GHCR.io", "ghcr.io"),
        ("https://ghcr.io/", "ghcr.io"),
        ("registry.local:5000", "registry.local:5000"),
        ("localhost", "localhost"),
        ("[::1]:5000", "[::1]:5000"),
        ("registry-1.docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        (" quay.io ", "quay.io"),
    ],
)
def test_hosts(written: str, host: str) -> None:
    """One canonical name, whatever the spelling."""
    assert registry_host(written) == host


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("", "host of a registry"),
        ("a b", "host of a registry"),
        ("ghcr.io/org", "without a path"),
        ("docker.io/library", "without a path"),
        ("http://plain.io", "insecureRegistries"),
        ("x:0", "host of a registry"),
        ("x:65536", "host of a registry"),
        ("[::zz]", "host of a registry"),
        ("[1:2:3]", "host of a registry"),
        ("*.docker.io", "host of a registry"),
        (True, "host of a registry"),
    ],
)
def test_no_hosts(written: object, why: str) -> None:
    """What is no host says why."""
    with pytest.raises(ValueError, match=why):
        registry_host(written)


@pytest.mark.parametrize(
    "written", ["ghcr.io", "ghcr.io/team/app", "docker.io", "registry.local:5000/a", "bitnami"]
)
def test_prefixes(written: str) -> None:
    """A host, or a host and a path."""
    assert registry_prefix(f" https://{written.upper()}/ ".replace("HTTPS", "https")) == written


@pytest.mark.parametrize("written", ["", "*", "*.io", "a b", "ghcr.io/a b", "ghcr.io//a", 3])
def test_no_prefixes(written: object) -> None:
    """Wildcards would match nothing, so they are refused."""
    with pytest.raises(ValueError, match="expected"):
        registry_prefix(written)


@pytest.mark.parametrize(
    "written", ["proxy.local", "https://proxy.local/hub", "http://proxy:80", "proxy.local/v2"]
)
def test_endpoints(written: str) -> None:
    """Hosts and URLs, kept as they are but for a slash at the end."""
    assert endpoint(f"{written}/") == written


@pytest.mark.parametrize(
    "written", ["", "ftp://x", "https://user:pass@proxy", "https://", "a b", 1]
)
def test_no_endpoints(written: object) -> None:
    """Passwords do not belong into URLs, and are not shown."""
    with pytest.raises(ValueError, match="expected") as caught:
        endpoint(written)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("ghcr.io/team", "ghcr.io"),
        ("https://proxy/hub", "proxy"),
        ("localhost/x", "localhost"),
        ("bitnami/redis", "docker.io"),
        ("index.docker.io", "docker.io"),
    ],
)
def test_host_of(written: str, host: str) -> None:
    """The host that a prefix or an endpoint is about."""
    assert host_of(written) == host
