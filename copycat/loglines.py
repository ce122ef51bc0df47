"""Events become lines: structlog and the standard library meet in one handler.

An event has the same keys (`level`, `ts`, `logger`, `msg`, then its fields) whoever logged it, and passes the same
redaction.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import cache
from types import TracebackType
from typing import Any, Final, Literal

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter

from copycat.redact import redact, redact_text

__all__ = ["NAMES", "formatter", "logger", "use"]

#: How the levels of the standard library are written.
NAMES: Final[Mapping[int, str]] = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}
_FIRST: Final = ("level", "ts", "logger", "msg")
#: Fields of several lines, which people get below the line, indented, so that nothing in them looks like an event.
_BLOCKS: Final = ("table", "add", "exception")


def logger(name: str) -> BoundLogger:
    """structlog's logger."""
    found: BoundLogger = structlog.stdlib.get_logger(name)
    return found


@cache
def formatter(
    form: Literal["json", "text"], bound: Callable[[], Mapping[str, object]]
) -> logging.Formatter:
    """Makes the lines of a format, from structlog's events and from those of other libraries."""
    return ProcessorFormatter(
        foreign_pre_chain=[_Merge(bound)],
        processors=[_render_exception, _plain, _json if form == "json" else _text],
    )


def use(*, handler: bool, bound: Callable[[], Mapping[str, object]]) -> None:
    """Make structlog send events to the standard library's handlers, or print them. Args: `bound` gives what all have.

    structlog's own default would read source files for its tracebacks, in the event loop, and knows no secrets.
    """
    merge = _Merge(bound)
    if handler:
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                merge,
                structlog.stdlib.PositionalArgumentsFormatter(),
                ProcessorFormatter.wrap_for_formatter,
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=BoundLogger,
            cache_logger_on_first_use=False,  # what is configured may change
        )
    else:
        structlog.configure(
            processors=[
                merge,
                structlog.processors.add_log_level,
                _render_exception,
                _simple,
            ],
            logger_factory=structlog.PrintLoggerFactory(),
            wrapper_class=structlog.make_filtering_bound_logger(0),
            cache_logger_on_first_use=False,
        )


class _Merge:
    """A processor that adds what is bound, unless the event says otherwise."""

    def __init__(self, bound: Callable[[], Mapping[str, object]]) -> None:
        self._bound = bound

    def __call__(
        self, _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        for key, value in self._bound().items():
            event.setdefault(key, value)
        return event


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
        "level": NAMES.get(record.levelno, record.levelname.lower()),
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
