"""Attempts that need a pull secret: when one is used, whose, and who may then read the copy.

First an image is asked for as anybody would, or with the owner's registryCredentials. Only if that is
refused, and a secret of a workload that uses the image lets it in, does it count as private. A private
image is copied to where its own namespace alone has its copies, or anywhere if the owner said so
(`privateImages`). A failure that a Secret may mend is tried again as soon as the Secret has changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace

import anyio

from copycat.errors import CopycatError, Denied, NotFound, RegistryError, Unauthorized, Unavailable
from copycat.kube.secrets import Keys, PullSecrets, Ref
from copycat.kube.workload import Workload
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.registry.keychain import Access
from copycat.registry.repository import Repository
from copycat.registry.transport import Transport

__all__ = ["Attempt", "Pulls"]

#: One attempt, as the mirror makes it, for a need.
Attempt = Callable[[Need], Awaitable[MirrorResult]]

#: Seconds between looks at what may be read again; each object is read every five minutes at most.
LOOK = 15.0
#: The reason of what may not be copied because it is private.
_DENIED = "private_image"
#: As many secrets, or namespaces, are named in a message.
_NAMED = 3


class Pulls:
    """Decides about secrets for the controller, and remembers which images need them."""

    def __init__(
        self,
        *,
        secrets: PullSecrets,
        transport: Transport,
        shared: bool,
        separates: bool,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Args: `shared` is `privateImages: shared`; `separates`: the prefix gives each namespace copies of its own."""
        self._secrets = secrets
        self._transport = transport
        self._shared = shared
        self._separates = separates and not shared
        self._sleep = sleep
        self._private: set[MirrorRequest] = set()
        self._refs: dict[MirrorRequest, frozenset[Ref]] = {}
        self._waiting: dict[Ref, set[MirrorRequest]] = {}
        self._busy: set[MirrorRequest] = set()
        self._outdated: set[MirrorRequest] = set()
        self.retry: Callable[[MirrorRequest], None] = lambda request: None
        """Is called for a failed request when a Secret that may mend it has changed."""
        secrets.changed = self._changed

    async def run(
        self, request: MirrorRequest, need: Need, users: Collection[Workload], attempt: Attempt
    ) -> MirrorResult:
        """One attempt, with pull secrets if it needs them."""
        self._unlink(request)
        self._busy.add(request)
        try:
            result = await self._run(request, need, users, attempt)
            if request in self._outdated:
                # a Secret changed while this went on
                self._outdated.discard(request)
                if _refused(result):
                    result = await self._run(request, need, users, attempt)
        finally:
            self._busy.discard(request)
            self._outdated.discard(request)
        if not _refused(result):
            self._unlink(request)
        return result

    async def _run(
        self, request: MirrorRequest, need: Need, users: Collection[Workload], attempt: Attempt
    ) -> MirrorResult:
        home = self._home(need)
        need = replace(need, access=replace(need.access, home=home))
        plain = None
        if request not in self._private:
            plain = await attempt(need)
            if not _refused(plain):
                return plain
        keys = await self._secrets.keys(user for user in users if user.namespace)
        self._link(request, keys.refs)
        access = replace(need.access, secrets=keys.of(request.source))
        if access.secrets and (self._shared or home):
            result = await attempt(replace(need, access=access))
        else:
            plain = plain or await attempt(need)
            result = await self._unused(request, access, plain)
        if not _refused(result):
            if access.secrets and (self._shared or home):
                self._private.add(request)
            return result
        self._private.discard(request)
        return _explained(result, keys)

    def _home(self, need: Need) -> str:
        """The one namespace that the copy is for; empty if it is for everybody."""
        if not self._separates or len(need.access.namespaces) != 1:
            return ""
        return next(iter(need.access.namespaces))

    async def _unused(
        self, request: MirrorRequest, access: Access, plain: MirrorResult
    ) -> MirrorResult:
        """What comes of a refused attempt if the secrets, if any, may not be used to copy: they only tell why."""
        if not access.secrets or not _refused(plain):
            return plain
        source = request.source
        repository = Repository(self._transport, source.registry, source.repository, access=access)
        try:
            found = await repository.head_manifest(source.digest or source.tag or "latest")
        except CopycatError as error:
            return replace(plain, error=error, reason=error.reason, message=str(error))
        if found is None:
            return plain
        denial = _denial(request, access)
        return replace(
            plain,
            state="protected" if plain.protected else "denied",
            error=denial,
            reason=denial.reason,
            message=str(denial),
        )

    # Changes of Secrets

    async def watch(self) -> None:
        """Look again, for ever, at the Secrets of images that fail."""
        while True:
            await self._sleep(LOOK)
            if self._waiting:
                await self._secrets.reread(list(self._waiting))

    def _changed(self, ref: Ref) -> None:
        for request in list(self._waiting.get(ref, ())):
            if request in self._busy:
                self._outdated.add(request)
            else:
                self._unlink(request)
                self.retry(request)

    def _link(self, request: MirrorRequest, refs: frozenset[Ref]) -> None:
        self._unlink(request)
        if refs:
            self._refs[request] = refs
        for ref in refs:
            self._waiting.setdefault(ref, set()).add(request)

    def _unlink(self, request: MirrorRequest) -> None:
        for ref in self._refs.pop(request, ()):
            waiting = self._waiting[ref]
            waiting.discard(request)
            if not waiting:
                del self._waiting[ref]

    def forget(self, request: MirrorRequest) -> None:
        """Nothing wants it any more."""
        self._unlink(request)
        self._private.discard(request)


