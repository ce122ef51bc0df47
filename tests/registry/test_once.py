"""Warnings that are said once."""

from __future__ import annotations

import pytest

from copycat.registry.once import MEMORY, Once


def test_once_for_each_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    """The same words about the same thing once; new words, another thing and a relapse are told."""
    once = Once("test")
    for _ in range(3):
        once.warn("a", "trouble", error="x")
    once.warn("a", "trouble", error="y")
    once.warn("b", "trouble", error="y")
    once.over("b")
    once.over("c")
    once.warn("b", "trouble", error="y")

    assert capsys.readouterr().out.count("trouble") == 4


def test_memory_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    """Of very many troubles the oldest may be told again; nothing grows without end."""
    once = Once("test")
    for number in range(MEMORY + 1):
        once.warn(number, "trouble")
    once.warn(0, "trouble")

    assert capsys.readouterr().out.count("trouble") == MEMORY + 2
    assert len(once._told) == MEMORY
