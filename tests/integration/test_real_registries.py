"""Every shape of image between real registries: 2.8 and 3.0 of distribution, plain, TLS, tokens, and a line that breaks.

One run of `copycat mirror` copies them all; what then lies in the target's storage is compared byte by byte.
"""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from copycat.sandbox import images
from copycat.sandbox.images import Image
from tests.acceptance.cases import CASES as SHAPES
from tests.integration.images import put_blob, put_manifest
from tests.integration.lines import Lines
from tests.integration.programs import copycat
from tests.integration.registries import ONE_USER, DockerRegistry
from tests.integration.tokens import TokenServer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.needs("docker-registry", "registry-v3", "toxiproxy-server", "setpriv", "openssl"),
]

KIB, MIB = 1024, 1024 * 1024
V2, V3 = "docker-registry", "registry-v3"
SHARED = images.layer(300 * KIB, seed="shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An image, and what a copy of it comes to."""

    image: Image
    more: tuple[Image, ...] = ()
    """What is signed: it comes along."""
    tags: Mapping[str, Image] = field(default_factory=dict)
    """Besides `1`: how it is found."""
    state: str = "protected"
    reason: str = ""
    programs: tuple[str, ...] = (V2, V3)
    """Registries that take such an image."""


def signed_by_tag() -> Case:
    """As cosign does by itself."""
    image = images.image(seed="cosigned")
    signature, attestation = images.signature(image), images.signature(image, seed=1)
    tags = {images.cosign_tag(image): signature, images.cosign_tag(image, ".att"): attestation}
    return Case(image=image, more=(signature, attestation), tags=tags)


def signed_by_reference() -> Case:
    """An SBOM, and what refers to that: the registries know both by the fallback tag alone."""
    image = images.image(seed="with an SBOM")
    sbom = images.artifact(seed="sbom", subject=image)
    above = images.artifact(seed="above", subject=sbom)
    tags = {
        images.cosign_tag(subject, ""): images.index(referrer)
        for subject, referrer in ((image, sbom), (sbom, above))
    }
    return Case(image=image, more=(sbom, above), tags=tags)


CASES: Mapping[str, Case] = {
    "oci": Case(image=images.image(seed="oci", layers=[SHARED, 200 * KIB])),
    "docker": Case(image=images.image(seed="docker", docker=True)),
    "large": Case(image=images.image(seed="large", layers=[SHARED, 3 * MIB])),
    "index": Case(image=images.index(seed="index", attestations=True, layers=[SHARED, 2048])),
    "list": Case(image=images.index(seed="list", docker=True)),
    "nested": Case(image=images.index(images.index(seed="inner"), images.image(seed="outer"))),
    "zero-byte": Case(image=images.image(seed="zero", layers=[1024, images.empty_layer()])),
    "duplicates": Case(image=images.image(seed="twice", layers=[SHARED, SHARED, 512])),
    "inline": Case(image=images.image(seed="inline", inline=True)),
    "no-layers": Case(image=images.image(seed="none", layers=[])),
    "artifact": Case(image=images.artifact()),
    **{
        name: Case(image=SHAPES[name]().image)
        for name in (
            "docker-in-oci", "zstd-layer", "foreign-served", "no-media-type", "unknown-config"
        )
    },
    "foreign": Case(
        image=SHAPES["foreign-layer"]().image,
        state="incomplete",
        reason="foreign_layers",
        programs=(V2,),
    ),
    "cosign": signed_by_tag(),
    "referrers": signed_by_reference(),
}  # fmt: skip


def cases(program: str) -> Mapping[str, Case]:
    """What there is in a registry of that program."""
    return {name: case for name, case in CASES.items() if program in case.programs}


def fill(source: DockerRegistry, program: str) -> None:
    """Put every case into a registry that asks nobody who they are."""
    for name, case in cases(program).items():
        for image in (case.image, *case.more):
            for digest, data in image.blobs.items():
                put_blob(source.address, f"case/{name}", digest, data)
            for manifest in image.manifests:
                put_manifest(
                    source.address,
                    f"case/{name}",
                    manifest.digest,
                    manifest.data,
                    manifest.media_type,
                )
        for tag, image in {"1": case.image, **case.tags}.items():
            root = image.manifests[-1]
            put_manifest(source.address, f"case/{name}", tag, root.data, root.media_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Two registries as the program is to reach them."""

    target: DockerRegistry
    source_address: str
    target_address: str
    config: Mapping[str, Any]
    program: str


@contextmanager
def plain(directory: Path, program: str) -> Iterator[World]:
    """HTTP, and nobody asks who it is."""
    with (
        DockerRegistry(directory / "source", program=program) as source,
        DockerRegistry(directory / "target", program=program) as target,
    ):
        fill(source, program)
        yield _insecure(source, target, program)


def _insecure(
    source: DockerRegistry,
    target: DockerRegistry,
    program: str,
    lines: Mapping[str, str] | None = None,
) -> World:
    there = {"source": source.address, "target": target.address, **(lines or {})}
    return World(
        target=target,
        source_address=there["source"],
        target_address=there["target"],
        config={"insecureRegistries": list(there.values())},
        program=program,
    )


@contextmanager
def tls(directory: Path, program: str) -> Iterator[World]:
    """TLS with certificates of a private authority, and passwords."""
    authority = trustme.CA()
    keys = (directory / "server.crt", directory / "server.key")
    made = authority.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(keys[0])
    made.private_key_pem.write_to_path(keys[1])
    authority.cert_pem.write_to_path(directory / "ca.crt")
    with DockerRegistry(directory / "source", program=program) as open_to_all:
        fill(open_to_all, program)
    options: dict[str, Any] = {"tls": keys, "htpasswd": ONE_USER, "program": program}
    with (
        DockerRegistry(directory / "source", **options) as source,
        DockerRegistry(directory / "target", **options) as target,
    ):
        config = {
            "registryCAFile": str(directory / "ca.crt"),
            **_logins(source, target, "a-password"),
        }
        yield World(
            target=target,
            source_address=source.address,
            target_address=target.address,
            config=config,
            program=program,
        )


@contextmanager
def tokens(directory: Path, program: str) -> Iterator[World]:
    """Tokens that end after three seconds, whatever the server promises."""
    with (
        DockerRegistry(directory / "source", program=program) as open_to_all,
    ):
        fill(open_to_all, program)
    with TokenServer(directory, username="somebody", password="pass-word", life=3) as server:
        options: dict[str, Any] = {"token": server.auth(), "program": program}
        with (
            DockerRegistry(directory / "source", **options) as source,
            DockerRegistry(directory / "target", **options) as target,
        ):
            world = _insecure(source, target, program)
            config = {**world.config, **_logins(source, target, "pass-word")}
            config["insecureRegistries"] = [*config["insecureRegistries"], server.address]
            # slow enough that tokens end in the middle
            config["maxBandwidth"] = "1Mi"
            yield World(
                target=target,
                source_address=source.address,
                target_address=target.address,
                config=config,
                program=program,
            )
        scopes = {scope.partition(":")[2] for scope in server.granted}
        assert "case/oci:pull" in scopes
        assert len(server.granted) > len(scopes), "tokens were renewed"


def _logins(source: DockerRegistry, target: DockerRegistry, password: str) -> dict[str, Any]:
    login = {"username": "somebody", "password": password}
    return {
        "registryCredentials": [
            {"registry": address, **login} for address in (source.address, target.address)
        ]
    }


@contextmanager
def breaking(directory: Path, toxic: Mapping[str, Any], *, program: str = V2) -> Iterator[World]:
    """Every connection to either side breaks in its own way."""
    with (
        DockerRegistry(directory / "source", program=program) as source,
        DockerRegistry(directory / "target", program=program) as target,
        Lines(toxic) as lines,
    ):
        fill(source, program)
        ends = {"source": lines.to(source.address), "target": lines.to(target.address)}
        yield _insecure(source, target, program, ends)


def _toxic(kind: str, **attributes: int) -> dict[str, Any]:
    return {"type": kind, "stream": "downstream", "attributes": attributes}


WORLDS: Mapping[str, Callable[[Path], Any]] = {
    "2.8": lambda directory: plain(directory, V2),
    "3.0": lambda directory: plain(directory, V3),
    "2.8-tls": lambda directory: tls(directory, V2),
    "3.0-tls": lambda directory: tls(directory, V3),
    "2.8-token": lambda directory: tokens(directory, V2),
    "3.0-token": lambda directory: tokens(directory, V3),
    # every connection ends after 400 kB, in the middle of whatever it carries
    "cut": lambda directory: breaking(directory, _toxic("limit_data", bytes=400_000)),
    # one connection of five takes everything, answers nothing, and is reset after 0.2 s
    "reset": lambda directory: breaking(
        directory, {**_toxic("reset_peer", timeout=200), "toxicity": 0.2}
    ),
    # the same, but it ends in silence instead of a reset
    "timeout": lambda directory: breaking(
        directory, {**_toxic("timeout", timeout=300), "toxicity": 0.2}
    ),
    # answers come in crumbs, and connections end late
    "crumbs": lambda directory: breaking(directory, _toxic("slicer", average_size=700, delay=5)),
    "slow-close": lambda directory: breaking(directory, _toxic("slow_close", delay=500)),
    "3.0-cut": lambda directory: breaking(
        directory, _toxic("limit_data", bytes=400_000), program=V3
    ),
}


@pytest.mark.parametrize("name", WORLDS)
def test_every_shape(tmp_path: Path, name: str) -> None:
    """All images arrive as they are, bit by bit, under tag and anchor; a second run reads and writes nothing."""
    with WORLDS[name](tmp_path) as world:
        wanted = cases(world.program)
        rows = mirrored(world, tmp_path)
        assert {case: (row["state"], row["reason"]) for case, row in rows.items()} == {
            case: (expected.state, expected.reason) for case, expected in wanted.items()
        }, json.dumps(rows, indent=1)
        for case, expected in wanted.items():
            assert_stored(world.target, f"case/{case}", expected)
        position = world.target.position()
        again = mirrored(world, tmp_path)
        kept = {row["state"] for case, row in again.items() if wanted[case].state == "protected"}
        assert kept == {"protected"}
        assert {row["bytesPulled"] + row["bytesPushed"] for row in again.values()} == {0}
        assert not [r for r in world.target.requests(start=position) if r.writes]


def mirrored(world: World, directory: Path) -> dict[str, dict[str, Any]]:
    """One run over all cases; what it says of each."""
    file = directory / "config.yaml"
    settings = {
        "targetKind": "docker",
        "docker": {"registry": world.target_address},
        "registryRetryBackoff": "50ms",
        "registryRetryAttempts": 8,
        **world.config,
    }
    file.write_text(yaml.safe_dump(settings))
    references = [f"{world.source_address}/case/{name}:1" for name in cases(world.program)]
    _, out, err = copycat("mirror", "--json", f"--config={file}", *references)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == len(references), err
    return {row["source"].split("/case/")[1].removesuffix(":1"): row for row in rows}


def assert_stored(target: DockerRegistry, repository: str, case: Case) -> None:
    """The target's storage holds the image, whole, under its tag and its anchor, and what was signed."""
    image, tags = case.image, target.digests(repository)
    whole = "digest-" if case.state == "protected" else "incomplete-"
    anchors = {tag: digest for tag, digest in tags.items() if tag.startswith(whole)}
    # what has a tag of cosign's, too: it may move
    kept = [image, *(part for part in case.more if part in case.tags.values())]
    assert anchors == {whole + one.digest.partition(":")[2]: one.digest for one in kept}
    assert tags.keys() - anchors.keys() == {"1", *case.tags}
    assert tags["1"] == image.digest
    for tag, named in case.tags.items():
        if named in case.more:
            assert tags[tag] == named.digest
            continue
        found = json.loads(target.blob_file(tags[tag]).read_bytes())["manifests"]
        assert [d["digest"] for d in found] == [m.digest for m in named.manifests[:-1]]
    for part in (image, *case.more):
        for digest, data in part.blobs.items():
            assert target.blob_file(digest).read_bytes() == data
        for manifest in part.manifests:
            assert target.blob_file(manifest.digest).read_bytes() == manifest.data


@pytest.mark.parametrize("program", [V2, V3])
def test_what_they_refuse(tmp_path: Path, program: str) -> None:
    """A schema 1 manifest cannot be put into them any more; so no copy of one can be met there."""
    with DockerRegistry(tmp_path / "registry", program=program) as registry:
        old = images.schema1().manifests[-1]
        with pytest.raises(urllib.error.HTTPError) as refused:
            put_manifest(registry.address, "old/image", "1", old.data, old.media_type)
        refused.value.close()
        assert refused.value.code in {400, 404, 415, 500}
