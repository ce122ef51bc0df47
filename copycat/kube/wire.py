"""What lists and watches send, as far as it is used, and how their bytes fall into lines."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

__all__ = ["EVENT", "HEAD", "INITIAL_END", "PAGE", "Head", "Lines", "collector_paused"]

#: The annotation of the bookmark that ends the initial events of a watch (KEP-3157).
INITIAL_END = "k8s.io/initial-events-end"


class Metadata(msgspec.Struct, rename="camel", gc=False):
    """An object's name and version."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class Head(msgspec.Struct):
    """Any object."""

    metadata: Metadata


class Event(msgspec.Struct):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class PageMetadata(
    msgspec.Struct,
    rename={"resource_version": "resourceVersion", "continue_token": "continue"},
):
    """A list's version, and the token for its next page."""

    resource_version: str = ""
    continue_token: str = ""


class Page(msgspec.Struct):
    """A list, or a part of one."""

    metadata: PageMetadata
    items: list[msgspec.Raw] | None = None


EVENT = msgspec.json.Decoder(Event)
HEAD = msgspec.json.Decoder(Head)
PAGE = msgspec.json.Decoder(Page)


class Lines:
    """Cuts a stream at newlines, and at nothing else: U+0085 and U+2028 may stand in JSON unescaped."""

    def __init__(self) -> None:
        """Nothing has arrived yet."""
        self._rest: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that a chunk completes, without the empty ones."""
        end = chunk.rfind(b"\n")
        if end < 0:
            self._rest.append(chunk)
            return []
        data = b"".join((*self._rest, chunk[:end]))
        self._rest = [chunk[end + 1 :]]
        return [line for line in data.split(b"\n") if line]


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection while many objects are made that all stay: it would walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
