"""Which hosts may be contacted, and how they are reached."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from trustme import CA
from yarl import URL

from copycat.errors import HostNotAllowed, Unavailable
from copycat.registry.endpoint import Endpoint, endpoint
from copycat.registry.hosts import (
    AddressRefused,
    FilteringResolver,
    HostConfig,
    HostPolicy,
    Proxies,
    TlsContexts,
    is_literal,
    netloc,
    same_origin,
)
from copycat.registry.limits import HostLimits

POLICY = HostPolicy(
    named=frozenset({"docker.io", "named", "10.0.0.1", "10.0.0.2:5000", "[::1]:5000", "a.svc"})
)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://10.0.0.3/",
        "https://10.0.0.2/",
        "https://10.0.0.2:5001/",
        "https://[::1]/",
        "https://[::1]:5001/",
        "https://[fe80::1%25eth0]/",
        "https://2130706433/",
        "https://127.1/",
        "https://0x7f.0.0.1/",
        "https://registry/",
        "https://localhost/",
        "https://LOCALHOST./",
        "https://x.localhost/",
        "https://registry.default.svc/",
        "https://registry.default.svc.cluster.local/",
        "https://registry.default.svc.cluster.local./",
    ],
)
def test_refused(url: str) -> None:
    """Literals in any spelling, single labels and names of this machine or cluster need to be named."""
    with pytest.raises(HostNotAllowed, match=r"may not be contacted.*registries"):
        POLICY.check(URL(url), side="source")


@pytest.mark.parametrize(
    "url",
    [
        "https://ghcr.io/",
        "https://registry-1.docker.io/",
        "https://named/",
        "https://named:5000/",
        "http://10.0.0.1:1234/",
        "http://10.0.0.2:5000/",
        "http://[::1]:5000/",
        "https://a.svc/",
        "https://svc.example.com/",
    ],
)
def test_allowed(url: str) -> None:
    """Public names, and what is named: with any port, or with its own."""
    POLICY.check(URL(url))


@pytest.mark.parametrize(
    ("address", "always", "public"),
    [
        ("8.8.8.8", True, True),
        ("2606:4700::1111", True, True),
        ("10.1.2.3", True, False),
        ("192.168.0.1", True, False),
        ("100.64.0.1", True, False),
        ("fd00::1", True, False),
        ("127.0.0.1", False, False),
        ("169.254.169.254", False, False),
        ("0.0.0.0", False, False),
        ("224.0.0.1", False, False),
        ("::", False, False),
        ("::1", False, False),
        ("fe80::1%eth0", False, False),
        ("ff02::1", False, False),
        ("::ffff:127.0.0.1", False, False),
        ("::ffff:8.8.8.8", True, True),
        ("2002:7f00:1::", False, False),
        ("64:ff9b::169.254.169.254", False, False),
        ("64:ff9b::8.8.8.8", True, True),
        ("fd00:ec2::254", False, False),
        ("168.63.129.16", False, False),
    ],
)
def test_addresses(address: str, always: bool, public: bool) -> None:
    """Loopback, link-local, multicast, unspecified and metadata never; private ones unless denied; in every disguise."""
    assert HostPolicy(named=frozenset()).allows_address(address) is always
    assert HostPolicy(named=frozenset(), deny_private=True).allows_address(address) is public


class Known(AbstractResolver):
    """Resolves every name to the same addresses."""

    closed = False

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=a, port=port, family=family, proto=0, flags=0)
            for a in self.addresses
        ]

    async def close(self) -> None:
        self.closed = True


class Pod(Known):
    """Resolves as a pod does: search domains find services for a name that does not end in a dot."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host.endswith(".") and host != "ghcr.io.":
            raise OSError("Name or service not known")
        return await super().resolve(host, port, family)


