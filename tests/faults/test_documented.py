"""The matrix is whole: every row is there, has tests at every step that it lists, and docs/faults.md says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.document import Proof, collect, render
from tests.faults.rows import LETTERS, ROWS

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


@pytest.fixture(scope="module")
def proofs() -> Mapping[int, Proof]:
    """What pytest collects."""
    return collect()


def test_fifty_rows() -> None:
    """The rows are numbered from 1 to 50 and name steps that there are."""
    assert [row.number for row in ROWS] == list(range(1, 51))
    assert all(row.steps and set(row.steps) <= set(LETTERS) for row in ROWS)


def test_every_step_of_every_row(proofs: Mapping[int, Proof]) -> None:
    """Each row has a test at each step that it lists."""
    missing = {
        row.number: lacking
        for row in ROWS
        if (lacking := set(row.steps) - proofs.get(row.number, Proof()).steps)
    }
    assert missing == {}


def test_no_test_without_a_row(proofs: Mapping[int, Proof]) -> None:
    """Every test belongs to a row, or to the clean copy that they all spoil."""
    assert set(proofs) == {0, *(row.number for row in ROWS)}


def test_page(proofs: Mapping[int, Proof]) -> None:
    """docs/faults.md is what the table and the tests make it: python -m tests.faults.document > docs/faults.md."""
    assert PAGE.read_text(encoding="utf-8") == render(proofs)
