"""Where an image goes at the target: prefix, placeholders, path rules, and the target's grammar.

`<prefix>/<path>`, the path being the source's without its registry. The prefix may hold
`$namespace`, `$podname`, `$container_name`, `$registry` and `$arch`; the last one is only known once
the image is resolved, so it stays in a request's repository until `Naming.finish`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from copycat.errors import InvalidReference
from copycat.oci.digest import Digest
from copycat.oci.reference import Reference

__all__ = [
    "ARCH",
    "Naming",
    "PathRule",
    "clean",
    "expand_go_template",
    "incomplete_tag",
    "subset_tag",
]

ARCH = "$arch"
_PLACEHOLDER = re.compile(r"\$(container_name|namespace|podname|registry|arch)")
_SEPARATORS = re.compile(r"[._-]+")
_KEPT_SEPARATOR = re.compile(r"\.|__?|-+")
_GO_REFERENCE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRule:
    """One row of pathMap: a prefix of the path, or a regular expression, and what takes its place."""

    source: str
    target: str
    pattern: re.Pattern[str] | None = None

    def apply(self, path: str) -> str | None:
        """The rewritten path, or None if the rule does not match."""
        if self.pattern is None:
            return self.target + path[len(self.source) :] if path.startswith(self.source) else None
        if self.pattern.search(path) is None:
            return None
        return self._replaced(self.pattern, path)

    def _replaced(self, pattern: re.Pattern[str], path: str) -> str:
        """Go's `ReplaceAllString`: an empty match right after another match does not count, so `(.*)` matches once."""
        parts, end, matched = [], 0, False
        for match in pattern.finditer(path):
            if matched and match.start() == match.end() == end:
                continue
            parts += [path[end : match.start()], expand_go_template(self.target, match)]
            end, matched = match.end(), True
        return "".join([*parts, path[end:]])


def expand_go_template(template: str, match: re.Match[str]) -> str:
    """Go's `Regexp.Expand`: `$1`, `${name}`, `$$`; a group that does not exist is empty, `$1x` means `${1x}`."""

    def value(reference: re.Match[str]) -> str:
        name = reference.group(1) or reference.group(2)
        if name is None:
            return "$"
        try:
            return match.group(int(name) if name.isdecimal() else name) or ""
        except IndexError:
            return ""

    return _GO_REFERENCE.sub(value, template)


def clean(path: str, *, max_length: int = 255) -> str:
    """Bring a path to the grammar of repository names: lower case, foreign characters to `-`, no empty parts.

    A path over `max_length` is cut and ends in a hash of the whole, so that two of them stay apart.
    """
    text = re.sub(r"[^a-z0-9_/.-]", "-", path.lower()).strip("-/.")
    whole = "/".join(part for part in map(_component, text.split("/")) if part)
    if len(whole) <= max_length:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return whole[: max_length - 9].rstrip("._-/") + "-" + digest


def _component(text: str) -> str:
    text = text.strip("._-")
    return _SEPARATORS.sub(
        lambda run: run.group() if _KEPT_SEPARATOR.fullmatch(run.group()) else "-", text
    )


def subset_tag(root_hex: str, platforms: Collection[object]) -> str:
    """The marker tag of a narrowed copy: which source root, and which of its platforms."""
    wanted = ",".join(sorted(str(p) for p in platforms))
    return f"subset-{root_hex[:40]}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"


def incomplete_tag(root: Digest) -> str:
    """The marker tag of a root that stands without its foreign layers, in place of the anchor."""
    return f"incomplete-{root.hex[:64]}"


class Naming:
    """The rules of one configuration. Pure: the same image and workload always give the same name."""

    def __init__(
        self, *, prefix: str = "", rules: Sequence[PathRule] = (), max_length: int = 255
    ) -> None:
        """Args: `max_length` is the target's limit for a repository name."""
        self._prefix = prefix
        self._rules = tuple(rules)
        self._max_length = max_length
        self.needs_architecture = ARCH in prefix
        # in a segment with another placeholder two namespaces could come to one name
        self.separates_namespaces = any(
            _PLACEHOLDER.findall(segment) == ["namespace"] for segment in prefix.split("/")
        )
        self.per_workload = any(p in prefix for p in ("$namespace", "$podname", "$container_name"))

    def repository(
        self, reference: Reference, *, namespace: str = "", owner: str = "", container: str = ""
    ) -> str:
        """The repository for an image as this workload uses it; `$arch` stays.

        Raises:
            InvalidReference: prefix and rules leave no name.
        """
        values = {
            "namespace": namespace,
            "podname": owner,
            "container_name": container,
            # a host has no underscore, so host:5000 and a host named host-5000 stay apart
            "registry": re.sub(r":(\d+)$", r"__\1", reference.registry),
            "arch": ARCH,
        }
        prefix = _PLACEHOLDER.sub(lambda match: values[match.group(1)], self._prefix)
        whole = f"{prefix}/{self._path(reference.repository)}"
        return whole if self.needs_architecture else self._clean(whole)

    def finish(self, repository: str, architectures: Collection[str] = ()) -> str:
        """The repository with `$arch` replaced by the architectures, sorted and joined by `-`."""
        if ARCH not in repository:
            return repository
        return self._clean(repository.replace(ARCH, "-".join(sorted(set(architectures)))))

    def _path(self, path: str) -> str:
        for rule in self._rules:
            rewritten = rule.apply(path)
            if rewritten is not None:
                return rewritten
        return path

    def _clean(self, path: str) -> str:
        name = clean(path, max_length=self._max_length)
        if not name:
            raise InvalidReference(
                "repoPrefix and pathMap leave no name for the copy at the target; a rule of pathMap that fits"
                " the image has to keep some of its path",
                side="config",
            )
        return name
