"""Row 5: hosts that ask for patience."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from copycat.errors import Throttled
from tests.faults.support import EACH, STEPS, Bench, bench, failure, spaced, success

#: What the header says, and for how many seconds nobody may come.
PATIENCE = [
    pytest.param(lambda: "2", 2.0, id="seconds"),
    pytest.param(lambda: formatdate(time.time() + 6, usegmt=True), 2.0, id="date"),
    pytest.param(lambda: None, 1.0, id="absent"),
]


def since_the_fault(b: Bench, step: str) -> list[float]:
    """When the requests came that followed the one which was throttled, in seconds after it."""
    requests = b.side(STEPS[step].side).requests
    first = next(r for r in requests if r.status == 429)
    return spaced(requests[requests.index(first) + 1 :], first.at)


@pytest.mark.parametrize(("header", "least"), PATIENCE)
@pytest.mark.parametrize("step", EACH)
async def test_05_patience(step: str, header, least: float) -> None:  # type: ignore[no-untyped-def] # a row of PATIENCE
    """The whole host is left alone for as long as it asked, or for a back-off; then the copy completes."""
    async with bench() as b:
        b.fail(step, status=429, headers={"Retry-After": header()})
        success(b, step, await b.act(step))

        assert min(since_the_fault(b, step)) >= least
        host = b.side(STEPS[step].side).address
        kept = b.metric("registry_throttled_seconds_total", registry=host)
        assert kept >= least - 1e-6 or step == "Rd"  # another host; clocks round


@pytest.mark.parametrize("step", EACH)
async def test_05_a_day(step: str) -> None:
    """A host that wants a day has it: the attempt ends at once and says when to come back; nobody else asks before."""
    async with bench() as b:
        fault = b.fail(step, status=429, headers={"Retry-After": "86400"}, times=None)
        error = failure(await b.act(step))

        assert (type(error), error.reason, error.temporary) == (Throttled, "throttled", True)
        assert error.retry_after == pytest.approx(900, abs=2)
        assert (fault.hits, b.time.naps) == (1, [])
        assert b.untouched()
        # who is asked to leave does not come back to cancel an upload
        b.sessions_left = step in "UC"

        again = failure(await b.act(step))
        assert (type(again), again.reason) == (Throttled, "throttled")
        assert fault.hits == 1
