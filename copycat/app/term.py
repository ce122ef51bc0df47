"""A term: one controller and its informers, from the first list to the last copy, under one configuration.

What an earlier term knew may be wrong by now, after another replica led or the configuration changed, so
nothing is carried over: the cluster and the target say everything again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio

from copycat.app.failures import FailureEvents
from copycat.app.informers import node_informers, workload_informers
from copycat.app.oneshot import workload_of
from copycat.app.wiring import Engine, make_pulls, platforms_of, selection_of
from copycat.config.settings import Settings
from copycat.controller.controller import Controller, Intervals
from copycat.controller.inventory import Inventory
from copycat.errors import one_error
from copycat.kube.client import KubeClient
from copycat.kube.events import EventWriter
from copycat.kube.informer import Informer
from copycat.kube.nodes import Node, NodeReader
from copycat.kube.workload import Workload
from copycat.logs import get_logger
from copycat.mirror.ledger import Ledger

__all__ = ["Term", "Times"]

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The time of everything that is counted in minutes and hours."""

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep


class Term:
    """Runs once."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Engine,
        client: KubeClient,
        may_write: Callable[[], bool],
        times: Times,
        identity: str = "",
    ) -> None:
        """Args: `may_write` is false once leadership is lost; `identity` is how this process signs Events."""
        self._settings = settings
        self._engine = engine
        self._client = client
        self._times = times
        inventory = self._make_inventory()
        # what would fail is no news of a dry mode
        dry = settings.dry_run or settings.dry_pull
        self._events = None if dry else self._make_events(identity)
        self._failures = None
        if self._events is not None:
            self._failures = FailureEvents(inventory, selection_of(settings), self._events)
        self.controller = self._make_controller(inventory, may_write)
        self._nodes = NodeReader(client, inventory.node, sleep=times.sleep)
        self.informers: list[Informer[Workload] | Informer[Node]] = []
        """Those that run; a term that has ended has none."""

    async def run(self, until: Callable[[], Awaitable[object]]) -> None:
        """Work until `until` returns; then no new work, and running copies get the grace period."""
        async with anyio.create_task_group() as helpers:
            if self._events is not None:
                helpers.start_soon(self._events.run)
            await self._work(until)
            helpers.cancel_scope.cancel()

    async def _work(self, until: Callable[[], Awaitable[object]]) -> None:
        controller = self.controller
        async with anyio.create_task_group() as workers:
            workers.start_soon(controller.run)
            async with self._sources():
                await until()
            controller.queue.close()
            workers.cancel_scope.deadline = (
                anyio.current_time() + self._settings.shutdown_grace_seconds
            )

    @asynccontextmanager
    async def _sources(self) -> AsyncIterator[None]:
        """The informers, for as long as the body runs."""
        parts = (self._settings, self._client, self._engine.metrics)
        nodes = node_informers(*parts, self.controller.inventory.node)
        self.informers = [*workload_informers(*parts, self._observe), *nodes]
        try:
            with one_error():
                async with anyio.create_task_group() as sources:
                    for informer in self.informers:
                        sources.start_soon(informer.run)
                    sources.start_soon(self._open)
                    for informer in nodes:
                        sources.start_soon(self._read_nodes, informer)
                    yield
                    sources.cancel_scope.cancel()
        finally:
            # who does not work has no watches that could be silent
            self.informers = []

    async def _open(self) -> None:
        """Begin to work once every informer has told what it knows, or may not."""
        for informer in self.informers:
            await informer.wait_settled()
        if any(i.resource == "nodes" and i.denied for i in self.informers):
            await self._nodes.settle()
        controller = self.controller
        for reference in self._settings.extra_images:
            controller.observe(None, workload_of(reference))
        denied = sorted({i.resource for i in self.informers if i.denied or i.missing})
        controller.open()
        _log.info(
            "synced",
            workloads=controller.inventory.workloads(),
            images=len(controller.inventory.entries),
            denied=denied,
        )

    def denied(self) -> list[str]:
        """The resources that the API refuses now; nodes only if they may not even be read one by one."""
        return [
            informer.resource
            for informer in self.informers
            if informer.denied and (informer.resource != "nodes" or self._nodes.denied)
        ]

    async def _read_nodes(self, informer: Informer[Node]) -> None:
        """One by one, if they may not be listed."""
        await informer.wait_settled()
        if informer.denied:
            await self._nodes.run()

    def _observe(self, old: Workload | None, new: Workload | None) -> None:
        if new is not None and self._settings.check_node_platform:
            self._nodes.want(new.node)
        self.controller.observe(old, new)
        if self._failures is not None:
            self._failures.look_at(old, new)

    def _make_events(self, identity: str) -> EventWriter:
        wall, namespaces = self._times.wall, selection_of(self._settings).literal_namespaces()
        return EventWriter(
            self._client,
            instance=identity,
            cluster_wide=namespaces is None,
            clock=self._times.clock,
            now=lambda: datetime.fromtimestamp(wall(), UTC),
        )

    def _make_inventory(self) -> Inventory:
        return Inventory(
            selection=selection_of(self._settings),
            naming=self._engine.naming,
            target_registry=self._engine.target.registry,
            platforms=platforms_of(self._settings),
            clock=self._times.clock,
        )

    def _make_controller(self, inventory: Inventory, may_write: Callable[[], bool]) -> Controller:
        settings, clock = self._settings, self._times.clock
        return Controller(
            inventory=inventory,
            mirror=self._engine.mirror,
            ledger=Ledger(cooldown_minutes=settings.failure_cooldown_minutes, clock=clock),
            metrics=self._engine.metrics,
            workers=settings.max_concurrent_reconciles * len(settings.watch_resources),
            intervals=Intervals(
                target_check=settings.target_check_minutes * 60.0,
                tag_refresh=settings.tag_refresh_minutes * 60.0,
                force=settings.force_reconcile_minutes * 60.0,
            ),
            digest_pull=settings.digest_pull,
            observer=self._failures,
            pulls=make_pulls(
                settings, self._engine, self._client, clock=clock, sleep=self._times.sleep
            ),
            may_write=may_write,
            clock=clock,
            sleep=self._times.sleep,
        )
