"""Pull quotas that registries advertise (Docker Hub), and the share of them that is left to the nodes.

A manifest that is fetched counts, a HEAD does not, and both answers say what is left (registry notes 4).
So a request that would eat into the reserve is not made, and before old news stops one, a HEAD asks anew.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from copycat.errors import Throttled
from copycat.metrics import Metrics
from copycat.registry.answers import Place
from copycat.registry.credentials import Credentials
from copycat.registry.endpoint import Endpoint

__all__ = ["REASON", "PullQuotas", "Quota"]

#: The reason of a Throttled that came from here: nobody was asked.
REASON = "pull_quota"
#: Shares that are left to the nodes where the configuration has none.
ANONYMOUS, WITH_CREDENTIALS = 0.5, 0.2
#: What a quota that told no window is taken to have (seconds).
_WINDOW = 6 * 3600.0
#: An image waits between these (seconds).
_SHORTEST, _LONGEST = 60.0, 3600.0
#: As many more should have come back before everybody who waits tries again (a share of the quota).
_WORTH = 0.05
#: Accounts that are remembered.
_ACCOUNTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a registry said about its pull quota (Docker Hub's ratelimit headers)."""

    remaining: int
    limit: int | None
    window: float | None
    """Seconds."""
    at: float
    """When it said so (the transport's clock)."""
    share: float = 0.0
    """What is left to the nodes, as a share of the limit."""

    def lacking(self, share: float, *, under_way: int = 0) -> int:
        """How many pulls must come back before one more may be made. Args: `share` that is left alone; `under_way`: pulls not yet counted in `remaining`."""
        kept = 0 if self.limit is None else math.ceil(self.limit * share - 1e-9)
        return max(0, kept + 1 - (self.remaining - under_way))

    def pause(self, share: float) -> float:
        """Seconds after `at` when it is worth asking again: pulls come back evenly over the window, and one alone helps little."""
        window = self.window or _WINDOW
        lacking = self.lacking(share)
        wait = window * (lacking / self.limit + _WORTH) if self.limit else _LONGEST
        return min(max(wait, _SHORTEST), _LONGEST)


_Account = tuple[str, str]


class PullQuotas:
    """The newest word of every registry, for each account that asks there."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        reserve: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: `reserve` is the share that is left to the nodes; None: half, a fifth with credentials."""
        self._metrics, self._reserve, self._clock = metrics, reserve, clock
        self._known: OrderedDict[_Account, Quota | None] = OrderedDict()
        self._under_way: dict[_Account, int] = {}
        self._newest: dict[str, Quota] = {}

    def newest(self, registry: str) -> Quota | None:
        """What a registry said last, to whomever."""
        return self._newest.get(registry)

    def now(self) -> float:
        """For `note`: the moment before a request."""
        return self._clock()

    def note(
        self,
        endpoint: Endpoint,
        credentials: Credentials | None,
        headers: Mapping[str, str],
        *,
        sent: float,
    ) -> None:
        """Read the head of an answer: `ratelimit-remaining: 76;w=21600`. Args: when its request was `sent`."""
        account = _account(endpoint, credentials)
        count, window = _parts(headers.get("ratelimit-remaining", ""))
        if count.startswith("-") and _is_number(count[1:]):
            count = "0"  # overdrawn
        if not _is_number(count):
            self._keep(account, self._known.get(account))
            return
        left, known = int(count), self._known.get(account)
        if known is not None and known.at >= sent:
            # answers overtake each other: what came in since is no older than this one
            left = min(left, known.remaining)
        most, _ = _parts(headers.get("ratelimit-limit", ""))
        quota = Quota(
            remaining=left,
            limit=int(most) if _is_number(most) else None,
            window=float(window) if _is_number(window) else None,
            at=self._clock(),
            share=self._share(credentials),
        )
        self._newest[endpoint.registry] = quota
        self._keep(account, quota)
        self._metrics.quota.labels(endpoint.label).set(quota.remaining)

    def _keep(self, account: _Account, quota: Quota | None) -> None:
        self._known[account] = quota
        self._known.move_to_end(account)
        if len(self._known) > _ACCOUNTS:
            self._known.popitem(last=False)

    def heard(self, endpoint: Endpoint, credentials: Credentials | None) -> bool:
        """Whether a registry has answered this account before: that it has a quota, or none."""
        return _account(endpoint, credentials) in self._known

    def outdated(self, endpoint: Endpoint, credentials: Credentials | None) -> bool:
        """Whether a pull is held by news so old that it is worth asking again."""
        account = _account(endpoint, credentials)
        quota, share = self._known.get(account), self._share(credentials)
        if quota is None or not quota.lacking(share, under_way=self._under_way.get(account, 0)):
            return False
        return self._clock() - quota.at >= quota.pause(share)

    def forget(self, endpoint: Endpoint, credentials: Credentials | None) -> None:
        """It says nothing about a quota any more."""
        self._known[_account(endpoint, credentials)] = None

    @contextmanager
    def pull(
        self, endpoint: Endpoint, credentials: Credentials | None, place: Place
    ) -> Iterator[None]:
        """Around a request that counts. Raises Throttled with reason `pull_quota` instead of eating into the reserve."""
        account, share = _account(endpoint, credentials), self._share(credentials)
        under_way = self._under_way.get(account, 0)
        quota = self._known.get(account)
        if quota is not None and quota.lacking(share, under_way=under_way):
            raise self._reserved(quota, share, place)
        self._under_way[account] = under_way + 1
        try:
            yield
        except BaseException:
            # cancelled or cut: the registry may have counted it, and nobody will say so
            known = self._known.get(account)
            if known is not None:
                self._known[account] = replace(known, remaining=max(0, known.remaining - 1))
            raise
        finally:
            self._under_way[account] -= 1
            if not self._under_way[account]:
                del self._under_way[account]

    def _share(self, credentials: Credentials | None) -> float:
        if self._reserve is not None:
            return self._reserve
        return ANONYMOUS if credentials is None else WITH_CREDENTIALS

    def _reserved(self, quota: Quota, share: float, place: Place) -> Throttled:
        wait = max(1.0, quota.at + quota.pause(share) - self._clock())
        of = f" of {quota.limit}" if quota.limit is not None else ""
        return place.error(
            Throttled,
            f"{place.registry} has {quota.remaining}{of} pulls left, and {share:.0%} are kept for the nodes "
            f"(pullQuotaReserve); {place.what} waits another {wait:.0f} s.",
            reason=REASON,
            retry_after=wait,
        )


def _account(endpoint: Endpoint, credentials: Credentials | None) -> _Account:
    return endpoint.host, credentials.key if credentials else ""


def _parts(header: str) -> tuple[str, str]:
    """A count and its window, each empty if it is not there: `76;w=21600`, `76; burst=5; w=21600`."""
    count, *parameters = (part.strip() for part in header.split(";"))
    return count, next((p[2:] for p in parameters if p.startswith("w=")), "")


def _is_number(text: str) -> bool:
    """Digits alone, and few enough of them to mean something."""
    return text.isascii() and text.isdigit() and len(text) < 16
