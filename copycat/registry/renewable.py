"""A login that a cloud hands out for some hours: fetched once, shared, renewed before it ends.

Rule of all of them: one request however many wait for it, a new token at half the old one's life,
at once when a registry says that the present one has expired, and while a renewal fails the old
token as long as it lives: a registry that refuses may mean one repository, and says the same then.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import anyio

from copycat.errors import RegistryError, Side, Unavailable
from copycat.registry.keychain import Credentials

__all__ = ["MARGIN", "Asker", "Issued", "Renewable", "usable"]

#: A login must not end while a request is under way: it is not used for its last seconds.
MARGIN = 60.0
#: What was fetched this recently (seconds) cannot have expired, whatever a registry says: or it would make us ask for ever.
YOUNG = 10.0
_SLOW = "Whoever hands out the login does not answer in time."


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What a cloud handed out."""

    credentials: Credentials
    life: float
    """How long it is good for, in seconds from now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Which key of the configuration wants an identity for a registry, so that errors can name it."""

    key: str
    """As written: `registries[2].auth is gcp`."""
    side: Side = "source"

    async def login(self, login: Renewable, registry: str) -> Credentials:
        """The present credentials, with their source. Raises: as the login does, naming key and registry."""
        try:
            credentials = await login.get()
        except RegistryError as error:
            # a login may serve several registries, so its error is nobody's to alter
            raise type(error)(
                f"There is no login for {registry} ({self.key}): {error.message}",
                side=self.side,
                registry=registry,
                reason=error.reason,
                temporary=error.temporary,
                retry_after=error.retry_after,
                status=error.status,
                code=error.code,
            ) from error

        return replace(credentials, source=f"of {self.key} ({credentials.source})")


def usable(life: float) -> float:
    """How long a login is used that lives so long (seconds): half a minute is not a whole one."""
    return life - min(MARGIN, life / 2)


class Renewable:
    """One login, shared by everybody who needs it."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Issued]],
        *,
        patience: float = 30.0,
        wait: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args: `patience` is how long a failure is remembered, `wait` how long a login that is still good waits for
        the next one, both in seconds; the clock counts seconds.
        """
        self._fetch = fetch
        self._patience = patience
        self._wait = wait
        self._clock = clock
        self._lock = anyio.Lock()
        self._credentials: Credentials | None = None
        self._made = self._renew = self._end = self._retry = self._tried = 0.0
        self._doubted = False
        self._failure: RegistryError | None = None

    async def get(self) -> Credentials:
        """The credentials to use now. Raises: what `fetch` raises, to those who come shortly after it too."""
        # Whoever finds a renewal under way uses the old login while it lives.
        usable = self._alive() and not self._doubted
        if not self._settled() and not (usable and self._lock.locked()):
            async with self._lock:
                if not self._settled():
                    await self._renewed()

        if self._credentials is not None and self._alive():
            return self._credentials

        raise (self._failure or Unavailable("A login ended before it began.")).with_traceback(None)

    def expired(self, credentials: Credentials) -> None:
        """A registry says that `credentials` have expired. Others than the present ones are old news."""
        present, now = self._credentials, self._clock()
        if (
            present is not None
            and present.key == credentials.key
            and abs(now - self._made) >= YOUNG
            and not self._tried <= now < self._retry
        ):
            self._doubted = True
            self._renew = 0.0

    def _alive(self) -> bool:
        return self._credentials is not None and self._clock() < self._end

    def _settled(self) -> bool:
        now = self._clock()
        if now < self._tried:  # the clock was set back: what was reckoned with it is worth nothing
            return False
        return now < self._retry or (self._alive() and now < self._renew)

    async def _renewed(self) -> None:
        limit = self._wait if self._alive() and not self._doubted else None
        try:
            with anyio.fail_after(limit):
                login = await self._fetch()
        except (RegistryError, TimeoutError) as trouble:
            error = trouble if isinstance(trouble, RegistryError) else Unavailable(_SLOW)
            if error.temporary and error.retry_after is None:
                # until then the answer is the same: whoever waits for it may do something else
                error.retry_after = self._patience
            self._failure = error
            self._tried = self._clock()
            self._retry = self._tried + self._patience
            self._doubted = False
            return

        now = self._tried = self._clock()
        self._credentials = login.credentials
        self._made, self._renew, self._end = now, now + login.life / 2, now + login.life
        self._failure, self._retry, self._doubted = None, 0.0, False
