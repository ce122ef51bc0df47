"""What part of a collection a request asks for, and how the changes in it look from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from copycat.sandbox.kube_rules import Refusal
from copycat.sandbox.kube_store import Change, ChangeType, Stored

__all__ = ["View"]

_FIELDS = {
    "metadata.name": "name",
    "metadata.namespace": "namespace",
    "status.phase": "phase",
    "spec.nodeName": "node",
}


@dataclass(frozen=True, slots=True)
class View:
    """A namespace (or all) and a field selector."""

    namespace: str
    conditions: tuple[tuple[str, bool, str], ...] = ()
    """Attribute of Stored, whether it has to be equal, value."""

    @classmethod
    def of(cls, namespace: str, query: Mapping[str, str]) -> View:
        """Read the selectors of a request; raises Refusal 400 for one that is not known."""
        if query.get("labelSelector"):
            raise Refusal(400, "the sandbox knows no label selectors")
        parts = [p for p in query.get("fieldSelector", "").split(",") if p]
        return cls(namespace, tuple(_condition(part) for part in parts))

    def matches(self, item: Stored | None) -> bool:
        """Whether an object is seen."""
        if item is None or self.namespace not in {"", item.namespace}:
            return False
        return all(
            (getattr(item, attribute) == value) is equal
            for attribute, equal, value in self.conditions
        )

    def event(self, change: Change) -> tuple[ChangeType, Stored] | None:
        """What a watch is told of a change: an object that leaves the selector is DELETED."""
        before, after = change.before, change.after
        was, now = self.matches(before), self.matches(after)
        if now and after is not None:
            return ("MODIFIED" if was else "ADDED"), after
        if not was or before is None:
            return None
        if before.version == change.version:
            return "DELETED", before
        return "DELETED", Stored.of(before.decode(), change.version)


def _condition(text: str) -> tuple[str, bool, str]:
    field, operator, value = text.partition("!=")
    if not operator:
        field, operator, value = text.partition("=")
    if field not in _FIELDS:
        raise Refusal(400, f"field label not supported: {field}")
    return _FIELDS[field], operator == "=", value.removeprefix("=")
