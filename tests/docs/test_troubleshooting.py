"""The troubleshooting page: a section for every reason, and no message that the program does not have."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import page
from tests.docs.reasons import constant_texts, reasons, warnings

PAGE = page("docs/troubleshooting.md")
SECTIONS = {
    code
    for heading in PAGE.headings
    if heading.startswith("`")
    for code in re.findall(r"`(\w+)`", heading)
}
#: All that the program has in its source as text.
KNOWN = constant_texts()
#: After the part that says where to look, lines of the form `> …` and the first columns of tables are messages.
QUOTED = PAGE.text[PAGE.text.index("## Source and target") :]
QUOTES = re.findall(r"^> (.+)$", QUOTED, re.MULTILINE) + [
    text
    for row in re.findall(r"^\| (.+?) \| ", QUOTED, re.MULTILINE)
    for text in re.findall(r"`([^`]+)`", row)
]


def test_every_reason_has_a_section() -> None:
    """Whatever reason the program gives, the page says what to do about it."""
    found = reasons()
    assert {
        "not_found",
        "dns",
        "short",
        "foreign_tag",
        "aws_denied",
        "quota",
        "missing_project",
    } <= set(found)
    missing = {code: sorted(places) for code, places in found.items() if code not in SECTIONS}
    assert missing == {}, "docs/troubleshooting.md needs a heading ### `reason` for each of these"


def test_no_section_is_about_a_reason_that_is_gone() -> None:
    """A section without a reason in the program misleads."""
    assert SECTIONS - set(reasons()) == set()


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_the_program_s_own(quote: str) -> None:
    """Every part of a quoted message between two … stands in one text of the program."""
    for part in (p.strip(" .:;,()") for p in quote.split("…")):
        if len(part) >= 4:
            assert part in KNOWN, part


@pytest.mark.parametrize("event", sorted(warnings()))
def test_every_warning_of_the_log_is_explained(event: str) -> None:
    """Whoever sees a warning or an error in the log finds it on the page."""
    assert event in PAGE.text
