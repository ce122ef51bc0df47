"""The settings as the program uses them: values of its own units, and where they came from.

The values are seconds, bytes and canonical hosts; `copycat.config.table` has the keys, and
`copycat.config.sources` reads them from the file, the environment and the flags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import PrivateAttr, model_validator

from copycat.config.hosts import host_of
from copycat.config.keys import misplaced
from copycat.config.table import LogLevel, Table
from copycat.registry.ecr.hosts import PUBLIC, parse_host
from copycat.registry.ecr.lifecycle import lifecycle_warnings

__all__ = ["Context", "LogLevel", "Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where the settings came from. Holds no values."""

    file: str = ""
    """The file that was read; "" if there is none."""
    missing_file: str = ""
    """A file that was asked for by name and does not exist."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Key → file, `environment X` or flag; defaults are not in it."""
    overridden: Mapping[str, str] = field(default_factory=dict)
    """Keys of the file that the environment overrides with another value → the variable."""
    variables: frozenset[str] | None = None
    """Names of the variables that are set; None if nobody looked."""


class Settings(Table):
    """The whole configuration."""

    _context: Context = PrivateAttr(default_factory=Context)

    def model_post_init(self, context: Any, /) -> None:
        """Keeps where the values came from, if the caller says so."""
        if isinstance(context, Context):
            self._context = context

    @model_validator(mode="after")
    def _hosts_are_unique(self) -> Settings:
        hosts = [entry.host for entry in self.registries]
        twice = sorted({host for host in hosts if hosts.count(host) > 1})
        if twice:
            raise misplaced("registries", f"{', '.join(twice)} has more than one entry")
        return self

    @model_validator(mode="after")
    def _regions_are_known(self) -> Settings:
        asked = {
            f"registries[{i}].auth": r.host
            for i, r in enumerate(self.registries)
            if r.auth == "ecr"
        }
        if self.target_kind == "docker" and self.docker.auth == "ecr":
            asked["docker.auth"] = self.docker.registry
        for key, host in asked.items():
            if host and not (self.ecr.region or host == PUBLIC or parse_host(host)):
                problem = f"{host} does not tell its region: set ecr.region, or AWS_REGION"
                raise misplaced(key, problem)
        return self

    @property
    def context(self) -> Context:
        """Where the values came from."""
        return self._context

    @property
    def settings_origin(self) -> str:
        """The file that was read; "" if there was none."""
        return self._context.file

    @property
    def repo_prefix(self) -> str:
        """The prefix of the target that is in use."""
        return self.ecr.repo_prefix if self.target_kind == "ecr" else self.docker.repo_prefix

    @property
    def insecure_hosts(self) -> frozenset[str]:
        """Hosts that may go without verified TLS, the target included."""
        hosts = {*self.insecure_registries, *(r.host for r in self.registries if r.insecure)}
        if self.target_kind == "docker" and self.docker.insecure and self.docker.registry:
            hosts.add(self.docker.registry)
        return frozenset(hosts)

    @property
    def named_hosts(self) -> frozenset[str]:
        """Hosts that the configuration names, which may be contacted wherever they are (without an ECR target's)."""
        hosts = {*self.insecure_registries, *map(host_of, self.allowed_registries)}
        hosts |= {c.registry for c in self.registry_credentials}
        hosts |= {r.host for r in self.registries}
        hosts |= {
            host_of(e if "://" in e else f"https://{e}")
            for r in self.registries
            for e in r.endpoints
        }
        hosts |= {h for h in (self.docker.registry, self.ecr.endpoint) if h}
        return frozenset(hosts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but hardly meant, each a sentence."""
        return tuple(_warnings(self))


def _warnings(settings: Settings) -> list[str]:
    context = settings.context
    found = []
    if context.missing_file:
        found.append(
            f"The configuration file {context.missing_file} does not exist; defaults are used."
        )
    if settings.target_kind == "ecr":
        found += lifecycle_warnings(settings.ecr.lifecycle_policy)
        found += [
            f"{key} from the file is overridden by the environment variable {variable}."
            for key, variable in context.overridden.items()
        ]
    found += _identity_warnings(settings)
    for index, entry in enumerate(settings.registry_credentials):
        for attribute, key in (
            ("username_env", "usernameEnv"),
            ("password_env", "passwordEnv"),
            ("token_env", "tokenEnv"),
        ):
            variable = getattr(entry, attribute)
            if variable and context.variables is not None and variable not in context.variables:
                found.append(
                    f"registryCredentials[{index}].{key}: the environment variable {variable} is not set; "
                    f"it counts as empty, so {entry.registry} may be asked anonymously."
                )
    return found


#: Whose registries a cloud's identity is for: anybody else who gets it could act in its name.
_CLOUDS = {
    "gcp": ("Google", re.compile(r"(.*\.)?(gcr\.io|pkg\.dev)")),
    "azure": ("Azure", re.compile(r".*\.azurecr\.(io|cn|us|de)")),
}


def _identity_warnings(settings: Settings) -> list[str]:
    asked: list[tuple[str, str, str]] = [
        (f"registries[{i}].auth", r.host, r.auth) for i, r in enumerate(settings.registries)
    ]
    docker = settings.docker
    if settings.target_kind == "docker":
        asked.append(("docker.auth", docker.registry, docker.auth))
    found = [
        f"{key}: {host} is no registry of {_CLOUDS[auth][0]}; it will be shown a token of the pod's identity there."
        for key, host, auth in asked
        if auth in _CLOUDS and not _CLOUDS[auth][1].fullmatch(host.partition(":")[0])
    ]
    if docker.auth != "basic" and (docker.username or docker.password_file):
        found.append(
            f"docker.username and its password are not used: docker.auth is {docker.auth}."
        )
    return found
