"""States and figures that the pages tell are the program's."""

from __future__ import annotations

import pytest

from copycat.app.probes import STALE_WATCH
from copycat.config import Settings
from copycat.controller.controller import ORPHAN_LIFE
from copycat.controller.holds import HOLD
from copycat.metrics import STATES
from copycat.mirror.ledger import GROWING
from copycat.registry.ecr.keychain import FULL_LIFE
from copycat.registry.ecr.lifecycle import MAX_LENGTH, MIN_LENGTH
from copycat.registry.limits import RETRY_AFTER_MAX
from copycat.workqueue import Priority
from tests.docs.pages import page

DEFAULTS = Settings()


def text(name: str) -> str:
    """A page's words, one blank between them."""
    return " ".join(page(name).text.split())


def test_every_state_is_explained() -> None:
    """Whatever state an image has, the guide says what to do about it."""
    assert set(STATES) <= set(page("docs/mirroring.md").headings)
    assert len(Priority) == 4, "the guide tells the order of four priorities"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("docs/mirroring.md", ", ".join(map(str, GROWING[:-1])) + f", then {GROWING[-1]} minutes"),
        ("docs/mirroring.md", f"probes every {HOLD / 60:.0f} minutes"),
        ("docs/mirroring.md", f"after {ORPHAN_LIFE / 3600:.0f} hours if it was never copied"),
        (
            "docs/mirroring.md",
            f"{DEFAULTS.max_concurrent_reconciles * len(DEFAULTS.watch_resources)} by default",
        ),
        (
            "docs/mirroring.md",
            f"`registryRetryAttempts` times ({DEFAULTS.registry_retry_attempts})",
        ),
        ("docs/mirroring.md", f"`registryRetryBackoff` ({DEFAULTS.registry_retry_backoff:.0f} s)"),
        ("docs/mirroring.md", f"at most {RETRY_AFTER_MAX / 60:.0f} minutes"),
        ("docs/mirroring.md", f"`shutdownGraceSeconds` ({DEFAULTS.shutdown_grace_seconds:.0f})"),
        ("docs/mirroring.md", f"| `tagRefreshMinutes` | {DEFAULTS.tag_refresh_minutes} |"),
        ("docs/mirroring.md", f"| `targetCheckMinutes` | {DEFAULTS.target_check_minutes} |"),
        ("docs/troubleshooting.md", f"`requestTimeout` ({DEFAULTS.request_timeout:.0f} s)"),
        ("docs/troubleshooting.md", f"silent for {STALE_WATCH:.0f} s"),
        ("docs/targets/ecr.md", f"{MIN_LENGTH} to {MAX_LENGTH:,} characters"),
    ],
)
def test_a_figure_is_the_program_s(name: str, words: str) -> None:
    """The page says the constant or the default that the program has."""
    assert words in text(name)


def test_the_ecr_login_lasts_twelve_hours() -> None:
    """As the guide says."""
    assert FULL_LIFE == 12 * 3600
    assert "login token lasts twelve hours" in text("docs/targets/ecr.md")
