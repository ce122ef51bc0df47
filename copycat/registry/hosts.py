"""Which hosts may be contacted, and how they are reached: names, addresses, certificates, proxies.

Whoever may create a Pod chooses source hosts, and a registry chooses redirects, realms and
Locations. So a name is checked before anything is sent, and the addresses it resolves to when the
connection is made; the address that was checked is the one connected to (product notes, section 2).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import anyio.to_thread
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from copycat.errors import HostNotAllowed, Side, Unavailable
from copycat.oci.reference import normalise_registry

__all__ = [
    "AddressRefused",
    "FilteringResolver",
    "HostConfig",
    "HostPolicy",
    "Proxies",
    "TlsContexts",
    "is_literal",
    "netloc",
    "same_origin",
    "web_url",
]

#: Cloud metadata services outside of the link-local ranges.
_METADATA = frozenset({"fd00:ec2::254", "100.100.100.200", "168.63.129.16"})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
#: WHATWG: a host whose last label is a number is an IPv4 address in some spelling (127.1, 0x7f.1).
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """One row of the `registries` table."""

    host: str
    """The registry as references name it, normalised: `docker.io`, `registry.corp:5000`."""
    endpoints: tuple[str, ...] = ()
    """Asked in order in place of the host: `[http[s]://]host[:port][/repository-prefix]`."""
    insecure: bool = False
    """Unverified TLS, or plain HTTP if the host does not speak TLS."""
    ca_file: str = ""
    client_cert_file: str = ""
    client_key_file: str = ""
    concurrency: int | None = None
    """Blob streams at once; None: the general figure."""


def is_literal(host: str) -> bool:
    """Whether the host is an IP address in any spelling that a resolver would take for one."""
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return _NUMERIC.fullmatch(host) is not None
    return True


def netloc(url: URL) -> str:
    """`host:port` of a URL as HostConfig and HostPolicy spell it: no port if it is the scheme's own."""
    host = url.host or ""
    if ":" in host:
        host = f"[{host}]"
    return host if url.is_default_port() else f"{host}:{url.port}"


def web_url(text: str, *, base: URL | None = None) -> URL:
    """The URL that somebody else names (a realm, a redirect, a Location), with every byte that is sent.

    Raises ValueError if there is none to go to: another scheme than HTTP's, no host or one that DNS cannot
    know (names are ASCII in DNS, and what is not would be read differently by the policy and the resolver),
    a port that no host has.
    """
    # A fragment is nobody's business but a browser's, and `digest=` must not land behind it.
    bare = text.strip().partition("#")[0]
    url = URL(bare, encoded=True)
    if base is not None and bare:
        url = base.join(url)
    # Parts that yarl reads late raise late, too.
    if url.scheme not in {"http", "https"} or not url.raw_host or not url.port:
        raise ValueError(f"{text!r} is no URL of HTTP")
    if not url.raw_host.isascii() or not url.host:
        raise ValueError(f"{text!r} names no host of the DNS")
    return url


def same_origin(one: URL, other: URL) -> bool:
    """Whether scheme, host and port are equal: the condition for sending credentials."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPolicy:
    """Which hosts may be contacted."""

    named: frozenset[str]
    """Hosts from the configuration, with or without port; they may be anything, anywhere."""
    deny_private: bool = False
    cluster: str = ""
    """KUBERNETES_SERVICE_HOST: where the API server lives, and that this is a pod; empty elsewhere."""

    def is_named(self, host: str, port: int | None) -> bool:
        """Whether the configuration names the host (any port) or exactly this port of it."""
        plain = f"[{host}]" if ":" in host else host
        for name in (plain, f"{plain}:{port}"):
            if name in self.named or normalise_registry(name) in self.named:
                return True
        return False

    def check(self, url: URL, *, side: Side = "") -> None:
        """Raises HostNotAllowed for a name or literal that only a named host may have."""
        host = (url.host or "").lower()
        if self.is_named(host, url.port):
            return
        bare = host.rstrip(".")
        if is_literal(bare):
            kind = "is an IP address"
        elif "." not in bare:
            kind = "is a single label" if bare != "localhost" else "is this machine"
        elif bare.endswith((".localhost", ".svc", ".cluster.local")):
            kind = "is inside the cluster or this machine"
        else:
            return
        raise HostNotAllowed(
            f"The host {host} may not be contacted: it {kind} and the configuration does not name it. "
            "If it is meant, list it in registries, insecureRegistries or allowedRegistries.",
            side=side,
            registry=host,
        )

    @property
    def _api_server(self) -> str:
        """The address of the cluster's API server as ipaddress spells it, empty if none is known."""
        try:
            return str(ipaddress.ip_address(self.cluster.strip("[]")))
        except ValueError:  # none, or a name
            return ""

    def allows_address(self, address: str) -> bool:
        """Whether a host that is not named may live at this address."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address):
            inner = ip.ipv4_mapped or ip.sixtofour
            if inner is None and ip in _NAT64:
                inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
            if inner is not None:
                return self.allows_address(str(inner))
        if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
            return False
        if str(ip) == self._api_server:
            return False
        return str(ip) not in _METADATA and (ip.is_global or not self.deny_private)


class AddressRefused(OSError):
    """Every address of a host is forbidden. An OSError, because aiohttp lets only those through."""


class FilteringResolver(AbstractResolver):
    """Drops the addresses that a host which is not named may not have."""

    def __init__(
        self, inner: AbstractResolver, policy: HostPolicy, *, proxies: frozenset[str] = frozenset()
    ) -> None:
        """Args: `inner` does the looking up, it is closed with this one; `proxies` (`host:port`) may live anywhere."""
        self._inner, self._policy, self._proxies = inner, policy, proxies

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As the inner one, less what the policy forbids. Raises AddressRefused if nothing is left.

        In a pod the search domains would make a cluster's service of `kubernetes.default` or `registry.team`,
        so a name that the configuration does not hold is looked up as the whole name that it is.
        """
        if self._policy.is_named(host, port) or f"{host}:{port}" in self._proxies:
            return await self._inner.resolve(host, port, family)
        whole = f"{host.rstrip('.')}." if self._policy.cluster else host
        found = await self._inner.resolve(whole, port, family)
        for row in found:
            row["hostname"] = host  # what the certificate is checked against
        kept = [row for row in found if self._policy.allows_address(row["host"])]
        if found and not kept:
            raise AddressRefused(
                f"{host} resolves to {found[0]['host']}, which may not be contacted"
            )
        return kept

    async def close(self) -> None:
        """Close the inner resolver."""
        await self._inner.close()


