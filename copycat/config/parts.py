"""The nested parts of the configuration: targets, skip lists, and the entries of its lists."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from copycat.config.keys import Key, Part, misplaced
from copycat.config.readers import (
    NO_SECRET,
    AccountId,
    CreateRepo,
    Endpoints,
    OptionalBoolean,
    OptionalHost,
    Region,
    RepoPrefix,
    Required,
    RoleArn,
    Secret,
    Variable,
)
from copycat.config.regex import compile_go
from copycat.config.values import (
    Boolean,
    Host,
    JsonText,
    Names,
    Namespaces,
    Positive,
    Text,
    Texts,
    choice,
)
from copycat.registry.ecr.settings import EcrSettings
from copycat.registry.globs import go_match

__all__ = [
    "Docker",
    "Ecr",
    "PathMapRule",
    "RegistryCredential",
    "RegistryHost",
    "SkipNames",
]


class Ecr(Part):
    """The target, if it is AWS ECR."""

    account_id: Annotated[
        AccountId,
        Key(
            "The AWS account of the target.",
            env=("ECR_ACCOUNT_ID",),
            default="required for ecr",
        ),
    ] = ""
    region: Annotated[
        Region,
        Key(
            "The region of the target. `ECR_REGION` is for targets in another "
            "region than the cluster's: EKS sets `AWS_REGION` by itself.",
            env=("ECR_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
            default="required for ecr",
        ),
    ] = ""
    repo_prefix: Annotated[
        RepoPrefix,
        Key(
            "Put before every repository's path. May hold `$namespace`, `$podname`, `$container_name`, `$arch` and "
            "`$registry`; empty parts vanish.",
            env=("ECR_REPO_PREFIX",),
        ),
    ] = ""
    create_repo: Annotated[
        CreateRepo,
        Key(
            "Whether repositories that are missing are created: `true`, `false`, or `on-push` where a repository "
            "creation template of the account makes them.",
            env=("ECR_CREATE_REPO",),
        ),
    ] = True
    lifecycle_policy: Annotated[
        JsonText,
        Key(
            "The JSON text of a lifecycle policy, put on repositories that copycat creates. A rule that can expire "
            "what is in use is warned about: keep the tags that begin with `digest-`."
        ),
    ] = ""
    assume_role_arn: Annotated[
        RoleArn,
        Key(
            "A role to assume on top of the credentials of the pod, for a target in another account."
        ),
    ] = ""
    endpoint: Annotated[
        OptionalHost,
        Key(
            "The registry's host in place of `<account>.dkr.ecr.<region>.amazonaws.com`, for VPC endpoints.",
            env=("ECR_ENDPOINT",),
        ),
    ] = ""
    tag_mutability: Annotated[
        Literal["", "MUTABLE", "IMMUTABLE", "MUTABLE_WITH_EXCLUSION", "IMMUTABLE_WITH_EXCLUSION"],
        choice("", "MUTABLE", "IMMUTABLE", "MUTABLE_WITH_EXCLUSION", "IMMUTABLE_WITH_EXCLUSION"),
        Key("Tag mutability of repositories that copycat creates.", default="ECR's own"),
    ] = ""
    mutability_exclusions: Annotated[
        Texts,
        Key(
            "Tags (with `*`) that the mutability does not hold for, in repositories that copycat creates."
        ),
    ] = ()
    scan_on_push: Annotated[
        OptionalBoolean,
        Key("Whether ECR scans images in repositories that copycat creates.", default="ECR's own"),
    ] = None
    kms_key: Annotated[
        Text,
        Key("The KMS key that encrypts repositories that copycat creates.", default="ECR's own"),
    ] = ""
    tags: Annotated[
        dict[str, Text],
        WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "integer"]}}),
        Key("AWS resource tags of repositories that copycat creates."),
    ] = Field(default_factory=dict)
    repository_policy: Annotated[
        JsonText, Key("The JSON text of a permission policy for repositories that copycat creates.")
    ] = ""

    def wanted(self) -> EcrSettings:
        """The keys that are about repositories, as the ECR target takes them."""
        names = {f.name for f in fields(EcrSettings)}
        return EcrSettings(**{n: getattr(self, n) for n in type(self).model_fields if n in names})


class Docker(Part):
    """The target, if it is any other registry."""

    registry: Annotated[
        OptionalHost,
        Key("The target's host.", env=("TARGET_REGISTRY",), default="required for docker"),
    ] = ""
    repo_prefix: Annotated[
        RepoPrefix,
        Key(
            "As `ecr.repoPrefix`. Registries with projects need one here.",
            env=("TARGET_REPO_PREFIX",),
        ),
    ] = ""
    insecure: Annotated[
        Boolean,
        Key(
            "Accept unverified TLS from the target, or plain HTTP if it does not speak TLS.",
            env=("TARGET_INSECURE",),
        ),
    ] = False
    username: Annotated[Text, Key("User name at the target.", env=("TARGET_USERNAME",))] = ""
    password: Annotated[
        Secret,
        Key(
            "Password at the target. Only as a variable, never in the file; it wins over `docker.passwordFile`.",
            env=("TARGET_PASSWORD",),
            secret=True,
            in_file=False,
        ),
    ] = NO_SECRET
    password_file: Annotated[
        Text,
        Key(
            "A file that holds the password at the target, like a mounted Secret. It is read again when it changes.",
            env=("TARGET_PASSWORD_FILE",),
        ),
    ] = ""
    auth: Annotated[
        Literal["basic", "gcp", "azure", "ecr"],
        choice("basic", "gcp", "azure", "ecr"),
        Key(
            "How to log in: `basic` with user name and password, or with the cloud identity of the pod (`gcp`, "
            "`azure`, `ecr`), refreshed as needed. As `registries[].auth`.",
            env=("TARGET_AUTH",),
        ),
    ] = "basic"


class SkipNames(Part):
    """Workloads that are left out, by kind."""

    deployments: Annotated[
        Names,
        Key(
            "Deployments that are left out: `name`, `namespace/name` or `*`. A Pod is left out with any of its owners.",
            env=("SKIP_DEPLOYMENTS",),
        ),
    ] = ()
    stateful_sets: Annotated[
        Names, Key("The same for StatefulSets.", env=("SKIP_STATEFULSETS",))
    ] = ()
    daemon_sets: Annotated[Names, Key("The same for DaemonSets.", env=("SKIP_DAEMONSETS",))] = ()
    jobs: Annotated[Names, Key("The same for Jobs.", env=("SKIP_JOBS",))] = ()
    cron_jobs: Annotated[Names, Key("The same for CronJobs.", env=("SKIP_CRONJOBS",))] = ()
    pods: Annotated[Names, Key("The same for Pods.", env=("SKIP_PODS",))] = ()

    def by_resource(self) -> dict[str, tuple[str, ...]]:
        """The lists under the names of resources: `statefulsets`."""
        return {name.replace("_", ""): getattr(self, name) for name in type(self).model_fields}


class PathMapRule(Part):
    """One rule that rewrites the path of repositories."""

    source: Annotated[
        Required,
        Field(alias="from"),
        Key("What the path starts with, or a regular expression in Go's syntax."),
    ]
    target: Annotated[
        Text,
        Field(alias="to"),
        Key("What takes its place; for a regular expression with `$1` and `${name}` as in Go."),
    ]
    regex: Annotated[Boolean, Key("Whether `from` is a regular expression.")] = False

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """The compiled expression of a regex rule."""
        return compile_go(self.source) if self.regex else None

    @model_validator(mode="after")
    def _compiles(self) -> PathMapRule:
        try:
            _ = self.pattern
        except ValueError as error:
            raise misplaced("from", str(error)) from None
        return self


def aliases(given: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns of hosts in lower case. Raises ValueError for one that Go would not take."""
    found = tuple(alias.lower() for alias in given)
    for number, alias in enumerate(found, 1):
        try:
            go_match(alias, "")
        except ValueError:
            raise ValueError(
                f"expected hosts, with wildcards as Go's filepath.Match knows them; number {number} has a bracket that is"
                " not closed or is empty, or ends in a backslash"
            ) from None
    return found


