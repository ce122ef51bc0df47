"""Pull secrets of workloads, chosen as the cluster chooses them, read one by one and only when they are needed.

A workload's own imagePullSecrets count; a pod template without any gets those of its ServiceAccount (the
API server's ServiceAccount admission puts them into its Pods). Every Secret is read by `get` alone, from the
namespace of the workload that names it, and remembered by its resourceVersion; none is read twice
within five minutes. What cannot be read, or makes no sense, is said once and costs nothing but itself.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import anyio
import msgspec
import structlog

from copycat.errors import KubeDenied, KubeError, KubeNotFound, one_error
from copycat.kube.objects import Name
from copycat.kube.workload import Workload
from copycat.oci.reference import Reference
from copycat.registry.dockerconfig import DockerAuth, parse_docker_config
from copycat.registry.singleflight import SingleFlight

__all__ = ["Coverage", "Getter", "Keys", "PullSecrets", "Ref"]

_log = structlog.get_logger(__name__)

#: Seconds for which an object that was read is believed (product: section 5).
REREAD = 300.0
#: Objects that are read at a time.
_AT_A_TIME = 8
#: A name of a Secret or ServiceAccount (RFC 1123 subdomain). The API does not check the names in
#: imagePullSecrets, and one with `../` in it would lead into another namespace.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_JSON_TYPE, _LEGACY_TYPE = "kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"


class Getter(Protocol):
    """The part of the Kubernetes client that is used."""

    async def request(self, method: str, path: str) -> bytes:
        """The answer's body. Raises KubeError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The setting `pullSecrets`: the namespaces whose Secrets are read at all."""

    everywhere: bool = False
    namespaces: frozenset[str] = frozenset()

    @property
    def any(self) -> bool:
        """Whether a Secret is ever read."""
        return self.everywhere or bool(self.namespaces)

    def covers(self, namespace: str) -> bool:
        """Whether Secrets of the namespace may be read."""
        return self.everywhere or namespace in self.namespaces


