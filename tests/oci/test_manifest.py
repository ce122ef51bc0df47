from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat.errors import DigestMismatch, InvalidManifest
from copycat.oci import mediatypes as types
from copycat.oci.digest import Digest
from copycat.oci.manifest import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_PULL,
    OCI_ARTIFACT,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    SCHEMA1,
    SCHEMA1_SIGNED,
    Descriptor,
    Index,
    Manifest,
    is_foreign,
    parse_document,
)
from copycat.oci.platform import Platform
from tests.oci.strategies import descriptors, platforms

JSON = dict[str, object]

CONFIG = Digest.of(b"config")
LAYER = Digest.of(b"layer")
OTHER = Digest.of(b"other", "sha512")


def entry(digest: Digest = LAYER, size: int = 5, **members: object) -> JSON:
    """A descriptor's JSON."""
    return {"mediaType": "x/y", "digest": str(digest), "size": size, **members}


def image(digest: Digest, platform: str | None, **members: object) -> JSON:
    """An index entry's JSON; `platform` as os/architecture."""
    if platform is not None:
        system, _, architecture = platform.partition("/")
        members["platform"] = {"os": system, "architecture": architecture}

    return entry(digest) | {"mediaType": OCI_MANIFEST} | members


def attestation(digest: Digest, subject: Digest) -> JSON:
    """What BuildKit puts beside an image."""
    notes = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": str(subject),
    }
    return image(digest, "unknown/unknown", annotations=notes)


def encode(body: Mapping[str, object]) -> bytes:
    """JSON as a registry may serve it."""
    return msgspec.json.format(msgspec.json.encode(body), indent=3)


def manifest(**members: object) -> bytes:
    """An image manifest of one layer."""
    return encode({"schemaVersion": 2, "config": entry(CONFIG), "layers": [entry()], **members})


def index(*entries: JSON, **members: object) -> bytes:
    """An image index."""
    return encode({"schemaVersion": 2, "manifests": entries, **members})


def parse_index(raw: bytes, content_type: str = "") -> Index:
    """`parse_document`, where it must be an index."""
    document = parse_document(raw, content_type=content_type)
    assert isinstance(document, Index)
    return document


def parse_manifest(raw: bytes, content_type: str = "") -> Manifest:
    """`parse_document`, where it must be a manifest."""
    document = parse_document(raw, content_type=content_type)
    assert isinstance(document, Manifest)
    return document


@pytest.mark.parametrize(
    ("raw", "content_type", "expected"),
    [
        pytest.param(manifest(mediaType=OCI_MANIFEST), OCI_MANIFEST, OCI_MANIFEST, id="agree"),
        pytest.param(manifest(mediaType=DOCKER_MANIFEST), "", DOCKER_MANIFEST, id="body alone"),
        pytest.param(manifest(), DOCKER_MANIFEST, DOCKER_MANIFEST, id="header alone"),
        pytest.param(manifest(), f"{OCI_MANIFEST}; charset=utf-8", OCI_MANIFEST, id="parameters"),
        pytest.param(manifest(), OCI_MANIFEST.upper(), OCI_MANIFEST, id="upper case"),
        pytest.param(
            manifest(mediaType=OCI_MANIFEST), "text/plain", OCI_MANIFEST, id="generic header"
        ),
        pytest.param(
            manifest(mediaType="application/json"), OCI_MANIFEST, OCI_MANIFEST, id="generic body"
        ),
        pytest.param(manifest(), "application/octet-stream", OCI_MANIFEST, id="structure"),
        pytest.param(index(), "", OCI_INDEX, id="structure of an index"),
        pytest.param(index(mediaType=DOCKER_LIST), "", DOCKER_LIST, id="list"),
        pytest.param(index(), DOCKER_LIST, DOCKER_LIST, id="list by header"),
        pytest.param(manifest(mediaType=None, layers=None), "", OCI_MANIFEST, id="nulls"),
        pytest.param(encode({"mediaType": OCI_ARTIFACT}), "", OCI_ARTIFACT, id="artifact"),
    ],
)
def test_the_type_comes_from_body_header_or_structure(
    raw: bytes, content_type: str, expected: str
) -> None:
    """In this order, and generic types are no obstacle."""
    document = parse_document(raw, content_type=content_type)

    assert document.media_type == expected
    assert document.raw is raw
    assert document.descriptor == Descriptor(
        media_type=expected, digest=Digest.of(raw), size=len(raw)
    )


