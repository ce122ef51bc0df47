"""Examples of the chart that several test modules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.chart.rendering import Object, Rendered, ci_values, merged, render

Render = Callable[..., Rendered]


@pytest.fixture
def base() -> Object:
    """The smallest values that can be installed."""
    return ci_values()["docker"]


@pytest.fixture
def with_values(base: Object) -> Render:
    """Renders the smallest installation with these values on top."""

    def rendered(values: Mapping[str, Any], **release: str) -> Rendered:
        return render(merged(base, values), **release)

    return rendered
