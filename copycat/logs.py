"""Logging: one JSON object a line for machines, or one readable line for people, from every library alike.

structlog and the standard library meet in one handler, so that an event has the same keys (`level`,
`ts`, `logger`, `msg`, then its fields) whoever logged it, and passes the same redaction. `msg` is a
constant; what varies is in the fields, and what belongs to the work at hand is bound once with `bound`.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.stdlib import BoundLogger, ProcessorFormatter

from copycat.errors import ConfigError, Problem
from copycat.redact import redact, redact_text

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
_NAMES: Final = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}
_FIRST: Final = ("level", "ts", "logger", "msg")
#: Fields of several lines, which people get below the line, indented, so that nothing in them looks like an event.
_BLOCKS: Final = ("table", "add", "exception")

#: Binds fields (`image`, `target`, `reconcile_id`) to every event of a `with` block and of the tasks that it starts.
bound = bound_contextvars


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
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[merge_contextvars],
            processors=[_render_exception, _plain, _json if format == "json" else _text],
        )
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    _apply(number)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=False,  # loggers are made when modules are imported, before this runs
    )


def set_level(level: str) -> None:
    """Change the level of the running program. Raises ConfigError for a name that is none."""
    _apply(_number(level))


def level() -> str:
    """The level in use, as the configuration writes it."""
    return _NAMES.get(logging.getLogger().level, "info")


def unconfigure() -> None:
    """What holds until `configure` is called: readable lines on standard output, from our own modules alone.

    structlog's own default would read source files for its tracebacks, in the event loop, and knows no secrets.
    """
    structlog.configure(
        processors=[
            merge_contextvars,
            structlog.processors.add_log_level,
            _render_exception,
            _simple,
        ],
        logger_factory=structlog.PrintLoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> BoundLogger:
    """The logger of a module; `name` becomes the key `logger`."""
    logger: BoundLogger = structlog.stdlib.get_logger(name)
    return logger


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


#: Exceptions of a chain or group that are told.
_CAUSES = 8


def _trace(exc_info: tuple[type[BaseException], BaseException, TracebackType | None]) -> str:
    """The traceback without the lines of the source: reading those would block the event loop."""
    return "\n".join(_told(exc_info[1], set()))


def _told(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and id(cause) not in seen and len(seen) < _CAUSES:
        yield from _told(cause, seen)
        yield "which led to:"
    yield "Traceback (most recent call last):"
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        yield f'  File "{code.co_filename}", line {line}, in {code.co_qualname}'
    yield f"{type(error).__qualname__}: {error}"
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            if id(inner) not in seen and len(seen) < _CAUSES:
                yield from (f"  | {line}" for line in _told(inner, seen))


_render_exception = structlog.processors.ExceptionRenderer(_trace)


def _simple(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """A line without a logger's name or time: nobody configured anything."""
    word, msg = str(event.pop("level", "")), str(event.pop("event", ""))
    blocks = [event.pop(key) for key in _BLOCKS if isinstance(event.get(key), str)]
    fields = "".join(f" {key}={_word(redact(value, key))}" for key, value in event.items())
    line = f"[{word}] {_line(redact_text(msg))}{fields}"
    return "\n".join([line, *(_indented(redact_text(block)) for block in blocks if block)])


def _plain(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The event as it goes out: the four keys first, everything as JSON data, no secrets."""
    record: logging.LogRecord = event.pop("_record")
    event.pop("_from_structlog", None)
    ts = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds")
    head = {
        "level": _NAMES.get(record.levelno, record.levelname.lower()),
        "ts": ts.replace("+00:00", "Z"),
        "logger": record.name,
        "msg": event.pop("event", ""),
    }
    # a field that bears the name of one of the four keeps its value under another name
    rest = {f"{k}_" if k in _FIRST else k: v for k, v in event.items()}
    return {key: redact(value, key) for key, value in (head | rest).items()}


def _json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    # ASCII only: some readers take U+0085 and U+2028 for the end of a line
    return json.dumps(event)


def _text(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    blocks = [event.pop(key) for key in _BLOCKS if isinstance(event.get(key), str)]
    level, ts, logger, msg = (event.pop(key) for key in _FIRST)
    fields = "".join(f" {key}={_word(value)}" for key, value in event.items())
    line = f"{ts} {level.upper():<5} {logger}: {_line(str(msg))}{fields}"
    return "\n".join([line, *map(_indented, filter(None, blocks))])


def _word(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    plain = text.isprintable() and not any(c in ' "=' for c in text)
    return text if text and plain else json.dumps(value)


def _line(text: str) -> str:
    """One line: a message that came from outside must not forge a second one."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _indented(trace: str) -> str:
    return "\n".join("    " + _line(line) for line in trace.splitlines())


unconfigure()
