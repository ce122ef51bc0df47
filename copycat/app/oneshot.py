"""`copycat mirror`: the same queue and the same mirror as in a cluster, for a list of images, once."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import anyio
from aiohttp.abc import AbstractResolver

import copycat
from copycat.app.manifests import ManifestFile, read_files
from copycat.app.outcomes import is_good, verdict_key
from copycat.app.wiring import Engine, open_engine, platforms_of, selection_of
from copycat.config.settings import Settings
from copycat.controller.controller import Controller, Intervals
from copycat.controller.inventory import EXTRA, Inventory
from copycat.kube.workload import ContainerImage, Workload
from copycat.metrics import Metrics
from copycat.mirror.ledger import Ledger
from copycat.mirror.request import MirrorRequest, MirrorResult
from copycat.progress import Outcome, Reporter

__all__ = ["WORKERS", "make_inventory", "mirror", "workload_of"]

#: Images worked on at a time: more than blobs in flight, because images also wait for blobs that others bring, and for
#: lines with a long way. (20 images through 20 ms took a fifth less than with 12.)
WORKERS = 24
#: Seconds between looks at a queue that may have become empty without a word.
_LOOK = 0.1


def workload_of(reference: str) -> Workload:
    """Something that uses an image because somebody says so."""
    image = ContainerImage(container="", image=reference)
    return Workload(
        kind=EXTRA, namespace="", name=reference, owner_kind=EXTRA, owner_name="", images=(image,)
    )


class _Watcher:
    """Passes attempts on to the reporter, and knows when the last one is over."""

    def __init__(self, reporter: Reporter, *, dry: bool) -> None:
        self._reporter = reporter
        self._dry = dry
        self._conflicts: dict[MirrorRequest, Outcome] = {}
        self.all_good = True
        self.settled: Callable[[MirrorRequest], None] = lambda request: None
        """Is called for a request that is over: there is no second try."""
        self.changed = anyio.Event()
        """Something is over; another event takes its place."""

    def started(self, request: MirrorRequest) -> None:
        if request not in self._conflicts:
            self._reporter.started(str(request))

    def moved(self, request: MirrorRequest, direction: Literal["pull", "push"], count: int) -> None:
        self._reporter.moved(str(request), direction, count)

    def finished(self, request: MirrorRequest, result: MirrorResult) -> None:
        outcome = Outcome(
            source=str(request.source),
            target=str(result.target),
            digest=str(result.digest) if result.digest else "",
            state=result.state,
            good=is_good(result, dry=self._dry),
            reason=result.reason,
            message=result.message,
            bytes_pulled=result.moved.bytes_pulled,
            bytes_pushed=result.moved.bytes_pushed,
            bytes_mounted=result.moved.bytes_mounted,
        )
        before = self._conflicts.pop(request, None)
        if before is not None:
            outcome = _together(before, outcome)
        if result.state == "conflict":
            # it may be none any more once the others have what they want
            self._conflicts[request] = outcome
        else:
            self.tell(str(request), outcome)
            self.settled(request)
        self.changed.set()
        self.changed = anyio.Event()

    def tell_conflicts(self) -> None:
        """Those that are left when nothing is to be done any more."""
        for request, outcome in self._conflicts.items():
            self.tell(str(request), outcome)

    def tell(self, key: str, outcome: Outcome) -> None:
        self.all_good = self.all_good and outcome.good
        self._reporter.finished(key, outcome)


def _together(before: Outcome, after: Outcome) -> Outcome:
    """What two looks at one image came to: the second decides, both moved bytes."""
    return replace(
        after,
        bytes_pulled=before.bytes_pulled + after.bytes_pulled,
        bytes_pushed=before.bytes_pushed + after.bytes_pushed,
        bytes_mounted=before.bytes_mounted + after.bytes_mounted,
    )


async def mirror(
    settings: Settings,
    *,
    references: Sequence[str],
    manifests: Sequence[ManifestFile],
    reporter: Reporter,
    resolver: AbstractResolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> bool:
    """Copy what is named, and what the manifests use; whether all of it is at the target as asked.

    Args:
        references: images by name; workload placeholders of the prefix vanish.
        manifests: files of YAML or JSON; the configuration's selection applies to their workloads.
        resolver, ssl_context: for tests.

    Raises:
        ConfigError: a manifest cannot be read.
    """
    workloads = [workload_of(r) for r in references]
    workloads += read_files(manifests)
    return await _once(settings, workloads, reporter, resolver=resolver, ssl_context=ssl_context)


async def _once(
    settings: Settings,
    workloads: Sequence[Workload],
    reporter: Reporter,
    *,
    resolver: AbstractResolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> bool:
    metrics = Metrics(version=copycat.__version__)
    with reporter:
        async with open_engine(
            settings,
            metrics=metrics,
            resolver=resolver,
            ssl_context=ssl_context,
            workstation=True,
        ) as engine:
            inventory = make_inventory(settings, engine)
            for workload in workloads:
                inventory.observe(None, workload)
            reporter.expect(len(inventory.entries) + len(inventory.invalid))
            watcher = _Watcher(reporter, dry=settings.dry_run or settings.dry_pull)
            _tell_verdicts(inventory, watcher)
            await _work(settings, engine, inventory, watcher)
            return watcher.all_good


def make_inventory(settings: Settings, engine: Engine) -> Inventory:
    """Nothing yet, under the configuration's rules."""
    return Inventory(
        selection=selection_of(settings),
        naming=engine.naming,
        target_registry=engine.target.registry,
        platforms=platforms_of(settings),
    )


def _tell_verdicts(inventory: Inventory, watcher: _Watcher) -> None:
    for request, entry in inventory.entries.items():
        if entry.verdict:
            outcome = Outcome(
                source=str(request.source),
                state=entry.verdict,
                good=entry.verdict == "excluded",
                reason=entry.verdict,
                message=f"by {verdict_key(entry.verdict)}",
            )
            watcher.tell(str(request), outcome)
    for bad in inventory.invalid.values():
        watcher.tell(
            bad.image,
            Outcome(
                source=bad.image,
                state="failed",
                good=False,
                reason="invalid_reference",
                message=bad.message,
            ),
        )


async def _work(
    settings: Settings, engine: Engine, inventory: Inventory, watcher: _Watcher
) -> None:
    controller = Controller(
        inventory=inventory,
        mirror=engine.mirror,
        ledger=Ledger(cooldown_minutes=settings.failure_cooldown_minutes),
        metrics=engine.metrics,
        workers=WORKERS,
        intervals=Intervals(target_check=0, tag_refresh=0),
        digest_pull=settings.digest_pull,
        observer=watcher,
        hold_target=False,
    )
    queue = controller.queue
    watcher.settled = queue.discard
    controller.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(controller.run)
        while len(queue) or queue.processing:
            # a second look that turns out to be for nothing does not report
            with anyio.move_on_after(_LOOK):
                await watcher.changed.wait()
        queue.close()
    watcher.tell_conflicts()
