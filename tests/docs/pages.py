"""The pages of the documentation, taken apart: blocks, headings, links, and the words in code font."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["DOCS", "ROOT", "Block", "Page", "blocks", "page", "pages"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*).*?\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_ANCHOR = re.compile(r'<a (?:id|name)="([^"]+)"')
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, with where it stands."""

    page: Path
    number: int
    language: str
    text: str

    @property
    def first_line(self) -> str:
        """What marks it: `# config.yaml` is a configuration, `# values.yaml` the chart's values."""
        return self.text.partition("\n")[0].strip()

    @property
    def name(self) -> str:
        """For test ids and messages."""
        return f"{self.page.relative_to(ROOT)}#{self.number}"


@dataclass(frozen=True, slots=True)
class Page:
    """One Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return str(self.path.relative_to(ROOT))

    @property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def blocks(self) -> list[Block]:
        """The fenced blocks in their order."""
        found = enumerate(_FENCE.finditer(self.text), 1)
        return [Block(self.path, n, m["language"], _dedented(m)) for n, m in found]

    @property
    def headings(self) -> list[str]:
        """Headings without their marks."""
        return _HEADING.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """What a `#fragment` may name: headings as GitHub spells them, and explicit anchors."""
        return {_slug(heading) for heading in self.headings} | set(_ANCHOR.findall(self.text))

    @property
    def links(self) -> list[str]:
        """Targets of links, outside of blocks."""
        return _LINK.findall(self.prose)

    @property
    def code(self) -> list[str]:
        """What stands in code font within the prose."""
        return _CODE.findall(self.prose)


def _dedented(match: re.Match[str]) -> str:
    indent = match["indent"]
    return "".join(line.removeprefix(indent) for line in match["body"].splitlines(keepends=True))


def _slug(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def pages() -> tuple[Page, ...]:
    """README, everything in docs, and the chart's page."""
    paths = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "charts" / "k8s-copycat" / "README.md",
        *sorted(DOCS.rglob("*.md")),
    ]
    return tuple(Page(path, path.read_text()) for path in paths)


def page(name: str) -> Page:
    """The page at that path in the repository."""
    return next(p for p in pages() if p.name == name)


def blocks(*languages: str, marked: str = "") -> list[Block]:
    """Every block in one of the languages, of all pages; only those whose first line begins so."""
    return [
        block
        for each in pages()
        for block in each.blocks
        if block.language in languages and block.first_line.startswith(marked)
    ]
