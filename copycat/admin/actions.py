"""The two actions, `/reset-cooldown` and `/force-reconcile`: their JSON and messages are the original's.

A forced pass belongs to the server, not to the request that asked for it: a client that leaves does not
end it, and a second one joins it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import anyio
import msgspec
from anyio.abc import TaskGroup

from copycat.errors import CopycatError, printable
from copycat.logs import get_logger

__all__ = [
    "ActionRunner",
    "Actions",
    "ForceReply",
    "ForceResult",
    "ResetReply",
    "ResetResult",
    "Standing",
]

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What this replica may do now."""

    leading: bool = True
    """Without leader election: always true."""
    holder: str = ""
    """Who leads, as the Lease names it; for standbys."""
    ready: bool = True
    """Whether the controller takes orders yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetResult:
    """What a reset did."""

    enabled: bool
    """Whether failures cool down at all."""
    cleared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForceResult:
    """What a forced pass did."""

    workloads: int
    """Selected workloads."""
    protected: int
    """Images that are protected afterwards."""
    failure: str = ""
    """What failed, for people; empty if nothing did."""


class Actions(Protocol):
    """Carries the orders out."""

    async def reset_cooldown(self) -> ResetResult:
        """Let images that cool down be tried at once."""
        ...

    async def force_reconcile(self) -> ForceResult:
        """Try every known image once and wait for it. May raise CopycatError, as when the leadership is lost."""
        ...


class ResetReply(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer of `/reset-cooldown`."""

    reset: bool = False
    cleared_targets: int = 0
    message: str


class ForceReply(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer of `/force-reconcile`."""

    triggered: bool = False
    success: bool = False
    workloads_processed: int = 0
    images_mirrored: int = 0
    message: str


class _Pass:
    """A forced pass on its way."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.reply = ForceReply(triggered=True, message="force reconcile failed: it was cut off")


class ActionRunner:
    """Runs the actions in a task group that outlives requests."""

    def __init__(
        self, actions: Actions, standing: Callable[[], Standing], group: TaskGroup
    ) -> None:
        self._actions = actions
        self._standing = standing
        self._group = group
        self._pass: _Pass | None = None

    def standby(self) -> str:
        """Empty, or why this replica has nothing to show."""
        standing = self._standing()
        if standing.leading:
            return ""
        return f"this replica is on standby; the leader is {standing.holder or 'not elected yet'}"

    def _not_now(self, service: str) -> str:
        if message := self.standby():
            return message
        return "" if self._standing().ready else f"{service} service not ready"

    async def reset(self) -> tuple[int, ResetReply]:
        """Status and answer."""
        if message := self._not_now("cooldown reset"):
            return 503, ResetReply(message=message)
        result = await self._actions.reset_cooldown()
        if not result.enabled:
            return 200, ResetReply(message="failure cooldown disabled")
        if not result.cleared:
            return 200, ResetReply(message="no cooldown entries to reset")
        return 200, ResetReply(
            reset=True, cleared_targets=result.cleared, message="failure cooldown reset"
        )

    async def force(self) -> tuple[int, ForceReply]:
        """Status and answer, once the pass is over."""
        if message := self._not_now("force reconcile"):
            return 503, ForceReply(message=message)
        current = self._pass
        if current is None:
            current = self._pass = _Pass()
            self._group.start_soon(self._force, current)
        await current.done.wait()
        return 200, current.reply

    async def _force(self, current: _Pass) -> None:
        try:
            current.reply = _reply(await self._actions.force_reconcile())
        except CopycatError as error:
            _log.warning("forced pass failed", error=str(error), reason=error.reason)
            current.reply = ForceReply(
                triggered=True, message=f"force reconcile failed: {printable(str(error))}"
            )
        finally:
            self._pass = None
            current.done.set()


def _reply(result: ForceResult) -> ForceReply:
    message = "force reconcile completed"
    if result.failure:
        message = f"force reconcile failed: {printable(result.failure, 2000)}"
    return ForceReply(
        triggered=True,
        success=not result.failure,
        workloads_processed=result.workloads,
        images_mirrored=result.protected,
        message=message,
    )
