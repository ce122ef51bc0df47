"""Hypothesis strategies for the values of `copycat.oci`."""

from __future__ import annotations

import string
from itertools import pairwise

from hypothesis import strategies as st

from copycat.oci.digest import Digest
from copycat.oci.manifest import OCI_MANIFEST, Descriptor
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference

__all__ = ["chunked", "descriptors", "digests", "platforms", "references"]

_ALNUM = string.ascii_lowercase + string.digits

digests = st.builds(
    Digest.of, st.binary(max_size=8), st.sampled_from(["sha256", "sha384", "sha512"])
)

_words = st.text(_ALNUM, min_size=1, max_size=8)
_components = st.builds(
    lambda first, rest: first + "".join(separator + word for separator, word in rest),
    _words,
    st.lists(st.tuples(st.sampled_from([".", "_", "__", "-", "---"]), _words), max_size=2),
)
_paths = st.lists(_components, min_size=1, max_size=4).map("/".join)
_ports = st.integers(1, 65535).map(lambda port: f":{port}")
_hosts = st.one_of(
    st.sampled_from(["ghcr.io", "quay.io", "localhost", "registry.k8s.io"]),
    st.builds(str.__add__, st.sampled_from(["localhost", "reg", "10.0.0.1", "[::1]"]), _ports),
)
_tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@st.composite
def references(draw: st.DrawFn) -> Reference:
    """References in canonical form."""
    host = draw(st.one_of(st.just("docker.io"), _hosts))
    path = draw(_paths)
    if host == "docker.io" and "/" not in path:
        path = f"library/{path}"

    digest = draw(st.none() | digests)
    tag = draw(_tags) if digest is None else draw(st.none() | _tags)
    return Reference(registry=host, repository=path, tag=tag, digest=digest)


platforms = st.builds(
    Platform,
    st.sampled_from(["linux", "windows", "Darwin", "macos"]),
    st.sampled_from(["amd64", "x86_64", "arm64", "aarch64", "arm", "armhf", "s390x", "386"]),
    st.sampled_from(["", "v1", "v3", "v6", "v7", "v8", "7", "8", "v9.0"]),
    st.sampled_from(["", "10.0.17763", "10.0.17763.4499"]),
)

descriptors = st.builds(
    Descriptor,
    media_type=st.just(OCI_MANIFEST),
    digest=digests,
    size=st.integers(0, 2**40),
    platform=st.none() | platforms,
)


@st.composite
def chunked(draw: st.DrawFn, content: bytes) -> list[bytes]:
    """`content` cut at any places, empty chunks among them."""
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=8)))
    edges = [0, *cuts, len(content)]
    return [content[a:b] for a, b in pairwise(edges)]
