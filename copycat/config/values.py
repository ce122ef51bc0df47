"""Go's and YAML's spellings of values, read into Python's: one function per kind of value.

Every function takes what a file, a variable or a flag may hold, and raises `ValueError` saying what was
expected. The message never repeats the value: it may be a secret in the wrong place.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from copycat.config.hosts import registry_host, registry_prefix
from copycat.errors import InvalidReference
from copycat.oci.platform import Platform
from copycat.oci.reference import Reference

__all__ = [
    "BOOLEAN_SCHEMA",
    "Address",
    "Boolean",
    "Cooldown",
    "Count",
    "Duration",
    "Host",
    "Hosts",
    "Images",
    "JsonText",
    "Names",
    "Namespaces",
    "Platforms",
    "Positive",
    "Prefixes",
    "Quota",
    "Size",
    "Text",
    "Texts",
    "boolean",
    "choice",
    "entries",
    "namespace",
    "suggestion",
    "text",
]

_TRUE = frozenset({"1", "t", "true", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "no", "off"})
_GO_DURATION = re.compile(r"\+?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")
_GO_UNIT = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_NUMBER = re.compile(r"\+?(?:\d+\.?\d*|\.\d+)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.%a-z]+\]):(\d{1,5})")
_NAME = re.compile(r"[a-z0-9*?]([a-z0-9.*?-]*[a-z0-9*?])?(/[a-z0-9*?]([a-z0-9.*?-]*[a-z0-9*?])?)?")


def suggestion(word: str, known: Collection[str]) -> str:
    """`; did you mean "…"?` if one of the known words is close, in any case; else nothing."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f'; did you mean "{by_lower[close[0]]}"?' if close else ""


def boolean(value: object) -> bool:
    """`true`, and all that Go's strconv.ParseBool and YAML 1.1 call by that name, in any case."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("expected true or false (also 1/0, t/f, yes/no, on/off)")


def _seconds(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text)
    if _GO_DURATION.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _GO_UNIT.findall(text))
    return None


def duration(value: object) -> float:
    """Seconds, as a number or as a Go duration (`2m`, `1h30m`, `500ms`); not negative."""
    seconds: float | None = None
    if isinstance(value, str):
        seconds = _seconds(value.strip())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        raise ValueError('expected seconds (120) or a Go duration ("2m", "1h30m", "500ms")')
    return seconds


def whole(minimum: int) -> Callable[[object], int]:
    """A reader of whole numbers from `minimum` up."""

    def read(value: Any) -> int:
        digits = isinstance(value, str) and re.fullmatch(r"\+?\d{1,18}", value.strip())
        whole_number = isinstance(value, int | float) and value == value // 1
        number = int(value) if (digits or whole_number) and not isinstance(value, bool) else -1
        if number < minimum:
            raise ValueError(f"expected a whole number, at least {minimum}")
        return number

    return read


def cooldown(value: object) -> int | None:
    """Minutes; nothing or `growing` for intervals that grow."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "growing"):
        return None
    try:
        return whole(0)(value)
    except ValueError:
        raise ValueError('expected a whole number of minutes, 0 for none, or "growing"') from None


def size(value: object) -> int:
    """Bytes, as a number or as a Kubernetes quantity (`50Mi`, `1G`)."""
    match = _SIZE.fullmatch(str(value).strip()) if isinstance(value, str | int | float) else None
    if match is None or isinstance(value, bool):
        raise ValueError('expected a number of bytes, or a size ("50Mi", "1G")')
    unit = match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    exponent = " kMGT".index(unit[0].replace("K", "k")) if unit else 0
    return int(float(match[1]) * float(base) ** exponent)


def share(value: object) -> float:
    """A part of one: `50%` or 0.5."""
    expected = 'expected a share: a percentage ("50%") or a number from 0 to 1'
    given = "" if isinstance(value, bool) else str(value).strip()
    percent = given.endswith("%")
    number = given.removesuffix("%").strip()
    if not _NUMBER.fullmatch(number):
        raise ValueError(expected)
    result = float(number) / (100 if percent else 1)
    if result > 1:
        raise ValueError(expected)
    return result


def address(value: object) -> str:
    """A Go listen address: `:8080`, `127.0.0.1:8080`, `[::1]:8080`; `0` for none."""
    text = "" if isinstance(value, bool) else str(value).strip()
    match = _ADDRESS.fullmatch(text)
    if text != "0" and (match is None or int(match[1]) > 65535):
        raise ValueError(
            'expected an address (":8080", "127.0.0.1:8080", "[::1]:8080"), or "0" for off'
        )
    return text


