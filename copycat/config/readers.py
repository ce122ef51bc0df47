"""Values that only one key has: the same rules as in `copycat.config.values`, one function and one type each."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, SecretStr, WithJsonSchema

from copycat.config.hosts import endpoint, registry_host
from copycat.config.values import (
    BOOLEAN_SCHEMA,
    Boolean,
    Namespaces,
    Platforms,
    boolean,
    entries,
    suggestion,
    text,
)

__all__ = [
    "NO_SECRET",
    "RESOURCES",
    "AccountId",
    "CreateRepo",
    "Endpoints",
    "IncludedNamespaces",
    "LeaseName",
    "OptionalBoolean",
    "OptionalHost",
    "PullSecrets",
    "Region",
    "RepoPrefix",
    "Required",
    "Resources",
    "RoleArn",
    "Secret",
    "Variable",
    "WantedPlatforms",
]

PLACEHOLDERS = ("$namespace", "$podname", "$container_name", "$arch", "$registry")
_PLACEHOLDER = re.compile("|".join(re.escape(p) for p in PLACEHOLDERS))

_LEASE = "[a-z0-9]([a-z0-9.-]*[a-z0-9])?"

RESOURCES = ("deployments", "statefulsets", "daemonsets", "jobs", "cronjobs", "pods")


def _prefix(value: object) -> str:
    prefix = text(value)
    unknown = re.search(r"\$\w*", _PLACEHOLDER.sub("", prefix))
    if unknown:
        close = suggestion(unknown[0], PLACEHOLDERS)
        raise ValueError(f"expected a path whose placeholders are {', '.join(PLACEHOLDERS)}{close}")
    return prefix


def _account(value: object) -> str:
    account = text(value)
    if account and not re.fullmatch(r"\d{12}", account):
        raise ValueError("expected the 12 digits of an AWS account, in quotes")
    return account


def _region(value: object) -> str:
    region = text(value)
    if region and not re.fullmatch(r"[a-z]{2,}(-[a-z0-9]+)+", region):
        raise ValueError('expected an AWS region, like "eu-central-1"')
    return region


def _role(value: object) -> str:
    role = text(value)
    if role and not re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+", role, re.ASCII):
        raise ValueError('expected the ARN of a role ("arn:aws:iam::<account>:role/<name>")')
    return role


def _create_repo(value: object) -> bool | str:
    if isinstance(value, str) and value.strip().lower() == "on-push":
        return "on-push"
    try:
        return boolean(value)
    except ValueError:
        raise ValueError("expected true, false or on-push") from None


def _required(value: object) -> str:
    word = text(value)
    if not word:
        raise ValueError("is required")
    return word


def _lease(value: object) -> str:
    word = _required(value)
    if not re.fullmatch(_LEASE, word) or len(word) > 253:
        raise ValueError(
            "expected the name of a Kubernetes object: lower case letters, digits, - and ."
        )
    return word


def _optional_host(value: object) -> str:
    return registry_host(value) if text(value) else ""


def _secret(value: object) -> object:
    return value if isinstance(value, SecretStr) else SecretStr(text(value))


def _variable(value: object) -> str:
    variable = text(value)
    if variable and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise ValueError("expected the name of an environment variable, not its value")
    return variable


def _resources(value: object) -> tuple[str, ...]:
    words = [str(word).strip().lower() for word in entries(value)]
    for word in words:
        if word not in RESOURCES:
            raise ValueError(
                f"expected some of {', '.join(RESOURCES)}{suggestion(word, RESOURCES)}"
            )
    return tuple(r for r in RESOURCES if r in words) or RESOURCES


def _namespaces(value: object) -> tuple[object, ...]:
    return tuple(entries(value)) or ("*",)


def _platforms(value: object) -> list[object]:
    found = entries(value)
    return [] if found == ["all"] else found


def _pull_secrets(value: object) -> object:
    if value is False:
        return "off"
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in {"off", "all", "auto"}:
        return word
    return tuple(_plain_namespace(n) for n in ((value,) if value is True else entries(value)))


def _plain_namespace(value: object) -> str:
    word = value.strip() if isinstance(value, str) else ""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", word):
        raise ValueError(
            "expected `off`, `all`, `auto` or names of namespaces without wildcards: a Role is for one namespace"
        )
    return word


_TEXT_SCHEMA = WithJsonSchema({"type": ["string", "integer"]})
_STRING_SCHEMA = WithJsonSchema({"type": "string"})
_LIST_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}
)
RepoPrefix = Annotated[str, BeforeValidator(_prefix), _STRING_SCHEMA]
Secret = Annotated[SecretStr, BeforeValidator(_secret), _TEXT_SCHEMA]
Variable = Annotated[str, BeforeValidator(_variable), _STRING_SCHEMA]
OptionalHost = Annotated[str, BeforeValidator(_optional_host), _STRING_SCHEMA]
Endpoints = Annotated[
    tuple[Annotated[str, BeforeValidator(endpoint)], ...],
    BeforeValidator(entries),
    _LIST_SCHEMA,
]
NO_SECRET = SecretStr("")


Required = Annotated[
    str, BeforeValidator(_required), WithJsonSchema({"type": "string", "minLength": 1})
]
LeaseName = Annotated[
    str,
    BeforeValidator(_lease),
    WithJsonSchema({"type": "string", "pattern": f"^{_LEASE}$", "maxLength": 253}),
]
AccountId = Annotated[str, BeforeValidator(_account), _TEXT_SCHEMA]
Region = Annotated[str, BeforeValidator(_region), _STRING_SCHEMA]
RoleArn = Annotated[str, BeforeValidator(_role), _STRING_SCHEMA]
CreateRepo = Annotated[
    bool | Literal["on-push"],
    BeforeValidator(_create_repo),
    WithJsonSchema({"anyOf": [*BOOLEAN_SCHEMA, {"const": "on-push"}]}),
]
OptionalBoolean = Annotated[
    Boolean | None, WithJsonSchema({"anyOf": [*BOOLEAN_SCHEMA, {"type": "null"}]})
]
Resources = Annotated[tuple[str, ...], BeforeValidator(_resources), _LIST_SCHEMA]
IncludedNamespaces = Annotated[Namespaces, BeforeValidator(_namespaces)]
WantedPlatforms = Annotated[Platforms, BeforeValidator(_platforms)]
PullSecrets = Annotated[
    Literal["off", "all", "auto"] | tuple[str, ...],
    BeforeValidator(_pull_secrets),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": False},
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
            ]
        }
    ),
]
