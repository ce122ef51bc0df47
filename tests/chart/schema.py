"""values.schema.json: the chart's own values, and the program's configuration from the program itself.

`python -m tests.chart.schema` writes the file; a test compares it with what is committed.
"""

from __future__ import annotations

import json
from typing import Any

from copycat.config.schema import json_schema
from tests.chart.rendering import CHART

__all__ = ["PATH", "values_schema"]

PATH = CHART / "values.schema.json"

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
#: What Kubernetes checks itself.
FREE: Schema = {"type": "object"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}

#: The templates read these themselves, so they come in one form only.
READ_BY_THE_CHART: Schema = {
    "targetKind": {"enum": ["ecr", "docker"]},
    "includeNamespaces": {"type": "array", "items": TEXT},
    "watchResources": {"type": "array", "items": TEXT},
    "checkNodePlatform": FLAG,
    "leaderElect": FLAG,
    "leaseName": NAME,
    "metricsAddr": {"type": "string", "pattern": "^0$|:[0-9]+$"},
    "healthAddr": {"type": "string", "pattern": ":[0-9]+$"},
    "shutdownGraceSeconds": {"type": "integer", "minimum": 0},
}


def closed(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """An object with these keys and no others."""
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def many(items: Schema) -> Schema:
    """A list of these."""
    return {"type": "array", "items": items}


def values_schema() -> Schema:
    """The whole schema."""
    configuration = bare(json_schema())
    definitions = configuration.pop("$defs")
    configuration.pop("$schema")
    configuration["properties"]["targetKind"] = READ_BY_THE_CHART["targetKind"]
    narrowed = [
        {"$ref": "#/$defs/Configuration"},
        {"properties": READ_BY_THE_CHART, "required": ["targetKind"]},
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the chart k8s-copycat",
        **closed(
            ("config", "credentials", "image", "replicas"),
            config={"allOf": narrowed, "description": "config.yaml: docs/configuration.md"},
            **_properties(),
        ),
        "$defs": {"Configuration": configuration, **definitions},
    }


def bare(schema: Any) -> Any:
    """Without texts for people and without the program's defaults, which the chart's values.yaml may change."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key == "properties":  # names of keys, not words of JSON schema
            kept[key] = {name: bare(below) for name, below in value.items()}
        elif key not in ("description", "default", "title"):
            kept[key] = bare(value)
    return kept


def _properties() -> Schema:
    return {
        "credentials": closed(
            target=closed(existingSecret=TEXT, usernameKey=NAME, passwordKey=NAME),
            registries=many(closed(("existingSecret",), existingSecret=NAME)),
            env=many(
                closed(("name", "existingSecret", "key"), name=NAME, existingSecret=NAME, key=NAME)
            ),
        ),
        "adminToken": closed(existingSecret=TEXT, key=NAME),
        "registryCA": closed(existingConfigMap=TEXT, key=NAME),
        "image": closed(
            repository=TEXT,
            tag=TEXT,
            digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
        ),
        "imagePullSecrets": many(closed(("name",), name=NAME)),
        "replicas": {"type": "integer", "minimum": 0},
        "extraArgs": many(TEXT),
        "extraEnv": many(FREE),
        "extraVolumes": many(FREE),
        "extraVolumeMounts": many(FREE),
        "serviceAccount": closed(create=FLAG, name=TEXT, annotations=TEXTS),
        "rbac": closed(create=FLAG),
        "service": closed(create=FLAG, annotations=TEXTS),
        "resources": closed(requests=FREE, limits=FREE, claims=many(FREE)),
        "podSecurityContext": FREE,
        "securityContext": FREE,
        "podAnnotations": TEXTS,
        "podLabels": TEXTS,
        "nodeSelector": TEXTS,
        "tolerations": many(FREE),
        "affinity": FREE,
        "topologySpreadConstraints": many(FREE),
        "priorityClassName": TEXT,
        "nameOverride": TEXT,
        "fullnameOverride": TEXT,
        "global": FREE,  # Helm's own: values that parent charts hand down
    }


def as_text(schema: Schema) -> str:
    """As it is committed."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(as_text(values_schema()))