@pytest.mark.parametrize("host", ["kubernetes.default", "dns.kube-system", "registry.team"])
async def test_search_domains_lead_to_no_service(host: str) -> None:
    """In a pod, an image's host is never completed to the name of a service; a named one may be."""
    inner, named = Pod("10.96.0.10"), frozenset({"named.team"})
    resolver = FilteringResolver(inner, HostPolicy(named=named, cluster="10.96.0.1"))

    with pytest.raises(OSError, match="not known"):
        await resolver.resolve(host, 443)
    assert [r["hostname"] for r in await resolver.resolve("ghcr.io", 443)] == ["ghcr.io"]
    assert [r["hostname"] for r in await resolver.resolve("ghcr.io.", 443)] == ["ghcr.io."]
    assert len(await resolver.resolve("named.team", 443)) == 1
    outside = FilteringResolver(inner, HostPolicy(named=named))
    assert len(await outside.resolve(host, 443)) == 1


@pytest.mark.parametrize(
    ("cluster", "address"),
    [
        ("10.96.0.1", "10.96.0.1"),
        ("10.96.0.1", "::ffff:10.96.0.1"),
        ("fd00:0::1", "fd00::1"),
        ("[fd00::1]", "fd00::1"),
        ("34.1.2.3", "34.1.2.3"),
    ],
)
def test_api_server_is_no_registry(cluster: str, address: str) -> None:
    """A host that is not named may not live where the cluster's API server does, private or public."""
    assert not HostPolicy(named=frozenset(), cluster=cluster).allows_address(address)
    assert HostPolicy(named=frozenset(), cluster=cluster).allows_address("8.8.8.8")
    assert HostPolicy(named=frozenset(), cluster="api.example.com").allows_address(address)


async def test_resolver_filters() -> None:
    """Forbidden addresses are dropped before a connection is made; a named host keeps all of its own."""
    inner = Known("127.0.0.1", "8.8.8.8")
    resolver = FilteringResolver(inner, POLICY)

    assert [r["host"] for r in await resolver.resolve("evil.example", 443)] == ["8.8.8.8"]
    assert len(await resolver.resolve("named", 443)) == 2
    await resolver.close()
    assert inner.closed


async def test_resolver_refuses() -> None:
    """A name with nothing but forbidden addresses is refused."""
    with pytest.raises(AddressRefused, match=r"resolves to 127.0.0.1"):
        await FilteringResolver(Known("127.0.0.1", "::1"), POLICY).resolve("evil.example", 443)


async def test_resolver_finds_nothing() -> None:
    """No address at all is not a refusal."""
    assert await FilteringResolver(Known(), POLICY).resolve("evil.example", 443) == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.io/", "a.io"),
        ("https://a.io:443/", "a.io"),
        ("https://a.io:80/", "a.io:80"),
        ("http://[::1]:5000/", "[::1]:5000"),
    ],
)
def test_netloc(url: str, expected: str) -> None:
    """As a configuration spells it."""
    assert netloc(URL(url)) == expected


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("https://a.io:443/x", True),
        ("http://a.io/", False),
        ("https://a.io:8443/", False),
        ("https://sub.a.io/", False),
        ("https://b.io/", False),
    ],
)
def test_same_origin(other: str, same: bool) -> None:
    """Scheme, host and port; a subdomain is somebody else (moby#50065)."""
    assert same_origin(URL("https://a.io/"), URL(other)) is same


def test_is_literal() -> None:
    """Names are no literals."""
    assert not is_literal("a.io")
    assert not is_literal("1password.com")
    assert is_literal("1.2.3.4")


# Certificates


async def test_tls_contexts(tmp_path: Path) -> None:
    """Each combination is built once; insecure means that nothing is verified."""
    ca = CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    client = ca.issue_cert("client@example.com")
    client.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    contexts = TlsContexts(ca_file=str(tmp_path / "ca.pem"))
    config = HostConfig(
        host="x", ca_file=str(tmp_path / "ca.pem"), client_cert_file=str(tmp_path / "client.pem")
    )

    plain = await contexts.get(None)
    own = await contexts.get(config)
    insecure = await contexts.get(HostConfig(host="y", insecure=True))

    assert plain is await contexts.get(HostConfig(host="z"))
    assert own is await contexts.get(config)
    assert (plain.verify_mode, insecure.verify_mode) == (ssl.CERT_REQUIRED, ssl.CERT_NONE)
    assert len(plain.get_ca_certs()) > 0


