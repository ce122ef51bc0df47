"""The metrics: documented, bounded, initialised."""

from __future__ import annotations

from pathlib import Path

from copycat.metrics import OTHER, REGISTRY_LIMIT, STATES, Metrics

DOCUMENT = Path(__file__).parents[1] / "docs" / "metrics.md"


def test_every_metric_is_documented() -> None:
    """docs/metrics.md has a row for each metric of the program, under the name that Prometheus sees."""
    text = DOCUMENT.read_text()
    for metric in Metrics(version="1").registry.collect():
        if metric.name.startswith("k8s_copycat"):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            assert f"| `{name}` |" in text


def test_registry_labels_are_bounded() -> None:
    """Whoever names source hosts cannot make more series than the limit and one."""
    metrics = Metrics(version="1")
    labels = {metrics.registry_label(f"host-{n}.example.com") for n in range(REGISTRY_LIMIT + 20)}
    assert len(labels) == REGISTRY_LIMIT + 1
    assert OTHER in labels
    assert metrics.registry_label("host-1.example.com") == "host-1.example.com"


def test_known_series_exist_from_the_start() -> None:
    """States and watched kinds have their series before anything happens, so that rates work from the first scrape."""
    text = Metrics(version="1", resources=["pods"]).render().decode()
    for state in STATES:
        assert f'k8s_copycat_images{{state="{state}"}} 0.0' in text
    assert 'k8s_copycat_watch_synced{resource="pods"} 0.0' in text
