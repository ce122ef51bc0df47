"""How a plan is told: lines, a table, objects."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from copycat.app.plan_model import Load, Missing, Move, Plan, PullSecrets, Row, Summary
from copycat.app.plan_output import JsonPlan, LinesPlan, TablePlan, make_printer

ROWS = (
    Row(source="a:1", target="r/a:1", state="protected", action="copy", good=True, size=2048),
    Row(source="b:1", target="r/b:1", state="protected", action="tag", good=True),
    Row(source="c:1", target="r/c:1", state="protected", good=True),
    Row(source="d:1", target="r/d:1", state="tag_only", action="copy", good=True, size=1),
    Row(
        source="e:1",
        target="r/e:1",
        state="failed",
        action="copy",
        good=False,
        reason="not_found",
        message="is\nmissing",
        size=10,
        measured=False,
    ),
    Row(source="f:1", state="denied", good=False, reason="denied"),
    Row(source="g:1", target="r/g:1", state="waiting_quota", good=True, measured=False),
    Row(
        source="h:1",
        target="r/h:1",
        state="protected",
        action="copy",
        good=True,
        size=3,
        moves=(Move(tag="1", before="sha256:old", after="sha256:new"),),
    ),
)
WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
SUMMARY = Summary(
    states={"protected": 4, "tag_only": 1, "failed": 1, "denied": 1, "waiting_quota": 1},
    actions={"copy": 4, "tag": 1, "none": 3},
    size=2062,
    unmeasured=2,
    loads=(
        Load(registry="docker.io", images=1, requests=1, note="its pull quota is not known: it did not say"),
        Load(registry="hub", images=2, requests=5, limit=100, remaining=4, window=21600.0, done_by=WHEN),
        Load(registry="now", images=2, requests=5, at_least=True, limit=100, remaining=40, window=21600.0,
             done_by=WHEN, at_once=True, note="1 image was not looked into"),
        Load(registry="rest", images=0, requests=0, limit=None, remaining=7, window=None),
        Load(registry="vague", images=1, requests=9, limit=None, remaining=7, window=None),
    ),
    repositories=(
        Missing(repository="m/a", how="create"),
        Missing(repository="m/b", how="on_push"),
        Missing(repository="m/c", how="on_push"),
        Missing(repository="m/d", how="missing", note="createRepo is false"),
        Missing(repository="m/e", how="no_project", note="no such project"),
    ),
    pull_secrets=(
        PullSecrets(namespace="shop", secrets=("regcred",), images=("a:1", "b:1")),
        PullSecrets(namespace="team", secrets=("x", "y"), images=("c:1",), covered=True),
    ),
    denied_kinds=("cronjobs", "jobs"),
    notes=("dryRun is set",),
)  # fmt: skip
PLAN = Plan(rows=ROWS, summary=SUMMARY)
EMPTY = Plan(rows=(), summary=Summary(states={}, actions={}, size=0))


class Terminal(io.StringIO):
    """Claims to be one."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def told(plan: Plan) -> list[str]:
    """A plan in lines."""
    out = io.StringIO()
    with LinesPlan(out) as printer:
        printer.looked(0, 1)
        printer.show(plan)
    return out.getvalue().splitlines()


def test_lines_of_images() -> None:
    """What is done stands first where all is well, else the state; sizes only where something is sent."""
    assert told(PLAN)[:8] == [
        "copy          a:1 → r/a:1 (2.0 KiB)",
        "tag           b:1 → r/b:1",
        "stands        c:1 → r/c:1",
        "copy          d:1 → r/d:1 (1 B) | of a part of the platforms",
        "failed        e:1 → r/e:1 (10 B + ?) | is missing",
        "denied        f:1 | denied",
        "waiting_quota g:1 → r/g:1",
        "copy          h:1 → r/h:1 (3 B) | moves the tag 1 from sha256:old to sha256:new",
    ]


