"""Expressions that users of the original bring along."""

from __future__ import annotations

import contextlib
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat.config.regex import compile_go


@pytest.mark.parametrize(
    ("expression", "text", "groups"),
    [
        (r"^legacy/(.*)", "legacy/app", ("app",)),
        (r"(?P<name>\w+)/x$", "a/x", ("a",)),
        (r"(?<name>\w+)/x$", "a/x", ("a",)),
        (r"(?:a|b)/(\d{2,3})", "b/123", ("123",)),
        (r"(?i)^LEGACY/(.*)$", "legacy/x", ("x",)),
        (r"a(?i:B)c", "abc", ()),
        (r"(?s-m:a.c)", "a\nc", ()),
        (r"\Qa.b\E(c)", "a.bc", ("c",)),
        (r"\Qa.b", "a.b", ()),
        (r"\x{61}b", "ab", ()),
        (r"\x61b", "ab", ()),
        (r"a\z", "a", ()),
        (r"[[:alpha:]]+-([[:digit:]]+)", "abc-12", ("12",)),
        (r"[^/\]]+", "abc", ()),
        (r"[]a]", "]", ()),
        (r"[^]a]", "b", ()),
        (r"[a\-\x{62}]+", "-ab", ()),
        (r"[[&&||~~+--]+", "[", ()),
        (r"[--/]", ".", ()),
        (r"[^-a]", "b", ()),
        (r"a+?(b??)", "ab", ("",)),
        (r"a{2}", "aa", ()),
        (r"a{,2}", "a{,2}", ()),
        (r"(a)(?:)", "a", ("a",)),
    ],
)
def test_gos_expressions_match(expression: str, text: str, groups: tuple[str, ...]) -> None:
    """The common subset means the same, and Python's own warnings stay away."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        match = compile_go(expression).search(text)
    assert match is not None
    assert match.groups() == groups


@pytest.mark.parametrize(
    ("expression", "text"), [(r"\d", "٣"), (r"\w", "ä"), (r"a$", "a\n"), (r"[[:alpha:]]", "1")]
)
def test_what_go_does_not_match(expression: str, text: str) -> None:
    """Classes are ASCII, and $ is the very end."""
    assert compile_go(expression).search(text) is None


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("(", "missing"),
        ("a)", "unbalanced"),
        ("*", "nothing to repeat"),
        ("[a", "missing closing"),
        ("[z-a]", "bad character range"),
        ("a**", "nested repetition"),
        ("a++", "nested repetition"),
        ("a{1}{2}", "nested repetition"),
        ("a{1001}", "over 1000"),
        (r"(a)\1", "not known"),
        (r"\pL", "not known"),
        (r"a\Z", "not known"),
        (r"[[:nope:]]", "not known"),
        (r"[[:^alpha:]]", "not known"),
        (r"[\b]", "no meaning"),
        (r"[\1]", "not known"),
        (r"\x{ffffff}", "no such character"),
        ("(?=a)", "lookaround"),
        ("(?!a)", "lookaround"),
        ("(?<=a)b", "lookaround"),
        ("(?>a)", "lookaround"),
        ("(?#a)", "lookaround"),
        ("(?U)a", "lookaround"),
        ("(?)a", "lookaround"),
        ("a(?i)b", "at its start"),
        ("a\\", "Go knows them"),
    ],
)
def test_what_is_refused_says_why(expression: str, why: str) -> None:
    """Neither what Go refuses nor what Python alone knows is accepted."""
    with pytest.raises(ValueError, match=why):
        compile_go(expression)


@given(st.text(alphabet="ab()[]{}?*+|\\^$.:<>=!-,1QEPx&~/z", max_size=12))
def test_any_text_compiles_or_is_refused(expression: str) -> None:
    """No text whatsoever makes the compiler fail in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(ValueError):
            compile_go(expression)
