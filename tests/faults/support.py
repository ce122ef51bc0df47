"""One image between two registries, trouble at one step of its way, and the account of what is left behind."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from copycat.app.wiring import Engine, open_engine
from copycat.config.settings import Settings
from copycat.config.sources import load
from copycat.errors import CopycatError
from copycat.metrics import Metrics
from copycat.mirror.request import MirrorRequest, MirrorResult, Need
from copycat.oci.digest import Digest
from copycat.oci.reference import Reference
from copycat.registry.endpoint import Endpoint
from copycat.registry.limits import SMALL_LANE
from copycat.registry.repository import Repository
from copycat.sandbox import images
from copycat.sandbox.faults import Fault, FaultOptions
from copycat.sandbox.images import Image
from copycat.sandbox.ledger import Phase, Request
from copycat.sandbox.registry import Registry

__all__ = [
    "BIG",
    "EACH",
    "IMAGE",
    "LAYER",
    "SOURCE",
    "STEPS",
    "TARGET",
    "Bench",
    "Names",
    "Step",
    "Time",
    "bench",
    "engine_of",
    "failure",
    "flags_of",
    "source_registry",
    "spaced",
    "success",
    "target_registry",
]

#: Over what is read whole and sent as bytes, so the layer streams.
BIG = 300_000
#: The image that most rows copy: its config stands at the target already, so each step happens once.
IMAGE = images.image(seed="fault", layers=(BIG,))
LAYER = next(d for d, data in IMAGE.blobs.items() if len(data) > BIG)
CONFIG = next(d for d in IMAGE.blobs if d != LAYER)
#: Read once: reading the system's authorities takes as long as a copy.
TRUST = ssl.create_default_context()
#: Where it comes from and where it goes, and its tag.
SOURCE, TARGET, TAG = "team/app", "mirror/team/app", "1.0"


class Time:
    """A clock that runs, and a sleep that moves it on instead of waiting."""

    def __init__(self) -> None:
        self.skipped = 0.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        """Monotonic seconds."""
        return time.monotonic() + self.skipped

    def wall(self) -> float:
        """Seconds since the epoch, moved on alike: the clock of the registries."""
        return time.time() + self.skipped

    async def sleep(self, seconds: float) -> None:
        """Takes no time."""
        self.naps.append(seconds)
        self.skipped += max(seconds, 0.0)
        await anyio.lowlevel.checkpoint()


class Names(AbstractResolver):
    """Knows these names, which all mean this machine, and no others."""

    def __init__(self, *known: str) -> None:
        self.asked: list[str] = []
        self.known = known

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self.known:
            raise OSError(f"nobody knows {host}")
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a copy: its letter in the matrix, on which side it happens, and how often in a clean copy."""

    letter: str
    side: str
    phase: Phase
    clean: int = 1

    def __str__(self) -> str:
        return f"{self.letter}-{self.side}" if self.letter in "PT" else self.letter


#: Every step, with its requests in a clean copy of IMAGE into a target that needs a login, from a source that gives tokens and redirects blobs.
STEPS: Mapping[str, Step] = {
    str(step): step
    for step in (
        Step("P", "source", Phase.PING),
        Step("P", "target", Phase.PING),
        Step("T", "source", Phase.TOKEN),
        Step("T", "target", Phase.TOKEN),
        Step("Hm", "target", Phase.HEAD_MANIFEST, 2),
        Step("Gm", "source", Phase.GET_MANIFEST),
        Step("Hb", "target", Phase.HEAD_BLOB, 2),
        Step("Gb", "source", Phase.GET_BLOB),
        Step("Rd", "source", Phase.REDIRECT),
        Step("I", "target", Phase.START_UPLOAD),
        Step("U", "target", Phase.UPLOAD_BODY),
        Step("C", "target", Phase.COMMIT),
        Step("M", "target", Phase.PUT_MANIFEST, 2),
        Step("R", "source", Phase.REFERRERS),
    )
}


EACH = [pytest.param(step, id=step) for step in STEPS]
"""For parametrising a test over all steps."""


def source_registry(clock: Callable[[], float] = time.time, **options: Any) -> Registry:
    """A source with anonymous tokens and a store for blobs behind it."""
    return Registry(
        **{
            "auth": "token",
            "anonymous": True,
            "redirect_blobs": True,
            "clock": clock,
            **options,
        }
    )


def target_registry(clock: Callable[[], float] = time.time, **options: Any) -> Registry:
    """A target with one account and tokens."""
    return Registry(
        **{"auth": "token", "username": "me", "password": "pw-of-me", "clock": clock, **options}
    )


