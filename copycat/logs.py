"""Logging: one JSON object a line for machines, or one readable line for people, from every library alike.

`msg` is a constant; what varies is in the fields, and what belongs to the work at hand is bound once with `bound`.
How events become lines is in `copycat.loglines`, with structlog, which is imported with the first event: that takes as
long as a small copy, and most runs of `copycat mirror` have nothing to log.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, cast

from copycat.errors import ConfigError, Problem

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

__all__ = [
    "FORMATS",
    "LEVELS",
    "bound",
    "configure",
    "get_logger",
    "level",
    "set_level",
    "unconfigure",
]

#: The original's level names (those of zap). Its three worst ones differ in what the program does after
#: the message; here they only let through nothing less.
LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "dpanic": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
FORMATS: Final = ("json", "text")

#: Libraries that report every request at INFO.
_CHATTY: Final = (
    "aiohttp",
    "aiobotocore",
    "asyncio",
    "botocore",
    "httpcore",
    "httpx",
    "kr8s",
    "urllib3",
)
_LINES: Final = "copycat.loglines"
_fields: ContextVar[Mapping[str, object]] = ContextVar("fields", default={})  # noqa: B039 - it is never changed


class _Setting:
    """What `configure` was last told; a module's events are made by it, whenever the module was imported."""

    configured = False


class _Formatter(logging.Formatter):
    """Makes lines with `copycat.loglines`, imported with the first event."""

    def __init__(self, form: Literal["json", "text"]) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        line: str = _lines().formatter(self._form, _fields.get).format(record)
        return line


class _Handler(logging.StreamHandler[TextIO]):
    """The one handler of the program; its type tells it from handlers that others installed."""


def configure(
    level: str = "info",
    format: Literal["json", "text"] = "json",  # noqa: A002 - the word of the configuration key
    *,
    stream: TextIO | None = None,
) -> None:
    """Send every event of the process to `stream` (default: standard output).

    May be called again. Raises ConfigError for a level or format that is none.
    """
    if format not in FORMATS:
        raise ConfigError(
            Problem(path="logFormat", message=f"{format!r} is no format; use json or text")
        )
    number = _number(level)
    handler = _Handler(stream or sys.stdout)
    handler.setFormatter(_Formatter(format))
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    _apply(number)
    _switch(configured=True)


def set_level(level: str) -> None:
    """Change the level of the running program. Raises ConfigError for a name that is none."""
    _apply(_number(level))


def level() -> str:
    """The level in use, as the configuration writes it."""
    name: str = _lines().NAMES.get(logging.getLogger().level, "info")
    return name


def unconfigure() -> None:
    """What holds until `configure` is called: readable lines on standard output, from our own modules alone."""
    _switch(configured=False)


def _switch(*, configured: bool) -> None:
    _Setting.configured = configured
    if _LINES in sys.modules:
        _lines().use(handler=configured, bound=_fields.get)


def _lines() -> ModuleType:
    """Who makes the lines, set at first as `configure` was told."""
    first = _LINES not in sys.modules
    from copycat import loglines

    if first:
        loglines.use(handler=_Setting.configured, bound=_fields.get)
    return loglines


def _unheard(*_: object, **_fields: object) -> None:
    """Takes an event below the level, for which structlog need not be imported."""


class _Logger:
    """structlog's logger of a module, looked up with each event."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        number = LEVELS.get(method)
        if (
            number is not None
            and _Setting.configured
            and not logging.getLogger(self._name).isEnabledFor(number)
        ):
            return _unheard
        return getattr(_lines().logger(self._name), method)


def get_logger(name: str) -> BoundLogger:
    """The logger of a module; `name` becomes the key `logger`."""
    return cast("BoundLogger", _Logger(name))


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Binds fields (`image`, `target`, `reconcile_id`) to every event of a `with` block and of the tasks that it starts.

    As structlog's bound_contextvars, which could not be called without importing structlog for every image.
    """
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def _number(level: str) -> int:
    """zap also takes numbers: 0 is info, more is debug of growing detail."""
    text = level.strip().lower()
    if text.isdecimal():
        return logging.DEBUG if int(text) > 0 else logging.INFO
    try:
        return LEVELS[text]
    except KeyError:
        problem = Problem(
            path="logLevel",
            message=f"{level!r} is no level; use debug, info, warn, error, dpanic, panic or fatal",
        )
        raise ConfigError(problem) from None


def _apply(number: int) -> None:
    root = logging.getLogger()
    root.setLevel(number)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
