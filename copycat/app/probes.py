"""Whether the program is well. /healthz fails only for what a restart cures, /readyz for what only time does.

The probes are answered by the event loop that does the work: a loop that is blocked answers nobody, and the
kubelet's time-out is the verdict. Beyond that a restart helps against watches that are silent in a way
that no time-out sees, while the API answers others, and against a leader whose work went on after its
Lease had ended. An API, a registry or a permission that is gone is no reason to die.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from copycat.admin.health import Check
from copycat.app.term import Term, Times
from copycat.errors import KubeError
from copycat.kube.client import KubeClient
from copycat.kube.lease import Lease
from copycat.metrics import Metrics

__all__ = ["OVERDUE", "RECOVERY", "STALE_WATCH", "WATCH_LOOK", "Probes"]

#: A watch that has said nothing for this long (seconds), while the API answers, is broken beyond repair:
#: every watch ends after 600 s at the latest, and then says something.
STALE_WATCH = 900.0
#: Seconds between looks at the watches.
WATCH_LOOK = 30.0
#: After an outage of the API the informers get this long (seconds) to begin again; they wait 60 s at most.
RECOVERY = 300.0
#: A leader whose work goes on this long (seconds) after its Lease could be taken over is out of control.
OVERDUE = 20.0
_LAG_SAMPLE = 0.5


class Probes:
    """Implements the Health of the admin package. `term` is the one that runs now, if one does."""

    def __init__(
        self, *, client: KubeClient, lease: Lease | None, metrics: Metrics, times: Times
    ) -> None:
        """Args: `times.sleep` is between looks at the watches."""
        self._client = client
        self._lease = lease
        self._metrics = metrics
        self._times = times
        self._stale = ""
        self._unreachable_at = float("-inf")
        self._begun = False
        self._met = False
        self.term: Term | None = None

    def follow(self, term: Term | None) -> None:
        """Another term runs now, or none."""
        self._note()
        self.term = term

    def _note(self) -> None:
        self._begun = self._begun or (self.term is not None and self.term.controller.opened)

    def live(self) -> Sequence[Check]:
        """Only what a restart cures."""
        overdue = self._lease is not None and self._lease.overdue > OVERDUE
        return [
            Check(name="event-loop"),
            Check(name="watches", error=self._stale),
            Check(name="lease", error="the work goes on without the Lease" if overdue else ""),
        ]

    def ready(self) -> Sequence[Check]:
        """Ready is who works, or stands by to; registries do not matter."""
        checks = [Check(name="configuration")]
        term = self.term
        if term is None:
            # between two terms of one leader nothing has become worse
            return [*checks, Check(name="standby", error=self._standby())]
        self._note()
        for informer in term.informers:
            waiting = not (informer.settled or self._begun)
            error = "its first list is not complete" if waiting else ""
            checks.append(Check(name=f"informer-{informer.resource}", error=error))
        error = "" if self._begun else "it has not begun to work"
        return [*checks, Check(name="controller", error=error)]

    def _standby(self) -> str:
        """Empty, or why who does not work is not even able to stand by."""
        if self._begun:
            return ""
        if self._lease is None:
            return "it has not begun to work"
        self._met = self._met or bool(self._lease.holder)
        return "" if self._met else "the Kubernetes API has not said yet who leads"

    async def watch_the_watches(self) -> None:
        """Look at them now and then, for ever."""
        while True:
            await self._times.sleep(WATCH_LOOK)
            self._stale = await self._verdict()

    async def _verdict(self) -> str:
        """Empty, or which watches are silent. An API that is down, or was just now, says nothing about them."""
        silent = self._silent()
        if not silent:
            return ""
        try:
            await self._client.request("GET", "/version", timeout=10)
        except KubeError:
            self._unreachable_at = self._times.clock()
            return ""
        # what was silent before the question may have spoken since
        silent = [resource for resource in silent if resource in self._silent()]
        if not silent or self._times.clock() - self._unreachable_at < RECOVERY:
            return ""
        return f"no contact for {STALE_WATCH:.0f} s while the API answers: {', '.join(silent)}"

    def _silent(self) -> list[str]:
        now = self._times.clock()
        return [
            informer.resource
            for informer in (self.term.informers if self.term else ())
            if not (informer.denied or informer.missing)
            and now - informer.last_contact > STALE_WATCH
        ]

    async def measure_lag(self) -> None:
        """How late the loop runs a timer, for ever."""
        clock = self._times.clock
        while True:
            before = clock()
            await anyio.sleep(_LAG_SAMPLE)
            self._metrics.loop_lag.observe(max(0.0, clock() - before - _LAG_SAMPLE))
