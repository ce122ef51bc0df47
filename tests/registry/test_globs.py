"""Go's filepath.Match without its surprises: against a plain model, and in bounded time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat.registry.globs import go_match

TOKENS = {"*": "[^/]*", "?": "[^/]", "a": "a", "b": "b", "/": "/", "[a-b]": "[a-b]", r"\*": r"\*"}  # fmt: skip


@given(st.lists(st.sampled_from(sorted(TOKENS)), max_size=6), st.text(alphabet="ab/*", max_size=8))
def test_as_a_regular_expression_says(tokens: list[str], name: str) -> None:
    """Every star, question mark and class means what it means there."""
    expected = re.fullmatch("".join(TOKENS[t] for t in tokens), name) is not None
    assert go_match("".join(tokens), name) is expected


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("[a-]", "-", True),
        ("[-a]", "-", True),
        ("[-a]", "a", True),
        (r"[\a-c]", "b", True),
        ("[^a]", "/", True),
        # Go looks for the first place only
        ("*[^a]*b", "b/b", False),
        ("**", "ab", True),
        ("a*", "", False),
        ("a*a", "a", False),
        ("*ab*", "aab", True),
        ("*/b*", "a/bc", True),
        ("*b", "a/b", False),
        ("*b*", "a/b", False),
    ],
)
def test_corners(pattern: str, name: str, expected: bool) -> None:
    """What the model above does not reach."""
    assert go_match(pattern, name) is expected


def test_no_pattern_takes_long() -> None:
    """Whoever may write a Secret may write this one: a regular expression would try for years."""
    started = time.perf_counter()
    assert go_match("*a" * 100 + "b", "a" * 250) is False
    assert time.perf_counter() - started < 0.5
