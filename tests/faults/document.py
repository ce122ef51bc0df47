"""docs/faults.md from the table of rows and the tests that exist: `python -m tests.faults.document > docs/faults.md`."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.rows import LETTERS, ROWS, Row

__all__ = ["Proof", "collect", "render"]

_ROOT = Path(__file__).parents[2]
_NODE = re.compile(r"(tests/faults/(test_\w+)\.py)::(test_(\d\d)_\w+)(?:\[(.*)\])?")
_TAGS = re.compile(r"\[([A-Za-z ]+)\] ")

_INTRODUCTION = """\
# What goes wrong, and what comes of it

Every fault that a registry or the way to it is known for, at every step of a copy where it can happen, with what the
program makes of it. Each row is tested against the whole engine over real sockets; a test keeps this table true.

After each of these, whatever became of the copy: nothing that is not whole has a tag at the target, every connection,
permit and task is given back, and every upload is cancelled at a registry that lets it be. (distribution may still
be writing down a body that was cut when the cancelling reaches it, and then keeps the rest until it purges
uploads.) "Temporary" means that the program comes back to it by itself; other failures wait for a change, a longer time or a person
([configuration](configuration.md), `failureCooldownMinutes`).

Steps: {steps}.

| # | fault | steps | outcome | tests |
|---|---|---|---|---|
"""


@dataclass(slots=True)
class Proof:
    """The tests of one row."""

    tests: dict[str, int] = field(default_factory=dict)
    """`test_uploads.py::test_29_broken_body` → how many parameter sets."""
    steps: set[str] = field(default_factory=set)
    """Letters that they spoil."""


def collect() -> Mapping[int, Proof]:
    """What pytest would run, by the number in a test's name; 0 is the clean copy."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/faults",
        ],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[int, Proof] = {}
    for match in map(_NODE.fullmatch, done.stdout.splitlines()):
        if match is None:
            continue
        _, module, name, number, parameters = match.groups()
        proof = found.setdefault(int(number), Proof())
        test = f"{module}.py::{name}"
        proof.tests[test] = proof.tests.get(test, 0) + 1
        proof.steps |= _steps(module, name, parameters or "")
    return found


def _steps(module: str, name: str, parameters: str) -> set[str]:
    """From the parameters' ids (`U-reset-1`), or from `[U C]` at the begin of the docstring."""
    function = getattr(importlib.import_module(f"tests.faults.{module}"), name)
    tags = _TAGS.match(function.__doc__ or "")
    words = tags[1].split() if tags else parameters.split("-")
    return {word for word in words if word in LETTERS}


def render(proofs: Mapping[int, Proof]) -> str:
    """The page."""
    steps = ", ".join(f"{letter} {name}" for letter, name in LETTERS.items())
    rows = [_line(row, proofs.get(row.number, Proof())) for row in ROWS]
    return _INTRODUCTION.format(steps=steps) + "\n".join(rows) + "\n"


def _line(row: Row, proof: Proof) -> str:
    steps = "all" if row.steps == tuple(LETTERS) else " ".join(row.steps)
    tests = "<br>".join(
        f"`{name}`" + (f", {count} times" if count > 1 else "")
        for name, count in proof.tests.items()
    )
    return f"| {row.number} | {row.fault} | {steps} | {row.outcome} | {tests} |"


if __name__ == "__main__":
    sys.stdout.write(render(collect()))
