"""What the configuration and the API leave out, in words: an owner must know what has no copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from copycat.app.wiring import selection_of
from copycat.config.settings import Settings
from copycat.kube.kinds import KINDS

__all__ = ["uncovered"]


def uncovered(settings: Settings, denied: Iterable[str]) -> Sequence[str]:
    """What is not watched. Args: `denied` are the resources that the API refuses now."""
    namespaces = selection_of(settings).literal_namespaces()
    words = []
    if namespaces is not None:
        words.append(f"namespaces other than {', '.join(namespaces) or 'none'}")
    elif settings.include_namespaces != ("*",):
        words.append(f"namespaces that do not match {', '.join(settings.include_namespaces)}")
    if settings.skip_namespaces:
        words.append(f"namespaces that match {', '.join(settings.skip_namespaces)}")
    words += [f"{r} (not in watchResources)" for r in KINDS if r not in settings.watch_resources]
    words += sorted({f"{resource} (no permission to list and watch)" for resource in denied})
    return words
