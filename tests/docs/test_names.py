"""Keys, variables, metrics and commands that the pages name exist in the program."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer.main

from copycat.arguments import normalise
from copycat.cli import cli
from copycat.config import Settings
from copycat.config.keys import rows
from copycat.metrics import Metrics
from tests.docs.pages import Block, Page, blocks, pages

EACH = pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)
KEYS = {row.path for row in rows(Settings)} | {row.path.replace("[]", "") for row in rows(Settings)}
_KEY = re.compile(
    r"(?:ecr|docker|skipNames|registries(?:\[\])?|registryCredentials(?:\[\])?)\.[A-Za-z.]+"
)
#: Names of other things that look like keys: endpoint services of AWS, Docker Hub, Docker's own file.
OTHERS = re.compile(r"ecr\.(api|dkr)|docker\.(io|auths).*")
_METRIC = re.compile(r"k8s_copycat_[a-z_]+")


@EACH
def test_keys_of_the_configuration_exist(page: Page) -> None:
    """What looks like a nested key in code font is one."""
    found = [c for c in page.code if _KEY.fullmatch(c) and not OTHERS.fullmatch(c)]
    assert [key for key in found if key not in KEYS] == []


@EACH
def test_metrics_exist(page: Page) -> None:
    """Every metric that a page names is exported."""
    metrics = Metrics(version="1").registry
    known = {name for family in metrics.collect() for name in (family.name, f"{family.name}_total")}
    known |= {f"{name}_{end}" for name in known for end in ("bucket", "sum", "count")}
    found = {name for name in _METRIC.findall(page.text) if not name.endswith("_")}
    assert found - known - {"k8s_copycat_registry_"} == set()


def commands() -> list[tuple[Block, str]]:
    """Every line of the shell blocks that runs copycat; continued lines are joined."""
    return [
        (block, line)
        for block in blocks("sh", "console")
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.startswith("copycat ")
    ]


@pytest.mark.parametrize(
    ("block", "line"), commands(), ids=lambda v: v.name if isinstance(v, Block) else v
)
def test_commands_are_understood(block: Block, line: str) -> None:
    """Every `copycat …` line names commands and options that exist."""
    words = normalise(shlex.split(re.split(r" [|<>] ?| #", line)[0])[1:])
    command: Any = typer.main.get_command(cli)
    while hasattr(command, "commands"):
        assert words, f"{block.name}: {line}"
        if words[0].startswith("-"):
            break
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words), resilient_parsing=False)


@EACH
def test_what_is_called_not_available_is_not(page: Page) -> None:
    """A sentence that says `key` is "not available in this version" is taken back when the feature is there."""
    available = {row.path for row in rows(Settings) if row.key.available}
    for sentence in re.split(
        r"(?<=[.:|])\s", page.prose if page.name != "docs/configuration.md" else ""
    ):
        if "not available in this version" in sentence:
            named = set(re.findall(r"`([A-Za-z.\[\]]+)`", sentence)) & available
            assert not named, f"{page.name}: {', '.join(named)} is available now; describe it"
