"""The mirror: takes a request and what is needed of it, answers with a result.

It holds what attempts share (the target, the copier, what is known about architectures) and nothing
about the cluster. The controller, forced passes, periodic checks and `copycat mirror` all come here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from copycat.mirror.architecture import Architectures
from copycat.mirror.attempt import Attempt
from copycat.mirror.copy import Copier, Direction, Progress, Transfer
from copycat.mirror.naming import Naming
from copycat.mirror.policy import Policy
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.mirror.signatures import Signatures
from copycat.registry.repository import Repository
from copycat.registry.target import Target
from copycat.registry.transport import Transport

__all__ = ["Mirror"]


def _no_progress(direction: Direction, count: int) -> None:
    """Nobody looks."""


class Mirror:
    """Copies images into one target, each at the target's own pace and none twice."""

    def __init__(
        self,
        *,
        transport: Transport,
        target: Target,
        naming: Naming,
        copier: Copier,
        policy: Policy,
        signatures: Signatures | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Args: `policy` is the owner's will; `signatures` None: they are left alone; everything else is shared by all attempts."""
        self._transport = transport
        self._target = target
        self._naming = naming
        self._copier = copier
        self.policy = policy
        self._signatures = signatures
        self._sleep = sleep
        self._architectures = Architectures()

    @property
    def target(self) -> Target:
        """Where the copies go."""
        return self._target

    @property
    def naming(self) -> Naming:
        """How they are named there."""
        return self._naming

    def transfers(self) -> list[Transfer]:
        """Blobs on their way now."""
        return list(self._copier.blobs.transfers.values())

    async def run(
        self, request: MirrorRequest, need: Need, *, progress: Progress = _no_progress
    ) -> MirrorResult:
        """One attempt. What goes wrong with a registry or an image is in the result; nothing is raised for it."""
        source = Repository(
            self._transport,
            request.source.registry,
            request.source.repository,
            access=need.access,
        )
        attempt = self._attempt(request, need, source, self._target, progress=progress)
        return await attempt.run()

    def _attempt(
        self,
        request: MirrorRequest,
        need: Need,
        source: Repository,
        target: Target,
        *,
        progress: Progress = _no_progress,
    ) -> Attempt:
        """An attempt between these two, under the owner's policy."""
        return Attempt(
            request=request,
            need=need,
            policy=self.policy,
            naming=self._naming,
            copier=self._copier,
            target_registry=target,
            source=source,
            architectures=self._architectures,
            sleep=self._sleep,
            progress=progress,
            signatures=self._signatures,
        )
