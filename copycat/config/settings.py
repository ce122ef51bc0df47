"""The settings as the program uses them: values of its own units, and where they came from.

The values are seconds, bytes and canonical hosts; `copycat.config.table` has the keys, and
`copycat.config.sources` reads them from the file, the environment and the flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import PrivateAttr, model_validator

from copycat.config.hosts import host_of
from copycat.config.keys import misplaced
from copycat.config.table import LogLevel, Table
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
