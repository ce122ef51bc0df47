"""The example queries of the metrics reference, answered by Prometheus' own engine from what the program shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from copycat.sandbox.images import image
from copycat.sandbox.ledger import Phase
from tests.app.support import World, counters, in_state, until
from tests.app.times import Time

pytestmark = [pytest.mark.chart, pytest.mark.needs("promtool")]

REFERENCE = Path(__file__).parents[2] / "docs" / "metrics.md"

Samples = dict[tuple[str, str], float]


def queries() -> tuple[str, str, str]:
    """Busiest images, overall push rate, failing pushes: as the reference gives them."""
    block = re.search(r"```promql\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert block is not None
    busiest, pushes, failures = block[1].split("\n")[:3]
    return busiest, pushes, failures


async def minutes_of(world: World) -> list[Samples]:
    """The counters of twenty minutes: three tags of one image move each minute for five, one rests, one is refused at the target."""
    for name in ("busy", "calm", "refused"):
        world.source.add(name, image(seed=name), "1")
        world.deployment(name, world.image(f"{name}:1"))
    for tag in ("2", "3"):
        world.source.add("busy", image(seed=tag), tag)
        world.deployment(f"busy-{tag}", world.image(f"busy:{tag}"))
    await world.source.stop()
    time, found = Time(), []
    async with world.running(time, registry_retry_attempts=1) as program:
        await in_state(program, world.image("calm:1"), "failed")
        found.append(await counters(program))
        await world.source.start()
        world.target.fail(
            Phase.PUT_MANIFEST,
            status=400,
            code="MANIFEST_INVALID",
            times=None,
            match=lambda r: r.repository == "mirror/refused",
        )
        for minute in range(1, 20):
            time.pass_by(program, minutes=1)
            if minute <= 5:
                for tag in ("1", "2", "3"):
                    world.source.add("busy", image(seed=f"{tag} at {minute}"), tag)
                await program.facade.force_reconcile()
            await until(lambda: not program.facade.status().working)
            found.append(await counters(program))
    return found


async def test_sensible_answers(world: World, tmp_path: Path) -> None:
    """While images move the busiest is named, pushes and failing pushes have a rate; in quiet times all rates are 0."""
    minutes = await minutes_of(world)
    busy, calm, refused = (f'{{image="{world.image(name)}"}}' for name in ("busy", "calm", "refused"))  # fmt: skip
    series = [
        {
            "series": f'k8s_copycat_registry_{counter}_total{{image="{name}"}}',
            "values": " ".join(str(minute[counter, name]) for minute in minutes),
        }
        for counter, name in minutes[0]
    ]
    busiest, pushes, failures = queries()
    expected = [
        (f"topk(1, {busiest}) > bool 0", "6m", {busy: 1}),
        (f"{busiest} > bool 0", "3m", {busy: 1, calm: 1, refused: 1}),
        (f"{busiest} > bool 0", "19m", {busy: 0, calm: 0, refused: 0}),
        (f"{pushes} > bool 0", "3m", {"{}": 1}),
        (f"{failures} > bool 0", "3m", {"{}": 1}),
        (f"{pushes} > bool 0", "19m", {"{}": 0}),
        (f"{failures} > bool 0", "19m", {"{}": 0}),
    ]
    tests: list[dict[str, Any]] = [
        {
            "expr": expression,
            "eval_time": when,
            "exp_samples": [{"labels": labels, "value": value} for labels, value in found.items()],
        }
        for expression, when, found in expected
    ]
    file = tmp_path / "queries.json"
    suite = {"interval": "1m", "input_series": series, "promql_expr_test": tests}
    await anyio.Path(file).write_text(
        json.dumps({"rule_files": [], "evaluation_interval": "1m", "tests": [suite]})
    )
    done = await anyio.run_process(["promtool", "test", "rules", str(file)], check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
