"""Pull secrets of workloads, chosen as the cluster chooses them, read one by one and only when they are needed.

A workload's own imagePullSecrets count; a pod template without any gets those of its ServiceAccount (the
API server's ServiceAccount admission puts them into its Pods). Every Secret is read by `get` alone, from the
namespace of the workload that names it, and remembered by its resourceVersion; none is read twice
within five minutes. What cannot be read, or makes no sense, is said once and costs nothing but itself.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import anyio

from copycat.errors import KubeDenied, KubeError, KubeNotFound, one_error
from copycat.kube.pull_secret import Known, Ref, first_of, read_object
from copycat.kube.workload import Workload
from copycat.logs import get_logger
from copycat.oci.reference import Reference
from copycat.registry.dockerconfig import DockerAuth
from copycat.registry.singleflight import SingleFlight

__all__ = ["Coverage", "Getter", "Keys", "PullSecrets", "Ref"]

_log = get_logger(__name__)

#: Seconds for which an object that was read is believed (product: section 5).
REREAD = 300.0
#: Objects that are read at a time.
_AT_A_TIME = 8


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


@dataclass(slots=True)
class _Slot:
    tried_at: float
    known: Known | None = None


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
        accounts, secrets, uncovered, unusable = self._chosen(workloads)
        trouble = await self._refresh(accounts)
        for ref in accounts:
            names = known.names if (known := self._known(ref)) else ()
            secrets |= {Ref("secrets", ref.namespace, name): None for name in names}
        trouble = await self._refresh(secrets) or trouble
        keys = self._sum([*accounts, *secrets])
        return replace(
            keys,
            withheld=(*map(_not_covered, uncovered), *keys.withheld),
            unusable=(*unusable, *keys.unusable),
            unavailable=trouble,
        )

    def _chosen(
        self, workloads: Iterable[Workload]
    ) -> tuple[dict[Ref, None], dict[Ref, None], dict[Ref, None], list[str]]:
        """ServiceAccounts and Secrets to read, in order; Secrets that are not covered; and what is wrong, in sentences."""
        accounts: dict[Ref, None] = {}
        secrets: dict[Ref, None] = {}
        uncovered: dict[Ref, None] = {}
        unusable: list[str] = []
        for workload in workloads:
            where = workload.namespace
            covered = self._coverage.covers(where)
            names, problem = first_of(
                workload.pull_secrets, f"{workload.kind} {where}/{workload.name}"
            )
            unusable += [problem] if problem else []
            for name in names:
                (secrets if covered else uncovered)[Ref("secrets", where, name)] = None
            if covered and not names and workload.kind != "Pod":
                accounts[Ref("serviceaccounts", where, workload.service_account or "default")] = (
                    None
                )
        return accounts, secrets, uncovered, unusable

    def _sum(self, refs: Collection[Ref]) -> Keys:
        found = [known for ref in refs if (known := self._known(ref)) is not None]
        return Keys(
            auths=tuple(auth for known in found for auth in known.auths),
            refs=frozenset(refs),
            withheld=tuple(k.problem for k in found if k.denied),
            unusable=tuple(k.problem for k in found if k.problem and not k.denied),
        )

    async def reread(self, refs: Iterable[Ref]) -> None:
        """Read those again that were not read for a while; `changed` hears of differences."""
        await self._refresh(refs)

    # Reading

    def _known(self, ref: Ref) -> Known | None:
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

    async def _get(self, ref: Ref, old: Known | None) -> Known:
        """What the API says now. Raises KubeError if it says nothing about the object."""
        if not ref.possible:
            return Known.impossible(ref)
        try:
            raw = await self._client.request("GET", ref.path)
        except KubeNotFound:
            return Known.missing(ref)
        except KubeDenied as error:
            if error.status != 403:
                raise
            return Known.forbidden(ref)
        return read_object(ref, raw, old)


def _not_covered(ref: Ref) -> str:
    return (
        f"{ref} is not read, because pullSecrets does not cover the namespace {ref.namespace}: "
        f"set pullSecrets to a list with {ref.namespace}, or to `all`"
    )
