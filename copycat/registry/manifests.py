"""A repository's manifests: resolved, read and verified, written byte for byte."""

from __future__ import annotations

from copycat.errors import (
    Denied,
    DigestMismatch,
    InvalidManifest,
    NotFound,
    RegistryError,
    TooLarge,
    Unauthorized,
    UploadRejected,
)
from copycat.oci.digest import Digest
from copycat.oci.manifest import (
    ACCEPT,
    MAX_PULL,
    MAX_PUSH,
    Descriptor,
    Document,
    parse_document,
)
from copycat.registry.answers import ERROR_LIMIT, Place, Reply
from copycat.registry.lists import described
from copycat.registry.part import HEAD_UNSUPPORTED, Part

__all__ = ["MISSING_CONTENT", "Manifests", "read_document"]

#: A manifest that names content which the target does not have; some answer so with 404. The last two are ECR's
#: (registry notes 1.3, 6).
MISSING_CONTENT = frozenset(
    {
        "BLOB_UNKNOWN",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_UNKNOWN",
        "LayersNotFound",
        "ReferencedImagesNotFound",
    }
)


def read_document(
    place: Place, raw: bytes, content_type: str, digest: Digest | None = None
) -> Document:
    """As `parse_document`, with errors that name the registry and the reference.

    Raises InvalidManifest, and DigestMismatch as it is.
    """
    try:
        return parse_document(raw, content_type=content_type, digest=digest)
    except InvalidManifest as error:
        raise InvalidManifest(
            f"{place.who}: {place.what}: {error.message}",
            side=place.side,
            reference=place.reference,
            reason=error.reason,
        ) from error


