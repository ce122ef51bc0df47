"""Go's `filepath.Match`, which users of registry aliases and pull secrets know."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["go_match"]


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression. Raises ValueError for what Go calls ErrBadPattern."""
    out: list[str] = []
    i = 0
    while i < len(pattern):
        char = pattern[i]
        if char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[":
            text, i = _class(pattern, i)
            out.append(text)
        elif char == "\\":
            i += 1
            if i == len(pattern):
                raise ValueError(f"the pattern {pattern!r} ends in a backslash")
            out.append(re.escape(pattern[i]))
        else:
            out.append(re.escape(char))
        i += 1
    return re.compile("".join(out), re.DOTALL)


def _class(pattern: str, start: int) -> tuple[str, int]:
    """A `[…]` class that opens at `start`: its expression and the index of its closing bracket."""
    found = re.compile(r"\[(\^?)((?:\\.|[^\\\]])+)\]", re.DOTALL).match(pattern, start)
    if found is None:
        raise ValueError(f"the pattern {pattern!r} has a bracket that is not closed or is empty")
    body = re.sub(
        r"\\?(.)", lambda m: m[1] if m[0] == "-" else re.escape(m[1]), found[2], flags=re.DOTALL
    )
    try:
        re.compile(f"[{body}]")
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} has a bad class: {error}") from error
    return f"[{found[1]}{body}]", found.end() - 1


def go_match(pattern: str, name: str) -> bool:
    """Go's `filepath.Match`: `*` and `?` stop at `/`, `[a-z]` and `[^a-z]` are classes, `\\` escapes.

    Raises ValueError for a malformed pattern.
    """
    return _compiled(pattern).fullmatch(name) is not None