class Ref(NamedTuple):
    """An object that is read."""

    resource: str
    """`secrets` or `serviceaccounts`."""
    namespace: str
    name: str

    def __str__(self) -> str:
        what = "pull secret" if self.resource == "secrets" else "ServiceAccount"
        return f"the {what} {self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """Where the API has it."""
        return f"/api/v1/namespaces/{self.namespace}/{self.resource}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What the pull secrets of some workloads hold, and what is to be said about them."""

    auths: tuple[DockerAuth, ...] = ()
    refs: frozenset[Ref] = frozenset()
    """What was looked at: if one of these changes, the keys may, too."""
    withheld: tuple[str, ...] = ()
    """Secrets that may not be read, and how to allow it; sentences."""
    unusable: tuple[str, ...] = ()
    """Secrets that are missing or make no sense; sentences."""
    unavailable: str = ""
    """Why the API could not be asked, if that is so."""

    def of(self, image: Reference) -> tuple[DockerAuth, ...]:
        """Those for the registry and repository of an image."""
        return tuple(a for a in self.auths if a.matches(image.registry, image.repository))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What an object said when it was read; equal if nothing changed that matters."""

    version: str = ""
    auths: tuple[DockerAuth, ...] = ()
    names: tuple[str, ...] = ()
    problem: str = ""
    denied: bool = False


@dataclass(slots=True)
class _Slot:
    tried_at: float
    known: _Known | None = None


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


class PullSecrets:
    """Reads, remembers, and tells when something changed."""

    def __init__(
        self,
        client: Getter,
        *,
        coverage: Coverage,
        reread: float = REREAD,
        remembered: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: `reread` seconds pass at least between two reads of one object, of which so many are `remembered`."""
        self._client = client
        self._coverage = coverage
        self._reread = reread
        self._remembered = remembered
        self._clock = clock
        self._slots: OrderedDict[Ref, _Slot] = OrderedDict()
        self._flights: SingleFlight[Ref, None] = SingleFlight()
        self.changed: Callable[[Ref], None] = lambda ref: None
        """Is called when an object differs from what it was."""

    async def keys(self, workloads: Iterable[Workload]) -> Keys:
        """What the pull secrets of these workloads hold. Never raises for the API: `Keys` says what went wrong."""
        secrets: dict[Ref, None] = {}
        accounts: dict[Ref, None] = {}
        withheld: list[str] = []
        for workload in workloads:
            covered = self._coverage.covers(workload.namespace)
            for name in workload.pull_secrets:
                ref = Ref("secrets", workload.namespace, name)
                if covered:
                    secrets[ref] = None
                else:
                    withheld.append(_not_covered(ref))
            if covered and not workload.pull_secrets and workload.kind != "Pod":
                account = workload.service_account or "default"
                accounts[Ref("serviceaccounts", workload.namespace, account)] = None
        trouble = await self._refresh(accounts)
        for ref in accounts:
            names = known.names if (known := self._known(ref)) else ()
            secrets |= {Ref("secrets", ref.namespace, name): None for name in names}
        trouble = await self._refresh(secrets) or trouble
        return self._sum([*accounts, *secrets], withheld, trouble)

    def _sum(self, refs: Collection[Ref], withheld: Iterable[str], trouble: str) -> Keys:
        found = [known for ref in refs if (known := self._known(ref)) is not None]
        denied = [known.problem for known in found if known.denied]
        return Keys(
            auths=tuple(auth for known in found for auth in known.auths),
            refs=frozenset(refs),
            withheld=tuple(dict.fromkeys([*withheld, *denied])),
            unusable=tuple(k.problem for k in found if k.problem and not k.denied),
            unavailable=trouble,
        )

    async def reread(self, refs: Iterable[Ref]) -> None:
        """Read those again that were not read for a while; `changed` hears of differences."""
        await self._refresh(refs)

    # Reading

    def _known(self, ref: Ref) -> _Known | None:
        slot = self._slots.get(ref)
        return slot.known if slot else None

    async def _refresh(self, refs: Iterable[Ref]) -> str:
        """Read what is not known or too old. Returns why something could not be had at all, if that is so."""
        limiter = anyio.CapacityLimiter(_AT_A_TIME)
        troubles: dict[Ref, str] = {}

        async def one(ref: Ref) -> None:
            async with limiter:
                try:
                    await self._flights.do(ref, lambda: self._read(ref))
                except KubeError as error:
                    # an old answer is better than none
                    if self._known(ref) is None:
                        troubles[ref] = str(error)

        with one_error():
            async with anyio.create_task_group() as tasks:
                for ref in refs:
                    if self._due(ref):
                        tasks.start_soon(one, ref)
        return next(iter(troubles.values()), "")

    def _due(self, ref: Ref) -> bool:
        slot = self._slots.get(ref)
        if slot is None or slot.known is None:
            return True
        return self._clock() - slot.tried_at >= self._reread

    async def _read(self, ref: Ref) -> None:
        slot = self._slots.setdefault(ref, _Slot(self._clock()))
        self._slots.move_to_end(ref)
        while len(self._slots) > self._remembered:
            self._slots.popitem(last=False)
        slot.tried_at = self._clock()
        old = slot.known
        slot.known = new = await self._get(ref, old)
        if new.problem and (old is None or old.problem != new.problem):
            _log.warning("pull secret not used", problem=new.problem)
        if old is not None and old != new:
            self.changed(ref)

    async def _get(self, ref: Ref, old: _Known | None) -> _Known:
        """What the API says now. Raises KubeError if it says nothing about the object."""
        if not _NAME.fullmatch(ref.name):
            return _Known(problem=f"{ref} cannot exist: Kubernetes has no such names")
        try:
            raw = await self._client.request("GET", ref.path)
        except KubeNotFound:
            # without its account no Pod can be made, and nothing hangs on its secrets
            missing = ref.resource == "secrets"
            return _Known(problem=f"{ref} does not exist" if missing else "")
        except KubeDenied as error:
            if error.status != 403:
                raise
            return _Known(problem=_forbidden(ref), denied=True)
        try:
            if ref.resource == "secrets":
                return _read_secret(ref, raw, old)
            account = _SERVICE_ACCOUNT.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _Known(problem=f"{ref} is not what Kubernetes defines")
        names = [secret.name for secret in account.image_pull_secrets or () if secret.name]
        # an account's version changes with much that does not matter here
        return _Known(names=tuple(names))


def _read_secret(ref: Ref, raw: bytes, old: _Known | None) -> _Known:
    """The logins in a Secret; what was understood before if it is the same version."""
    secret = _SECRET.decode(raw)
    version = secret.metadata.resource_version
    if old is not None and version and old.version == version:
        return old
    known = _Known(version=version)
    data = secret.data or _Data()
    if secret.type not in {_JSON_TYPE, _LEGACY_TYPE}:
        problem = f"{ref} has the type {secret.type or 'Opaque'}; only {_JSON_TYPE} and {_LEGACY_TYPE} are pull secrets"
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
    problem = f"{ref}: {'; '.join(config.problems)}" if config.problems else ""
    return replace(known, auths=config.auths, problem=problem)


def _not_covered(ref: Ref) -> str:
    return (
        f"{ref} is not read, because pullSecrets does not cover the namespace {ref.namespace}: "
        f"set pullSecrets to a list with {ref.namespace}, or to `all`"
    )


def _forbidden(ref: Ref) -> str:
    return (
        f"{ref} may not be read: allow `get` on {ref.resource} in the namespace {ref.namespace} "
        "to copycat's ServiceAccount (the chart does so for config.pullSecrets)"
    )