def _refused(result: MirrorResult) -> bool:
    """Whether the source said no in a way that it also says to those who may not know that an image exists."""
    error = result.error
    return isinstance(error, Unauthorized | Denied | NotFound) and (
        error.side == "source" and error.reason != _DENIED
    )


def _denial(request: MirrorRequest, access: Access) -> Denied:
    whose = _listed(sorted(access.namespaces))
    return Denied(
        f"{request.source} needs a pull secret ({whose}), and its copy could be read by whoever may read the target. "
        "Put $namespace into the target's repoPrefix, as a path segment of its own, so that each namespace has its own "
        "copies, or accept that with privateImages: shared.",
        side="source",
        reference=str(request.source),
        registry=request.source.registry,
        reason=_DENIED,
    )


def _explained(result: MirrorResult, keys: Keys) -> MirrorResult:
    """A refusal with what pull secrets have to do with it."""
    error = result.error
    if not isinstance(error, RegistryError):
        return result
    told: RegistryError
    if keys.unavailable:
        told = Unavailable(
            _sentences(error, [f"the pull secrets could not be read: {keys.unavailable}"]),
            side="source",
            reference=error.reference,
            registry=error.registry,
            reason="pull_secret_unavailable",
        )
    elif keys.withheld or keys.unusable:
        reason = error.reason
        if not isinstance(error, NotFound):
            reason = "pull_secret_not_allowed" if keys.withheld else "pull_secret_unusable"
        told = type(error)(
            _sentences(error, [*keys.withheld, *keys.unusable]),
            side="source",
            reference=error.reference,
            registry=error.registry,
            reason=reason,
            status=error.status,
            code=error.code,
        )
    else:
        return result
    return replace(result, error=told, reason=told.reason, message=str(told))


def _sentences(error: CopycatError, more: Collection[str]) -> str:
    """The error's text and these after it."""
    shown = [
        *list(more)[:_NAMED],
        *([f"and {len(more) - _NAMED} more"] if len(more) > _NAMED else []),
    ]
    return " ".join(f"{s[0].upper()}{s[1:].rstrip('.')}." for s in [str(error), *shown])


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    what = "namespace" if len(names) == 1 else "namespaces"
    return f"{what} {', '.join(names[:_NAMED])}{more}"
