"""What `copycat mirror` shows: the three forms, and what a reader may rely on."""

from __future__ import annotations

import io
import json
import re
from typing import cast

import pytest

from copycat.progress import Bars, JsonLines, Lines, Outcome, Reporter, make_reporter, size

COPIED = Outcome(
    source="docker.io/library/alpine:3.19",
    target="r.example.com/mirror/library/alpine:3.19",
    digest="sha256:" + "a" * 64,
    state="protected",
    good=True,
    bytes_pulled=3 << 20,
    bytes_pushed=3 << 20,
    bytes_mounted=12,
)
FAILED = Outcome(
    source="ghcr.io/a/b:1",
    state="failed",
    good=False,
    reason="not_found",
    message="ghcr.io/a/b:1 is missing\nat ghcr.io",
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


def drive(reporter: Reporter) -> None:
    """Two images, one good, one not."""
    with reporter as live:
        live.expect(2)
        live.started("alpine")
        live.started("x" * 100)
        live.moved("alpine", "pull", 3 << 20)
        live.moved("alpine", "push", 3 << 20)
        live.moved("unknown", "pull", 1)
        live.finished("alpine", COPIED)
        live.finished("x" * 100, FAILED)
        live.finished("never started", FAILED)


def test_json() -> None:
    """For programs: one object per image with exactly the promised keys, nothing else."""
    out = io.StringIO()

    drive(make_reporter(out, as_json=True))

    first, second, _ = (json.loads(line) for line in out.getvalue().splitlines())
    assert first == {
        "source": "docker.io/library/alpine:3.19",
        "target": "r.example.com/mirror/library/alpine:3.19",
        "digest": "sha256:" + "a" * 64,
        "state": "protected",
        "reason": "",
        "message": "",
        "bytesPulled": 3145728,
        "bytesPushed": 3145728,
        "bytesMounted": 12,
    }
    assert (second["state"], second["reason"]) == ("failed", "not_found")


def test_lines() -> None:
    """In a pipe: one line per image as it ends, and one about them all."""
    out = io.StringIO()

    drive(make_reporter(out, as_json=False))

    first, second, _, last = out.getvalue().splitlines()
    assert (
        first
        == "protected  docker.io/library/alpine:3.19 → r.example.com/mirror/library/alpine:3.19 sha256:"
        + "a" * 64
        + " (3.0 MiB pulled, 3.0 MiB pushed, 12 B mounted)"
    )
    assert second == "failed     ghcr.io/a/b:1 | ghcr.io/a/b:1 is missing at ghcr.io"
    assert last == "3 images: 2 failed, 1 protected; 3.0 MiB pulled, 3.0 MiB pushed"


def test_bars() -> None:
    """On a terminal: the results stay, with the bars taken away at the end."""
    out = Terminal()

    drive(make_reporter(out, as_json=False))

    text = out.getvalue()
    assert "docker.io/library/alpine:3.19 → r.example.com" in text
    assert "ghcr.io/a/b:1 is missing" in text
    assert "3 images: 2 failed, 1 protected" in text


def screen(written: str) -> list[str]:
    """What stands on a terminal after these bytes, for the few controls that rich uses to redraw."""
    lines, row = [""], 0
    for text, move, control in re.findall(
        r"([^\x1b\r\n]+)|([\r\n])|\x1b\[([?\d;]*[A-Za-z])", written
    ):
        lines[row] += text
        if move == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif control.endswith("A"):
            row -= int(control[:-1])
        elif control == "2K":
            lines[row] = ""
    return [line.rstrip() for line in lines if line.strip()]


def test_log_lines_beside_bars() -> None:
    """A log on the same terminal is printed above the bars; nothing is torn, nothing of the bars stays."""
    out = Terminal()
    reporter = make_reporter(out, as_json=False)
    log = reporter.beside(out)
    assert log is not out

    with reporter as live:
        live.expect(1)
        live.started("alpine")
        log.write("WARN  [one] \x1b[31mand a field={}\n")
        log.write("WARN  two " + "long " * 60 + "\n")
        live.finished("alpine", COPIED)
        log.flush()

    first, second, third, last = screen(out.getvalue())
    assert first == "WARN  [one] and a field={}"
    assert second == ("WARN  two " + "long " * 60).rstrip()
    assert third.startswith("protected  docker.io/library/alpine")
    assert last.startswith("1 image: 1 protected")


@pytest.mark.parametrize("form", [Lines, JsonLines, Bars], ids=["lines", "json", "bars"])
def test_log_lines_in_a_file(form: type[Lines | JsonLines | Bars]) -> None:
    """A log that goes elsewhere, or beside lines, stays as it is."""
    log = io.StringIO()
    assert form(Terminal()).beside(log) is log


@pytest.mark.parametrize("form", [Lines, Bars], ids=["lines", "bars"])
def test_cut_off(form: type[Lines | Bars]) -> None:
    """Work that ends with an error gets no line about them all: it would not be true."""
    out = Terminal()

    with pytest.raises(KeyboardInterrupt), form(out):
        raise KeyboardInterrupt

    assert "images:" not in out.getvalue()


def test_choice() -> None:
    """The form follows the request first, then the stream."""
    assert isinstance(make_reporter(Terminal(), as_json=True), JsonLines)
    assert isinstance(make_reporter(Terminal(), as_json=False), Bars)
    assert isinstance(make_reporter(io.StringIO(), as_json=False), Lines)


def test_nothing() -> None:
    """No image at all is said in words."""
    out = io.StringIO()
    with cast("Reporter", Lines(out)):
        pass

    assert out.getvalue() == "0 images: nothing to do; 0 B pulled, 0 B pushed\n"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 50, "5120.0 TiB")],
    ids=["zero", "bytes", "kibi", "huge"],
)
def test_size(count: int, expected: str) -> None:
    """Bytes in the unit that reads best."""
    assert expected == size(count)
