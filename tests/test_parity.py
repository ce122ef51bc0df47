"""docs/parity.md: every promise of the original names tests, and those tests exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "parity.md"

#: Prints what pytest collects, before anything is left out because a program is not installed.
_COLLECT = """
import sys
import pytest

class Names:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            print("collected", item.nodeid)

sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Names()]))
"""


def rows() -> list[tuple[str, str]]:
    """The page's tables: promise and proof of each row."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[0] != "the promise":
            promise, proof = cells
            found.append((promise, proof))
    return found


def named() -> dict[str, list[str]]:
    """Promise → the tests that its row names, as node ids."""
    return {
        promise: [f"tests/{name}" for name in re.findall(r"`([^`]+)`", proof)]
        for promise, proof in rows()
    }


def function(node_id: str) -> str:
    """The node id without parameters."""
    return node_id.partition("[")[0]


def collected(files: Iterable[str]) -> set[str]:
    """The tests that pytest finds in these files."""
    existing = sorted(file for file in set(files) if (ROOT / file).exists())
    done = subprocess.run(
        [sys.executable, "-c", _COLLECT, *existing],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("collected ")]
    assert lines, done.stdout + done.stderr
    return {function(line.removeprefix("collected ")) for line in lines}


def not_there(wanted: Iterable[str], session: pytest.Session) -> set[str]:
    """Which of the tests do not exist. Those of this run are known; for the others their files are collected."""
    unknown = set(wanted) - {function(item.nodeid) for item in session.items}
    return unknown - collected(name.partition("::")[0] for name in unknown) if unknown else set()


def test_every_test_that_is_named_exists(request: pytest.FixtureRequest) -> None:
    """A promise is not proved by a test that was renamed or taken away."""
    wanted = {name for names in named().values() for name in names}
    assert len(wanted) > 80
    assert not_there(wanted, request.session) == set()


def test_a_test_that_is_missing_is_noticed(request: pytest.FixtureRequest) -> None:
    """Neither a file nor a function that is not there passes, nor does a test's parameter or a helper."""
    here = "tests/test_parity.py"
    wanted = {f"{here}::test_nothing", "tests/test_nothing.py::test_x", f"{here}::rows"}
    found = not_there({*wanted, f"{here}::test_every_promise_has_a_proof"}, request.session)
    assert found == wanted


def test_every_promise_has_a_proof() -> None:
    """Each row names at least one test, in the form that pytest has for it, and no promise stands there twice."""
    promises = [promise for promise, _ in rows()]
    assert len(promises) == len(set(promises))
    for promise, names in named().items():
        assert names, promise
        assert all(
            re.fullmatch(r"tests/[\w/]+\.py(::Test\w+)?::test_\w+", name) for name in names
        ), promise


def test_differences_lead_to_their_reasons() -> None:
    """What differs on purpose says so with a link to the table of differences."""
    for promise, _ in rows():
        if "differs" in promise:
            assert "(migrating.md#what-differs-and-why" in promise
