"""Links between the pages lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, Page, pages

EACH = pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)


def target(page: Page, link: str) -> tuple[Path, str]:
    """The file and the fragment that a link means."""
    path, _, fragment = link.partition("#")
    return (page.path.parent / path).resolve() if path else page.path, fragment


@EACH
def test_links_lead_to_files_and_headings_that_exist(page: Page) -> None:
    """Every relative link names a file of the repository, and its fragment a heading there."""
    known = {p.path: p.anchors for p in pages()}
    for link in page.links:
        if "://" in link or link.startswith("mailto:"):
            continue
        path, fragment = target(page, link)
        assert path.exists(), f"{page.name}: {link} leads nowhere"
        assert path.is_relative_to(ROOT), f"{page.name}: {link} leads out of the repository"
        if fragment:
            assert fragment in known[path], f"{page.name}: {link} names no heading"


def test_the_readme_leads_to_every_page() -> None:
    """Whoever starts at the README finds every page of docs by one link."""
    readme = next(p for p in pages() if p.name == "README.md")
    linked = {target(readme, link)[0] for link in readme.links if "://" not in link}
    missing = {str(p.relative_to(ROOT)) for p in DOCS.rglob("*.md")} - {
        str(p.relative_to(ROOT)) for p in linked if p.is_relative_to(ROOT)
    }
    assert not missing


def test_no_page_has_two_headings_of_one_name() -> None:
    """A link to a heading means one place."""
    for page in pages():
        twice = {h for h in page.headings if page.headings.count(h) > 1}
        assert not twice or page.name == "CHANGELOG.md", f"{page.name}: {twice}"