def flags_of(source: Registry, target: Registry, **flags: object) -> dict[str, object]:
    """A configuration that names both and their stores; dots in keys are written `__`, a function makes its value of both."""
    plain = [source.address, *(r.cdn.partition("//")[2] for r in (source, target))]
    return {
        "target_kind": "docker",
        "docker.registry": target.address,
        "docker.repo_prefix": "mirror",
        "docker.insecure": True,
        "docker.username": "me",
        "insecure_registries": ",".join(plain),
        "registry_retry_attempts": 3,
        "signatures": "none",
        "registry_retry_backoff": "1s",
        **{
            key.replace("__", "."): value(source, target) if callable(value) else value
            for key, value in flags.items()
        },
    }


def _settings(source: Registry, target: Registry, flags: Mapping[str, object]) -> Settings:
    return load(
        path="/nonexistent/copycat.yaml",
        environ={"TARGET_PASSWORD": "pw-of-me"},
        flags=flags_of(source, target, **flags),
    )


@dataclass(slots=True, kw_only=True)
class Bench:
    """The engine between two registries."""

    source: Registry
    target: Registry
    engine: Engine
    time: Time
    image: Image = field(default=IMAGE)
    sessions_left: int = 0
    """Uploads that the target is left with because it cannot cancel any, or was gone."""

    def side(self, side: str) -> Registry:
        """The registry of that side."""
        return self.source if side == "source" else self.target

    def fail(self, step: str, **options: Any) -> Fault:
        """Trouble at a step; of the manifests and blobs, at those of the layer and the tag."""
        found = STEPS[step]
        if found.phase is Phase.HEAD_BLOB and "match" not in options:
            options["match"] = lambda request: request.reference == LAYER
        known: FaultOptions = options  # type: ignore[assignment] # the options of each test
        return self.side(found.side).fail(found.phase, **known)

    def count(self, step: str) -> int:
        """Requests of the step so far."""
        found = STEPS[step]
        return self.side(found.side).ledger.count(found.phase)

    def counts(self) -> dict[str, int]:
        """Requests of every step so far."""
        return {step: self.count(step) for step in STEPS}

    async def copy(
        self, reference: str = "", need: Need | None = None, *, host: str = ""
    ) -> MirrorResult:
        """One attempt at the image."""
        where = host or self.source.address
        source = Reference.parse(f"{where}/{reference or f'{SOURCE}:{TAG}'}")
        request = MirrorRequest(source, f"mirror/{source.repository}")
        with anyio.fail_after(20):
            return await self.engine.mirror.run(request, need or Need())

    async def act(self, step: str) -> MirrorResult | CopycatError | list[str]:
        """What makes the step happen: a copy, or for R the question for referrers; its error, its answer."""
        if step != "R":
            return await self.copy()
        try:
            found = await self.from_source().referrers(Digest.parse(self.image.digest))
        except CopycatError as error:
            return error
        return [str(d.digest) for d in found.descriptors]

    def from_source(self, name: str = SOURCE) -> Repository:
        """A repository of the source."""
        return Repository(self.engine.transport, self.source.address, name)

    def to_target(self, name: str = TARGET) -> Repository:
        """A repository of the target."""
        return self.engine.target.repository(name)

    @property
    def endpoint(self) -> Endpoint:
        """What the engine knows of the target."""
        return self.engine.transport.endpoint(self.target.address)

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value, 0 if nothing was counted."""
        value = self.engine.metrics.registry.get_sample_value(f"k8s_copycat_{name}", labels)
        return value or 0.0

    def unanswered(self) -> int:
        """Requests that got no head of an answer, from any host."""
        families = self.engine.metrics.registry.collect()
        return sum(
            int(sample.value)
            for family in families
            for sample in family.samples
            if sample.name == "k8s_copycat_registry_requests_total" and sample.labels["code"] == "0"
        )

    def arrived(self, image: Image | None = None, tag: str | None = TAG) -> bool:
        """The image stands at the target, whole, under its tag and its anchor."""
        image = image or self.image
        anchor = Digest.parse(image.digest).anchor
        return self.target.has(TARGET, image, tag) and self.target.has(TARGET, image, anchor)

    def untouched(self) -> bool:
        """No tag was written."""
        return not self.target.tags.get(TARGET)

    def permits(self) -> dict[str, int]:
        """Everything that is still held: streams, places of the small lanes, transfers, open flights."""
        transport, blobs = self.engine.transport, self.engine.mirror._copier.blobs
        limits = transport._limits.values()
        return {
            "small": sum(SMALL_LANE - found.small.value for found in limits),
            "streams": sum(
                transport._streams_of(name, transport._configs.get(name)) - host.streams.value
                for name, host in transport._hosts.items()
            ),
            "transfers": blobs._limiter.borrowed_tokens + len(self.engine.mirror.transfers()),
            "flights": len(blobs._flights) + len(transport._pings.flights._flights),
            "tokens": len(transport._sender._auth._flights._flights),
        }


@asynccontextmanager
async def engine_of(
    source: Registry,
    target: Registry,
    *,
    clock: Time,
    resolver: AbstractResolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
    **flags: object,
) -> AsyncIterator[Engine]:
    """The program's own engine for two registries."""
    settings = await anyio.to_thread.run_sync(_settings, source, target, flags)
    async with open_engine(
        settings,
        metrics=Metrics(version="test"),
        resolver=resolver,
        ssl_context=ssl_context or TRUST,
        clock=clock,
        sleep=clock.sleep,
        jitter=lambda: 1.0,
    ) as engine:
        yield engine


