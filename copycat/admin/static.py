"""The status page's three files, as they go out. They hold no data, so they need no permission."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

__all__ = ["ASSETS", "INDEX"]

_PAGE = files("copycat.admin") / "page"

#: Read when the program starts, before the event loop runs.
INDEX: Final = (_PAGE / "index.html").read_bytes()
#: Path → content and media type.
ASSETS: Final[Mapping[str, tuple[bytes, str]]] = {
    "/app.js": ((_PAGE / "app.js").read_bytes(), "text/javascript"),
    "/style.css": ((_PAGE / "style.css").read_bytes(), "text/css"),
}
