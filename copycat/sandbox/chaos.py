"""Random trouble: a share of all requests of a registry goes wrong, each in one of many ways.

Unlike the faults of a test, which are told where to strike, these are for soaks: thousands of copies in
which everything happens at some time. The same seed and the same requests give the same trouble.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from copycat.sandbox.faults import FaultInjector, FaultOptions
from copycat.sandbox.ledger import Phase, Request

__all__ = ["unleash"]

_ANSWERS: Sequence[FaultOptions] = (
    {"status": 500},
    {"status": 503},
    {"reset": True},
)
#: Holds the whole host for a second, so it is rare.
_THROTTLED: FaultOptions = {"status": 429, "code": "TOOMANYREQUESTS"}
#: The server does what it was asked, and nobody hears of it.
_LOST: Sequence[FaultOptions] = ({"after": True, "reset": True}, {"after": True, "status": 502})
_BODIES: Sequence[FaultOptions] = (
    {"cut_at": 700},
    {"cut_at": 700, "reset": True},
    {"corrupt_at": 100},
    {"extra_bytes": -5},
    {"chunked": True},
    {"close_delimited": True},
    {"ignore_range": True},
)
_KINDS: Mapping[Phase, Sequence[FaultOptions]] = {
    Phase.PING: _ANSWERS,
    Phase.TOKEN: _ANSWERS,
    Phase.HEAD_MANIFEST: _ANSWERS,
    Phase.GET_MANIFEST: (*_ANSWERS, {"cut_at": 50}, {"corrupt_at": 40}),
    Phase.HEAD_BLOB: _ANSWERS,
    Phase.GET_BLOB: (*_ANSWERS, *_BODIES),
    Phase.START_UPLOAD: (*_ANSWERS, *_LOST, *[_ANSWERS[0]] * 10, _THROTTLED),
    Phase.UPLOAD_BODY: (*_ANSWERS, {"cut_at": 300}, {"status": 404, "code": "BLOB_UPLOAD_UNKNOWN"}),
    Phase.COMMIT: (*_ANSWERS, *_LOST),
    Phase.PUT_MANIFEST: (*_ANSWERS, *_LOST),
}


def unleash(faults: FaultInjector, *, share: float, seed: int = 0) -> None:
    """Spoil this share (0 to 1) of the requests of every phase, from now on."""
    source = random.Random(seed)
    for phase, kinds in _KINDS.items():
        for kind in kinds:
            options: FaultOptions = {**kind, "times": None}
            options["match"] = _strikes(source, share / len(kinds))
            faults.add(phase, **options)


def _strikes(source: random.Random, chance: float) -> Callable[[Request], bool]:
    return lambda request: source.random() < chance