class TlsContexts:
    """SSL contexts, each built once and in a worker thread (they read files)."""

    def __init__(self, *, ca_file: str = "", default: ssl.SSLContext | None = None) -> None:
        """Args: `ca_file` is trusted beside the system's; `default` replaces both where a host has no files."""
        self._ca_file = ca_file
        self._default = default
        self._built: dict[tuple[str, str, str, bool], ssl.SSLContext] = {}

    async def check(self) -> None:
        """Read the bundle for all hosts now. Raises Unavailable (for good) if it cannot be used.

        Without one nothing is read: whoever speaks plain HTTP alone has no use for the system's authorities.
        """
        if self._ca_file:
            await self.get(None)

    async def get(self, config: HostConfig | None) -> ssl.SSLContext:
        """The context for a host. Raises Unavailable (for good) if one of its files cannot be used."""
        own = config is not None and (config.insecure or config.ca_file or config.client_cert_file)
        if not own and self._default is not None:
            return self._default
        key = (
            (config.ca_file, config.client_cert_file, config.client_key_file, config.insecure)
            if config is not None
            else ("", "", "", False)
        )
        if (context := self._built.get(key)) is None:
            try:
                context = await anyio.to_thread.run_sync(self._build, *key)
            except (OSError, ssl.SSLError) as error:
                raise Unavailable(
                    f"The certificate files for {config.host if config else 'registries'} cannot be used: {error}. "
                    "Check registryCAFile and the caFile, clientCertFile and clientKeyFile of registries.",
                    registry=config.host if config else "",
                    reason="tls_files",
                    temporary=False,
                ) from error
            context = self._built.setdefault(key, context)
        return context

    def _build(self, ca_file: str, cert: str, key: str, insecure: bool) -> ssl.SSLContext:
        # Who verifies nothing has no use for the system's authorities, which take a while to read.
        context = (
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if insecure else ssl.create_default_context()
        )
        for bundle in filter(None, (self._ca_file, ca_file)):
            context.load_verify_locations(cafile=bundle)
        if cert:
            context.load_cert_chain(cert, key or None)
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Proxies:
    """HTTP(S)_PROXY and NO_PROXY. aiohttp's own support costs two thread hops a request and reads ~/.netrc."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Reads the variables once."""
        self._proxies = {
            name[: -len("_proxy")].lower(): value
            for name, value in environ.items()
            if name.lower().endswith("_proxy") and value
        }
        self._known: dict[tuple[str, str], URL | None] = {}

    @cached_property
    def hosts(self) -> frozenset[str]:
        """The proxies themselves as `host:port`: these variables name them, and nothing else that lives there."""
        urls = [_proxy_url(value) for name, value in self._proxies.items() if name != "no"]
        return frozenset(f"{url.host}:{url.port}" for url in urls if url.host)

    def get(self, url: URL) -> URL | None:
        """The proxy for a URL, None for a direct connection."""
        if not self._proxies:
            return None
        key = (url.scheme, netloc(url))
        if key not in self._known:
            self._known[key] = self._find(*key)
        return self._known[key]

    def _find(self, scheme: str, host: str) -> URL | None:
        proxy = self._proxies.get(scheme) or self._proxies.get("all")
        if not proxy or urllib.request.proxy_bypass_environment(host, self._proxies):  # type: ignore[attr-defined] # typeshed omits this function of the standard library
            return None
        return _proxy_url(proxy)


def _proxy_url(text: str) -> URL:
    return URL(text if "://" in text else f"http://{text}")
