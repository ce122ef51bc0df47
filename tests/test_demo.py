"""The demonstration shows what it promises, and says so when it does not."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable

import anyio
import pytest

from copycat.demo import main
from copycat.program import RealProgram
from copycat.sandbox.registry import Registry
from tests.app.support import until

Prepare = Callable[[Registry, Registry], None]


async def test_every_image_arrives_and_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    """The demonstration ends well within its patience."""
    with anyio.fail_after(60):
        assert await RealProgram().demo(keep=False)
    assert "All images are at the target, whole." in capsys.readouterr().out


async def test_keep_goes_on_until_interrupted() -> None:
    """With `keep` everything stays up until Ctrl-C, and the verdict stands."""
    out = io.StringIO()
    verdicts: list[bool] = []

    async def show() -> None:
        verdicts.append(await main(keep=True, out=out))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(show)
            await until(lambda: "Everything keeps running" in out.getvalue())
            os.kill(os.getpid(), signal.SIGINT)
    assert verdicts == [True]


def _missing(source: Registry, target: Registry) -> None:
    source.fail("get_manifest", status=404, code="MANIFEST_UNKNOWN", times=None)
    source.fail("head_manifest", status=404, code="MANIFEST_UNKNOWN", times=None)


def _stalled(source: Registry, target: Registry) -> None:
    source.fail("get_blob", stall_at=0, times=None)


def _other(source: Registry, target: Registry) -> None:
    source.add_image("shop/web", "1.4", seed="other")


def _corrupt(source: Registry, target: Registry) -> None:
    target.fail("get_blob", corrupt_at=3, times=None)


def _unreadable(source: Registry, target: Registry) -> None:
    target.fail("get_blob", status=500, times=None)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        pytest.param(_missing, "failed", id="missing"),
        pytest.param(_stalled, "arrived within", id="stalled"),
        pytest.param(_other, "0 expected", id="another-image"),
        pytest.param(_corrupt, "hashes to", id="corrupt"),
        pytest.param(_unreadable, "500", id="unreadable"),
    ],
)
async def test_trouble_is_told(prepare: Prepare, words: str) -> None:
    """Whatever goes wrong is named, and the answer is False."""
    out = io.StringIO()
    patience = 1.0 if prepare is _stalled else 20.0
    with anyio.fail_after(60):
        assert not await main(keep=False, out=out, patience=patience, prepare=prepare)
    assert words in out.getvalue()
    assert "Something is not as it should be." in out.getvalue()
