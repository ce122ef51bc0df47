"""What the sandbox's Kubernetes API refuses: permissions, faults on demand, and the Status objects that say so."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from aiohttp import web

from copycat.sandbox.kube_store import RESOURCES, Object

__all__ = ["Access", "Fault", "Faults", "Refusal", "Rule", "status_object"]

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def status_object(code: int, message: str, *, reason: str = "") -> Object:
    """The Status that the API sends as the body of a refusal, or in an ERROR event."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason or _REASONS.get(code, ""),
        "code": code,
    }


class Refusal(Exception):
    """An answer other than success."""

    def __init__(
        self, code: int, message: str, *, reason: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Args: `code` is the HTTP status."""
        super().__init__(message)
        self.code = code
        self.body = msgspec.json.encode(status_object(code, message, reason=reason))
        self.headers = dict(headers or {})

    def response(self) -> web.Response:
        """The HTTP answer."""
        return web.Response(
            status=self.code,
            body=self.body,
            content_type="application/json",
            headers=self.headers,
        )


class Fault(StrEnum):
    """What can go wrong once, on demand."""

    #: Faults of an open watch.
    ABORT = "abort"
    STALL = "stall"
    TRUNCATE = "truncate"
    END = "end"
    ERROR_410 = "error410"
    ERROR_500 = "error500"
    ERROR_504 = "error504"
    GARBAGE = "garbage"
    UNKNOWN_EVENT = "unknown_event"
    #: Answers to the request for a watch.
    WATCH_400 = "watch400"
    WATCH_410 = "watch410"
    WATCH_429 = "watch429"
    WATCH_500 = "watch500"
    WATCH_504 = "watch504"
    WATCH_ABORT = "watch_abort"
    #: Answers to a list.
    LIST_429 = "list429"
    LIST_500 = "list500"
    LIST_ABORT = "list_abort"
    LIST_HTML = "list_html"
    CONTINUE_410 = "continue410"
    #: Answer to a request that writes.
    CONFLICT = "conflict"
    #: Answer 200 to a get or a list, with what is no JSON.
    NO_JSON = "no_json"


class Faults:
    """Faults that wait for the request or watch that they are meant for."""

    def __init__(self) -> None:
        """Start with none."""
        self._waiting: list[tuple[Fault, str]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, fault: Fault, resource: str, times: int) -> None:
        """Let a fault happen; an empty resource means the first that comes."""
        self._waiting += [(fault, resource)] * times

    def clear(self) -> None:
        """Take back those that have not happened."""
        self._waiting.clear()

    def take(self, faults: Collection[Fault], resource: str) -> Fault | None:
        """The next of these faults that is meant for the kind, if there is one; it is used up."""
        for index, (fault, wanted) in enumerate(self._waiting):
            if fault in faults and wanted in {"", resource}:
                del self._waiting[index]
                return fault
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A permission, or its withdrawal. `*` stands for everything; no namespace for all of them."""

    resources: frozenset[str]
    verbs: frozenset[str] = frozenset({"*"})
    namespace: str | None = None
    names: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        resources: Iterable[str],
        verbs: Iterable[str] = ("*",),
        namespace: str | None = None,
        names: Iterable[str] = (),
    ) -> Rule:
        """Build one from any iterables."""
        return cls(
            resources=frozenset(resources),
            verbs=frozenset(verbs),
            namespace=namespace,
            names=frozenset(names),
        )

    def covers(self, verb: str, resource: str, namespace: str, name: str) -> bool:
        """Whether the rule speaks of this request; one for all namespaces has `namespace` ""."""
        return (
            not self.resources.isdisjoint({"*", resource})
            and not self.verbs.isdisjoint({"*", verb})
            and self.namespace in {None, namespace}
            and (not self.names or name in self.names)
        )


class Access:
    """Who may do what: tokens that are accepted, and rules."""

    def __init__(self) -> None:
        """Everybody may do everything."""
        self.tokens: set[str] | None = None
        """Accepted bearer tokens; None asks for none."""
        self.rules: list[Rule] | None = None
        """What is allowed; None allows everything."""
        self.denials: list[Rule] = []
        """What is refused whatever the rules say."""

    def allowed(self, verb: str, resource: str, namespace: str, name: str) -> bool:
        """Whether the rules let the request pass."""
        request = (verb, resource, namespace, name)
        granted = self.rules is None or any(rule.covers(*request) for rule in self.rules)
        return granted and not any(rule.covers(*request) for rule in self.denials)

    def check_token(self, authorization: str) -> None:
        """Raises Refusal 401."""
        if self.tokens is not None and authorization.removeprefix("Bearer ") not in self.tokens:
            raise Refusal(401, "Unauthorized")

    def check(self, verb: str, resource: str, namespace: str, name: str) -> None:
        """Raises Refusal 403, in the words of the real one."""
        if not self.allowed(verb, resource, namespace, name):
            where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            named = f' "{name}"' if name else ""
            group = RESOURCES[resource].group if resource in RESOURCES else ""
            message = (
                f'{resource}{named} is forbidden: User "sandbox" cannot {verb} resource'
                f' "{resource}" in API group "{group}" {where}'
            )
            raise Refusal(403, message)
