"""The configuration file: YAML without surprises.

Duplicate keys are refused, because the second would silently win. Messages never show the file's text.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from copycat.errors import Problem

__all__ = ["read_document"]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, after its own keys (not those merged into it by `<<`) were compared."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'the key "{key.value}" is there twice', key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_document(path: str) -> dict[str, Any] | None:
    """The file's mapping; None if there is no such file.

    Raises:
        UnusableDocument: it cannot be read, or it is no mapping.
    """
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UnusableDocument(path, f"the configuration file cannot be read: {why}") from error
    try:
        # A SafeLoader all the same: it constructs plain values alone.
        document = yaml.load(content, Loader=_Loader)  # noqa: S506 - see above
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UnusableDocument(path, f"the file is no valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnusableDocument(path, f"the file is no valid YAML: {type(error).__name__}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UnusableDocument(path, "expected a mapping of keys")
    return document


class UnusableDocument(Exception):
    """The file cannot be used at all; `problem` says why."""

    def __init__(self, path: str, message: str) -> None:
        """Args: the file, and what is wrong with it."""
        super().__init__(message)
        self.problem = Problem(path="", message=message, origin=path)
