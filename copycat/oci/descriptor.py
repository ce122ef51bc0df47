"""Descriptors (image-spec, descriptor.md): what a document says about other content.

The JSON form is decoded into a struct of its own, because registries serve `null` for what is empty
and leave out what is required; only what passes the checks becomes a `Descriptor`.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from copycat.errors import InvalidManifest, InvalidReference, printable
from copycat.oci.digest import Digest
from copycat.oci.platform import Platform

__all__ = ["Descriptor", "DescriptorJSON", "text_map"]

_NOTHING: Mapping[str, str] = MappingProxyType({})

#: Sizes are signed 64-bit numbers everywhere else.
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Type, address and size of content, with what its parent says about it."""

    media_type: str
    digest: Digest
    size: int
    """Bytes."""
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: _NOTHING, hash=False)
    urls: tuple[str, ...] = ()
    """Where else the content is said to be; never followed by the mirror."""
    data: bytes | None = field(default=None, repr=False)
    """The content itself, if its parent carried it; verified."""
    artifact_type: str = ""


class PlatformJSON(msgspec.Struct, frozen=True):
    """A platform as served; `os.version` as Windows images have it."""

    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    os_version: str | None = msgspec.field(name="os.version", default=None)

    def checked(self) -> Platform:
        """The platform; what is missing is empty and matches nothing that anybody wants."""
        return Platform(
            self.os or "", self.architecture or "", self.variant or "", self.os_version or ""
        )


class DescriptorJSON(msgspec.Struct, frozen=True, rename="camel"):
    """A descriptor as served, before the checks."""

    media_type: str | None = None
    digest: str = ""
    size: int | None = None
    platform: PlatformJSON | None = None
    annotations: dict[str, str | None] | None = None
    urls: list[str] | None = None
    data: str | None = None
    artifact_type: str | None = None

    def checked(self, place: str) -> Descriptor:
        """The descriptor; `place` is where in the document it stands (`layers[3]`).

        Raises:
            InvalidManifest: digest or size are not usable, or `data` is not what they promise.
        """
        try:
            digest = Digest.parse(self.digest)
        except InvalidReference as error:
            raise InvalidManifest(f"{place}.digest: {error}") from error

        if self.size is None or not 0 <= self.size <= _MAX_SIZE:
            raise InvalidManifest(f"{place}.size: {self.size} is not a size in bytes")

        return Descriptor(
            media_type=self.media_type or "",
            digest=digest,
            size=self.size,
            platform=self.platform.checked() if self.platform else None,
            annotations=text_map(self.annotations),
            urls=tuple(self.urls or ()),
            data=None if self.data is None else _checked_data(self.data, digest, self.size, place),
            artifact_type=self.artifact_type or "",
        )


def text_map(served: Mapping[str, str | None] | None) -> Mapping[str, str]:
    """Annotations as served, `null` values as empty texts."""
    if not served:
        return _NOTHING

    return MappingProxyType({key: value or "" for key, value in served.items()})


def _checked_data(text: str, digest: Digest, size: int, place: str) -> bytes:
    """The content embedded in a descriptor (image-spec, descriptor.md "Embedded Content")."""
    try:
        data = binascii.a2b_base64(text.encode(), strict_mode=True)
    except ValueError as error:  # binascii.Error is one
        raise InvalidManifest(f"{place}.data: not base64 ({printable(str(error))})") from error

    if len(data) != size or Digest.of(data, digest.algorithm) != digest:
        raise InvalidManifest(
            f"{place}.data: its {len(data)} bytes are not the {size} bytes of {digest}"
        )

    return data