def text(value: object) -> str:
    """Text; whole numbers are taken as they are written."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value).strip()
    raise ValueError("expected text; put quotes around it")


def entries(value: object) -> list[object]:
    """A list, or text with commas between the entries; empty entries are dropped."""
    if isinstance(value, str):
        return [entry.strip() for entry in value.split(",") if entry.strip()]
    if isinstance(value, list | tuple):
        return [entry for entry in value if entry not in {"", None}] if _plain(value) else [*value]
    raise ValueError("expected a list, or text with commas between the entries")


def _plain(values: Collection[object]) -> bool:
    return all(isinstance(v, str | int | float | None) for v in values)


def name(value: object) -> str:
    """`name` or `namespace/name` of Kubernetes objects, with wildcards `*` and `?`."""
    word = text(value)
    if not _NAME.fullmatch(word):
        raise ValueError(
            "expected the name of a Kubernetes object (lower case letters, digits, - and .), which may "
            "hold the wildcards * and ?"
        )
    return word


def namespace(value: object) -> str:
    """The name of a namespace, with wildcards."""
    word = name(value)
    if "/" in word:
        raise ValueError("expected the name of a namespace, which has no /")
    return word


def image(value: object) -> str:
    """The name of an image."""
    word = text(value)
    try:
        Reference.parse(word)
    except InvalidReference as error:
        raise ValueError(f"expected the name of an image: {error}") from None
    return word


def platform(value: object) -> str:
    """`os/arch[/variant]`, in its normal spelling."""
    try:
        return str(Platform.parse(text(value)))
    except (ValueError, InvalidReference):
        raise ValueError('expected a platform: os/arch[/variant], like "linux/arm64"') from None


def json_text(value: object) -> str:
    """JSON text of an object; an object in YAML is written as JSON."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    try:
        if value == "" or isinstance(json.loads(text(value)), dict):
            return text(value)
    except ValueError:
        pass
    raise ValueError("expected the JSON text of an object")


def choice(*words: str, also: Mapping[object, str] | None = None) -> BeforeValidator:
    """One of the words, in any case; `also` maps further spellings (YAML reads `off` as false)."""

    def read(value: object) -> str:
        if also and isinstance(value, str | bool) and value in also:
            return also[value]
        word = text(value).lower() if isinstance(value, str) else ""
        by_lower = {w.lower(): w for w in words}
        if word in by_lower:
            return by_lower[word]
        if also and word in also:
            return also[word]
        shown = ", ".join(w for w in words if w)
        raise ValueError(f"expected one of {shown}{suggestion(word, words)}")

    return BeforeValidator(read)


def _schema(*alternatives: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema(alternatives[0] if len(alternatives) == 1 else {"anyOf": [*alternatives]})


def _list_schema(entry: dict[str, Any]) -> WithJsonSchema:
    return _schema({"type": "array", "items": entry}, {"type": "string"})


def _any_case(words: Collection[str]) -> str:
    """A pattern for the words that no engine's flags are needed for."""
    return "|".join(
        "".join(f"[{c.upper()}{c}]" if c.isalpha() else c for c in word) for word in sorted(words)
    )


_STRING: dict[str, Any] = {"type": "string"}
_SCALAR: dict[str, Any] = {"type": ["string", "integer"]}
_WHOLE = r"^\+?[0-9]+$"

BOOLEAN_SCHEMA: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"enum": [0, 1]},
    {"type": "string", "pattern": f"^({_any_case(_TRUE | _FALSE)})$"},
]

Boolean = Annotated[bool, BeforeValidator(boolean), _schema(*BOOLEAN_SCHEMA)]
Duration = Annotated[
    float,
    BeforeValidator(duration),
    _schema(
        {"type": "number", "minimum": 0},
        {
            "type": "string",
            "pattern": r"^\+?(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$|^\+?([0-9]+\.?[0-9]*|\.[0-9]+)$",
        },
    ),
]
Count = Annotated[
    int,
    BeforeValidator(whole(0)),
    _schema({"type": "integer", "minimum": 0}, {"type": "string", "pattern": _WHOLE}),
]
Positive = Annotated[
    int,
    BeforeValidator(whole(1)),
    _schema({"type": "integer", "minimum": 1}, {"type": "string", "pattern": _WHOLE}),
]
Cooldown = Annotated[
    int | None,
    BeforeValidator(cooldown),
    _schema(
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": rf"{_WHOLE}|^growing$"},
        {"type": "null"},
    ),
]
Size = Annotated[
    int,
    BeforeValidator(size),
    _schema(
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*([kKMGT]i?)?B?$"},
    ),
]
Quota = Annotated[
    float | None,
    BeforeValidator(share),
    _schema(
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*%?$"},
    ),
]
Address = Annotated[str, BeforeValidator(address), _schema({"type": "string"}, {"const": 0})]
Text = Annotated[str, BeforeValidator(text), _schema(_SCALAR)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(entries), _list_schema(_SCALAR)]
Names = Annotated[
    tuple[Annotated[str, BeforeValidator(name)], ...],
    BeforeValidator(entries),
    _list_schema(_SCALAR),
]
Namespaces = Annotated[
    tuple[Annotated[str, BeforeValidator(namespace)], ...],
    BeforeValidator(entries),
    _list_schema(_SCALAR),
]
Images = Annotated[
    tuple[Annotated[str, BeforeValidator(image)], ...],
    BeforeValidator(entries),
    _list_schema(_STRING),
]
Platforms = Annotated[
    tuple[Annotated[str, BeforeValidator(platform)], ...],
    BeforeValidator(entries),
    _list_schema(_STRING),
]
Host = Annotated[str, BeforeValidator(registry_host), _schema(_STRING)]
Hosts = Annotated[tuple[Host, ...], BeforeValidator(entries), _list_schema(_STRING)]
Prefixes = Annotated[
    tuple[Annotated[str, BeforeValidator(registry_prefix)], ...],
    BeforeValidator(entries),
    _list_schema(_STRING),
]
JsonText = Annotated[str, BeforeValidator(json_text), _schema(_STRING, {"type": "object"})]
