"""Reads the settings: the file, the environment over it, flags over both, and every problem at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from copycat.config.document import UnusableDocument, read_document
from copycat.config.keys import Row, rows
from copycat.config.settings import Context, Settings
from copycat.config.values import suggestion
from copycat.errors import ConfigError, Problem

__all__ = ["DEFAULT_PATH", "load"]

DEFAULT_PATH = "/config/config.yaml"

#: What pydantic finds by itself, in our words; everything else comes from `copycat.config.values`.
_MESSAGES = {
    "missing": "is required",
    "model_type": "expected a mapping of keys",
    "dict_type": "expected a mapping of keys",
    "tuple_type": "expected a list",
}


@dataclass(slots=True)
class _Merged:
    """The layers, one over the other."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    overridden: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    file: str = ""
    missing_file: str = ""
    unusable: bool = False

    def origin(self, path: str) -> str:
        """Where the value at a path came from; list entries come from where their list does."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.file

    def set(self, row: Row, value: object, origin: str) -> None:
        """Puts a value over what the layers below say."""
        *parents, last = row.path.split(".")
        place = self.values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                return  # The file has no mapping there; that is reported with its own origin.
        place[last] = value
        self.origins[row.path] = origin


def load(
    *,
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    require_target: bool = True,
) -> Settings:
    """The settings of this process.

    Args:
        path: the file; by default CONFIG_PATH, else /config/config.yaml. It need not exist.
        environ: variables; empty ones count as not set. By default those of the process.
        flags: key (`docker.registry`, `docker.repo_prefix`) → value; None counts as not given.
        require_target: whether a target must be configured completely.

    Raises:
        ConfigError: with everything that is wrong, not just the first.
    """
    environment = os.environ if environ is None else environ
    merged = _Merged()
    _read_file(merged, path or environment.get("CONFIG_PATH", "").strip() or "")
    _read_environment(merged, environment)
    _read_flags(merged, flags or {})
    settings = _validated(merged, environment)
    if require_target and not merged.unusable:
        merged.problems += _target_problems(merged)
    if settings is not None and not merged.problems:
        merged.problems += _ecr_problems(merged, settings)
    if settings is None or merged.problems:
        raise ConfigError(*merged.problems, *_missing_file(merged))
    return settings


def _read_file(merged: _Merged, path: str) -> None:
    file = path or DEFAULT_PATH
    try:
        document = read_document(file)
    except UnusableDocument as error:
        merged.problems.append(error.problem)
        merged.unusable = True
        return
    if document is None:
        merged.missing_file = path
        return
    merged.file = file
    merged.values = _without_nulls(document)
    for row in rows(Settings):
        if _in(merged.values, row.path):
            merged.origins[row.path] = file
            if not row.key.in_file:
                merged.problems.append(_only_a_variable(merged, row, file))


def _missing_file(merged: _Merged) -> list[Problem]:
    """A file that was named and is not there is no problem by itself, but it explains the others."""
    if not merged.missing_file:
        return []
    message = (
        f"the configuration file {merged.missing_file} does not exist; nothing was read from it"
    )
    return [Problem(path="", message=message)]


def _only_a_variable(merged: _Merged, row: Row, file: str) -> Problem:
    """Takes a secret out of the file's values and says where it belongs."""
    parent, _, last = row.path.rpartition(".")
    del merged.values[parent][last]
    del merged.origins[row.path]
    message = f"is not read from the file; use the environment variable {row.key.env[0]}, or {row.path}File"
    return Problem(path=row.path, message=message, origin=file)


def _without_nulls(value: Any) -> Any:
    """The document without keys that have no value: a mapping whose entries are all commented out is null."""
    if isinstance(value, dict):
        return {str(k): _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def _in(values: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _read_environment(merged: _Merged, environ: Mapping[str, str]) -> None:
    for row in rows(Settings):
        for variable in row.key.env:
            value = environ.get(variable, "")
            if value.strip():
                if variable.startswith("AWS_") and _differs(merged, row, value):
                    # EKS sets these by itself; who wrote another region into the file wants to know.
                    merged.overridden[row.path] = variable
                merged.set(row, value, f"environment {variable}")
                break


def _differs(merged: _Merged, row: Row, value: str) -> bool:
    parent, _, last = row.path.partition(".")
    return _in(merged.values, row.path) and merged.values[parent][last] != value.strip()


def _read_flags(merged: _Merged, flags: Mapping[str, object]) -> None:
    by_name = {row.path: row for row in rows(Settings) if row.attributes}
    by_name |= {".".join(row.attributes): row for row in by_name.values()}
    for name, value in flags.items():
        row = by_name.get(name)
        if row is None:
            merged.problems.append(Problem(path=name, message="is no key", origin="command line"))
        elif value is not None:
            merged.set(row, value, row.key.flag or "command line")


def _validated(merged: _Merged, environ: Mapping[str, str]) -> Settings | None:
    context = Context(
        file=merged.file,
        missing_file=merged.missing_file,
        origins=merged.origins,
        overridden=merged.overridden,
        variables=frozenset(name for name, value in environ.items() if value),
    )
    try:
        return Settings.model_validate(merged.values, context=context, by_name=False, by_alias=True)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            key = detail.get("ctx", {}).get("key")
            path = _path((*detail["loc"], key) if key else detail["loc"])
            message = _message(path, detail["type"], detail["msg"])
            merged.problems.append(Problem(path=path, message=message, origin=merged.origin(path)))
        return None


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _message(path: str, kind: str, text: str) -> str:
    if kind == "extra_forbidden":
        return f"unknown key{_near(path)}"
    return _MESSAGES.get(kind) or text.removeprefix("Value error, ")


def _near(path: str) -> str:
    """The known key that was probably meant: in the same mapping, or of the same name elsewhere."""
    generic = "".join(
        "[]" if part.isdigit() else part
        for part in path.replace("[", "\0").replace("]", "\0").split("\0")
    )
    parent, _, last = generic.rpartition(".")
    known = [row.path for row in rows(Settings)]
    start = f"{parent}." if parent else ""
    siblings = {p.removeprefix(start).partition(".")[0] for p in known if p.startswith(start)}
    close = suggestion(last, {s.removesuffix("[]") for s in siblings})
    if close:
        return close
    elsewhere = [p for p in known if p.rpartition(".")[2].lower() == last.lower()]
    return f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""


def _target_problems(merged: _Merged) -> list[Problem]:
    """What the chosen kind of target needs and does not have."""
    kind = str(merged.values.get("targetKind", "ecr")).strip().lower()
    needed = {"ecr": ("ecr.accountID", "ecr.region"), "docker": ("docker.registry",)}.get(kind, ())
    by_path = {row.path: row for row in rows(Settings)}
    why = kind if "targetKind" in merged.values else f"{kind} (the default)"
    return [
        Problem(
            path=path,
            message=f"is required for targetKind {why}: set it in the file, or {' or '.join(by_path[path].key.env)}",
        )
        for path in needed
        if not _in(merged.values, path)
        or merged.values[path.partition(".")[0]][path.partition(".")[2]] == ""
    ]


def _ecr_problems(merged: _Merged, settings: Settings) -> list[Problem]:
    """What ECR itself would refuse."""
    if settings.target_kind != "ecr":
        return []
    return [
        replace(problem, origin=merged.origin(problem.path))
        for problem in settings.ecr.wanted().problems()
        # Whether these two may be absent is decided elsewhere.
        if problem.path not in {"ecr.accountID", "ecr.region"}
    ]
