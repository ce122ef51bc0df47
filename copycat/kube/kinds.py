"""The table of watched kinds: a kind more is a row more, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A row of the table of watched kinds."""

    resource: str
    """Plural, lower case: `deployments`. The word of WATCH_RESOURCES, of metrics and of URLs."""
    kind: str
    """`Deployment`."""
    group_path: str
    """`/apis/apps/v1`."""
    template: tuple[str, ...]
    """Attributes that lead from an object to its pod template; empty where the object is a Pod itself."""
    field_selector: str = ""
    """What the server is asked to leave out."""

    def path(self, namespace: str = "") -> str:
        """The collection's URL path: of one namespace, or of the cluster."""
        scope = f"/namespaces/{namespace}" if namespace else ""
        return f"{self.group_path}{scope}/{self.resource}"


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        row.resource: row
        for row in (
            Kind(
                resource="deployments",
                kind="Deployment",
                group_path="/apis/apps/v1",
                template=("spec", "template"),
            ),
            Kind(
                resource="statefulsets",
                kind="StatefulSet",
                group_path="/apis/apps/v1",
                template=("spec", "template"),
            ),
            Kind(
                resource="daemonsets",
                kind="DaemonSet",
                group_path="/apis/apps/v1",
                template=("spec", "template"),
            ),
            Kind(
                resource="jobs",
                kind="Job",
                group_path="/apis/batch/v1",
                template=("spec", "template"),
            ),
            Kind(
                resource="cronjobs",
                kind="CronJob",
                group_path="/apis/batch/v1",
                template=("spec", "job_template", "spec", "template"),
            ),
            Kind(
                resource="pods",
                kind="Pod",
                group_path="/api/v1",
                template=(),
                # Finished Pods dominate batch clusters; an object that finishes arrives as DELETED.
                field_selector="status.phase!=Succeeded,status.phase!=Failed",
            ),
        )
    }
)
