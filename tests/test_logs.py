"""Logging: the keys, the formats, the levels, who is quiet, and that no secret gets out."""

from __future__ import annotations

import io
import json
import linecache
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copycat import logs
from copycat.errors import ConfigError
from tests.test_redact import CARRIERS, SECRET


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logs.unconfigure()


@pytest.fixture
def stream() -> io.StringIO:
    """Where the events go."""
    return io.StringIO()


def fail(text: str) -> None:
    """An exception with a text."""
    raise ValueError(text)


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    """Every line, decoded."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_structlog_waits_for_an_event() -> None:
    """What is below the level does not import it; what is not does."""
    code = """
import sys
from copycat import logs
logs.configure("warn", "json")
logs.get_logger("x").info("unheard")
before = "structlog" in sys.modules
logs.get_logger("x").warning("heard")
print(before, "structlog" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    event, modules = done.stdout.splitlines()
    assert json.loads(event)["msg"] == "heard"
    assert modules == "False True"


def test_keys(stream: io.StringIO) -> None:
    """An event is one line: level, ts (UTC, milliseconds), logger, msg in this order, then its fields."""
    logs.configure("info", "json", stream=stream)

    logs.get_logger("copycat.mirror").info(
        "image copied", image="docker.io/library/alpine", bytes=3
    )

    [event] = events(stream)
    assert list(event) == ["level", "ts", "logger", "msg", "image", "bytes"]
    assert (
        event["level"],
        event["logger"],
        event["msg"],
    ) == ("info", "copycat.mirror", "image copied")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["ts"])


def test_one_line_whatever_comes(stream: io.StringIO) -> None:
    """Line separators of every kind, in messages, fields and traces, do not break the line."""
    logs.configure("info", "json", stream=stream)
    nasty = "a\nb\r\x85c\u2028d\ud800"

    try:
        fail(nasty)
    except ValueError:
        logs.get_logger("x").exception(nasty, field=nasty)

    [event] = events(stream)
    assert "ValueError" in event["exception"]
    assert "a\nb" in event["msg"]


def test_fields_named_like_keys(stream: io.StringIO) -> None:
    """A field that is called like one of the four keys keeps its value and hides nothing."""
    logs.configure("info", "json", stream=stream)

    logs.get_logger("x").info("m", level="deep", ts=1)

    [event] = events(stream)
    assert (event["level"], event["level_"], event["ts_"]) == ("info", "deep", 1)


def test_standard_library(stream: io.StringIO) -> None:
    """Libraries that log by the standard library come out in the same form, bound fields included."""
    logs.configure("info", "json", stream=stream)

    with logs.bound(image="a"):
        logging.getLogger("some.library").warning("host %s answered", "h")
    logs.get_logger("x").info("took %d s", 3)

    first, second = events(stream)
    assert (
        first["level"],
        first["logger"],
        first["msg"],
        first["image"],
    ) == ("warn", "some.library", "host h answered", "a")
    assert second["msg"] == "took 3 s"
    assert "image" not in second


async def test_bound_fields_reach_tasks(stream: io.StringIO) -> None:
    """Tasks that are started inside the block log its fields; outside they are gone."""
    logs.configure("info", "json", stream=stream)
    log = logs.get_logger("x")

    async def work() -> None:
        log.info("inside")

    with logs.bound(reconcile_id="r1"):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
    log.info("outside")

    inside, outside = events(stream)
    assert inside["reconcile_id"] == "r1"
    assert "reconcile_id" not in outside


@pytest.mark.parametrize("name", ["aiohttp.access", "httpx", "httpcore", "kr8s", "botocore"])
def test_chatty_libraries(stream: io.StringIO, name: str) -> None:
    """Libraries that report every request are heard from WARNING on, also at debug, and never below our level."""
    logs.configure("debug", "json", stream=stream)
    logging.getLogger(name).info("GET /")
    logging.getLogger(name).warning("trouble")
    logs.set_level("error")
    logging.getLogger(name).warning("more trouble")

    assert [e["msg"] for e in events(stream)] == ["trouble"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", "debug info warn error fatal"),
        ("5", "debug info warn error fatal"),
        ("0", "info warn error fatal"),
        ("INFO", "info warn error fatal"),
        ("warn", "warn error fatal"),
        ("warning", "warn error fatal"),
        ("error", "error fatal"),
        ("dpanic", "fatal"),
        ("panic", "fatal"),
        ("fatal", "fatal"),
    ],
    ids=lambda v: v.replace(" ", "-"),
)
def test_levels(stream: io.StringIO, level: str, expected: str) -> None:
    """The original's level names let through what they say."""
    logs.configure(level, "json", stream=stream)

    log = logs.get_logger("x")
    for emit in (log.debug, log.info, log.warning, log.error, log.critical):
        emit("m")

    assert expected.split() == [e["level"] for e in events(stream)]


