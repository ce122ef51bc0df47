"""Every metric of the program, in one object that the composition root makes: no global registry.

Names are a contract (docs/metrics.md). Label values are bounded: registries are the busiest
`REGISTRY_LIMIT` hosts, then `other`, because whoever may create a Pod chooses source hosts.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

__all__ = ["CONTENT_TYPE", "OTHER", "REGISTRY_LIMIT", "STATES", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: More source hosts than this share the label value `other`.
REGISTRY_LIMIT = 50
OTHER = "other"

#: The states of an image (docs/metrics.md); the gauge has a series for each from the start.
STATES: Sequence[str] = (
    "protected",
    "pending",
    "waiting_quota",
    "failed",
    "incomplete",
    "conflict",
    "tag_held",
    "tag_only",
    "denied",
    "excluded",
    "in_place",
    "dry_run",
)

_LONG = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_QUEUE = (0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800)
_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Metrics:
    """The registry and its metrics. Attributes are prometheus_client objects; `registry_label` bounds host labels."""

    def __init__(self, *, version: str, resources: Iterable[str] = ()) -> None:
        """Args: `resources` are the watched kinds (`deployments`, …), initialised to zero."""
        self.registry = CollectorRegistry()
        r = self.registry
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        GCCollector(registry=r)
        self._known_images: set[str] = set()
        image = ["image"]
        # The four of the original, `image` being the repository without tag and digest.
        self.pull_success = Counter(
            "k8s_copycat_registry_pull_success",
            "Images whose content was read in full from their source.",
            image,
            registry=r,
        )
        self.pull_error = Counter(
            "k8s_copycat_registry_pull_error",
            "Attempts that failed at the source.",
            image,
            registry=r,
        )
        self.push_success = Counter(
            "k8s_copycat_registry_push_success",
            "Images whose tag or anchor was written at the target.",
            image,
            registry=r,
        )
        self.push_error = Counter(
            "k8s_copycat_registry_push_error",
            "Attempts that failed at the target.",
            image,
            registry=r,
        )
        # Images
        self.images = Gauge("k8s_copycat_images", "Images known, by state.", ["state"], registry=r)
        self.oldest_unprotected = Gauge(
            "k8s_copycat_oldest_unprotected_image_age_seconds",
            "How long the image that waits longest for its copy has been wanted; 0 if none waits.",
            registry=r,
        )
        self.operations = Counter(
            "k8s_copycat_mirror_operations",
            "Finished attempts; `result` is success, failure or waiting (for a pull quota).",
            ["source_registry", "result", "reason"],
            registry=r,
        )
        self.duration = Histogram(
            "k8s_copycat_mirror_duration_seconds",
            "Length of an attempt.",
            ["result"],
            buckets=_LONG,
            registry=r,
        )
        self.bytes = Counter(
            "k8s_copycat_bytes", "Blob bytes moved.", ["direction", "registry"], registry=r
        )
        self.blobs = Counter(
            "k8s_copycat_blobs", "Blobs by what happened to them.", ["result"], registry=r
        )
        self.transfers = Gauge(
            "k8s_copycat_transfers_in_flight", "Blobs being moved now.", registry=r
        )
        # Registries
        self.requests = Counter(
            "k8s_copycat_registry_requests",
            "Requests answered (code 0: no answer).",
            ["registry", "method", "code"],
            registry=r,
        )
        self.request_duration = Histogram(
            "k8s_copycat_registry_request_duration_seconds",
            "Time to the answer's head.",
            ["registry", "method"],
            buckets=_SHORT,
            registry=r,
        )
        self.retries = Counter(
            "k8s_copycat_registry_retries",
            "Requests made again.",
            ["registry", "reason"],
            registry=r,
        )
        self.throttled = Counter(
            "k8s_copycat_registry_throttled_seconds",
            "Seconds for which a host asked to be left alone.",
            ["registry"],
            registry=r,
        )
        self.quota = Gauge(
            "k8s_copycat_registry_pull_quota_remaining",
            "What the registry said is left of its pull quota.",
            ["registry"],
            registry=r,
        )
        self.auth_failures = Counter(
            "k8s_copycat_registry_auth_failures",
            "Requests refused for their credentials.",
            ["registry"],
            registry=r,
        )
        # Queue and workers
        self.queue_depth = Gauge(
            "k8s_copycat_workqueue_depth", "Keys that are ready.", ["priority"], registry=r
        )
        self.queue_adds = Counter("k8s_copycat_workqueue_adds", "Keys added.", registry=r)
        self.queue_wait = Histogram(
            "k8s_copycat_workqueue_queue_duration_seconds",
            "Time from ready to taken.",
            buckets=_QUEUE,
            registry=r,
        )
        self.queue_work = Histogram(
            "k8s_copycat_workqueue_work_duration_seconds",
            "Time from taken to done.",
            buckets=_QUEUE,
            registry=r,
        )
        self.queue_longest = Gauge(
            "k8s_copycat_workqueue_longest_running_seconds",
            "Age of the attempt that runs longest.",
            registry=r,
        )
        self.workers = Gauge("k8s_copycat_workers", "Workers by state.", ["state"], registry=r)
        # Kubernetes
        self.watch_events = Counter(
            "k8s_copycat_watch_events", "Events of the watches.", ["resource", "type"], registry=r
        )
        self.watch_relists = Counter(
            "k8s_copycat_watch_relists", "Full lists.", ["resource", "reason"], registry=r
        )
        self.watch_errors = Counter(
            "k8s_copycat_watch_errors",
            "Watches and lists that failed.",
            ["resource", "reason"],
            registry=r,
        )
        self.watch_contact = Gauge(
            "k8s_copycat_watch_last_contact_timestamp_seconds",
            "When the API last sent anything.",
            ["resource"],
            registry=r,
        )
        self.watch_synced = Gauge(
            "k8s_copycat_watch_synced",
            "1 once the first list is complete.",
            ["resource"],
            registry=r,
        )
        self.watch_objects = Gauge(
            "k8s_copycat_watch_objects", "Objects known.", ["resource"], registry=r
        )
        self.rbac_denied = Gauge(
            "k8s_copycat_rbac_denied",
            "1 while the API refuses this kind.",
            ["resource"],
            registry=r,
        )
        self.leader = Gauge(
            "k8s_copycat_leader", "1 while this process works, 0 on standby.", registry=r
        )
        self.leader_transitions = Counter(
            "k8s_copycat_leader_transitions",
            "Times that this process began or ceased to lead.",
            registry=r,
        )
        # Runtime
        self.loop_lag = Histogram(
            "k8s_copycat_event_loop_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=_LAG,
            registry=r,
        )
        self.reload_successful = Gauge(
            "k8s_copycat_config_last_reload_successful",
            "1 if the configuration in use is the newest one, 0 if that was refused.",
            registry=r,
        )
        self.reload_success_time = Gauge(
            "k8s_copycat_config_last_reload_success_timestamp_seconds",
            "When the configuration in use was read, or found unchanged.",
            registry=r,
        )
        self.build_info = Gauge(
            "k8s_copycat_build_info", "1, with the version.", ["version", "python"], registry=r
        )
        self.build_info.labels(version, platform.python_version()).set(1)
        self.reload_successful.set(1)
        self._registries: set[str] = set()
        self._initialise(resources)

    def _initialise(self, resources: Iterable[str]) -> None:
        for state in STATES:
            self.images.labels(state).set(0)
        for result in ("copied", "mounted", "exists"):
            self.blobs.labels(result)
        for result in ("success", "failure", "waiting"):
            self.duration.labels(result)
        for state in ("busy", "idle"):
            self.workers.labels(state).set(0)
        for priority in ("urgent", "live", "initial", "check"):
            self.queue_depth.labels(priority).set(0)
        for resource in resources:
            for kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"):
                self.watch_events.labels(resource, kind)
            for gauge in (
                self.watch_contact,
                self.watch_synced,
                self.watch_objects,
                self.rbac_denied,
            ):
                gauge.labels(resource).set(0)

    def registry_label(self, host: str) -> str:
        """The label value for a registry's host: itself for the first `REGISTRY_LIMIT` hosts, then `other`."""
        if host in self._registries:
            return host
        if len(self._registries) < REGISTRY_LIMIT:
            self._registries.add(host)
            return host
        return OTHER

    def know_image(self, image: str) -> None:
        """Begin the four series of a repository at 0: `rate` sees no first event of a series that begins with it."""
        if image not in self._known_images:
            self._known_images.add(image)
            for counter in self._image_counters():
                counter.labels(image)

    def forget_images_but(self, images: Collection[str]) -> None:
        """Remove the four series of repositories that nothing refers to any more."""
        for image in [i for i in self._known_images if i not in images]:
            self._known_images.remove(image)
            for counter in self._image_counters():
                counter.remove(image)

    def forget_work(self) -> None:
        """Take back what only who works can know: on standby nothing would bring it up to date."""
        for state in STATES:
            self.images.labels(state).set(0)
        self.oldest_unprotected.set(0)
        self.forget_images_but(())

    def _image_counters(self) -> tuple[Counter, ...]:
        return self.pull_success, self.pull_error, self.push_success, self.push_error

    def render(self) -> bytes:
        """The exposition text. Blocks for milliseconds (it reads /proc): call it in a worker thread."""
        return generate_latest(self.registry)
