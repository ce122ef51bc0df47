"""What a key of the configuration is: its place in the file, its variable, its flag, its meaning.

Every field of the models carries a `Key`, so the models are the one table of keys: loading, checking,
explaining, the JSON schema and the reference documentation are all made from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined

__all__ = ["NOT_BUILT", "Key", "Part", "Row", "key_of", "misplaced", "part_of", "plain", "rows"]

NOT_BUILT = "not available in this version"

#: Names that the original spells its own way.
_SPELLINGS = {
    "account_id": "accountID",
    "registry_ca_file": "registryCAFile",
    "source": "from",
    "target": "to",
}


@dataclass(frozen=True, slots=True)
class Key:
    """What a field of the models says about itself."""

    doc: str
    """Markdown for the reference; whole sentences."""
    env: tuple[str, ...] = field(default=(), kw_only=True)
    """Variables that set it, the one that wins first."""
    flag: str = field(default="", kw_only=True)
    default: str = field(default="", kw_only=True)
    """The default in words, where its value alone would not tell."""
    available: bool = field(default=True, kw_only=True)
    """False while the feature is not built: then anything but the default is refused."""
    secret: bool = field(default=False, kw_only=True)
    in_file: bool = field(default=True, kw_only=True)
    """False for what only a variable may hold."""
    restart: bool = field(default=False, kw_only=True)
    """Whether a change takes effect at the next start only."""
    section: str = field(default="", kw_only=True)
    """Heading of the reference that begins with this key."""


def _spelling(name: str) -> str:
    return _SPELLINGS.get(name) or to_camel(name)


class Part(BaseModel):
    """Base of the models: frozen, no unknown keys, and no feature that is not built."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_spelling,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
    )

    @field_validator("*", mode="after")
    @classmethod
    def _is_available(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses what would silently do nothing."""
        model_field = cls.model_fields[info.field_name or ""]
        if key_of(model_field).available or value == model_field.default:
            return value
        raise ValueError(f"{NOT_BUILT}; leave it out (or at {plain(model_field.default)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One key with its place."""

    path: str
    """As written: `ecr.accountID`, `pathMap[].from`."""
    attributes: tuple[str, ...]
    """From `Settings` to the value; empty for keys of list entries."""
    key: Key
    default: object
    required: bool
    section: str

    @property
    def default_text(self) -> str:
        """The default for people."""
        if self.required:
            return "required"
        return self.key.default or plain(self.default)


def plain(value: object) -> str:
    """A value as YAML would show it, on one line; secrets masked."""
    if isinstance(value, SecretStr):
        value = "***" if value.get_secret_value() else ""
    if value is None or value == "":
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, tuple | list):
        return "[" + ", ".join(plain(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {plain(v)}" for k, v in value.items()) + "}"
    return str(value)


def key_of(model_field: FieldInfo) -> Key:
    """The `Key` of a field.

    Raises:
        TypeError: it has none.
    """
    for entry in model_field.metadata:
        if isinstance(entry, Key):
            return entry
    raise TypeError(f"a field without Key: {model_field.description or model_field}")


def misplaced(key: str, problem: str) -> PydanticCustomError:
    """The error of a check over a whole model that one of its keys is to blame for."""
    return PydanticCustomError("misplaced", "{problem}", {"key": key, "problem": problem})


@cache
def rows(model: type[Part]) -> tuple[Row, ...]:
    """Every key below a model, in the order of the reference, keys of list entries included."""
    return tuple(_rows(model))


def _rows(model: type[Part]) -> Iterator[Row]:
    section = ""
    for name, model_field in model.model_fields.items():
        path, key = model_field.alias or name, key_of(model_field)
        section = key.section or section
        inner, is_list = part_of(model_field)
        if inner is not None and not is_list:
            for row in rows(inner):
                yield replace(
                    row,
                    path=f"{path}.{row.path}",
                    attributes=(name, *row.attributes) if row.attributes else (),
                    section=section,
                )
            continue
        default = model_field.get_default(call_default_factory=True, validated_data={})
        yield Row(
            path=path,
            attributes=(name,),
            key=key,
            default=None if default is PydanticUndefined else default,
            required=model_field.is_required(),
            section=section,
        )
        for row in rows(inner) if inner is not None else ():
            yield replace(row, path=f"{path}[].{row.path}", attributes=(), section=section)


def part_of(model_field: FieldInfo) -> tuple[type[Part] | None, bool]:
    """The model inside of a field, and whether the field is a list of them."""
    annotation = model_field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation, False
    for argument in get_args(annotation):
        if isinstance(argument, type) and issubclass(argument, Part):
            return argument, True
    return None, False
