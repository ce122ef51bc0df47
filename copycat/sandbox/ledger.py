"""What a server saw, request by request, so that tests assert what was asked and sent, and wait for events instead of sleeping."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import anyio

__all__ = ["Ledger", "Phase", "Request"]


class Phase(enum.StrEnum):
    """The step of a copy that a request belongs to (the letters of the fault matrix in brackets)."""

    PING = "ping"  # P
    TOKEN = "token"  # T  # noqa: S105 - the name of a step, no secret
    HEAD_MANIFEST = "head_manifest"  # Hm
    GET_MANIFEST = "get_manifest"  # Gm
    HEAD_BLOB = "head_blob"  # Hb
    GET_BLOB = "get_blob"  # Gb
    REDIRECT = "redirect"  # Rd: a request to the second origin
    START_UPLOAD = "start_upload"  # I
    UPLOAD_BODY = "upload_body"  # U: POST, PATCH or PUT that carries bytes of a blob
    COMMIT = "commit"  # C: PUT (or POST) with ?digest=
    PUT_MANIFEST = "put_manifest"  # M
    REFERRERS = "referrers"  # R
    TAGS = "tags"
    UPLOAD_STATUS = "upload_status"
    CANCEL_UPLOAD = "cancel_upload"
    DELETE = "delete"
    OTHER = "other"


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One request. Recorded when its head has arrived; `status` is 0 until an answer was begun."""

    method: str
    path: str
    """As sent, without the query."""
    query: str = field(repr=False)
    """As sent, byte by byte."""
    phases: tuple[Phase, ...]
    repository: str = ""
    reference: str = ""
    """The tag or digest that the path names."""
    authorized: bool = False
    """An Authorization header came with it."""
    host: str = ""
    headers: Mapping[str, str] = field(repr=False, default_factory=dict)
    at: float = 0.0
    """When its head arrived, by the registry's clock."""
    connection: str = ""
    """Names the TCP connection, unlike any other of this run."""
    reused: bool = False
    """Not the first request of its connection."""
    status: int = 0
    bytes_in: int = 0
    """Of the body, as far as they were read."""
    bytes_out: int = 0
    """Of the body, as far as they were written."""
    done: bool = False

    @property
    def phase(self) -> Phase:
        """The first of `phases`."""
        return self.phases[0]


class Ledger:
    """The requests in order of arrival, with counts per phase."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.max_concurrent: Counter[Phase] = Counter()
        self._active: Counter[Phase] = Counter()
        self._connections: Counter[str] = Counter()
        self._changed: anyio.Event | None = None

    def begin(self, request: Request) -> Request:
        """Records a request whose head has arrived."""
        self._connections[request.connection] += 1
        request.reused = self._connections[request.connection] > 1
        self.requests.append(request)
        for phase in request.phases:
            self._active[phase] += 1
            self.max_concurrent[phase] = max(self.max_concurrent[phase], self._active[phase])
        self._notify()
        return request

    def finish(self, request: Request) -> None:
        """The answer is out, or the connection gone."""
        request.done = True
        for phase in request.phases:
            self._active[phase] -= 1
        self._notify()

    def select(self, *phases: Phase | str) -> list[Request]:
        """The requests of any of the phases; all of them without an argument."""
        wanted = {Phase(phase) for phase in phases}
        return [r for r in self.requests if not wanted or not wanted.isdisjoint(r.phases)]

    def count(self, *phases: Phase | str) -> int:
        """How many requests of any of the phases have arrived."""
        return len(self.select(*phases))

    def bytes_out(self, *phases: Phase | str) -> int:
        """Body bytes written in answers."""
        return sum(request.bytes_out for request in self.select(*phases))

    def bytes_in(self, *phases: Phase | str) -> int:
        """Body bytes read from requests."""
        return sum(request.bytes_in for request in self.select(*phases))

    @property
    def connections(self) -> int:
        """How many different connections brought requests."""
        return len(self._connections)

    @property
    def active(self) -> int:
        """Requests that are being answered."""
        return sum(not request.done for request in self.requests)

    def clear(self) -> None:
        """Forgets finished requests and the maxima; those under way stay."""
        self.requests = [request for request in self.requests if not request.done]
        self.max_concurrent = Counter(self._active)

    async def wait_for(self, predicate: Callable[[Request], bool], *, count: int = 1) -> Request:
        """The `count`-th request that satisfies the predicate, as soon as there is one (it is asked again when a request ends)."""
        while True:
            found = _nth(filter(predicate, self.requests), count)
            if found is not None:
                return found
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


def _nth(found: Iterable[Request], count: int) -> Request | None:
    for number, request in enumerate(found, start=1):
        if number == count:
            return request
    return None
