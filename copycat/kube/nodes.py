"""Nodes, cut down to the platform that their images are for (checkNodePlatform)."""

from __future__ import annotations

import msgspec

from copycat.oci.platform import Platform

__all__ = ["NODES_PATH", "Node", "read_node"]

NODES_PATH = "/api/v1/nodes"


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