async def test_default_context(tmp_path: Path) -> None:
    """A given context serves every host without files of its own; a client's certificate alone is one."""
    client = tmp_path / "client.pem"
    CA().issue_cert("client@example.com").private_key_and_cert_chain_pem.write_to_path(str(client))
    given = ssl.create_default_context()
    contexts = TlsContexts(default=given)

    assert await contexts.get(None) is given
    assert await contexts.get(HostConfig(host="x")) is given
    assert await contexts.get(HostConfig(host="x", insecure=True)) is not given
    assert await contexts.get(HostConfig(host="x", client_cert_file=str(client))) is not given


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_bad_files(tmp_path: Path, content: str | None) -> None:
    """A file that is missing or is none is named, for good."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)

    with pytest.raises(Unavailable, match=r"x cannot be used.*caFile") as caught:
        await TlsContexts().get(HostConfig(host="x", ca_file=str(file)))
    assert not caught.value.temporary
    with pytest.raises(Unavailable, match="for registries"):
        await TlsContexts(ca_file=str(file)).get(None)
    with pytest.raises(Unavailable, match="for registries"):
        await TlsContexts(ca_file=str(file)).check()


async def test_nothing_is_read_for_nobody() -> None:
    """Without a bundle for all hosts there is nothing to check: the system's authorities wait for a host with TLS."""
    contexts = TlsContexts()
    await contexts.check()

    assert contexts._built == {}


# Proxies


@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({}, "https://a.io/", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://a.io/", "http://p:3128"),
        ({"https_proxy": "p:3128"}, "https://a.io/", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://a.io/", None),
        ({"ALL_PROXY": "http://p:3128"}, "http://a.io/", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "a.io,.corp"}, "https://a.io/", None),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "a.io,.corp"}, "https://x.corp/", None),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "a.io:444"}, "https://a.io/", "http://p"),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, "https://a.io/", None),
        ({"HTTPS_PROXY": ""}, "https://a.io/", None),
    ],
)
def test_proxies(environ: dict[str, str], url: str, expected: str | None) -> None:
    """The usual variables, in both cases."""
    proxies = Proxies(environ)

    for _ in range(2):
        assert proxies.get(URL(url)) == (URL(expected) if expected else None)


def test_proxy_hosts_are_named() -> None:
    """The variables name the proxies."""
    assert Proxies({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "x"}).hosts == {"p:3128"}


# Endpoints


def make(text: str, *, insecure: bool = False) -> Endpoint:
    """The endpoint that a text describes."""
    config = HostConfig(host="x", insecure=insecure)
    return endpoint(text, registry="x", config=config, label="x", limits=HostLimits())


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2/a/b/tags/list"),
        ("ghcr.io", "https://ghcr.io/v2/a/b/tags/list"),
        ("http://cache.corp:5000/", "http://cache.corp:5000/v2/a/b/tags/list"),
        ("https://Harbor.corp/hub-proxy", "https://harbor.corp/v2/hub-proxy/a/b/tags/list"),
        ("harbor.corp/v2/hub-proxy/", "https://harbor.corp/v2/hub-proxy/a/b/tags/list"),
    ],
)
def test_endpoint(text: str, url: str) -> None:
    """A host, a scheme if wanted, and a prefix that goes before every repository."""
    assert str(make(text).url("a/b", "tags/list")) == url


def test_endpoint_of_the_registry_itself() -> None:
    """Without a repository it is the API's root; an insecure one has no scheme yet."""
    found = make("x:5000", insecure=True)

    assert (found.scheme, str(found.url("", ""))) == ("", "https://x:5000/v2/")
    found.scheme = "http"
    assert str(found.url("", "")) == "http://x:5000/v2/"


def test_no_endpoint() -> None:
    """A text without a host is refused."""
    with pytest.raises(ValueError, match="no endpoint"):
        make("https://")
