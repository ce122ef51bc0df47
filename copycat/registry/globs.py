"""Go's `filepath.Match`, which users of registry aliases and pull secrets know.

Whoever may write a Secret chooses patterns, so matching takes time in proportion to pattern and name: no
regular expression, whose tries may multiply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["go_match"]

_BRACKETS = re.compile(r"\[(\^?)((?:\\.|[^\\\]])+)\]", re.DOTALL)
_RANGES = re.compile(r"(\\.|[^\\])(?:-(\\.|[^\\]))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Class:
    """`[a-z]`, or `[^a-z]`."""

    negated: bool
    ranges: tuple[tuple[str, str], ...]

    def has(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) is not self.negated


#: What stands for one character: itself, a class, or None for `?`.
_One = str | _Class | None
#: A part of a pattern between two stars.
_Part = tuple[_One, ...]


def go_match(pattern: str, name: str) -> bool:
    """Go's `filepath.Match`: `*` and `?` stop at `/`, `[a-z]` and `[^a-z]` are classes, `\\` escapes.

    Raises ValueError for a malformed pattern.
    """
    first, *others = _parts(pattern)
    if not others:
        return len(first) == len(name) and _at(first, name, 0)
    if not _at(first, name, 0):
        return False
    position = len(first)
    for part in others[:-1]:
        # the first place only, as Go
        found = _after_star(part, name, position)
        if found is None:
            return False
        position = found + len(part)
    end = len(name) - len(others[-1])
    return position <= end and "/" not in name[position:end] and _at(others[-1], name, end)


def _after_star(part: _Part, name: str, start: int) -> int | None:
    """The first place of a part, where a star may reach from `start`."""
    for position in range(start, len(name) - len(part) + 1):
        if _at(part, name, position):
            return position
        if name[position] == "/":
            break
    return None


def _at(part: _Part, name: str, position: int) -> bool:
    if position + len(part) > len(name):
        return False
    return all(_fits(one, name[position + i]) for i, one in enumerate(part))


def _fits(one: _One, char: str) -> bool:
    if one is None:
        return char != "/"
    return one.has(char) if isinstance(one, _Class) else one == char


@lru_cache(maxsize=1024)
def _parts(pattern: str) -> Sequence[_Part]:
    """The pattern between its stars. Raises ValueError for what Go calls ErrBadPattern."""
    parts: list[list[_One]] = [[]]
    i = 0
    while i < len(pattern):
        char = pattern[i]
        if char == "*":
            parts.append([])
        elif char == "?":
            parts[-1].append(None)
        elif char == "[":
            found, i = _class(pattern, i)
            parts[-1].append(found)
        elif char == "\\":
            i += 1
            if i == len(pattern):
                raise ValueError(f"the pattern {pattern!r} ends in a backslash")
            parts[-1].append(pattern[i])
        else:
            parts[-1].append(char)
        i += 1
    return tuple(map(tuple, parts))


def _class(pattern: str, start: int) -> tuple[_Class, int]:
    """A `[…]` class that opens at `start`, and the index of its closing bracket."""
    found = _BRACKETS.match(pattern, start)
    if found is None:
        raise ValueError(f"the pattern {pattern!r} has a bracket that is not closed or is empty")
    ranges = []
    for low, high in _RANGES.findall(found[2]):
        first, last = low[-1], (high or low)[-1]
        if first > last:
            raise ValueError(f"the pattern {pattern!r} has a range that ends before it begins")
        ranges.append((first, last))
    return _Class(bool(found[1]), tuple(ranges)), found.end() - 1
