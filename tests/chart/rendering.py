"""The chart, rendered offline by the Helm SDK, as objects."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CHART", "ROOT", "Object", "Rendered", "ci_values", "load_yaml", "merged", "render"]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "k8s-copycat"

Object = dict[str, Any]


def helm() -> Any:
    """The SDK; imported on demand, because a newcomer's machine may not have it."""
    return importlib.import_module("helm_python")


def load_yaml(path: Path) -> Object:
    """A YAML file that holds a mapping."""
    loaded = yaml.safe_load(path.read_text())
    assert isinstance(loaded, dict)
    return loaded


def ci_values() -> dict[str, Object]:
    """The values of every example of the chart, by the example's name."""
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    return {file.name.removesuffix("-values.yaml"): load_yaml(file) for file in files}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Object:
    """`over` on top of `base`, mappings merged at every depth."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


class Rendered:
    """The objects of one rendering."""

    def __init__(self, objects: list[Object], notes: str) -> None:
        self.objects = objects
        self.notes = notes

    def all(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [item for item in self.objects if item["kind"] in kinds]

    def one(self, kind: str) -> Object:
        """The only object of that kind."""
        found = self.all(kind)
        assert len(found) == 1, f"{len(found)} objects of kind {kind}"
        return found[0]

    @property
    def pod(self) -> Object:
        """The Deployment's Pod specification."""
        spec: Object = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        """Its only container."""
        (container,) = self.pod["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def config(self) -> str:
        """The text of config.yaml."""
        text: str = self.one("ConfigMap")["data"]["config.yaml"]
        return text


def render(
    values: Mapping[str, Any], *, name: str = "copycat", namespace: str = "mirror"
) -> Rendered:
    """Renders the chart as `helm install` would, after checking the values against its schema."""
    with helm().Chart.load(CHART) as chart:
        chart.validate_schema(chart.merge_values(dict(values)))
        files: dict[str, str] = chart.render(dict(values), name=name, namespace=namespace)
    objects: list[Object] = []
    notes = ""
    for path, text in files.items():
        if path.endswith(".txt"):
            notes = text
        else:
            objects += [item for item in yaml.safe_load_all(text) if item]
    return Rendered(objects, notes)
