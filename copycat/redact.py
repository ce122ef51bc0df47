"""Secrets never reach a log: what looks like one is blotted out of every string, however deep it lies.

Credentials arrive in headers, token answers, URLs (userinfo, signed query strings) and Docker
configurations, and errors of foreign libraries quote them freely. Names decide first (a field that is
called `password` has no value worth printing), then the shape of the text. When in doubt, less is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["BLOT", "redact", "redact_text"]

BLOT: Final = "***"

#: Deeper than this nothing is printed; it also ends structures that contain themselves.
_DEPTH = 8

_NAMES = (
    r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key(?:[_-]?id)?|secret[_-]?access[_-]?key|private[_-]?key"
    r"|credential|authorization|auth|signature|sig|cookie)"
)
_NAME = re.compile(rf"(?i)[\w.-]*{_NAMES}")

#: Words after "bearer" or "basic" that make it prose, not a header.
_PROSE = r"(?:auth|authentication|authorization|challenges?|credentials|login|realm=|tokens?|schemes?)(?![\w+/=.~-])|realm="

_RULES: Final = (
    # scheme://user:password@host
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s\"'<>]*@"), rf"\1{BLOT}@"),
    # the query of an absolute URL: signed, or an upload's state; its path says enough
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s?\"'<>]+)\?[^\s\"'<>]*"), rf"\1?{BLOT}"),
    # Authorization: Bearer …, in a header's line or a mapping's repr
    (
        re.compile(
            r"(?i)((?:\b|_)authorization[\\\"']*\s*[:=,]\s*)(b?\"(?:[^\"\\]|\\.)*\"|b?'(?:[^'\\]|\\.)*'|[^\s,]+(?:\s+[^\s,]+)?)"
        ),
        rf"\1{BLOT}",
    ),
    (re.compile(rf"(?i)\b(bearer|basic)\s+(?!{_PROSE})[^\s\"',;)\]}}]{{4,}}"), rf"\1 {BLOT}"),
    # name=value, "name": "value", name: value; also &name=value in the query of a relative URL
    (
        re.compile(
            rf"(?i)((?<![\w.-])[\w.-]*{_NAMES}[\\\"']*\s*[:=]\s*)"
            r"(b?\"(?:[^\"\\]|\\.)*\"|b?'(?:[^'\\]|\\.)*'|[^\s&]+)"
        ),
        rf"\1{BLOT}",
    ),
    # an upload session of the distribution registry is signed
    (re.compile(r"([?&]_state=)[^\s&\"']+"), rf"\1{BLOT}"),
    # tokens that are known by their looks
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"), BLOT),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|dckr_(?:pat|oat)_)[\w-]+"), BLOT),
)


def redact_text(text: str) -> str:
    """The text without what looks like a secret. Lone surrogates are escaped, so that any stream can take it."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def redact(value: object, name: str = "", *, depth: int = _DEPTH) -> object:
    """The value as plain JSON data (text, numbers, lists, mappings) without secrets.

    Args: `name` is the key under which the value stands; a secret's name blots the value out whole.
    """
    if value is None or isinstance(value, bool):
        return value
    if name and _NAME.fullmatch(name):
        return BLOT
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON knows neither NaN nor infinity
    if isinstance(value, str):
        return redact_text(str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth == 0:
        return "…"
    return _redact_nested(value, depth - 1)


def _redact_nested(value: object, depth: int) -> object:
    if isinstance(value, Mapping):
        return {redact_text(str(k)): redact(v, str(k), depth=depth) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth=depth) for item in value]
    return redact_text(str(value))
