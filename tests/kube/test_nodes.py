"""Nodes and their platforms."""

from __future__ import annotations

import pytest

from copycat.kube.nodes import read_node
from copycat.oci.platform import Platform


@pytest.mark.parametrize(
    ("status", "platform"),
    [
        ('{"nodeInfo": {"operatingSystem": "linux", "architecture": "arm64"}}', Platform("linux", "arm64")),
        ('{"nodeInfo": {"operatingSystem": "", "architecture": ""}}', None),
        ("{}", None),
        ("null", None),
    ],
    ids=["arm64", "virtual", "silent", "new"],
)  # fmt: skip
def test_read_node(status: str, platform: Platform | None) -> None:
    """A node's platform is what it reports; one that reports none has none."""
    node = read_node(f'{{"metadata": {{"name": "n1"}}, "status": {status}}}'.encode())
    assert (node.name, node.platform) == ("n1", platform)
