"""Workloads from files: what `kubectl apply -f` would take, for `copycat mirror -f` and `copycat plan -f`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

from copycat.errors import ConfigError, Problem
from copycat.kube.kinds import KINDS
from copycat.kube.workload import Workload, read

__all__ = ["ManifestFile", "read_files", "read_manifests"]

_BY_KIND = {row.kind: row for row in KINDS.values()}
#: What kubectl takes for a namespace that is not written down.
_DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """A text of YAML or JSON documents, and what messages call it."""

    name: str
    text: bytes


def read_files(files: Iterable[ManifestFile]) -> list[Workload]:
    """The workloads of all files, one for each kind, namespace and name, with the images of all that bear it.

    Jobs of one `generateName` and the same Deployment for two environments would otherwise hide each other.

    Raises:
        ConfigError: see `read_manifests`.
    """
    found: dict[tuple[str, str, str], Workload] = {}
    for file in files:
        for new in read_manifests(file.text, origin=file.name):
            key = (new.kind, new.namespace, new.name)
            found[key] = _joined(found[key], new) if key in found else new
    return list(found.values())


def _joined(first: Workload, second: Workload) -> Workload:
    return msgspec.structs.replace(
        first,
        images=tuple(dict.fromkeys(first.images + second.images)),
        pull_secrets=tuple(dict.fromkeys(first.pull_secrets + second.pull_secrets)),
    )


def read_manifests(text: bytes, *, origin: str) -> list[Workload]:
    """The workloads of the six kinds in a text of YAML or JSON documents; other kinds are passed over.

    Args: `origin` names the file in messages.

    Raises:
        ConfigError: the text is not YAML, a document is no Kubernetes object (a wrong file must not pass for
            one without images), or an object has a field of the wrong type.
    """
    try:
        documents = _documents(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = Problem(path="", message=f"not readable as YAML or JSON{where}", origin=origin)
        raise ConfigError(problem) from error
    for number, document in enumerate(documents, 1):
        if document and not (isinstance(document, dict) and document.get("kind")):
            message = f"document {number} is no Kubernetes object: it has no kind"
            raise ConfigError(Problem(path="", message=message, origin=origin))
    return [
        workload
        for item in _objects(documents)
        if (workload := _workload(item, origin)) is not None
    ]


def _documents(text: bytes) -> list[Any]:
    """All documents. JSON is YAML, but what `kubectl get -o json` writes is decoded hundreds of times faster as what it is."""
    if text.lstrip()[:1] == b"{":
        with suppress(msgspec.DecodeError):
            return [msgspec.json.decode(text)]
    # not CSafeLoader: a text that is nested too deep ends the process there
    return list(yaml.safe_load_all(text))


def _objects(documents: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if not isinstance(document, dict):
            continue
        items = document.get("items")
        kind = str(document.get("kind", ""))
        if kind.endswith("List") and isinstance(items, list):
            yield from _objects(_typed(items, kind.removesuffix("List")))
        else:
            yield document


def _typed(items: Iterable[Any], kind: str) -> Iterator[Any]:
    """The items of a list as the API answers it: a PodList's items do not say that they are Pods."""
    for item in items:
        yield {"kind": kind, **item} if kind and isinstance(item, dict) else item


def _named(item: dict[str, Any]) -> dict[str, Any]:
    """The object under the prefix that its name will be generated from, where it has no name yet."""
    metadata = item.get("metadata")
    if not isinstance(metadata, dict) or metadata.get("name"):
        return item
    prefix = str(metadata.get("generateName") or "").rstrip("-.")
    return {**item, "metadata": {**metadata, "name": prefix}} if prefix else item


def _workload(item: dict[str, Any], origin: str) -> Workload | None:
    row = _BY_KIND.get(str(item.get("kind", "")))
    if row is None:
        return None
    item = _named(item)
    metadata = item.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, dict) else ""
    try:
        workload = read(row, msgspec.json.encode(item))
    except (msgspec.DecodeError, TypeError) as error:
        problem = Problem(
            path=f"{row.kind} {name}", message=f"is not a {row.kind}: {error}", origin=origin
        )
        raise ConfigError(problem) from error
    if workload is None or workload.namespace:
        return workload
    return msgspec.structs.replace(workload, namespace=_DEFAULT_NAMESPACE)
