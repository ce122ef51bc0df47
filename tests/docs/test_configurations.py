"""Configurations and chart values that the pages show are accepted as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from copycat.config import Settings, load
from copycat.registry.ecr.lifecycle import lifecycle_warnings
from tests.chart.rendering import ci_values, merged, render
from tests.docs.pages import Block, blocks

CONFIGURATIONS = blocks("yaml", marked="# config.yaml")
VALUES = blocks("yaml", marked="# values.yaml")


def loaded(text: str, directory: Path, *, whole: bool = False) -> Settings:
    """What `copycat config check` reads. Args: `whole`: a target must be configured."""
    file = directory / "config.yaml"
    file.write_text(text)
    return load(path=str(file), environ={}, require_target=whole)


def test_there_are_configurations_to_check() -> None:
    """The marks are found: a renamed mark must not turn the checks off."""
    assert len(CONFIGURATIONS) >= 15
    assert len(VALUES) >= 6


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=lambda b: b.name)
def test_a_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    """Every block that begins with `# config.yaml` is a valid configuration, or a valid part of one."""
    loaded(block.text, tmp_path)


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=lambda b: b.name)
def test_a_lifecycle_policy_keeps_what_is_in_use(block: Block, tmp_path: Path) -> None:
    """No page recommends a lifecycle policy that the program itself warns about."""
    assert lifecycle_warnings(loaded(block.text, tmp_path).ecr.lifecycle_policy) == []


@pytest.mark.chart
@pytest.mark.needs("helm-python-sdk")
@pytest.mark.parametrize("block", VALUES, ids=lambda b: b.name)
def test_chart_values_render_to_a_configuration_that_is_accepted(
    block: Block, tmp_path: Path
) -> None:
    """Every block that begins with `# values.yaml` fits the chart's schema, alone or on top of the smallest installation."""
    values = yaml.safe_load(block.text)
    if "image" not in values:
        values = merged(ci_values()["docker"], values)
    loaded(render(values).config, tmp_path, whole=True)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda b: b.name)
def test_every_yaml_block_is_yaml(block: Block) -> None:
    """What is called YAML can be read as YAML."""
    assert list(yaml.safe_load_all(block.text))
