"""Go's spellings of flags."""

from __future__ import annotations

import pytest

from copycat.arguments import normalise


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("run", "run"),
        ("run -dry-run", "run --dry-run=true"),
        ("run --dry-run", "run --dry-run=true"),
        ("run --dry-run=false -dry-pull=1", "run --dry-run=false --dry-pull=1"),
        ("run -leader-elect -zap-devel", "run --leader-elect=true --zap-devel=true"),
        ("run -metrics-bind-address=:9090", "run --metrics-bind-address=:9090"),
        (
            "run -metrics-bind-address :9090 -dry-run",
            "run --metrics-bind-address :9090 --dry-run=true",
        ),
        ("run --config -dry-run", "run --config -dry-run"),
        ("run --config", "run --config"),
        ("run -zap-log-level 5 -version", "run --zap-log-level 5 --version"),
        ("run -h", "run -h"),
        ("run -help", "run --help"),
        ("run -version=true", "run --version"),
        ("run --version=T -dry-run", "run --version --dry-run=true"),
        ("run --version=false -help=0 -dry-run", "run --dry-run=true"),
        ("run --version=maybe", "run --version=maybe"),
        ("run --unknown -x value", "run --unknown -x value"),
        ("run dry-run", "run dry-run"),
        ("run -- -dry-run", "run -- -dry-run"),
        ("mirror -f x -dry-run", "mirror -f x -dry-run"),
        ("", ""),
    ],
)
def test_normalise(given: str, expected: str) -> None:
    """`run` takes one dash or two; a boolean flag is true by itself and never takes the next argument."""
    assert normalise(given.split()) == expected.split()