@pytest.mark.parametrize(
    ("raw", "content_type", "message"),
    [
        pytest.param(b"", "", "cannot be read", id="empty"),
        pytest.param(b"[]", "", "cannot be read", id="no object"),
        pytest.param(b"{} x", "", "cannot be read", id="more after it"),
        pytest.param(b'{"layers": [1]}', "", "cannot be read", id="wrong type"),
        pytest.param(b'{"x":' + b"[" * 100_000, "", "cannot be read", id="deep"),
        pytest.param(b'{"mediaType": "\xff"}', "", "cannot be read", id="not UTF-8"),
        pytest.param(b"{}", "", "neither an image manifest nor an index", id="nothing"),
        pytest.param(
            manifest(mediaType=OCI_MANIFEST), DOCKER_MANIFEST, "the registry says", id="disagree"
        ),
        pytest.param(
            manifest(manifests=[]), OCI_MANIFEST, "has both manifests and", id="CVE-2021-41190"
        ),
        pytest.param(index(layers=[]), OCI_INDEX, "has both manifests and", id="and reversed"),
        pytest.param(manifest(), OCI_INDEX, "but has config or layers", id="index of layers"),
        pytest.param(index(), OCI_MANIFEST, "but has manifests", id="manifest of manifests"),
        pytest.param(manifest(config=None), OCI_MANIFEST, "has no config", id="no config"),
        pytest.param(
            manifest(config={"digest": str(CONFIG)}), "", "config.size: None", id="no size"
        ),
        pytest.param(
            manifest(layers=[entry(), entry(size=-1)]), "", "layers[1].size: -1", id="negative"
        ),
        pytest.param(
            manifest(layers=[entry(size=2**63)]), "", "layers[0].size: 9", id="beyond 64 bits"
        ),
        pytest.param(
            manifest(layers=[entry() | {"digest": "sha256:1"}]), "", "layers[0].digest", id="digest"
        ),
        pytest.param(manifest(subject={}), "", "subject.digest", id="subject"),
        pytest.param(index({}), "", "manifests[0].digest", id="index entry"),
    ],
)
def test_what_is_no_document_is_refused(raw: bytes, content_type: str, message: str) -> None:
    """The message names the place; the reason is the general one."""
    with pytest.raises(InvalidManifest) as caught:
        parse_document(raw, content_type=content_type)

    assert message in str(caught.value)
    assert caught.value.reason == "invalid_manifest"


def test_an_index_of_too_many_entries_is_refused() -> None:
    """Readable, and more than is copied."""
    with pytest.raises(InvalidManifest, match="10001 entries") as caught:
        parse_document(index(*[{}] * 10_001))

    assert caught.value.reason == "too_large"


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        pytest.param(encode({"schemaVersion": 1, "fsLayers": []}), "", id="version"),
        pytest.param(encode({"mediaType": SCHEMA1}), "", id="body"),
        pytest.param(encode({}), SCHEMA1_SIGNED, id="header"),
        pytest.param(encode({"schemaVersion": 1}), OCI_MANIFEST, id="disguised"),
    ],
)
def test_schema_1_has_its_own_message(raw: bytes, content_type: str) -> None:
    """It says that the image must be built or pushed again."""
    with pytest.raises(InvalidManifest, match="schema 1") as caught:
        parse_document(raw, content_type=content_type)

    assert caught.value.reason == "schema1"


def test_sizes_have_a_limit() -> None:
    """What is larger than `MAX_PULL` is not even looked at."""
    with pytest.raises(InvalidManifest, match="at most 8388608 are read") as caught:
        parse_document(b" " * (MAX_PULL + 1))

    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_bytes_must_be_what_was_asked_for(algorithm: str) -> None:
    """The digest that was asked for is checked before anything is read, and becomes the document's."""
    raw = manifest()
    digest = Digest.of(raw, algorithm)

    assert parse_document(raw, digest=digest).digest == digest
    with pytest.raises(DigestMismatch, match=str(digest)):
        parse_document(raw + b" ", digest=digest)


def test_a_manifest_tells_all_that_it_refers_to() -> None:
    """Every member reaches its attribute; blobs come once each, foreign ones included."""
    foreign = entry(
        OTHER,
        mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar",
        urls=["https://x"],
        annotations={"a": None},
    )
    raw = manifest(
        layers=[entry(), entry(), foreign],
        subject=entry(OTHER, artifactType="a/b"),
        artifactType="t/t",
        annotations={"k": "v"},
    )
    document = parse_manifest(raw)

    assert [d.digest for d in document.blobs()] == [CONFIG, LAYER, OTHER]
    assert document.successors() == document.blobs()
    assert len(document.layers) == 3
    assert document.layers[2].urls == ("https://x",)
    assert document.layers[2].annotations == {"a": ""}
    assert document.subject is not None
    assert document.subject.artifact_type == "a/b"
    assert document.artifact_type == "t/t"
    assert document.annotations == {"k": "v"}
    assert hash(document) == hash(parse_document(raw))
    assert "raw" not in repr(document)