class Manifests(Part):
    """The part of a repository's API that concerns manifests and indexes."""

    async def head_manifest(self, reference: str | Digest) -> Descriptor | None:
        """What a tag or digest is, without its content; None if it is not there.

        Registries whose HEAD is of no use are asked with GET. Raises the registry errors.
        """
        endpoint = self._transport.endpoint(self.registry)
        if not endpoint.head_useless:
            try:
                reply = await self._manifest("HEAD", reference, accept=HEAD_UNSUPPORTED | {404})
            except (Denied, Unauthorized):
                # Some refuse HEAD and serve GET; where both are refused, GET says why.
                return await self._get_descriptor(reference)
            if reply.status == 404:
                return None
            if reply.status < 300 and (found := described(reply, reference)) is not None:
                return found
            endpoint.head_useless = reply.status in HEAD_UNSUPPORTED
        return await self._get_descriptor(reference)

    async def _get_descriptor(self, reference: str | Digest) -> Descriptor | None:
        try:
            return (await self.get_manifest(reference)).descriptor
        except NotFound:
            return None

    async def get_manifest(self, reference: str | Digest, *, size: int | None = None) -> Document:
        """The manifest or index, verified. Args: `size` is what the parent's descriptor says.

        Raises NotFound, DigestMismatch, InvalidManifest, TooLarge and the other registry errors.
        """
        if isinstance(reference, str):
            return await self._get_by_tag(reference)
        try:
            return await self._get_by_digest(reference, size)
        except DigestMismatch:
            return await self._get_by_digest(reference, size)

    async def _get_by_tag(self, tag: str) -> Document:
        place = self._place("manifest", tag)
        reply = await self._manifest("GET", tag, limit=MAX_PULL)
        digest = Digest.of(reply.body)
        if _told(reply) in ("", str(digest)):
            return self._parsed(reply, place)
        try:
            # So many registries get this header wrong that only the bytes' own digest decides.
            return await self._get_by_digest(digest, len(reply.body))
        except NotFound:
            # Nobody knows these bytes: they were damaged on their way, or where they lie.
            reply = await self._manifest("GET", tag, limit=MAX_PULL)
        if _told(reply) not in ("", str(Digest.of(reply.body))):
            raise self._mismatch(place, f"has other bytes than its digest {_told(reply)} says")
        return self._parsed(reply, place)

    async def _get_by_digest(self, digest: Digest, size: int | None) -> Document:
        reply = await self._manifest("GET", digest, limit=MAX_PULL)
        place = self._place(f"manifest {digest}")
        if size is not None and len(reply.body) != size:
            raise self._mismatch(place, f"should have {size} bytes, but it has {len(reply.body)}")
        return self._parsed(reply, place, digest)

    def _parsed(self, reply: Reply, place: Place, digest: Digest | None = None) -> Document:
        """The document of an answer; errors name the registry and the reference."""
        try:
            return read_document(place, reply.body, reply.headers.get("Content-Type", ""), digest)
        except DigestMismatch as error:
            raise self._mismatch(place, str(error)) from error

    async def _manifest(
        self,
        method: str,
        reference: str | Digest,
        *,
        accept: frozenset[int] = frozenset(),
        limit: int = ERROR_LIMIT,
    ) -> Reply:
        return await self._fetch(
            method,
            f"manifests/{reference}",
            self._place("manifest", reference),
            headers={"Accept": ACCEPT},
            accept=accept,
            limit=limit,
            counted=method == "GET" and self._side == "source",
        )

    async def put_manifest(self, document: Document, reference: str | Digest) -> bool:
        """Write the document's bytes under a tag or its digest; whether the registry lists it as a referrer (OCI-Subject).

        Raises UploadRejected with the registry's `code` (MANIFEST_BLOB_UNKNOWN …), reason
        `tag_immutable` if the tag holds something else for good; TooLarge over 4 MiB.
        """
        place = self._place("manifest", reference, writing=True)
        self.check_size(document, reference)
        try:
            reply = await self._fetch(
                "PUT",
                f"manifests/{reference}",
                place,
                headers={"Content-Type": document.media_type},
                body=document.raw,
            )
        except RegistryError as error:
            await self._manifest_refused(error, document, reference)
            return False
        self._check_stored(place, reply, document)
        subject = document.subject
        return subject is not None and reply.headers.get("OCI-Subject") == str(subject.digest)

    def check_size(self, document: Document, reference: str | Digest) -> None:
        """Raises TooLarge for a manifest that registries do not take."""
        if len(document.raw) > MAX_PUSH:
            place = self._place("manifest", reference, writing=True)
            raise place.error(
                TooLarge,
                f"{place.who}: {place.what} has {len(document.raw)} bytes; registries take {MAX_PUSH}.",
            )

    def _check_stored(self, place: Place, reply: Reply, document: Document) -> None:
        stored = reply.headers.get("Docker-Content-Digest", "")
        if stored.startswith(f"{document.digest.algorithm}:") and stored != str(document.digest):
            raise place.error(
                UploadRejected,
                f"{place.who}: {place.what} was stored as {Digest.find(stored) or 'something else'}.",
                status=reply.status,
                code="DIGEST_INVALID",
            )

    async def _manifest_refused(
        self, error: RegistryError, document: Document, reference: str | Digest
    ) -> None:
        """Raise what a refused manifest means, unless the tag already is what it should be."""
        if isinstance(error, NotFound) and error.code in MISSING_CONTENT:
            raise UploadRejected(
                error.message,
                side=error.side,
                reference=error.reference,
                registry=error.registry,
                status=error.status,
                code=error.code,
            ) from error
        immutable = error.code == "TAG_INVALID" or "immutable" in error.message.lower()
        if (
            isinstance(reference, Digest)
            or not immutable
            or error.status not in {400, 403, 409, 412}
        ):
            raise error
        present = await self.head_manifest(reference)
        if present is not None and present.digest == document.digest:
            return
        raise UploadRejected(
            f"{error.message} The tag cannot be moved: it is {present.digest if present else 'not to be seen'}.",
            side=error.side,
            reference=error.reference,
            registry=error.registry,
            status=error.status,
            code=error.code,
            reason="tag_immutable",
        ) from error


def _told(reply: Reply) -> str:
    """The sha256 digest that an answer claims to have; other claims cannot be held against its bytes."""
    told = reply.headers.get("Docker-Content-Digest", "")
    return told if told.startswith("sha256:") else ""