class RegistryCredential(Part):
    """Credentials for a source registry."""

    registry: Annotated[
        Host, Key("The registry's host; any spelling of Docker Hub means all of them.")
    ]
    registry_aliases: Annotated[
        Texts,
        AfterValidator(aliases),
        Key("Further hosts, with wildcards as Go's `filepath.Match` knows them (`*.docker.io`)."),
    ] = ()
    username: Annotated[Text, Key("User name.")] = ""
    password: Annotated[
        Secret, Key("Password. Better: `passwordEnv` or `passwordFile`.", secret=True)
    ] = NO_SECRET
    token: Annotated[
        Secret,
        Key(
            "A token, sent as Bearer; if the registry answers with a Bearer challenge, it is exchanged there. "
            "Better: `tokenEnv` or `tokenFile`.",
            secret=True,
        ),
    ] = NO_SECRET
    username_env: Annotated[
        Variable, Key("Name of the variable that holds the user name. Variables win.")
    ] = ""
    password_env: Annotated[Variable, Key("Name of the variable that holds the password.")] = ""
    token_env: Annotated[Variable, Key("Name of the variable that holds the token.")] = ""
    username_file: Annotated[
        Text, Key("File that holds the user name; read again when it changes.")
    ] = ""
    password_file: Annotated[
        Text, Key("File that holds the password; read again when it changes.")
    ] = ""
    token_file: Annotated[Text, Key("File that holds the token; read again when it changes.")] = ""
    namespaces: Annotated[
        Namespaces,
        Key("Only for images that workloads in these namespaces use.", default="[] = all"),
    ] = ()

    @model_validator(mode="after")
    def _is_complete(self) -> RegistryCredential:
        username = self.username or self.username_env or self.username_file
        password = self.password.get_secret_value() or self.password_env or self.password_file
        token = self.token.get_secret_value() or self.token_env or self.token_file
        if not token and not (username and password):
            raise ValueError(
                "expected a token, or a username and a password (each also as …Env or …File)"
            )
        return self


