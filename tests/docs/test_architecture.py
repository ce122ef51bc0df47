"""The architecture page speaks of modules that exist, and of every layer."""

from __future__ import annotations

import importlib
import re
import tomllib
from typing import Any

import pytest

from tests.docs.pages import ROOT, page

PAGE = page("docs/architecture.md")
PACKAGES = "admin|app|config|controller|kube|mirror|oci|registry|sandbox"
MODULES = sorted({c for c in PAGE.code if re.fullmatch(rf"({PACKAGES})(\.[a-z_]+)+", c)})


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_named_exists(name: str) -> None:
    """`mirror.ledger` is copycat.mirror.ledger, or something in copycat.mirror."""
    parts = name.split(".")
    found: Any = importlib.import_module(f"copycat.{parts[0]}.{parts[1]}")
    for attribute in parts[2:]:
        found = getattr(found, attribute)
    assert found


def test_every_layer_has_a_row() -> None:
    """The table has what import-linter checks."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(c for c in contracts if c["name"] == "The program is layered")["layers"]
    names = {name for layer in layers for name in layer.split(" | ")}
    assert len(names) >= 15
    assert names <= set(PAGE.code)
