"""Nodes, cut down to the platform that their images are for (checkNodePlatform).

They are watched. Where the permission covers `get` alone, which was enough for the original, each node
that a Pod runs on is read once: its platform never changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import quote

import anyio
import msgspec

from copycat.errors import KubeDenied, KubeError
from copycat.kube.client import KubeClient
from copycat.logs import get_logger
from copycat.oci.platform import Platform

__all__ = ["NODES_PATH", "Node", "NodeReader", "read_node"]

_log = get_logger(__name__)

NODES_PATH = "/api/v1/nodes"
#: Nodes that are read at the same time.
_AT_ONCE = 8
#: How long nobody asks again after a refusal, in seconds.
_PATIENCE = 300.0


class Node(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A node. Compares by value."""

    name: str
    platform: Platform | None
    """None where the node does not say (virtual kubelets)."""
    namespace: str = ""


class _Info(msgspec.Struct, rename="camel"):
    operating_system: str = ""
    architecture: str = ""


class _Status(msgspec.Struct, rename="camel"):
    node_info: _Info | None = None


class _Metadata(msgspec.Struct):
    name: str = ""


class _Node(msgspec.Struct):
    metadata: _Metadata
    status: _Status | None = None


_NODE = msgspec.json.Decoder(_Node)


def read_node(raw: bytes | msgspec.Raw) -> Node:
    """A node from its JSON. Raises: msgspec.DecodeError."""
    node = _NODE.decode(raw)
    info = node.status.node_info if node.status else None
    platform = None
    if info and info.operating_system and info.architecture:
        platform = Platform(os=info.operating_system, architecture=info.architecture)
    return Node(name=node.metadata.name, platform=platform)


class NodeReader:
    """Reads single nodes. Whoever sees a Pod says `want`; nothing is asked before `settle` or `run`."""

    def __init__(
        self,
        client: KubeClient,
        on_node: Callable[[str, Platform | None], None],
        *,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        """Args: `on_node` hears the platform of each node; None if it does not say."""
        self._client = client
        self._on_node = on_node
        self._sleep = sleep
        self._known: set[str] = set()
        self._waiting: set[str] = set()
        self._wanted = anyio.Event()
        self._lock = anyio.Lock()
        self.denied = False
        """Whether `get` is refused too."""

    def want(self, name: str) -> None:
        """A Pod is on this node."""
        if name and name not in self._known:
            self._waiting.add(name)
            self._wanted.set()

    async def settle(self) -> None:
        """Read what is wanted by now. Nothing is raised for what cannot be read: it is wanted again with its next
        Pod, or if we may not, later.
        """
        # whoever comes second waits for what the first one reads
        async with self._lock:
            self.denied = False
            names, self._waiting = self._waiting, set()
            self._known |= names
            limiter = anyio.CapacityLimiter(_AT_ONCE)
            async with anyio.create_task_group() as tasks:
                for name in sorted(names):
                    tasks.start_soon(self._read, name, limiter)

    async def run(self) -> None:
        """Read whatever is wanted, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            if self.denied:
                await self._sleep(_PATIENCE)
            await self.settle()

    async def _read(self, name: str, limiter: anyio.CapacityLimiter) -> None:
        try:
            async with limiter:
                if self.denied:
                    self._later(name)
                    return
                raw = await self._client.request("GET", f"{NODES_PATH}/{quote(name, safe='')}")
            node = read_node(raw)
        except (KubeError, msgspec.DecodeError) as error:
            told, self.denied = self.denied, self.denied or isinstance(error, KubeDenied)
            if not told:
                _log.warning("node's platform is not known", node=name, error=str(error))
            self._known.discard(name)
            if isinstance(error, KubeDenied):
                self._later(name)
        else:
            self._on_node(name, node.platform)

    def _later(self, name: str) -> None:
        self._known.discard(name)
        self.want(name)