def test_an_artifact_manifest_has_blobs() -> None:
    """The old artifact type keeps its content in `blobs` and has no config."""
    raw = encode({"mediaType": OCI_ARTIFACT, "blobs": [entry()], "artifactType": "t/t"})
    document = parse_manifest(raw)

    assert document.config is None
    assert [d.digest for d in document.blobs()] == [LAYER]


def test_an_artifact_of_nothing() -> None:
    """`layers: []` beside the empty config is legal."""
    document = parse_manifest(manifest(config=entry(CONFIG, mediaType=OCI_EMPTY), layers=[]))

    assert document.layers == ()
    assert [d.media_type for d in document.blobs()] == [OCI_EMPTY]


def test_embedded_content_is_checked() -> None:
    """`data` is decoded if it is what digest and size promise."""
    text = base64.b64encode(b"layer").decode()
    document = parse_manifest(manifest(layers=[entry(data=text)]))

    assert document.layers[0].data == b"layer"


@pytest.mark.parametrize(
    ("data", "size"),
    [
        pytest.param("bGF5ZXI=", 4, id="other size"),
        pytest.param("bGF5ZXg=", 5, id="other content"),
        pytest.param("bGF5ZXI", 5, id="no padding"),
        pytest.param("bGF5 ZXI=", 5, id="space"),
        pytest.param("é", 5, id="not ASCII"),
    ],
)
def test_wrong_embedded_content_is_refused(data: str, size: int) -> None:
    """The message names the place."""
    with pytest.raises(InvalidManifest, match=r"layers\[0\]\.data"):
        parse_document(manifest(layers=[entry(data=data, size=size)]))


def a(number: int) -> Digest:
    """A digest for each number."""
    return Digest.of(bytes([number]))


BUILDKIT = index(
    image(a(1), "linux/amd64", note="kept"),
    image(a(2), "linux/arm64"),
    image(a(3), "windows/amd64", annotations={"k": "v"}),
    attestation(a(11), a(1)),
    attestation(a(12), a(2)),
    annotations={"z": "1", "a": "2"},
    unknown={"b": 1, "a": [1.50]},
)


def test_an_index_tells_its_platforms() -> None:
    """Attestations are none; sorted, each once; successors are everything."""
    document = parse_index(BUILDKIT)

    assert [str(p) for p in document.platforms()] == ["linux/amd64", "linux/arm64", "windows/amd64"]
    assert [d.digest for d in document.successors()] == [a(1), a(2), a(3), a(11), a(12)]
    assert hash(document) == hash(parse_index(BUILDKIT))


def test_selecting_takes_children_with_their_attestations() -> None:
    """In the index's order; a platform without an entry is missing, never replaced."""
    wanted = [Platform.parse(p) for p in ("linux/s390x", "linux/arm64/v8", "linux/arm")]
    selection = parse_index(BUILDKIT).select(wanted)

    assert [d.digest for d in selection.children] == [a(2)]
    assert [d.digest for d in selection.attestations] == [a(12)]
    assert [str(p) for p in selection.missing] == ["linux/arm/v7", "linux/s390x"]


@pytest.mark.parametrize(
    ("extra", "taken"),
    [
        pytest.param(image(a(5), None), True, id="manifest"),
        pytest.param(image(a(5), None, mediaType=OCI_INDEX), True, id="nested index"),
        pytest.param(image(a(5), None, artifactType="t/t"), False, id="artifact"),
        pytest.param(image(a(5), None, mediaType="x/layer"), False, id="cache layer"),
        pytest.param(
            attestation(a(5), a(9)) | {"platform": None}, False, id="attestation without platform"
        ),
    ],
)
def test_images_without_a_platform_are_taken_along(extra: JSON, taken: bool) -> None:
    """A runtime looks inside them, so nothing counts as missing beside them; other things stay out."""
    document = parse_index(index(image(a(1), "linux/amd64"), extra))
    selection = document.select([Platform.parse("linux/arm64")])

    assert taken == (a(5) in {d.digest for d in selection.children})
    assert taken == (not selection.missing)
    assert [str(p) for p in document.platforms()] == ["linux/amd64"]


def test_all_versions_of_windows_are_taken() -> None:
    """Nodes of one platform may run different versions."""
    versions = [
        image(a(n), None)
        | {"platform": {"os": "windows", "architecture": "amd64", "os.version": v}}
        for n, v in ((1, "10.0.17763.1"), (2, "10.0.20348.1"))
    ]
    selection = parse_index(index(*versions)).select([Platform.parse("windows/amd64")])

    assert [d.platform.os_version for d in selection.children if d.platform] == [
        "10.0.17763.1",
        "10.0.20348.1",
    ]