@asynccontextmanager
async def bench(
    *,
    source: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    image: Image = IMAGE,
    prepared: bool = True,
    violations: bool = False,
    **flags: Any,
) -> AsyncIterator[Bench]:
    """The image at the source, the engine ready; in the end nothing may be left behind.

    Args:
        source, target: options of the registries.
        prepared: the config of IMAGE stands at the target.
        violations: the row makes the client break rules of the protocol on purpose.
    """
    clock, tasks = Time(), set(asyncio.all_tasks())
    async with (
        source_registry(clock.wall, **(source or {})) as one,
        target_registry(clock.wall, **(target or {})) as two,
    ):
        one.add(SOURCE, image, TAG)
        if prepared and image is IMAGE:
            two.put_blob(TARGET, IMAGE.blobs[CONFIG])
        else:
            two.create_repository(TARGET)
        async with engine_of(one, two, clock=clock, **flags) as engine:
            found = Bench(source=one, target=two, engine=engine, time=clock, image=image)
            yield found
            one.faults.clear()
            two.faults.clear()
            assert not any(found.permits().values()), found.permits()
        await _quiet(one, two)
        assert two.sessions == found.sessions_left
        check_tags(two)
        if not violations:
            assert (one.violations, two.violations) == ([], [])
    assert set(asyncio.all_tasks()) <= tasks


async def _quiet(*registries: Registry) -> None:
    """Every connection of the engine is seen to be closed, within a second."""
    with anyio.move_on_after(1):
        # what is waited for is in the servers' sockets and has no event
        while any(r.open_connections or r.ledger.active for r in registries):  # noqa: ASYNC110
            await anyio.sleep(0.001)
    assert [(r.open_connections, r.ledger.active) for r in registries] == [(0, 0)] * len(registries)


def check_tags(registry: Registry) -> None:
    """Every tag stands for something whole."""
    for repository, tags in registry.tags.items():
        for tag, digest in tags.items():
            lacking = list(_lacking(registry, repository, digest))
            assert not lacking, f"{repository}:{tag} lacks {lacking}"


def _lacking(registry: Registry, repository: str, digest: str) -> Iterator[str]:
    manifest = registry.manifests[repository].get(digest)
    if manifest is None:
        yield digest
        return
    body = json.loads(manifest.data)
    for child in body.get("manifests", []):
        if child["digest"] not in registry.blobs[repository]:
            yield from _lacking(registry, repository, child["digest"])
    for blob in [*filter(None, [body.get("config")]), *body.get("layers", [])]:
        if blob["digest"] not in registry.blobs[repository] and not blob.get("urls"):
            yield blob["digest"]


def failure(found: MirrorResult | CopycatError | list[str]) -> CopycatError:
    """The error of an attempt that must have failed."""
    if isinstance(found, MirrorResult):
        assert (found.state, found.protected) == ("failed", False)
        assert found.error is not None
        assert (found.reason, found.message) == (found.error.reason, str(found.error))
        return found.error
    assert isinstance(found, CopycatError)
    return found


def success(b: Bench, step: str, found: MirrorResult | CopycatError | list[str]) -> None:
    """The attempt succeeded, and everything is where it belongs."""
    if step == "R":
        assert found == []
        return
    assert isinstance(found, MirrorResult)
    assert (found.state, found.reason) == ("protected", ""), found.message
    assert b.arrived()


def spaced(requests: list[Request], since: float) -> list[float]:
    """How long after `since` each request came, those left out that were on their way already."""
    return [round(r.at - since, 1) for r in requests if r.at - since > 0.5]
