"""The chart's values: all used, all known to the schema, and a configuration that the program accepts."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from copycat.config import sources
from tests.chart.conftest import Render
from tests.chart.rendering import CHART, ROOT, Object, ci_values, helm, load_yaml, merged, render
from tests.chart.schema import PATH, as_text, values_schema

pytestmark = [pytest.mark.chart, pytest.mark.needs("helm-python-sdk")]

#: Values that are handed on to Kubernetes or to the program as they stand: their insides are not the chart's.
PASSED_ON = {"config", "resources", "podSecurityContext", "securityContext"}


def leaves(values: Object, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted paths of the values that the chart itself reads."""
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value and key not in PASSED_ON:
            yield from leaves(value, here)
        else:
            yield ".".join(here)


def used() -> set[str]:
    """The dotted paths that the templates name."""
    text = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    return set(re.findall(r"\.Values\.([A-Za-z.]+)", text))


def test_every_value_is_used_and_every_use_is_a_value() -> None:
    """values.yaml and the templates name the same values, so a key cannot be without effect or without a place."""
    known = set(leaves(load_yaml(CHART / "values.yaml")))
    assert known == {name.split(".")[0] if name.startswith("config.") else name for name in used()}


def test_the_schema_is_current() -> None:
    """The committed schema holds the program's own configuration keys; `python -m tests.chart.schema` writes it."""
    assert PATH.read_text() == as_text(values_schema())


def test_the_schema_knows_the_same_values() -> None:
    """The schema's top level is that of values.yaml, and `global`, which Helm reserves."""
    with helm().Chart.load(CHART) as chart:
        schema = chart.schema
    assert schema["properties"].keys() - {"global"} == load_yaml(CHART / "values.yaml").keys()


def test_the_readme_installs_it() -> None:
    """The values of the README's `helm install` are enough, and its image is the one that is built and pushed there."""
    readme = (ROOT / "README.md").read_text()
    values: Object = {}
    for path, value in re.findall(r"--set ([\w.]+)=(\S+)", readme):
        for key in reversed(path.split(".")):
            value = {key: value}  # noqa: PLW2901 - from the inside out
        values = merged(values, value)
    (deployment,) = render(values).all("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert f"docker push {container['image']}\n" in readme


def closed(schema: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of the schema with a fixed set of keys."""
    if schema.get("additionalProperties") is False:
        yield path
    for key, below in schema.get("properties", {}).items():
        yield from closed(below, (*path, key))


@pytest.mark.parametrize(
    "place", [("config",), ("config", "docker"), ("config", "skipNames")], ids=".".join
)
def test_typos_in_the_configuration_are_refused(base: Object, place: tuple[str, ...]) -> None:
    """Helm refuses an unknown key of config.yaml before anything is installed."""
    values: Object = {"typo": True}
    for key in reversed(place):
        values = {key: values}
    with helm().Chart.load(CHART) as chart, pytest.raises(helm().HelmError, match="typo"):
        chart.validate_schema(chart.merge_values(merged(base, values)))


def test_typos_are_refused(base: Object) -> None:
    """At every place with a fixed set of keys, one more key is an error that names it."""
    with helm().Chart.load(CHART) as chart:
        places = list(closed(chart.schema))
        assert () in places
        assert ("image",) in places
        for place in places:
            values = copy.deepcopy(base)
            inner = values
            for key in place:
                inner = inner.setdefault(key, {})
            inner["typo"] = True
            with pytest.raises(helm().HelmError, match="typo"):
                chart.validate_schema(values)


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": "2"},
        {"image": {"pullPolicy": "Sometimes"}},
        {"image": {"digest": "sha256:abc"}},
        {"config": {"targetKind": "acr"}},
        {"config": {"includeNamespaces": [1]}},
        {"config": {"leaderElect": "sometimes"}},
        {"config": {"healthAddr": "0"}},
        {"credentials": {"env": [{"name": "A"}]}},
    ],
    ids=[
        "replicas",
        "pullPolicy",
        "digest",
        "targetKind",
        "namespace",
        "leaderElect",
        "health",
        "env",
    ],
)
def test_bad_values_are_refused(base: Object, values: Object) -> None:
    """The schema checks types and fixed words."""
    with helm().Chart.load(CHART) as chart, pytest.raises(helm().HelmError):
        chart.validate_schema(chart.merge_values(merged(base, values)))


@pytest.mark.parametrize("name", sorted(ci_values()))
def test_the_program_accepts_its_configuration(name: str, tmp_path: Path) -> None:
    """config.yaml of every example loads in the program, under the environment that the chart gives."""
    rendered = render(ci_values()[name])
    path = tmp_path / "config.yaml"
    path.write_text(rendered.config)
    environment = {
        entry["name"]: str(entry.get("value", "from-a-secret"))
        for entry in rendered.container["env"]
    }
    for variable in [key for key in environment if key.endswith("_FILE")]:
        file = tmp_path / variable
        file.write_text("from-a-secret")
        environment[variable] = str(file)
    settings = sources.load(path=str(path), environ=environment)
    assert settings.target_kind == ci_values()[name]["config"].get("targetKind", "ecr")
    assert settings.overwrite_foreign_tags is False


def test_the_configuration_is_rendered_as_it_stands(with_values: Render) -> None:
    """Nothing of `config` is interpreted: dollars, quotes, braces and long numbers survive."""
    odd: Any = {
        "pathMap": [{"from": "^a/(.*)$", "to": "b/${1}{{ .Values }}", "regex": True}],
        "extraImages": ["registry.k8s.io/pause:3.10", "x 'y' \"z\"\nw"],
        "ecr": {"accountID": "000000000012"},
    }
    rendered = yaml.safe_load(with_values({"config": odd}).config)
    assert rendered["pathMap"] == odd["pathMap"]
    assert rendered["extraImages"] == odd["extraImages"]
    assert rendered["ecr"]["accountID"] == "000000000012"
    assert rendered["docker"]["repoPrefix"] == "mirror/$registry"
