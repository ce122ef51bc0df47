"""One Secret or ServiceAccount as the API gives it: what it holds, or what is wrong with it, in words without its content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import msgspec

from copycat.decoding import UNREADABLE
from copycat.errors import printable
from copycat.kube.objects import Name
from copycat.registry.dockerconfig import DockerAuth, parse_docker_config

__all__ = ["Known", "Ref", "first_of", "read_object"]

#: Secrets of one workload or ServiceAccount that are looked at: whoever writes it must not keep us busy.
_MOST = 50
#: Problems of one Secret that are told.
_TOLD = 3

#: A name of a Secret or ServiceAccount (RFC 1123 subdomain). The API does not check the names in
#: imagePullSecrets, and one with `../` in it would lead into another namespace.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_JSON_TYPE, _LEGACY_TYPE = "kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"


class Ref(NamedTuple):
    """An object that is read."""

    resource: str
    """`secrets` or `serviceaccounts`."""
    namespace: str
    name: str

    def __str__(self) -> str:
        what = "pull secret" if self.resource == "secrets" else "ServiceAccount"
        return f"the {what} {self.namespace}/{printable(self.name, 100)}"

    @property
    def possible(self) -> bool:
        """Whether the API can have it at all."""
        return _NAME.fullmatch(self.name) is not None

    @property
    def path(self) -> str:
        """Where the API has it."""
        return f"/api/v1/namespaces/{self.namespace}/{self.resource}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What an object said when it was read; equal if nothing changed that matters."""

    version: str = ""
    auths: tuple[DockerAuth, ...] = ()
    names: tuple[str, ...] = ()
    problem: str = ""
    """What is wrong with it: a sentence, but for capital and full stop."""
    denied: bool = False

    @classmethod
    def impossible(cls, ref: Ref) -> Self:
        """Nothing has that name."""
        return cls(problem=f"{ref} cannot exist: Kubernetes has no such names")

    @classmethod
    def missing(cls, ref: Ref) -> Self:
        """The API has none."""
        # without its account no Pod can be made, and nothing hangs on its secrets
        return cls(problem=f"{ref} does not exist" if ref.resource == "secrets" else "")

    @classmethod
    def forbidden(cls, ref: Ref) -> Self:
        """The API does not let us read it."""
        return cls(
            problem=f"{ref} may not be read: allow `get` on {ref.resource} in the namespace {ref.namespace} "
            "to copycat's ServiceAccount (the chart does so for config.pullSecrets)",
            denied=True,
        )


class _Version(msgspec.Struct, rename="camel", gc=False):
    resource_version: str = ""


class _Data(
    msgspec.Struct, rename={"config": ".dockerconfigjson", "legacy": ".dockercfg"}, gc=False
):
    config: bytes | None = None
    legacy: bytes | None = None


class _Secret(msgspec.Struct, gc=False):
    metadata: _Version
    type: str = ""
    data: _Data | None = None


class _ServiceAccount(msgspec.Struct, rename="camel", gc=False):
    metadata: _Version
    image_pull_secrets: list[Name] | None = None


_SECRET = msgspec.json.Decoder(_Secret)
_SERVICE_ACCOUNT = msgspec.json.Decoder(_ServiceAccount)


def read_object(ref: Ref, raw: bytes, old: Known | None) -> Known:
    """What the JSON of an object says. Never raises: what cannot be understood is a problem.

    Args: `old` is what it said before, which is given back for the same version.
    """
    try:
        if ref.resource == "secrets":
            return _read_secret(ref, raw, old)
        return _read_account(ref, raw)
    except UNREADABLE:
        return Known(problem=f"{ref} is not what Kubernetes defines")


def _read_account(ref: Ref, raw: bytes) -> Known:
    """The Secrets that it lists; its version is left out, which changes with much that does not matter."""
    account = _SERVICE_ACCOUNT.decode(raw)
    names = [secret.name for secret in account.image_pull_secrets or () if secret.name]
    used, problem = first_of(names, str(ref))
    return Known(names=tuple(used), problem=problem)


def first_of(names: Sequence[str], who: str) -> tuple[Sequence[str], str]:
    """As many names as are looked at, and what is to be said if these are not all."""
    if len(names) <= _MOST:
        return names, ""
    return names[:_MOST], f"{who} names {len(names)} pull secrets, of which {_MOST} are used"


def _read_secret(ref: Ref, raw: bytes, old: Known | None) -> Known:
    """The logins in a Secret; what was understood before if it is the same version."""
    secret = _SECRET.decode(raw)
    version = secret.metadata.resource_version
    if old is not None and version and old.version == version:
        return old
    known = Known(version=version)
    data = secret.data or _Data()
    if secret.type not in {_JSON_TYPE, _LEGACY_TYPE}:
        problem = f"{ref} has the type {printable(secret.type, 60) or 'Opaque'}; only {_JSON_TYPE} and {_LEGACY_TYPE} are pull secrets"
        return replace(known, problem=problem)
    legacy = secret.type == _LEGACY_TYPE
    content = data.legacy if legacy else data.config
    if not content:
        key = ".dockercfg" if legacy else ".dockerconfigjson"
        return replace(known, problem=f"{ref} has nothing under {key}")
    try:
        config = parse_docker_config(content, source=str(ref), legacy=legacy)
    except ValueError as error:
        return replace(known, problem=f"{ref} cannot be used: {error}")
    told = [*config.problems[:_TOLD], *(["and so on"] if len(config.problems) > _TOLD else [])]
    return replace(known, auths=config.auths, problem=f"{ref}: {'; '.join(told)}" if told else "")
