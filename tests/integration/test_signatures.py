"""Signatures between real registries, judged as a verifier does: what it accepts at the source it accepts of the copy."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import pytest

from copycat.sandbox import images as made
from tests.integration.images import OCI_INDEX, OCI_MANIFEST, Image, push, sha256, single_image
from tests.integration.process import run
from tests.integration.registries import DockerRegistry

pytestmark = [
    pytest.mark.integration,
    pytest.mark.needs("docker-registry", "openssl"),
]

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"


class Signer:
    """A key, and who accepts what it signed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key, self._public = directory / "key.pem", directory / "public.pem"
        run(
            "openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(self._key)
        )
        run("openssl", "ec", "-in", str(self._key), "-pubout", "-out", str(self._public))

    def sign(self, image: Image, name: str) -> Image:
        """The manifest that cosign puts under `sha256-<hex>.sig`. Args: `name` is what the image is called where it is signed."""
        payload = json.dumps(
            {
                "critical": {
                    "identity": {"docker-reference": name},
                    "image": {"docker-manifest-digest": image.digest},
                    "type": "cosign container image signature",
                },
                "optional": None,
            }
        ).encode()
        file, signature = self._directory / "payload", self._directory / "signature"
        file.write_bytes(payload)
        run(
            "openssl", "dgst", "-sha256", "-sign", str(self._key), "-out", str(signature), str(file)
        )
        config = json.dumps(
            {
                "architecture": "",
                "os": "",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [sha256(payload)]},
            }
        ).encode()
        encoded = base64.b64encode(signature.read_bytes()).decode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": SIMPLE_SIGNING,
                    "digest": sha256(payload),
                    "size": len(payload),
                    "annotations": {"dev.cosignproject.cosign/signature": encoded},
                }
            ],
        }
        return Image(
            blobs={sha256(config): config, sha256(payload): payload},
            manifests=[(OCI_MANIFEST, json.dumps(manifest).encode())],
        )

    def accepts(self, registry: DockerRegistry, repository: str, tag: str) -> bool:
        """Whether somebody who verifies as cosign does takes the image: its digest's signature, by this key, of this digest."""
        tags = registry.digests(repository)
        digest = tags[tag]
        signature = tags.get(digest.replace(":", "-") + ".sig")
        if signature is None:
            return False
        (layer,) = json.loads(registry.blob_file(signature).read_bytes())["layers"]
        payload = registry.blob_file(layer["digest"])
        encoded = layer["annotations"]["dev.cosignproject.cosign/signature"]
        file = self._directory / "encoded"
        file.write_bytes(base64.b64decode(encoded))
        command = ("openssl", "dgst", "-sha256", "-verify", str(self._public))
        run(*command, "-signature", str(file), str(payload))
        said = json.loads(payload.read_bytes())["critical"]["image"]["docker-manifest-digest"]
        return bool(said == digest)


def mirror(source: DockerRegistry, target: DockerRegistry, name: str, signatures: str) -> None:
    """Copy one image as a user does."""
    command = ("-m", "copycat", "mirror", "--insecure", "--target", target.address)
    environment = {**os.environ, "SIGNATURES": signatures}
    run(sys.executable, *command, f"{source.address}/{name}", environment=environment)


@pytest.mark.parametrize(("signatures", "accepted"), [("all", True), ("none", False)])
def test_a_signature_is_good_for_the_copy(
    source: DockerRegistry,
    target: DockerRegistry,
    tmp_path: Path,
    signatures: str,
    *,
    accepted: bool,
) -> None:
    """A verifier that takes the original takes the copy; without its signature it would not."""
    image, signer = single_image("signed"), Signer(tmp_path)
    push(image, source.address, "team/app", "1")
    signature = signer.sign(image, f"{source.address}/team/app")
    tag = image.digest.replace(":", "-") + ".sig"
    push(signature, source.address, "team/app", tag)
    assert signer.accepts(source, "team/app", "1")

    mirror(source, target, "team/app:1", signatures)
    assert signer.accepts(target, "team/app", "1") is accepted
    assert (target.digests("team/app").get(tag) == signature.digest) is accepted


def test_referrers_of_registries_without_the_api(
    source: DockerRegistry, target: DockerRegistry
) -> None:
    """Of registries that know referrers by tag alone: what refers to an image, and to that, is listed at the target too."""
    app = made.image(seed="app")
    sbom = made.artifact(subject=app, seed="sbom")
    above = made.artifact(subject=sbom, seed="above")
    for image, names in ((app, ["1"]), (sbom, []), (above, [])):
        manifests = [(m.media_type, m.data) for m in image.manifests]
        push(Image(blobs=image.blobs, manifests=manifests), source.address, "team/app", *names)
    for subject, referrer in ((app, sbom), (sbom, above)):
        listed = Image(blobs={}, manifests=[(OCI_INDEX, made.index(referrer).data)])
        push(listed, source.address, "team/app", made.cosign_tag(subject, ""))

    start = source.position()
    mirror(source, target, "team/app:1", "all")
    asked = [r for r in source.requests(start=start) if "/referrers/" in r.path]
    # twice: once may be a proxy that has a bad moment
    assert [r.status for r in asked] == [404, 404]
    tags = target.digests("team/app")
    for subject, referrer in ((app, sbom), (sbom, above)):
        index = json.loads(target.blob_file(tags[made.cosign_tag(subject, "")]).read_bytes())
        assert [m["digest"] for m in index["manifests"]] == [referrer.digest]
        assert target.blob_file(referrer.digest).read_bytes() == referrer.data
