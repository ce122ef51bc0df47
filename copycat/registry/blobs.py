"""A repository's blobs: looked for, streamed and verified, mounted, sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from copycat.errors import DigestMismatch, RegistryError, TooLarge, Unauthorized
from copycat.oci.digest import Digest
from copycat.oci.manifest import Descriptor
from copycat.registry.answers import Place, registry_code
from copycat.registry.auth import Login
from copycat.registry.calls import Call
from copycat.registry.download import Download
from copycat.registry.keychain import ANONYMOUS, Access
from copycat.registry.part import HEAD_UNSUPPORTED, Part
from copycat.registry.session import Opened
from copycat.registry.transport import Transport
from copycat.registry.upload import OpenBody, Upload

__all__ = ["Blobs"]

_MOUNT_REFUSALS = frozenset({400, 401, 403, 404, 405})


class Blobs(Part):
    """The part of a repository's API that concerns blobs."""

    def __init__(
        self,
        transport: Transport,
        registry: str,
        name: str,
        *,
        push: bool = False,
        access: Access = ANONYMOUS,
    ) -> None:
        """No upload session is open."""
        super().__init__(transport, registry, name, push=push, access=access)
        self._sessions: dict[Digest, Opened] = {}
        self._new: bool | None = None

    @property
    def new(self) -> bool:
        """Whether the registry said that it knows no such repository: see `ask_if_new`."""
        return self._new is True

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there. A registry that cannot say so is taken for one that lacks it."""
        reply = await self._fetch(
            "HEAD",
            f"blobs/{digest}",
            self._place("blob", digest),
            # A redirect is an answer: only what exists has a place in the storage behind.
            accept=frozenset({301, 302, 303, 307, 308, 404}) | HEAD_UNSUPPORTED,
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
            endpoint.mounts = True
            return True
        if reply.status == 202:
            self._sessions[digest] = Opened.by(place, reply)
        elif reply.status != 404:
            endpoint.no_mount.add(from_repository)
        return False

    async def claim_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there, asked by who will upload it if it is not.

        A mount from the repository itself answers that and opens the session in one request. Only where
        a mount has come true, or nothing is there: a registry that cannot mount would say 202 to what it has.
        """
        digest = descriptor.digest
        mounts = self._transport.endpoint(self.registry).mounts or self.new
        if mounts and digest not in self._sessions:
            if await self.mount_blob(descriptor, self.name):
                return True
            if digest in self._sessions:
                return False
        return await self.has_blob(digest)

    async def ask_if_new(self) -> None:
        """Learn in one request whether the registry has no such repository: then no blob is looked for by HEAD.

        Not asked where a mount answers for each blob, and of a registry only while it has an answer: this
        spares requests and is needed for nothing. distribution knows no repository without tags; the blobs that
        an interrupted copy left in one are found by the mounts that are tried then.
        """
        endpoint = self._transport.endpoint(self.registry)
        if self._new is not None or endpoint.mounts or endpoint.silent_on_names:
            return
        call = Call(
            method="GET",
            repository=self.name,
            path="tags/list?n=1",
            place=self._place("list of tags", writing=True),
            login=self._login,
            accept=_MOUNT_REFUSALS - {401},
            retry=False,
        )
        try:
            reply = await self._transport.fetch(self.registry, call)
        except RegistryError:
            # Whatever ails the registry, what is really needed of it will meet that and say so.
            self._new, endpoint.silent_on_names = False, True
            return
        self._new = reply.status == 404 and registry_code(reply.body) == "NAME_UNKNOWN"
        endpoint.silent_on_names = not self._new and reply.status != 200

    def _mount_call(self, place: Place, digest: Digest, from_repository: str) -> Call:
        source = self._transport.endpoint(self.registry).repository(from_repository)
        query = f"mount={digest.algorithm}%3A{digest.hex}&from={source.replace('/', '%2F')}"
        return Call(
            method="POST",
            repository=self.name,
            path=f"blobs/uploads/?{query}",
            place=place,
            login=self._mount_login(from_repository),
            headers={"Content-Length": "0"},
            accept=_MOUNT_REFUSALS,
        )

    def _mount_login(self, from_repository: str) -> Login:
        """A login of its own for two repositories: its token would not be one for this repository alone."""
        if from_repository == self.name:
            return self._login
        return Login(
            repository=self.name,
            actions=self._actions,
            access=self._access,
            side=self._side,
            also=(from_repository,),
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
