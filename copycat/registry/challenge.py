"""WWW-Authenticate: what a registry wants to see (RFC 9110, section 11; registry notes 1.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

__all__ = ["Challenge", "covers", "find", "parse_challenges"]

#: What is read of an answer's challenges; the event loop has more to do than to read a hostile registry's.
MAX_HEADERS, MAX_LENGTH = 8, 8192

_NAME = re.compile(r"[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)")
_EQUALS = re.compile(r"\s*=\s*(?![=,]|\s*$)")
#: A quoted string; one that is never closed ends with the header.
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)(?:"|\\?$)', re.DOTALL)
_BARE = re.compile(r"[^\s,]*")
#: `Negotiate YII=`: credentials-like text in place of parameters.
_TOKEN68 = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*\s*(?=,|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One scheme and its parameters."""

    scheme: str
    """Lower case: `bearer`, `basic`."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Names are lower case."""

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes, one by one: several stand in one parameter, with spaces between them."""
        return tuple(self.params.get("scope", "").split())


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """All challenges of all headers, in order; text that is no challenge is passed over, and what nobody needs."""
    some = (header[:MAX_LENGTH] for header in islice(headers, MAX_HEADERS))
    return tuple(challenge for header in some for challenge in _parse(header))


def _parse(header: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while (name := _NAME.match(header, position)) is not None:
        position = name.end()
        equals = _EQUALS.match(header, position)
        if equals is None:
            found.append((name[1].lower(), {}))
            if (token68 := _TOKEN68.match(header, position)) is not None:
                position = token68.end()
            continue
        value, position = _value(header, equals.end())
        if found:
            found[-1][1].setdefault(name[1].lower(), value)
    return [Challenge(scheme=scheme, params=params) for scheme, params in found]


def _value(header: str, position: int) -> tuple[str, int]:
    if (quoted := _QUOTED.match(header, position)) is not None:
        return re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL), quoted.end()
    bare = _BARE.match(header, position)
    # The pattern matches nothing, too.
    return (bare[0], bare.end()) if bare is not None else ("", position)


def find(challenges: Iterable[Challenge], scheme: str) -> Challenge | None:
    """The first challenge of a scheme."""
    return next((c for c in challenges if c.scheme == scheme), None)


def covers(have: Iterable[str], want: Iterable[str]) -> bool:
    """Whether a token for the scopes `have` would serve `want` (`repository:a:pull` under `repository:a:pull,push`)."""
    granted: dict[str, set[str]] = {}
    for scope in have:
        resource, _, actions = scope.rpartition(":")
        granted.setdefault(resource, set()).update(actions.split(","))
    for scope in want:
        resource, _, actions = scope.rpartition(":")
        if not set(actions.split(",")) <= granted.get(resource, set()):
            return False
    return True