class RegistryHost(Part):
    """How a registry is reached."""

    host: Annotated[Host, Key("The registry's host.")]
    endpoints: Annotated[
        Endpoints,
        Key(
            "Tried in this order in place of the host: hosts or URLs, with a path if the proxy wants one. Names, "
            "digests and credentials stay those of the host."
        ),
    ] = ()
    insecure: Annotated[Boolean, Key("As an entry of `insecureRegistries`.")] = False
    ca_file: Annotated[
        Text, Key("PEM bundle that is trusted for this host beside the system's.")
    ] = ""
    client_cert_file: Annotated[Text, Key("PEM file of a client certificate.")] = ""
    client_key_file: Annotated[Text, Key("PEM file of its key.")] = ""
    concurrency: Annotated[
        Positive | None,
        WithJsonSchema({"type": ["integer", "string", "null"]}),
        Key("Blob streams at a time with this host.", default="`registryConcurrency`"),
    ] = None
    auth: Annotated[
        Literal["", "gcp", "azure", "ecr"],
        choice("", "gcp", "azure", "ecr"),
        Key(
            "Log in with the cloud identity of the pod, refreshed as needed. `gcp`: the service account's, from "
            "Google's metadata server. `azure`: workload identity, else the node's managed identity, exchanged at "
            "the registry. `ecr`: AWS's own chain (Pod Identity, IRSA, environment, profile, instance role), for "
            "private registries and `public.ecr.aws`; where the host does not tell its region, `ecr.region` does."
        ),
    ] = ""

    @model_validator(mode="after")
    def _has_both_halves(self) -> RegistryHost:
        if bool(self.client_cert_file) != bool(self.client_key_file):
            raise ValueError("clientCertFile and clientKeyFile need each other")
        return self
