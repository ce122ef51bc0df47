"""A registry in this process, over real sockets, for tests and the demonstration: strict about the protocol, odd where told to be.

```python
async with Registry() as registry:
    image = images.image(layers=(1024, 2048))
    registry.add("team/app", image, tag="1.0")
    …  # a client talks to registry.address
    assert registry.violations == []
    assert registry.ledger.count(Phase.GET_BLOB) == 3
```

A second origin on another port (`registry.cdn`) takes the place of the object store that blobs are redirected to.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, Unpack

from aiohttp import web

from copycat.sandbox import images
from copycat.sandbox.exchange import Core, LocationStyle
from copycat.sandbox.faults import Fault, FaultInjector, FaultOptions
from copycat.sandbox.images import Image, ImageOptions
from copycat.sandbox.ledger import Ledger, Phase, Request
from copycat.sandbox.listener import Listener
from copycat.sandbox.profiles import Auth, Profile, profile_of
from copycat.sandbox.router import Router
from copycat.sandbox.store import Store, StoredManifest, digest_of
from copycat.sandbox.tokens import Allow, Authority

__all__ = ["Registry"]


class Registry:
    """The server. `async with` starts and stops it; what it keeps outlives `stop()`, so that `start()` brings it back on the same port."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        auth: Auth | None = None,
        username: str = "",
        password: str = "",
        profile: str | Profile = "distribution",
        anonymous: bool = False,
        allow: Allow = lambda _user, _repository, _action: True,
        token_expires_in: float | None = 300,
        redirect_blobs: bool | None = None,
        location_style: LocationStyle = "absolute",
        repository_exists: Callable[[str], bool | Awaitable[bool]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is opened yet.

        Args:
            auth: "none", "basic" or "token". By default none; if a password is given or anonymous access is
                allowed, the profile's, or "basic" where it has none.
            username, password: the one account; more with `authority.set_password`.
            anonymous: without credentials one may pull (with "token": by an anonymous token).
            allow: (user, repository, action) → may it.
            token_expires_in: seconds; None leaves `expires_in` out.
            redirect_blobs: blob GETs go to the second origin; the profile's choice by default.
            location_style: how upload Locations are written; "other-host" means the second origin.
            repository_exists: asked when a profile without create-on-push does not know a repository.
            clock: of tokens, passwords and signed URLs, in seconds.
        """
        row = profile_of(profile)
        if auth is None:
            auth = _default_auth(row, asked=bool(password) or anonymous)
        self._core = Core(
            store=Store(),
            ledger=Ledger(),
            faults=FaultInjector(),
            authority=Authority(
                mode=auth,
                profile=row,
                clock=clock,
                anonymous=anonymous,
                allow=allow,
                expires_in=token_expires_in,
            ),
            profile=row,
            violations=[],
            clock=clock,
            scheme="https" if ssl_context is not None else "http",
            redirect_blobs=row.redirects if redirect_blobs is None else redirect_blobs,
            location_style=location_style,
            exists=repository_exists,
        )
        if password:
            self.authority.set_password(username or row.basic_user, password)
        self._router = router = Router(self._core)
        self._uploads = router.uploads
        self._front = Listener(self.answer, host=host, port=port, ssl_context=ssl_context)
        self._storage = Listener(router.answer_foreign, host=host, ssl_context=ssl_context)
        self._core.switch_off = self.switch_off

    # Lifetime

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers a request; a subclass may do so for paths of its own."""
        return await self._router.answer(request)

    async def start(self) -> None:
        """Listens; after a `stop()` on the same ports as before."""
        await self._front.start()
        await self._storage.start()
        self._core.cdn = f"{self._core.scheme}://{self._storage.host}:{self._storage.port}"

    async def stop(self) -> None:
        """Stops listening and breaks all connections, as a machine that is switched off. Does nothing if it is not running."""
        await self._front.stop()
        await self._storage.stop()

    def switch_off(self) -> None:
        """The same in the middle of whatever happens, as a power cut; `stop()` tidies up afterwards."""
        self._front.switch_off()
        self._storage.switch_off()

    # What it is

    @property
    def running(self) -> bool:
        """Listening."""
        return self._front.running

    @property
    def address(self) -> str:
        """`host:port`, the registry part of a reference."""
        return f"{self._front.host}:{self._front.port}"

    @property
    def port(self) -> int:
        """Of the registry."""
        return self._front.port

    @property
    def url(self) -> str:
        """`http://host:port`."""
        return f"{self._core.scheme}://{self.address}"

    @property
    def cdn(self) -> str:
        """The second origin, `http://host:port`."""
        return self._core.cdn

    @property
    def core(self) -> Core:
        """The switches that a test may turn while it runs (`location_style`, `redirect_blobs`, `immutable_tags`, …)."""
        return self._core

    @property
    def profile(self) -> Profile:
        """Its oddities."""
        return self._core.profile

    @property
    def authority(self) -> Authority:
        """Accounts and tokens."""
        return self._core.authority

    @property
    def faults(self) -> FaultInjector:
        """`faults.add(phase, …)`."""
        return self._core.faults

    @property
    def ledger(self) -> Ledger:
        """What it saw."""
        return self._core.ledger

    @property
    def requests(self) -> list[Request]:
        """What it saw, in order of arrival."""
        return self._core.ledger.requests

    @property
    def violations(self) -> list[str]:
        """Rules of the protocol that the client broke."""
        return self._core.violations

    @property
    def store(self) -> Store:
        """What it keeps."""
        return self._core.store

    @property
    def blobs(self) -> dict[str, dict[str, bytes]]:
        """Repository → digest → bytes."""
        return self._core.store.blobs

    @property
    def manifests(self) -> dict[str, dict[str, StoredManifest]]:
        """Repository → digest → manifest."""
        return self._core.store.manifests

    @property
    def tags(self) -> dict[str, dict[str, str]]:
        """Repository → tag → digest."""
        return self._core.store.tags

    @property
    def sessions(self) -> int:
        """Uploads that were begun and neither committed nor cancelled."""
        return len(self._uploads.sessions)

    @property
    def open_connections(self) -> int:
        """Connections that clients hold, to both origins."""
        return self._front.connections + self._storage.connections

    @property
    def unique_blob_bytes(self) -> int:
        """The sum of the sizes of different blobs."""
        return self._core.store.unique_blob_bytes()

    # Filling it

    def add(self, repository: str, image: Image, tag: str | None = None) -> Image:
        """Stores a whole image."""
        self.store.repositories.add(repository)
        self.blobs[repository].update(image.blobs)
        for manifest in image.manifests:
            self.store.put_manifest(repository, manifest)
        if tag is not None:
            self.tags[repository][tag] = image.digest
        return image

    def add_image(self, repository: str, tag: str, **options: Unpack[ImageOptions]) -> Image:
        """Makes and stores `images.image(**options)`."""
        return self.add(repository, images.image(**options), tag)

    def put_blob(self, repository: str, data: bytes, algorithm: str = "sha256") -> str:
        """Stores a blob; answers its digest."""
        return self.store.put_blob(repository, data, digest_of(data, algorithm))

    def put_manifest(
        self, repository: str, data: bytes, media_type: str = "", tag: str | None = None
    ) -> StoredManifest:
        """Stores a manifest without any check."""
        manifest = StoredManifest.of(data, media_type)
        self.store.put_manifest(repository, manifest, tag)
        return manifest

    def create_repository(self, name: str) -> None:
        """For profiles that do not make one on push."""
        self.store.repositories.add(name)

    def has(self, repository: str, image: Image, tag: str | None = None) -> bool:
        """The whole image is here, byte by byte, and the tag gives its root (tags resolve to sha256, whatever the root was pushed by)."""
        blobs, manifests = self.blobs.get(repository, {}), self.manifests.get(repository, {})
        return (
            all(blobs.get(digest) == data for digest, data in image.blobs.items())
            and all(manifests.get(m.digest) == m for m in image.manifests)
            and (tag is None or _data(self.store.manifest(repository, tag)) == image.data)
        )

    async def wait_for(self, predicate: Callable[[Request], bool], *, count: int = 1) -> Request:
        """See `Ledger.wait_for`."""
        return await self.ledger.wait_for(predicate, count=count)

    def fail(self, phase: Phase | str, **options: Unpack[FaultOptions]) -> Fault:
        """Short for `faults.add`."""
        return self.faults.add(phase, **options)


def _data(manifest: StoredManifest | None) -> bytes:
    return b"" if manifest is None else manifest.data


def _default_auth(row: Profile, *, asked: bool) -> Auth:
    if not asked:
        return "none"
    return "basic" if row.auth == "none" else row.auth