def test_level_at_run_time(stream: io.StringIO) -> None:
    """The level can be changed while the program runs, for loggers that exist already."""
    logs.configure("info", "json", stream=stream)
    log = logs.get_logger("x")
    log.debug("one")
    logs.set_level("debug")
    log.debug("two")

    assert [e["msg"] for e in events(stream)] == ["two"]


@pytest.mark.parametrize(
    ("level", "form"), [("loud", "json"), ("info", "xml")], ids=["level", "format"]
)
def test_bad_settings(level: str, form: Any, stream: io.StringIO) -> None:
    """A level or format that is none is a configuration error that lists the right ones."""
    with pytest.raises(ConfigError, match="use "):
        logs.configure(level, form, stream=stream)


def test_text(stream: io.StringIO) -> None:
    """The text format is one readable line; values are quoted where they need it, and no line can be forged."""
    logs.configure("info", "text", stream=stream)
    log = logs.get_logger("copycat.x")

    log.warning("copy failed\nfake", image="a/b:1", error="not found", empty="", nested={"n": 1})
    try:
        fail("no")
    except ValueError:
        log.exception("broke")

    first, second, *trace = stream.getvalue().splitlines()
    assert first.endswith(
        r'Z WARN  copycat.x: copy failed\nfake image=a/b:1 error="not found" empty="" nested={"n": 1}'
    )
    assert second.endswith("ERROR copycat.x: broke")
    assert all(line.startswith("    ") for line in trace)


async def test_tracebacks_read_no_files(stream: io.StringIO) -> None:
    """An exception is told with its places and causes, and no source file is read in the event loop for it."""
    logging.getLogger().handlers.clear()  # pytest's own read them
    logs.configure("info", "json", stream=stream)
    linecache.clearcache()
    try:
        try:
            fail("first")
        except ValueError as error:
            raise KeyError("second") from error
    except KeyError:
        logs.get_logger("x").exception("broke")
    group = ExceptionGroup("both", [OSError("a"), TypeError("b")])
    logs.get_logger("x").warning("broke", exc_info=group)

    first, second = (e["exception"] for e in events(stream))
    assert first.index("ValueError: first") < first.index("which led to") < first.index("KeyError")
    assert re.search(r'File ".*test_logs.py", line \d+, in fail', first)
    assert "  | OSError: a" in second
    assert "  | TypeError: b" in second
    assert not linecache.cache


@pytest.mark.parametrize("cut", ["circle", "long"])
def test_causes_end(stream: io.StringIO, cut: str) -> None:
    """Exceptions that cause each other, and very long chains, end."""
    logs.configure("info", "json", stream=stream)
    chain: list[Exception] = [ValueError(str(n)) for n in range(2 if cut == "circle" else 100)]
    for error, cause in pairwise(chain):
        error.__cause__ = cause
    if cut == "circle":
        chain[-1].__cause__ = chain[0]
    logs.get_logger("x").error("broke", exc_info=chain[0])

    [event] = events(stream)
    assert event["exception"].count("ValueError") == (2 if cut == "circle" else 8)


async def test_before_it_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody configured anything: readable lines, without secrets, without reading files in the event loop."""
    logs.unconfigure()
    linecache.clearcache()
    log = logs.get_logger("x")
    try:
        fail("Bearer abcdefghijklmnop")
    except ValueError:
        log.exception("broke\nfake", password="hunter22", image="a:1")
    log.debug("quiet", url="https://user:hunter22@host/")

    first, *trace, last = capsys.readouterr().out.splitlines()
    assert first == r"[error] broke\nfake password=*** image=a:1"
    assert trace[-1] == "    ValueError: Bearer ***"
    assert last == "[debug] quiet url=https://***@host/"
    assert not linecache.cache


def test_again(stream: io.StringIO) -> None:
    """Configuring twice does not log twice."""
    logs.configure("info", "json", stream=io.StringIO())
    logs.configure("info", "json", stream=stream)

    logs.get_logger("x").info("m")

    assert len(events(stream)) == 1


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a stream, events go to standard output."""
    logs.configure()

    logs.get_logger("x").info("m")

    assert json.loads(capsys.readouterr().out)["msg"] == "m"


@pytest.mark.parametrize("form", ["json", "text"])
@given(secret=SECRET, carrier=st.sampled_from(CARRIERS))
def test_no_secret_gets_out(form: Any, secret: str, carrier: str) -> None:
    """A canary in the message, a field, a bound field, an exception or a library's event never appears."""
    stream = io.StringIO()
    logs.configure("info", form, stream=stream)
    text = carrier.format(secret)
    log = logs.get_logger("x")

    with logs.bound(where=text):
        log.info(text, field=text, nested=[{"a": text}], password=secret)
        logging.getLogger("lib").warning("said %s", text)
        try:
            fail(text)
        except ValueError:
            log.exception("failed")

    assert secret not in stream.getvalue()