def test_lines_about_all() -> None:
    """Totals, each source with its quota, repositories by who makes them, secrets with the setting, what was not seen."""
    assert told(PLAN)[8:] == [
        "",
        "8 images, then 4 protected, 1 tag_only, 1 failed, 1 denied, 1 waiting_quota. To copy: 4; to tag: 1",
        "to send: 2.0 KiB (blobs that images share are counted once, those that stand at the target are not; not all is known of 2 images)",
        "source docker.io: 1 manifest read for 1 image; its pull quota is not known: it did not say",
        "source hub: 5 manifest reads for 2 images; 4 of 100 left in 6 h; done by 2026-01-02 03:04 UTC",
        "source now: at least 5 manifest reads for 2 images; 40 of 100 left in 6 h; done by 2026-01-02 03:04 UTC (at once); 1 image was not looked into",
        "source rest: 0 manifest reads for 0 images; 7 left",
        "source vague: 9 manifest reads for 1 image; 7 left; how long that takes is not known: it does not say how much it allows",
        "repositories that copycat makes: m/a",
        "repositories that the first push makes: m/b, m/c",
        "repositories that YOU have to make: m/d (createRepo is false)",
        "repositories that YOU have to make the project of: m/e (no such project)",
        "note: who only reads is not told whether the target lets us push, or wants a project made first",
        "pull secrets of shop (regcred) may be needed for a:1, b:1: set pullSecrets to [shop], or give registryCredentials with namespaces: [shop]",
        "pull secrets of team (x, y) may be needed for c:1: a run reads them; plan with --kubeconfig or --context to see what that gives",
        "NOT SEEN: cronjobs, jobs: we may not list and watch them; allow it, or leave them out of watchResources",
        "note: dryRun is set",
    ]


def test_many_repositories() -> None:
    """Those that are made by themselves are counted after the tenth; those that somebody has to make are all named."""
    made = [Missing(repository=f"m/{n}", how="on_push") for n in range(13)]
    todo = [Missing(repository=f"t/{n}", how="missing", note="x") for n in range(13)]
    summary = replace(EMPTY.summary, repositories=(*made, *todo))
    text = "\n".join(told(Plan(rows=(), summary=summary)))
    assert "m/8, m/9 and 3 more\n" in text
    assert "t/11, t/12 (x)\n" in text


def test_nothing_to_plan() -> None:
    """No images are a plan, too."""
    assert told(EMPTY) == [
        "",
        "0 images. To copy: 0; to tag: 0",
        "to send: 0 B (blobs that images share are counted once, those that stand at the target are not)",
    ]


def test_objects() -> None:
    """One for each image, then one about them all, each on its line."""
    out = io.StringIO()
    with JsonPlan(out) as printer:
        printer.show(PLAN)
    *rows, summary = map(json.loads, out.getvalue().splitlines())
    assert [row["source"] for row in rows] == [row.source for row in ROWS]
    assert rows[4] == {
        "kind": "image",
        "source": "e:1",
        "target": "r/e:1",
        "digest": "",
        "state": "failed",
        "action": "copy",
        "reason": "not_found",
        "message": "is\nmissing",
        "good": False,
        "bytes": 10,
        "measured": False,
        "manifestReads": 0,
        "tagMoves": [],
        "users": [],
    }
    assert (summary["kind"], summary["good"], summary["images"]) == ("summary", False, 8)
    assert summary["sources"][1] == {
        "registry": "hub",
        "images": 2,
        "manifestReads": 5,
        "atLeast": False,
        "quota": {"limit": 100, "remaining": 4, "windowSeconds": 21600.0},
        "doneBy": "2026-01-02T03:04:00+00:00",
        "note": "",
    }
    assert summary["sources"][0]["quota"] is None
    assert summary["repositories"][3] == {
        "repository": "m/d",
        "how": "missing",
        "note": "createRepo is false",
    }


@pytest.mark.parametrize(
    ("out", "as_json", "form"),
    [
        pytest.param(io.StringIO(), False, LinesPlan, id="pipe"),
        pytest.param(Terminal(), False, TablePlan, id="terminal"),
        pytest.param(Terminal(), True, JsonPlan, id="json"),
    ],
)
def test_the_form_that_fits(out: io.StringIO, as_json: bool, form: type) -> None:
    """Objects if asked for, a table on a terminal, else lines."""
    assert type(make_printer(out, as_json=as_json)) is form


def test_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal: a counter while registries are asked, which goes away, a table, and the lines about all."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    with TablePlan(out) as printer:
        printer.looked(3, 8)
        printer.show(PLAN)
    text = out.getvalue()
    assert "→ r/e:1" in text
    assert "is missing" in text
    assert "2.0 KiB" in text
    assert "source hub: 5 manifest reads for 2 images" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")


def test_an_empty_table() -> None:
    """Without images there is no table, but what concerns all."""
    out = Terminal()
    with TablePlan(out) as printer:
        printer.show(EMPTY)
    assert "what" not in out.getvalue()
    assert "0 images" in out.getvalue()
