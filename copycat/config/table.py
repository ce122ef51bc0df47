"""Every setting, with its default and its meaning: the one table that all else about configuration reads.

The order is that of the reference documentation.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from copycat.config.keys import Key, Part
from copycat.config.parts import (
    Docker,
    Ecr,
    PathMapRule,
    RegistryCredential,
    RegistryHost,
    SkipNames,
)
from copycat.config.readers import (
    RESOURCES,
    IncludedNamespaces,
    LeaseName,
    OptionalBoolean,
    PullSecrets,
    Resources,
    WantedPlatforms,
)
from copycat.config.values import (
    Address,
    Boolean,
    Cooldown,
    Count,
    Duration,
    Hosts,
    Images,
    Namespaces,
    Platforms,
    Positive,
    Prefixes,
    Quota,
    Size,
    Text,
    Texts,
    choice,
)

__all__ = ["LogLevel", "Table"]

LogLevel = Literal["debug", "info", "warn", "error", "dpanic", "panic", "fatal"]


class Table(Part):
    """All keys."""

    target_kind: Annotated[
        Literal["ecr", "docker"],
        choice("ecr", "docker"),
        Key(
            "What the target is: `ecr` (AWS ECR) or `docker` (any other registry).",
            env=("TARGET_KIND",),
            section="The target",
        ),
    ] = "ecr"
    ecr: Annotated[Ecr, Key("The target, if it is AWS ECR.")] = Field(default_factory=Ecr)
    docker: Annotated[Docker, Key("The target, if it is any other registry.")] = Field(
        default_factory=Docker
    )
    path_map: Annotated[
        tuple[PathMapRule, ...],
        Key("Rules that rewrite the path of repositories; the first that matches is applied."),
    ] = ()
    allow_different_digest_repush: Annotated[
        Boolean,
        Key(
            "`false`: a tag that exists at the target with another digest stays (`latest` excepted); the new content "
            "is kept under its digest, with the state `tag_held`.",
            env=("ALLOW_DIFFERENT_DIGEST_REPUSH",),
        ),
    ] = True
    overwrite_foreign_tags: Annotated[
        Boolean,
        Key(
            "`false`: a tag at the target that copycat did not write is a conflict, and stays.",
            env=("OVERWRITE_FOREIGN_TAGS",),
        ),
    ] = True

    include_namespaces: Annotated[
        IncludedNamespaces,
        Key(
            "Namespaces that are looked at: names and wildcards (`team-*`). Namespaces that come later count.",
            env=("INCLUDE_NAMESPACES",),
            section="What is mirrored",
        ),
    ] = ("*",)
    skip_namespaces: Annotated[
        Namespaces,
        Key(
            "Namespaces that are left out; wins over `includeNamespaces`.", env=("SKIP_NAMESPACES",)
        ),
    ] = ()
    skip_names: Annotated[SkipNames, Key("Workloads that are left out.")] = Field(
        default_factory=SkipNames
    )
    watch_resources: Annotated[
        Resources,
        Key(
            "Kinds of workloads that are watched, in any case.",
            env=("WATCH_RESOURCES",),
            default="all six",
        ),
    ] = RESOURCES
    exclude_registries: Annotated[
        Prefixes,
        Key(
            "Registries that are left alone: a host, or a host and a path (`ghcr.io/team` does not mean "
            "`ghcr.io/team-b`). `docker.io` means every spelling of Docker Hub.",
            env=("EXCLUDE_REGISTRIES",),
        ),
    ] = ()
    allowed_registries: Annotated[
        Prefixes,
        Key(
            "If set, no other registry is contacted; images from others are shown as `denied`.",
            env=("ALLOWED_REGISTRIES",),
            default="[] = all",
        ),
    ] = ()
    extra_images: Annotated[
        Images,
        Key(
            "Images that are mirrored besides what runs: pause images, images of nodes, of charts to come.",
            env=("EXTRA_IMAGES",),
        ),
    ] = ()

    digest_pull: Annotated[
        Boolean,
        Key(
            "Copy under a Pod's tag what the Pod really runs (the digest in its status) rather than what the registry "
            "says about the tag now.",
            env=("DIGEST_PULL",),
            section="Digests and platforms",
        ),
    ] = False
    digest_pull_ignored_tags: Annotated[
        Texts, Key("Tags that `digestPull` does not hold for.", env=("DIGEST_PULL_IGNORED_TAGS",))
    ] = ()
    check_node_platform: Annotated[
        Boolean,
        Key(
            "Of a tag's index, copy only the platforms of the nodes that run it. Needs to list and watch nodes, or at least to get them.",
            env=("CHECK_NODE_PLATFORM",),
        ),
    ] = False
    mirror_platforms: Annotated[
        WantedPlatforms,
        Key(
            "Of a tag's index, copy only these platforms (`linux/arm64`). References with a digest are copied whole.",
            env=("MIRROR_PLATFORMS",),
            default="all",
        ),
    ] = ()
    ignore_missing_platforms: Annotated[
        Platforms,
        Key(
            "Platforms of nodes that are skipped, not a failure, where an index lacks them.",
            env=("IGNORE_MISSING_PLATFORMS",),
        ),
    ] = ()
    signatures: Annotated[
        Literal["none", "tags", "referrers", "all"],
        choice("none", "tags", "referrers", "all", also={False: "none", "off": "none"}),
        Key(
            "Which signatures, attestations and SBOMs follow an image: `none`, `tags` (cosign's), `referrers` (OCI) or "
            "`all`. What they cost in requests: docs/signatures.md.",
            env=("SIGNATURES",),
        ),
    ] = "all"

    dry_run: Annotated[
        Boolean,
        Key(
            "Say what would be copied, but write nothing.",
            env=("DRY_RUN",),
            flag="--dry-run",
            section="Dry modes",
        ),
    ] = False
    dry_pull: Annotated[
        Boolean,
        Key("Make no request to any source registry.", env=("DRY_PULL",), flag="--dry-pull"),
    ] = False

    force_reconcile_minutes: Annotated[
        Count,
        Key(
            "How often everything is looked at anew, at source and target. `0` turns it off.",
            env=("FORCE_RECONCILE_MINUTES",),
            section="Time",
        ),
    ] = 0
    target_check_minutes: Annotated[
        Count,
        Key(
            "How often each copy is looked for at the target; spread over that time. `0` turns it off.",
            env=("TARGET_CHECK_MINUTES",),
        ),
    ] = 1440
    tag_refresh_minutes: Annotated[
        Count,
        Key(
            "How often each source is asked whether a tag moved; spread over that time. `0` turns it off.",
            env=("TAG_REFRESH_MINUTES",),
        ),
    ] = 1440
    failure_cooldown_minutes: Annotated[
        Cooldown,
        Key(
            "How long an image that failed for good is left alone. A number: always that long, `0`: not at all. "
            "Not set: 1, 5, 15, 60, 240, then 1440 minutes.",
            env=("FAILURE_COOLDOWN_MINUTES",),
            default="growing to 1440",
        ),
    ] = None
    request_timeout: Annotated[
        Duration,
        Key(
            "The longest wait for an answer and the longest silence of a transfer, in seconds or as a Go duration "
            "(`2m`). A transfer that moves is never cut. `0` turns it off.",
            env=("REGISTRY_REQUEST_TIMEOUT",),
        ),
    ] = 120.0
    registry_retry_attempts: Annotated[
        Positive,
        Key("Tries of a registry request, the first included.", env=("REGISTRY_RETRY_ATTEMPTS",)),
    ] = 5
    registry_retry_backoff: Annotated[
        Duration,
        Key(
            "Delay before the second try, in seconds or as a Go duration; doubles, with jitter.",
            env=("REGISTRY_RETRY_BACKOFF",),
        ),
    ] = 1.0
    shutdown_grace_seconds: Annotated[
        Duration,
        Key("How long running copies may go on after SIGTERM.", env=("SHUTDOWN_GRACE_SECONDS",)),
    ] = 20.0

    max_concurrent_reconciles: Annotated[
        Positive,
        Key(
            "Workers per watched kind; all of them serve one queue.",
            env=("MAX_CONCURRENT_RECONCILES",),
            section="Limits",
        ),
    ] = 2
    max_transfers: Annotated[
        Positive, Key("Blobs in flight over all images.", env=("MAX_TRANSFERS",))
    ] = 16
    registry_concurrency: Annotated[
        Positive,
        Key(
            "Blob streams at a time per host.",
            env=("REGISTRY_CONCURRENCY",),
            default="16, docker.io 4",
        ),
    ] = 16
    max_bandwidth: Annotated[
        Size,
        Key(
            "Bytes a second over all transfers (`50Mi`); a byte that is read and sent on counts once. `0` is no limit.",
            env=("MAX_BANDWIDTH",),
        ),
    ] = 0
    pull_quota_reserve: Annotated[
        Quota,
        Key(
            "Share of a registry's advertised pull quota that is left to the nodes (`50%` or `0.5`). Images that would "
            "eat into it wait (`waiting_quota`). `0` leaves nothing.",
            env=("PULL_QUOTA_RESERVE",),
            default="50 % anonymous, 20 % with credentials",
        ),
    ] = None

    registry_credentials: Annotated[
        tuple[RegistryCredential, ...],
        Key("Credentials for source registries.", section="Registries"),
    ] = ()
    registries: Annotated[tuple[RegistryHost, ...], Key("How single registries are reached.")] = ()
    insecure_registries: Annotated[
        Hosts,
        Key(
            "Hosts whose TLS is not verified, or that may speak plain HTTP if they know no TLS.",
            env=("INSECURE_REGISTRIES",),
        ),
    ] = ()
    registry_ca_file: Annotated[
        Text,
        Key(
            "PEM bundle that is trusted for every registry beside the system's.",
            env=("REGISTRY_CA_FILE",),
        ),
    ] = ""
    deny_private_networks: Annotated[
        Boolean,
        Key(
            "Refuse connections to private addresses for registries that the configuration does not name.",
            env=("DENY_PRIVATE_NETWORKS",),
        ),
    ] = False
    pull_secrets: Annotated[
        PullSecrets,
        Key(
            "Whose image pull secrets are read, by `get` and only for images of their namespace whose source refuses "
            "without: `off`, `all`, a list of namespaces, or `auto`: those of includeNamespaces if these are plain names, "
            "none where it has wildcards. A workload's own secrets count, else those of its ServiceAccount. "
            "The chart grants what the setting needs.",
            env=("PULL_SECRETS",),
        ),
    ] = "auto"
    private_images: Annotated[
        Literal["separate", "shared"],
        choice("separate", "shared"),
        Key(
            "`separate`: what needed a namespace's pull secret is copied only under a prefix with `$namespace` in a path "
            "segment of its own, and is `denied` else. `shared`: every reader of the mirror may read it.",
            env=("PRIVATE_IMAGES",),
        ),
    ] = "separate"

    metrics_addr: Annotated[
        Address,
        Key(
            "Listener of `/metrics`, and of the actions for those who have a token. `0` turns it off.",
            env=("METRICS_ADDR",),
            restart=True,
            flag="--metrics-bind-address",
            section="Operation",
        ),
    ] = ":8080"
    health_addr: Annotated[
        Address,
        Key(
            "Listener of `/healthz` and `/readyz`. `0` turns it off.",
            env=("HEALTH_ADDR",),
            restart=True,
            flag="--health-probe-bind-address",
        ),
    ] = ":8081"
    admin_addr: Annotated[
        Address,
        Key(
            "Loopback listener of the actions, the API and the status page, for `kubectl port-forward`. `0` turns it off.",
            env=("ADMIN_ADDR",),
            restart=True,
        ),
    ] = "127.0.0.1:8082"
    admin_auth: Annotated[
        Literal["auto", "open"],
        choice("auto", "open"),
        Key(
            "`auto`: listeners that are not on loopback want a token for actions, API and page. `open`: they do not.",
            env=("ADMIN_AUTH",),
            restart=True,
        ),
    ] = "auto"
    admin_token_file: Annotated[
        Text,
        Key(
            "A file with the accepted tokens, one a line; read again when it changes. Without it, listeners that are "
            "not on loopback refuse actions.",
            env=("ADMIN_TOKEN_FILE",),
            restart=True,
        ),
    ] = ""
    log_level: Annotated[
        LogLevel,
        choice(
            "debug", "info", "warn", "error", "dpanic", "panic", "fatal", also={"warning": "warn"}
        ),
        Key("What is logged at least.", env=("LOG_LEVEL",), flag="--zap-log-level"),
    ] = "info"
    log_format: Annotated[
        Literal["json", "text"],
        choice("json", "text", also={"console": "text"}),
        Key(
            "`json` for machines, `text` for people.",
            env=("LOG_FORMAT",),
            restart=True,
            flag="--zap-encoder",
        ),
    ] = "json"
    leader_elect: Annotated[
        OptionalBoolean,
        Key(
            "Whether replicas agree on one that works, by a Lease.",
            env=("LEADER_ELECT",),
            restart=True,
            flag="--leader-elect",
            default="true in a cluster, false with a kubeconfig",
        ),
    ] = None
    lease_name: Annotated[
        LeaseName, Key("Name of the Lease.", env=("LEASE_NAME",), restart=True)
    ] = "k8s-copycat"
