"""Uploads to a real registry through a line that breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.abc import SocketAttribute, SocketStream

from copycat.registry.endpoint import Form
from tests.integration.registries import DockerRegistry
from tests.registry.support import blob, sent, world

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker-registry")]

MIB = 1 << 20
DATA = bytes(range(256)) * 4096 * 4


@dataclass(slots=True)
class Line:
    """Between a client and a registry: each connection in the list of breaks is cut after so many bytes sent."""

    port: int
    breaks: list[int] = field(default_factory=list)
    """Bytes from a client after which its connection is cut; used up in order by connections that send much."""
    address: str = ""

    async def carry(self, client: SocketStream) -> None:
        """One connection."""
        async with (
            client,
            await anyio.connect_tcp("127.0.0.1", self.port) as server,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._down, server, client)
            await self._up(client, server)
            tasks.cancel_scope.cancel()

    async def _up(self, client: SocketStream, server: SocketStream) -> None:
        carried = 0
        try:
            async for data in client:
                carried += len(data)
                if self.breaks and carried > self.breaks[0]:
                    self.breaks.pop(0)
                    return
                await server.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    async def _down(self, server: SocketStream, client: SocketStream) -> None:
        try:
            async for data in server:
                await client.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return


@asynccontextmanager
async def line(port: int) -> AsyncIterator[Line]:
    """A line to a port of this machine."""
    found = Line(port)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        found.address = f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        tasks.start_soon(listener.serve, found.carry)
        yield found
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize(
    "breaks", [[], [1_300_000], [300_000, 1_300_000]], ids=["whole", "once", "twice"]
)
async def test_through_a_line_that_breaks(tmp_path: Path, form: Form, breaks: list[int]) -> None:
    """In every form the blob arrives, bit by bit, whatever the line does; what broke is begun anew and given up."""
    registry = DockerRegistry(tmp_path / "registry")
    await anyio.to_thread.run_sync(registry.start)
    try:
        async with line(registry.port) as between, world(between.address) as here:
            endpoint = here.transport.endpoint(between.address)
            endpoint.form, endpoint.chunk = form, 700_000
            repository = here.target(between.address)
            between.breaks = list(breaks)
            with anyio.fail_after(20):
                await repository.upload_blob(blob(DATA), sent(DATA))
            assert between.breaks == []
            assert await repository.get_blob(blob(DATA)) == DATA
    finally:
        await anyio.to_thread.run_sync(registry.stop)
    requests = registry.requests()
    assert sum(r.method == "POST" for r in requests) == 1 + len(breaks)
    # Its Locations hold the offset: a session whose last request broke is unknown to it (404) once it has written what
    # it got of the body; asked before that it knows the session (204), and may write the directory anew afterwards.
    given_up = [r.status for r in requests if r.method == "DELETE"]
    left = [p for p in (tmp_path / "registry").rglob("_uploads/*") if p.is_dir()]
    assert len(given_up) == len(breaks)
    assert set(given_up) <= {204, 404}
    assert given_up.count(404) <= len(left) <= len(breaks)
