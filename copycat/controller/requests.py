"""Which request an image is, as a workload uses it. Remembered: it is asked for every container of every event."""

from __future__ import annotations

from copycat.errors import InvalidReference
from copycat.kube.workload import Workload
from copycat.mirror.naming import Naming
from copycat.mirror.request import MirrorRequest
from copycat.oci.reference import Reference

__all__ = ["EXTRA", "Requests"]

#: The kind of what uses an image because the configuration says so (extraImages, `copycat mirror`).
EXTRA = "Configuration"
_REMEMBERED = 50_000


class Requests:
    """Parses and names."""

    def __init__(self, *, naming: Naming, target_registry: str) -> None:
        """Args: what is at `target_registry` is the copy itself and keeps its name."""
        self._naming = naming
        self._target_registry = target_registry
        self._parsed: dict[str, Reference | str] = {}
        self._named: dict[tuple[str, ...], MirrorRequest] = {}

    def request(self, image: str, workload: Workload, container: str) -> MirrorRequest:
        """The unit of work for an image as a workload uses it.

        Raises:
            InvalidReference: the text names no image.
        """
        key: tuple[str, ...] = (image,)
        if workload.kind == EXTRA:
            key = (image, EXTRA)
        elif self._naming.per_workload:
            key = (image, workload.namespace, workload.owner_name, container)
        known = self._named.get(key)
        if known is None:
            known = self._name(self._reference(image), workload, container)
            if len(self._named) >= _REMEMBERED:
                self._named.clear()
            self._named[key] = known
        return known

    def _name(self, reference: Reference, workload: Workload, container: str) -> MirrorRequest:
        if reference.registry == self._target_registry:
            return MirrorRequest(reference, reference.repository)
        if workload.kind == EXTRA:
            return MirrorRequest(reference, self._naming.repository(reference))
        repository = self._naming.repository(
            reference,
            namespace=workload.namespace,
            owner=workload.owner_name,
            container=container,
        )
        return MirrorRequest(reference, repository)

    def _reference(self, image: str) -> Reference:
        known = self._parsed.get(image)
        if known is None:
            try:
                known = Reference.parse(image)
            except InvalidReference as error:
                known = str(error)
            if len(self._parsed) >= _REMEMBERED:
                self._parsed.clear()
            self._parsed[image] = known
        if isinstance(known, str):
            raise InvalidReference(known, reference=image)
        return known
