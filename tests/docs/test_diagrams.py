"""Mermaid diagrams: what a renderer needs at the least."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import Block, blocks

DIAGRAMS = blocks("mermaid")
KINDS = re.compile(r"(flowchart|graph) (TD|TB|LR|RL|BT)$|sequenceDiagram$|stateDiagram-v2$")


def test_the_two_guides_have_diagrams() -> None:
    """Mirroring and digests are shown as pictures."""
    assert {b.page.name for b in DIAGRAMS} >= {"mirroring.md", "digests.md"}


@pytest.mark.parametrize("block", DIAGRAMS, ids=lambda b: b.name)
def test_a_diagram_is_balanced(block: Block) -> None:
    """It says its kind, and every bracket, quote and subgraph that opens is closed."""
    assert KINDS.match(block.first_line), block.first_line
    for line in block.text.splitlines():
        assert line.count('"') % 2 == 0, line
        plain = re.sub(r'"[^"]*"', '""', line)
        for opening, closing in ("[]", "()", "{}"):
            assert plain.count(opening) == plain.count(closing), line
    words = [line.split()[0] for line in block.text.splitlines() if line.strip()]
    if not block.first_line.startswith("state"):
        assert words.count("subgraph") + words.count("alt") + words.count("loop") == words.count(
            "end"
        )


@pytest.mark.parametrize(
    "block",
    [b for b in DIAGRAMS if b.first_line.startswith(("flowchart", "graph"))],
    ids=lambda b: b.name,
)
def test_every_node_of_a_flowchart_has_a_text(block: Block) -> None:
    """No arrow leads to a node that is only a misspelt name."""
    body = re.sub(r'"[^"]*"', '""', block.text)
    named = set(re.findall(r"\b([A-Za-z]\w*)[\[({]", body))
    used = set(
        re.findall(
            r"(?:^|-->|-\.->)(?:\|[^|]*\|)?\s*([A-Za-z]\w*)\s*(?=-|$|\[|\(|\{|;)",
            body,
            re.MULTILINE,
        )
    )
    used -= {"end", "flowchart", "subgraph", "direction", "graph"}
    assert used <= named
