"""A client that does exactly what a test tells it to: correct requests by default, wrong ones on demand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from copycat.sandbox.images import Image
from copycat.sandbox.pulls import WANTED_TYPES
from copycat.sandbox.registry import Registry

OCTETS = {"Content-Type": "application/octet-stream"}
IDENTITY = {"Accept-Encoding": "identity"}
MANIFESTS = {"Accept": ", ".join(WANTED_TYPES), **IDENTITY}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The registry's error code."""
        return str(self.json["errors"][0]["code"])


@dataclass(frozen=True, slots=True)
class Driver:
    """Requests to one registry."""

    session: aiohttp.ClientSession
    registry: Registry
    authorization: str = ""

    async def call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        data: bytes | AsyncIterator[bytes] | None = None,
    ) -> Answer:
        """One request; a path or a whole URL, sent byte by byte as given; redirects are not followed."""
        url = path if "://" in path else self.registry.url + path
        own = {"Authorization": self.authorization} if self.authorization else {}
        if isinstance(data, bytes):
            # As a stream, for aiohttp would send bytes again by itself after a reset.
            own["Content-Length"] = str(len(data))
            data = _stream(data) if data else None
        async with self.session.request(
            method,
            URL(url, encoded=True),
            headers={**own, **(headers or {})},
            data=data,
            allow_redirects=False,
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def manifest(self, repository: str, reference: str, method: str = "GET") -> Answer:
        """GET or HEAD as it should be."""
        return await self.call(method, f"/v2/{repository}/manifests/{reference}", MANIFESTS)

    async def blob(self, repository: str, digest: str, **headers: str) -> Answer:
        """GET as it should be."""
        path = f"/v2/{repository}/blobs/{digest}"
        return await self.call("GET", path, {**IDENTITY, **headers})

    async def start(self, repository: str, query: str = "") -> Answer:
        """POST for a session."""
        return await self.call("POST", f"/v2/{repository}/blobs/uploads/{query}")

    async def put(self, location: str, digest: str, data: bytes = b"", **headers: str) -> Answer:
        """PUT of a whole blob, of a last chunk, or of nothing."""
        kind = OCTETS if data else {}
        url = f"{location}{'&' if '?' in location else '?'}digest={digest.replace(':', '%3A')}"
        return await self.call("PUT", url, {**kind, **headers}, data)

    async def patch(self, location: str, data: bytes, span: str = "") -> Answer:
        """PATCH with a Content-Range, or without."""
        headers = {**OCTETS, **({"Content-Range": span} if span else {})}
        return await self.call("PATCH", location, headers, data)

    async def upload(self, repository: str, digest: str, data: bytes) -> Answer:
        """POST and PUT."""
        started = await self.start(repository)
        return await self.put(started.headers["Location"], digest, data)

    async def put_manifest(
        self, repository: str, reference: str, data: bytes, media_type: str
    ) -> Answer:
        """PUT as it should be."""
        path = f"/v2/{repository}/manifests/{reference}"
        return await self.call("PUT", path, {"Content-Type": media_type}, data)

    async def push(self, repository: str, image: Image, tag: str) -> None:
        """Everything in the right order: blobs, manifests by digest, the tag last."""
        for digest, data in image.blobs.items():
            assert (await self.upload(repository, digest, data)).status == 201
        for manifest in image.manifests:
            found = await self.put_manifest(
                repository, manifest.digest, manifest.data, manifest.media_type
            )
            assert found.status == 201
        assert (
            await self.put_manifest(repository, tag, image.data, image.media_type)
        ).status == 201


async def _stream(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 65536):
        yield data[at : at + 65536]


@asynccontextmanager
async def driving(registry: Registry, authorization: str = "") -> AsyncIterator[Driver]:
    """A driver of the registry, which is started and stopped with it."""
    async with registry, aiohttp.ClientSession(auto_decompress=False) as session:
        yield Driver(session, registry, authorization)
