"""Go's regular expressions (RE2) on Python's engine, for the rules of pathMap.

Users bring their expressions from the original program, which is written in Go. The common subset means
the same in both; this module translates what is only spelled differently, and refuses the rest by name
instead of letting it match something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["compile_go"]

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
#: One element of an expression outside of classes; what is not named here is a character as it is.
_TOKEN = re.compile(
    r"""
    \\Q (?P<quoted> .*?) (?: \\E | \Z)
    | \\x\{ (?P<hex> [0-9A-Fa-f]{1,6}) \}
    | \\ (?P<escape> .)
    | \(\? (?P<named> P?< (?P<name> \w+) > )
    | \(\? (?P<group> [^:)]* [:)]? )
    | (?P<class> \[ )
    | (?P<repeat> (?: [*+?] | \{\d+(?:,\d*)?\} ) )
    """,
    re.VERBOSE | re.DOTALL,
)
_CLASS_PART = re.compile(
    r"\[: (?P<negated>\^?) (?P<posix>\w+) :\] | \\x\{ (?P<hex>[0-9A-Fa-f]{1,6}) \} | \\ (?P<escape>.)",
    re.VERBOSE | re.DOTALL,
)
_FLAGS = re.compile(r"(?P<flags>[ims]*)(?:-[ims]+)?(?P<end>[:)])")


def compile_go(expression: str) -> re.Pattern[str]:
    """The expression, ready for Python.

    Raises:
        ValueError: Go would not accept it, or Python has nothing that means the same.
    """
    try:
        return re.compile("".join(_translate(expression)), re.ASCII)
    except (re.error, OverflowError) as error:
        raise ValueError(f"expected a regular expression as Go knows them: {error}") from None


def _translate(expression: str) -> Iterator[str]:
    position, repeated = 0, False
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            yield "\\Z" if expression[position] == "$" else expression[position]
            position, repeated = position + 1, False
            continue
        if match["repeat"] is not None:
            text = _repetition(match, repeated=repeated)
            # After a repetition, ? makes it lazy; anything further is an error in Go.
            position = match.end()
            if expression[position : position + 1] == "?":
                text, position = f"{text}?", position + 1
            yield text
            repeated = True
            continue
        repeated = False
        if match["class"] is not None:
            text, position = _class(expression, match.end())
            yield text
            continue
        yield _element(match)
        position = match.end()


def _repetition(match: re.Match[str], *, repeated: bool) -> str:
    if repeated:
        raise ValueError("expected a regular expression as Go knows them: nested repetition")
    if any(int(number) > 1000 for number in re.findall(r"\d+", match[0])):
        raise ValueError("expected a regular expression as Go knows them: repetition over 1000")
    return match[0]


def _element(match: re.Match[str]) -> str:
    """The Python spelling of an escape, a quotation or the start of a group."""
    if match["quoted"] is not None:
        return re.escape(match["quoted"])
    if match["hex"] is not None:
        return _character(match["hex"])
    if match["escape"] is not None:
        return _escape(match["escape"])
    if match["named"] is not None:
        return f"(?P<{match['name']}>"
    return _group(match["group"], first=match.start() == 0)


def _escape(letter: str) -> str:
    if letter == "z":
        return r"\Z"
    if letter in "ZGKkRXhHpPCNuU" or letter in "123456789":
        raise ValueError(f"\\{letter} is not known in the regular expressions of pathMap")
    return rf"\{letter}"


def _character(code: str) -> str:
    if int(code, 16) > 0x10FFFF:
        raise ValueError("expected a regular expression as Go knows them: no such character")
    return f"\\U{int(code, 16):08x}"


def _group(text: str, *, first: bool) -> str:
    """`(?:` and flags; what Python has beyond Go (lookaround, conditions, atomic groups) is refused."""
    flags = _FLAGS.fullmatch(text)
    if flags is None or text == ")":
        raise ValueError(
            "groups may be (…), (?:…), (?P<name>…) and flags i, m, s; lookaround is not known in Go"
        )
    if flags["end"] == ")" and not first:
        raise ValueError(
            "flags for the rest of an expression must stand at its start: write (?i:…)"
        )
    return f"(?{text}"


def _class(expression: str, start: int) -> tuple[str, int]:
    """A character class from after its `[`, and the position behind it."""
    position, parts = start, ["["]
    if expression[position : position + 1] == "^":
        parts.append("^")
        position += 1
    first = True
    while position < len(expression):
        if expression[position] == "]" and not first:
            return "".join([*parts, "]"]), position + 1
        first = False
        match = _CLASS_PART.match(expression, position)
        if match is None:
            parts.append(_literal(expression[position], before=parts[-1]))
            position += 1
            continue
        parts.append(_class_part(match))
        position = match.end()
    raise ValueError("expected a regular expression as Go knows them: missing closing ]")


def _literal(character: str, *, before: str) -> str:
    """A character of a class. Python keeps [, &&, ||, ~~ and -- for later use and warns about them."""
    first_or_end_of_range = character == "-" and before in {"[", "^", "-"}
    return rf"\{character}" if character in "[&|~" or first_or_end_of_range else character


def _class_part(match: re.Match[str]) -> str:
    if match["posix"] is not None:
        if match["negated"] or match["posix"] not in _POSIX:
            raise ValueError(f"{match[0]} is not known in the regular expressions of pathMap")
        return _POSIX[match["posix"]]
    if match["hex"] is not None:
        return _character(match["hex"])
    if match["escape"] in "AbBzQE":
        raise ValueError(f"\\{match['escape']} has no meaning in a class")
    return _escape(match["escape"])