@pytest.mark.parametrize(
    ("raw", "content_type", "expected"),
    [
        pytest.param(BUILDKIT, "", OCI_INDEX, id="OCI by structure"),
        pytest.param(BUILDKIT, DOCKER_LIST, DOCKER_LIST, id="list by header"),
    ],
)
def test_a_narrowed_index(raw: bytes, content_type: str, expected: str) -> None:
    """It holds the selection alone, keeps all else, says its type, and reads as what it claims to be."""
    document = parse_index(raw, content_type)
    selection = document.select([Platform.parse("linux/amd64")])
    narrowed = document.narrowed(selection)

    assert narrowed.manifests == (*selection.children, *selection.attestations)
    assert narrowed == parse_document(narrowed.raw)
    assert narrowed.media_type == expected
    assert narrowed.annotations == document.annotations
    assert narrowed.digest != document.digest
    assert b'"note": "kept"' in narrowed.raw
    assert b"1.50" in narrowed.raw or b"1.5" in narrowed.raw


def test_narrowing_does_not_depend_on_the_order_of_members() -> None:
    """The same index, written with its members in another order, gives the same bytes."""
    body = msgspec.json.decode(BUILDKIT)
    turned = parse_index(encode(dict(reversed(body.items()))))
    wanted = [Platform.parse("linux/amd64")]
    document = parse_index(BUILDKIT)

    assert document.narrowed(document.select(wanted)).raw == (
        turned.narrowed(turned.select(wanted)).raw
    )


def test_an_index_that_cannot_be_written_again_is_refused() -> None:
    """Broken text under a name that nobody reads is found only when narrowing."""
    raw = b'{"manifests": [], "\xff": 1}'
    with suppress(InvalidManifest):
        document = parse_index(raw)
        with pytest.raises(InvalidManifest, match="cannot be read"):
            document.narrowed(document.select([]))


@given(st.lists(descriptors, max_size=6), st.lists(platforms, max_size=4))
def test_a_selection_answers_every_wish(children: list[Descriptor], wanted: list[Platform]) -> None:
    """Every wanted platform is either matched by a child or missing, and every child was wanted."""
    document = Index(raw=b"", media_type=OCI_INDEX, digest=LAYER, manifests=tuple(children))
    selection = document.select(wanted)
    found = [d.platform for d in selection.children]

    assert all(p is None or any(w.matches(p) for w in wanted) for p in found)
    for platform in wanted:
        answered = any(p is None or platform.matches(p) for p in found)
        assert answered != (platform in selection.missing)

    assert set(selection.children) <= set(children)
    if selection.missing:
        assert None not in found


_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
)
_names = st.sampled_from(
    [
        "mediaType",
        "schemaVersion",
        "config",
        "layers",
        "manifests",
        "blobs",
        "subject",
        "digest",
        "size",
        "platform",
        "os",
        "data",
        "urls",
        "annotations",
        "artifactType",
    ]
)
_values: st.SearchStrategy[object] = st.recursive(
    _scalars | st.sampled_from([str(LAYER), OCI_INDEX, OCI_MANIFEST, OCI_ARTIFACT]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=6),
    max_leaves=20,
)


@given(
    st.dictionaries(_names, _values, max_size=8),
    st.sampled_from(["", OCI_INDEX, OCI_MANIFEST, OCI_ARTIFACT, DOCKER_LIST, "x"]),
)
def test_any_json_is_a_document_or_invalid(body: dict[str, object], content_type: str) -> None:
    """No JSON makes reading fail in another way."""
    with suppress(InvalidManifest):
        parse_document(msgspec.json.encode(body), content_type=content_type)


@given(st.binary(), st.text())
def test_any_bytes_are_a_document_or_invalid(raw: bytes, content_type: str) -> None:
    """No bytes make reading fail in another way."""
    with suppress(InvalidManifest):
        parse_document(raw, content_type=content_type)


@given(st.data(), st.sampled_from([manifest(), BUILDKIT]))
def test_damaged_documents_are_noticed(data: st.DataObject, raw: bytes) -> None:
    """With the digest known, a flipped byte is always a mismatch."""
    at = data.draw(st.integers(0, len(raw) - 1))
    damaged = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    with pytest.raises(DigestMismatch):
        parse_document(damaged, digest=Digest.of(raw))


@pytest.mark.parametrize(
    ("media_type", "foreign"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", True),
        ("application/vnd.oci.image.layer.v1.tar+gzip", False),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", False),
        ("", False),
    ],
)
def test_foreign_layers(media_type: str, foreign: bool) -> None:
    """Both families in all compressions, nothing else."""
    assert foreign == is_foreign(media_type)


def test_accept_names_every_type_that_is_read() -> None:
    """One list without wildcards and without schema 1."""
    accepted = ACCEPT.split(", ")

    assert set(accepted) == types.INDEX_TYPES | types.MANIFEST_TYPES
    assert len(accepted) == len(set(accepted))
    assert accepted[0] == OCI_INDEX
