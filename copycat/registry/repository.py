"""One repository on one registry: what a copy asks of it, in the words of the distribution specification.

Everything that is read is verified against its digest before it is returned, everything that is
written is the bytes that were read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from yarl import URL

from copycat.errors import (
    Denied,
    DigestMismatch,
    NotFound,
    RegistryError,
    TooLarge,
    Unauthorized,
    UploadRejected,
)
from copycat.oci.digest import Digest
from copycat.oci.manifest import (
    ACCEPT,
    INDEX_TYPES,
    MAX_PULL,
    MAX_PUSH,
    OCI_INDEX,
    Descriptor,
    Document,
    Index,
    parse_document,
)
from copycat.registry.answers import ERROR_LIMIT, Place, Reply
from copycat.registry.auth import Login
from copycat.registry.calls import Call
from copycat.registry.download import Download
from copycat.registry.keychain import ANONYMOUS, Access
from copycat.registry.lists import collect, content_type, described, read_referrers, read_tags
from copycat.registry.location import next_location
from copycat.registry.transport import Transport
from copycat.registry.upload import OpenBody, Upload

__all__ = ["Repository"]

#: Tags per page; ECR answers more with an error (go-containerregistry#1091).
TAGS_PAGE = 1000
PAGE_LIMIT = 4 * 1024 * 1024

_HEAD_UNSUPPORTED = frozenset({405, 501})
#: A manifest that names content which the target does not have; some answer so with 404.
_MISSING_CONTENT = frozenset({"BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN"})
_MOUNT_REFUSALS = frozenset({400, 401, 403, 404, 405})


class Repository:
    """One repository. Cheap to make; keeps what it learns about its login and its open upload sessions."""

    def __init__(
        self,
        transport: Transport,
        registry: str,
        name: str,
        *,
        push: bool = False,
        access: Access = ANONYMOUS,
    ) -> None:
        """Args: `registry` is normalised (`docker.io`); `push` asks for the right to write, too."""
        self.registry, self.name = registry, name
        self._transport, self._access = transport, access
        self._side = transport.side(registry)
        self._actions = "pull,push" if push else "pull"
        self._login = Login(repository=name, actions=self._actions, access=access, side=self._side)
        self._sessions: dict[Digest, URL] = {}

    # Manifests

    async def head_manifest(self, reference: str | Digest) -> Descriptor | None:
        """What a tag or digest is, without its content; None if it is not there.

        Registries whose HEAD is of no use are asked with GET. Raises the registry errors.
        """
        endpoint = self._transport.endpoint(self.registry)
        if not endpoint.head_useless:
            try:
                reply = await self._manifest("HEAD", reference, accept=_HEAD_UNSUPPORTED | {404})
            except (Denied, Unauthorized):
                # Some refuse HEAD and serve GET; where both are refused, GET says why.
                return await self._get_descriptor(reference)
            if reply.status == 404:
                return None
            if reply.status < 300 and (found := described(reply, reference)) is not None:
                return found
            endpoint.head_useless = reply.status in _HEAD_UNSUPPORTED
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
        reply = await self._manifest("GET", tag, limit=MAX_PULL)
        document = parse_document(reply.body, content_type=reply.headers.get("Content-Type", ""))
        told = reply.headers.get("Docker-Content-Digest", "")
        if told.startswith("sha256:") and told != str(document.digest):
            # So many registries get this header wrong that only the bytes' own digest decides.
            return await self._get_by_digest(document.digest, len(reply.body))
        return document

    async def _get_by_digest(self, digest: Digest, size: int | None) -> Document:
        reply = await self._manifest("GET", digest, limit=MAX_PULL)
        place = self._place(f"manifest {digest}")
        if size is not None and len(reply.body) != size:
            raise self._mismatch(place, f"should have {size} bytes, but it has {len(reply.body)}")
        try:
            return parse_document(
                reply.body, content_type=reply.headers.get("Content-Type", ""), digest=digest
            )
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
        )

    async def put_manifest(self, document: Document, reference: str | Digest) -> None:
        """Write the document's bytes under a tag or its digest.

        Raises UploadRejected with the registry's `code` (MANIFEST_BLOB_UNKNOWN …), reason
        `tag_immutable` if the tag holds something else for good; TooLarge over 4 MiB.
        """
        place = self._place("manifest", reference, writing=True)
        if len(document.raw) > MAX_PUSH:
            raise TooLarge(
                f"{place.who}: {place.what} has {len(document.raw)} bytes; registries take {MAX_PUSH}.",
                side=place.side,
                reference=place.reference,
                registry=self.registry,
            )
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
            return
        self._check_stored(place, reply, document)

    def _check_stored(self, place: Place, reply: Reply, document: Document) -> None:
        stored = reply.headers.get("Docker-Content-Digest", "")
        if stored.startswith(f"{document.digest.algorithm}:") and stored != str(document.digest):
            raise UploadRejected(
                f"{place.who}: {place.what} was stored as {Digest.find(stored) or 'something else'}.",
                side=place.side,
                reference=place.reference,
                registry=self.registry,
                status=reply.status,
                code="DIGEST_INVALID",
            )

    async def _manifest_refused(
        self, error: RegistryError, document: Document, reference: str | Digest
    ) -> None:
        """Raise what a refused manifest means, unless the tag already is what it should be."""
        if isinstance(error, NotFound) and error.code in _MISSING_CONTENT:
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

    # Blobs

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there. A registry that cannot say so is taken for one that lacks it."""
        reply = await self._fetch(
            "HEAD",
            f"blobs/{digest}",
            self._place("blob", digest),
            # A redirect is an answer: only what exists has a place in the storage behind.
            accept=frozenset({301, 302, 303, 307, 308, 404}) | _HEAD_UNSUPPORTED,
            follow=False,
        )
        return reply.status < 400

    async def read_blob(
        self, descriptor: Descriptor, *, on_bytes: Callable[[int], None] | None = None
    ) -> AsyncGenerator[bytes]:
        """Stream a blob, verified: the last chunk comes only if size and hash are right.

        A break is mended by Range requests. Close it (`contextlib.aclosing`) to free the connection.
        Args: `on_bytes` is told what arrives from the registry. Raises DigestMismatch, registry errors.
        """
        if descriptor.data is not None:
            yield descriptor.data
            return
        download = Download(
            self._transport, self.blob_call(descriptor), descriptor, on_bytes=on_bytes
        )
        async with aclosing(download.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def get_blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, whole and verified. Raises DigestMismatch and the registry errors."""
        if descriptor.data is not None:
            return descriptor.data
        try:
            return await self._get_blob(descriptor)
        except DigestMismatch:
            return await self._get_blob(descriptor)

    async def _get_blob(self, descriptor: Descriptor) -> bytes:
        data = b""
        place = self._place("blob", descriptor.digest)
        if descriptor.size:
            path = f"blobs/{descriptor.digest}"
            try:
                reply = await self._fetch("GET", path, place, limit=descriptor.size)
            except TooLarge as error:
                if error.status:
                    raise
                raise self._mismatch(place, f"has more than {descriptor.size} bytes") from error
            data = reply.body
        if len(data) != descriptor.size:
            raise self._mismatch(
                place, f"should have {descriptor.size} bytes, but it has {len(data)}"
            )
        actual = Digest.of(data, descriptor.digest.algorithm)
        if actual != descriptor.digest:
            raise self._mismatch(place, f"hashes to {actual}")
        return data

    def blob_call(self, descriptor: Descriptor) -> Call:
        """The request that reads a blob."""
        return Call(
            method="GET",
            repository=self.name,
            path=f"blobs/{descriptor.digest}",
            place=self._place("blob", descriptor.digest),
            login=self._login,
        )

    async def mount_blob(self, descriptor: Descriptor, from_repository: str) -> bool:
        """Have the registry take a blob from another of its repositories; False if it will not.

        The session that a refusal opened is kept and serves the next `upload_blob` of that digest.
        """
        endpoint = self._transport.endpoint(self.registry)
        if from_repository in endpoint.no_mount:
            return False
        digest = descriptor.digest
        place = self._place("blob", digest, writing=True)
        try:
            reply = await self._transport.fetch(
                self.registry, self._mount_call(place, digest, from_repository)
            )
        except Unauthorized:
            # No token for both repositories: Docker Hub, Harbor (go-containerregistry#1679, harbor#17097).
            endpoint.no_mount.add(from_repository)
            return False
        if reply.status == 201:
            return True
        if reply.status == 202:
            self._sessions[digest] = next_location(place, reply)
        elif reply.status != 404:
            endpoint.no_mount.add(from_repository)
        return False

    def _mount_call(self, place: Place, digest: Digest, from_repository: str) -> Call:
        source = self._transport.endpoint(self.registry).repository(from_repository)
        query = f"mount={digest.algorithm}%3A{digest.hex}&from={source.replace('/', '%2F')}"
        return Call(
            method="POST",
            repository=self.name,
            path=f"blobs/uploads/?{query}",
            place=place,
            # A login of its own: its token would not be one for this repository alone.
            login=Login(
                repository=self.name,
                actions=self._actions,
                access=self._access,
                side=self._side,
                also=(from_repository,),
            ),
            headers={"Content-Length": "0"},
            accept=_MOUNT_REFUSALS,
        )

    async def upload_blob(
        self,
        descriptor: Descriptor,
        open_body: OpenBody,
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """Send a blob. Args: `open_body` begins a new body for every attempt; `on_bytes` is told what was taken.

        Raises the body's errors as they are, UploadRejected, and the registry errors.
        """
        upload = Upload(
            self._transport,
            self._login,
            descriptor,
            place=self._place("blob", descriptor.digest, writing=True),
            exists=lambda: self.has_blob(descriptor.digest),
            on_bytes=on_bytes,
        )
        await upload.send(open_body, self._sessions.pop(descriptor.digest, None))

    # Lists

    async def list_tags(self) -> list[str]:
        """Every tag, in the registry's order. Raises NotFound if the repository is not there."""
        place = self._place("list of tags")

        async def page(url: URL | None) -> Reply:
            return await self._fetch(
                "GET", f"tags/list?n={TAGS_PAGE}", place, url=url, limit=PAGE_LIMIT
            )

        return await collect(await page(None), page, lambda reply: read_tags(place, reply))

    async def referrers(self, digest: Digest) -> list[Descriptor]:
        """What refers to a manifest (signatures, SBOMs): by the API, else by the fallback tag.

        GHCR redirects this path to a web page (artifacthub#4785), so redirects are not followed.
        """
        place = self._place("referrers of", digest)
        refused = frozenset({301, 302, 303, 307, 308, 400, 404, 405, 501})

        async def page(url: URL | None) -> Reply:
            return await self._fetch(
                "GET",
                f"referrers/{digest}",
                place,
                url=url,
                headers={"Accept": OCI_INDEX},
                accept=refused if url is None else frozenset(),
                follow=False,
                limit=MAX_PULL,
            )

        first = await page(None)
        if first.status in refused or content_type(first) not in INDEX_TYPES:
            return await self._fallback(digest)
        return await collect(first, page, read_referrers)

    async def _fallback(self, digest: Digest) -> list[Descriptor]:
        tag = f"{digest.algorithm}-{digest.hex}"[:128]
        try:
            document = await self.get_manifest(tag)
        except NotFound:
            return []
        # GitLab resolves the tag to the subject itself (oras-go#1396).
        if not isinstance(document, Index) or document.digest == digest:
            return []
        return [d for d in document.manifests if d.digest != digest]

    # Helpers

    def _place(
        self, what: str, reference: str | Digest | None = None, *, writing: bool = False
    ) -> Place:
        name = f"{self.registry}/{self.name}"
        if reference is not None:
            name += f"@{reference}" if isinstance(reference, Digest) else f":{reference}"
        return Place(
            registry=self.registry,
            what=f"{what} {name}",
            reference=name,
            side=self._side,
            writing=writing,
        )

    @staticmethod
    def _mismatch(place: Place, text: str) -> DigestMismatch:
        return DigestMismatch(
            f"{place.who}: {place.what} {text}.", side=place.side, reference=place.reference
        )

    async def _fetch(
        self,
        method: str,
        path: str,
        place: Place,
        *,
        url: URL | None = None,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        accept: frozenset[int] = frozenset(),
        follow: bool = True,
        limit: int = ERROR_LIMIT,
    ) -> Reply:
        return await self._transport.fetch(
            self.registry,
            Call(
                method=method,
                repository=self.name,
                path=path,
                url=url,
                place=place,
                login=self._login,
                headers=headers or {},
                body=body,
                accept=accept,
                follow=follow,
                limit=limit,
            ),
        )
