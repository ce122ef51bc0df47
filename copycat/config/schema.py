"""What is made from the table of keys: the JSON schema, the explanation of a configuration, the reference."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from copycat.config.keys import NOT_BUILT, Part, Row, key_of, part_of, plain, rows
from copycat.config.settings import Settings

__all__ = ["Explained", "explain", "json_schema", "markdown"]

_INTRODUCTION = """\
# Configuration

Settings come from a YAML file, from environment variables over it, and from flags over both. The file is
`/config/config.yaml`, or what `CONFIG_PATH` (or `--config`) names; it may be absent. An empty variable counts
as not set. Unknown keys, bad values and bad regular expressions are refused at the start, all at once, each with
its place and what was expected; `copycat config check` does the same without starting anything.

* **Booleans**: `true`/`false`, `1`/`0`, `t`/`f`, `yes`/`no`, `on`/`off`, in any case.
* **Durations**: seconds (`120`) or Go durations (`2m`, `1h30m`, `500ms`).
* **Lists** in variables have commas between their entries.
* **Addresses**: `:8080`, `127.0.0.1:8080`, `[::1]:8080`; `0` turns a listener off.
* **Changes while it runs**: every 10 seconds `copycat run` looks whether the file, or a file that it names, has
  another content. A changed configuration is taken up as at a start: what is copied may go on for
  `shutdownGraceSeconds`, then cluster and target are looked at anew; listeners and Lease stay. One that would be
  refused at a start changes nothing: the log has every problem in one line, and the metric
  `k8s_copycat_config_last_reload_successful` is 0 until it is mended. Changed logins are used from then on, and what
  failed for the old ones is tried again. Keys marked with *Restart* take effect at the next start; the log says so.
* **Secrets** never appear in messages, logs or in what `copycat config check` prints.

<!-- This page is made from copycat/config/settings.py; a test compares them. -->
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One key of a configuration and how it got its value."""

    key: str
    environment: str
    """The variable that may set it; "" if none does."""
    value: str
    """For people, on one line, secrets masked."""
    origin: str
    """A file, `environment X`, a flag, or `default`."""


def explain(settings: Settings) -> list[Explained]:
    """Every key with its value and its origin."""
    explained = []
    for row in rows(Settings):
        if not row.attributes:
            continue
        value: object = settings
        for attribute in row.attributes:
            value = getattr(value, attribute)
        explained.append(
            Explained(
                key=row.path,
                environment=row.key.env[0] if row.key.env else "",
                value=row.key.default
                if value is None and row.key.default
                else plain(_as_mapping(value)),
                origin=settings.context.origins.get(row.path, "default"),
            )
        )
    return explained


def _as_mapping(value: object) -> object:
    """Models as mappings, without the keys that are not set."""
    if isinstance(value, Part):
        fields = type(value).model_fields
        return {
            fields[name].alias or name: _as_mapping(getattr(value, name))
            for name in fields
            if getattr(value, name) != fields[name].default
        }
    if isinstance(value, tuple):
        return tuple(_as_mapping(v) for v in value)
    return value


def json_schema() -> dict[str, Any]:
    """The file's JSON schema (draft 2020-12). It accepts what `load` accepts, as far as a schema can say it."""
    schema = Settings.model_json_schema(by_alias=True, mode="validation")
    schema.pop("title")
    _describe(schema, schema, Settings)
    for row in rows(Settings):
        if not row.key.in_file:
            parent, _, last = row.path.rpartition(".")
            del schema["$defs"][_definition(schema, parent)]["properties"][last]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of k8s-copycat",
        **schema,
    }


def _describe(schema: dict[str, Any], definition: dict[str, Any], model: type[Part]) -> None:
    """Gives every property of a definition, and of those below it, the meaning of its key."""
    for name, model_field in model.model_fields.items():
        key = key_of(model_field)
        property_ = definition["properties"][model_field.alias or name]
        property_.pop("title", None)
        unavailable = "" if key.available else f" ({NOT_BUILT})"
        property_["description"] = f"{key.doc}{unavailable}"
        inner, _ = part_of(model_field)
        if inner is not None:
            below = schema["$defs"][inner.__name__]
            below.pop("title", None)
            _describe(schema, below, inner)


def _definition(schema: dict[str, Any], path: str) -> str:
    reference: str = schema["properties"][path]["$ref"]
    return reference.rpartition("/")[2]


def markdown() -> str:
    """docs/configuration.md."""
    return "\n".join(_markdown()).rstrip() + "\n"


def _markdown() -> Iterator[str]:
    yield _INTRODUCTION
    table = rows(Settings)
    for section, members in groupby(
        (r for r in table if "[]" not in r.path), key=lambda r: r.section
    ):
        yield f"## {section}\n"
        yield from _table(list(members))
    for parent, members in groupby(
        (r for r in table if "[]" in r.path), key=lambda r: r.path.partition("[]")[0]
    ):
        yield f"## Entries of `{parent}`\n"
        yield from _table(list(members))


def _table(members: list[Row]) -> Iterator[str]:
    set_elsewhere = any(r.key.env or r.key.flag for r in members)
    columns = (
        ["Key", "Variable, flag", "Default", "Meaning"]
        if set_elsewhere
        else ["Key", "Default", "Meaning"]
    )
    yield "| " + " | ".join(columns) + " |"
    yield "|" + " --- |" * len(columns)
    for row in members:
        others = [f"`{name}`" for name in (*row.key.env, row.key.flag) if name]
        meaning = (
            row.key.doc if row.key.available else f"{row.key.doc} *({NOT_BUILT.capitalize()}.)*"
        )
        if row.key.restart:
            meaning += " *Restart.*"
        key = row.path.partition("[].")[2] or row.path
        shown = f"`{key}`" if row.key.in_file else f"{key} (variable only)"
        cells = [
            shown,
            *([", ".join(others) or "-"] if set_elsewhere else []),
            _default(row),
            meaning,
        ]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _default(row: Row) -> str:
    if row.required or row.key.default:
        return row.default_text
    return f"`{row.default_text}`"


if __name__ == "__main__":  # pragma: no cover - how docs/configuration.md is made
    sys.stdout.write(markdown())
