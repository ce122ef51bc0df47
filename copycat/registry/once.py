"""A warning that is said once, however often the requests of an hour run into the same trouble."""

from __future__ import annotations

from collections.abc import Hashable

from copycat.logs import get_logger

__all__ = ["Once"]

#: Troubles that are remembered; with more, the oldest may be told again.
MEMORY = 256


class Once:
    """Warns of each trouble when it begins, and when it says something new."""

    def __init__(self, logger: str) -> None:
        """Args: the logger's name."""
        self._log = get_logger(logger)
        self._told: dict[Hashable, str] = {}

    def warn(self, about: Hashable, event: str, **fields: str) -> None:
        """Warn, unless the last words about this were the same."""
        text = repr((event, fields))
        if self._told.get(about) == text:
            return

        if len(self._told) >= MEMORY:
            del self._told[next(iter(self._told))]

        self._told[about] = text
        self._log.warning(event, **fields)

    def over(self, about: Hashable) -> None:
        """It is well again: the next trouble is told, even if it is the same."""
        self._told.pop(about, None)
