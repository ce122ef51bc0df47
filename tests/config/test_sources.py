"""A configuration is read whole: every layer, every problem, no secret."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ValidationError

from copycat.config import Settings, load
from copycat.config.keys import Key, Part
from copycat.config.values import Text
from copycat.errors import ConfigError, Problem

ORIGINAL = Path(__file__).parent / "original.yaml"
#: The least that a working configuration needs.
TARGET = {"TARGET_KIND": "docker", "TARGET_REGISTRY": "registry.local:5000"}
ECR = {"ECR_ACCOUNT_ID": "123456789012", "AWS_REGION": "eu-central-1"}

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file and says where."""

    def written(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return written


def problems(
    *,
    path: str | None = None,
    environ: Mapping[str, str] = TARGET,
    flags: Mapping[str, object] | None = None,
) -> dict[str, Problem]:
    """What is wrong with a configuration, by key."""
    with pytest.raises(ConfigError) as caught:
        load(path=path, environ=environ, flags=flags)
    return {problem.path: problem for problem in caught.value.problems}


def test_the_originals_file_loads_unchanged() -> None:
    """Every key that the original's manifest carries means what it meant."""
    settings = load(path=str(ORIGINAL), environ={})
    assert settings.target_kind == "docker"
    assert settings.docker.registry == "registry.test.svc.cluster.local:5000"
    assert settings.include_namespaces == ("test",)
    assert settings.skip_names.by_resource() == {
        "deployments": ("copycat",),
        "statefulsets": ("redis",),
        "daemonsets": (),
        "jobs": ("backup",),
        "cronjobs": ("nightly",),
        "pods": ("custom-pod",),
    }
    assert settings.watch_resources == ("pods",)
    assert settings.failure_cooldown_minutes == 1440
    assert settings.ecr.account_id == "123456789012"
    assert [c.registry for c in settings.registry_credentials] == ["docker.io", "ghcr.io"]
    assert settings.settings_origin == str(ORIGINAL)


#: The keys that the original's README shows, which its manifest does not carry.
SHOWN = """
digestPull: true
checkNodePlatform: true
allowDifferentDigestRepush: false
watchResources: [deployments, statefulsets, daemonsets, jobs, cronjobs, pods]
skipNamespaces: []
skipNames: {deployments: [], statefulSets: [], daemonSets: [], jobs: [], cronJobs: [], pods: []}
maxConcurrentReconciles: 2
pathMap:
  - {from: "group/project", to: "prod/project"}
  - {from: "^legacy/(.*)", to: "modern/$1", regex: true}
requestTimeout: 120
failureCooldownMinutes: 60
forceReconcileMinutes: 30
"""


def test_what_the_originals_readme_shows_loads(write: Write) -> None:
    """The examples of the original's README mean what they meant."""
    settings = load(path=write(SHOWN), environ=TARGET)
    assert settings.digest_pull
    assert settings.check_node_platform
    assert not settings.allow_different_digest_repush
    assert len(settings.watch_resources) == 6
    assert settings.skip_namespaces == ()
    assert set(settings.skip_names.by_resource().values()) == {()}
    assert settings.max_concurrent_reconciles == 2
    assert [(r.source, r.target, r.pattern is not None) for r in settings.path_map] == [
        ("group/project", "prod/project", False),
        ("^legacy/(.*)", "modern/$1", True),
    ]
    assert settings.request_timeout == 120
    assert settings.failure_cooldown_minutes == 60
    assert settings.force_reconcile_minutes == 30


@pytest.mark.parametrize("name", ["DIGEST_PULL", "CHECK_NODE_PLATFORM", "ALLOW_DIFFERENT_DIGEST_REPUSH", "DRY_RUN", "DRY_PULL"])  # fmt: skip
def test_switches_of_the_environment(name: str) -> None:
    """Each switch of the original's list can be turned on and off by its variable."""
    for text, value in (("true", True), ("false", False)):
        assert getattr(load(environ=TARGET | {name: text}), name.lower()) is value


def test_the_originals_variables_win_over_its_file() -> None:
    """Every variable of the original's Deployment, in the spelling of its manifest."""
    variables = {
        "TARGET_KIND": "docker",
        "TARGET_REPO_PREFIX": "$namespace/$podname",
        "TARGET_REGISTRY": "other.local",
        "TARGET_INSECURE": "false",
        "TARGET_USERNAME": "robot",
        "TARGET_PASSWORD": "s3cr3t-value",
        "DRY_RUN": "False",
        "ECR_REPO_PREFIX": "",
        "ECR_CREATE_REPO": "true",
        "REGISTRY_REQUEST_TIMEOUT": "2m",
        "CONFIG_PATH": str(ORIGINAL),
        "INCLUDE_NAMESPACES": "*",
        "SKIP_NAMESPACES": "kube-system, kube-public",
        "SKIP_DEPLOYMENTS": "a,shop/b",
        "SKIP_STATEFULSETS": "",
        "SKIP_JOBS": "*",
        "SKIP_CRONJOBS": "c",
        "SKIP_PODS": "d",
        "DOCKERHUB_USERNAME": "",
        "DOCKERHUB_PASSWORD": "x",
        "GHCR_TOKEN": "y",
    }
    settings = load(environ=variables)
    assert settings.docker.registry == "other.local"
    assert settings.docker.password.get_secret_value() == "s3cr3t-value"
    assert not settings.docker.insecure
    assert not settings.dry_run
    assert settings.dry_pull
    assert settings.request_timeout == 120
    assert settings.include_namespaces == ("*",)
    assert settings.skip_namespaces == ("kube-system", "kube-public")
    assert settings.skip_names.deployments == ("a", "shop/b")
    assert settings.skip_names.stateful_sets == ("redis",)
    assert settings.repo_prefix == "$namespace/$podname"
    assert "s3cr3t-value" not in repr(settings)
    assert [w for w in settings.warnings if "DOCKERHUB_USERNAME" in w]
    assert not [w for w in settings.warnings if "GHCR_TOKEN" in w]


def test_defaults_are_those_of_the_contract() -> None:
    """Two variables are enough for ECR, and the rest is what the documentation says."""
    settings = load(environ=ECR)
    assert settings.target_kind == "ecr"
    assert settings.ecr.create_repo is True
    assert settings.include_namespaces == ("*",)
    assert len(settings.watch_resources) == 6
    assert settings.request_timeout == 120
    assert settings.registry_retry_attempts == 5
    assert settings.failure_cooldown_minutes is None
    assert (settings.target_check_minutes, settings.tag_refresh_minutes) == (1440, 1440)
    assert (settings.max_transfers, settings.registry_concurrency) == (16, 16)
    assert (settings.metrics_addr, settings.health_addr) == (":8080", ":8081")
    assert settings.admin_addr == "127.0.0.1:8082"
    assert settings.allow_different_digest_repush
    assert settings.overwrite_foreign_tags
    assert settings.leader_elect is None
    assert settings.settings_origin == ""
    assert settings.warnings == ()


def test_flags_win_over_both(write: Write) -> None:
    """Flags come under the file's names and under Python's; None is a flag that was not given."""
    path = write("dryRun: false\nmetricsAddr: ':1'\ndryPull: true\n")
    settings = load(
        path=path,
        environ=TARGET | {"DRY_RUN": "no", "METRICS_ADDR": ":2"},
        flags={
            "dry_run": True,
            "metricsAddr": ":3",
            "dry_pull": None,
            "docker.repo_prefix": "a",
            "targetKind": "docker",
        },
    )
    assert settings.dry_run
    assert settings.dry_pull
    assert settings.metrics_addr == ":3"
    assert settings.docker.repo_prefix == "a"
    assert settings.context.origins["metricsAddr"] == "--metrics-bind-address"
    assert settings.context.origins["docker.repoPrefix"] == "command line"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `environ` the variables of the process count."""
    for variable, value in TARGET.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("CONFIG_PATH", raising=False)
    assert load().docker.registry == "registry.local:5000"


def test_every_problem_comes_at_once_with_its_origin(write: Write) -> None:
    """Unknown keys, bad values of three layers and missing keys are one error."""
    path = write(
        """
        dryRunn: true
        logLevel: loud
        ecr: {accountId: "1", createRepo: maybe}
        pathMap:
          - {from: "(", to: x, regex: true}
          - {from: a, to: b, regexp: true}
        requestTimeout: never
        """
    )
    found = problems(
        path=path, environ={"DRY_RUN": "perhaps"}, flags={"dry_pull": "x", "nonsense": 1}
    )
    assert found.keys() == {
        "dryRunn",
        "logLevel",
        "ecr.accountId",
        "ecr.createRepo",
        "pathMap[0].from",
        "pathMap[1].regexp",
        "requestTimeout",
        "dryRun",
        "dryPull",
        "nonsense",
        "ecr.accountID",
        "ecr.region",
    }
    assert found["dryRunn"].message == 'unknown key; did you mean "dryRun"?'
    assert found["pathMap[1].regexp"].message == 'unknown key; did you mean "regex"?'
    assert found["logLevel"].origin == path
    assert found["dryRun"].origin == "environment DRY_RUN"
    assert found["dryPull"].origin == "--dry-pull"
    assert found["pathMap[0].from"].origin == path
    assert "(the default)" in found["ecr.region"].message


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("repoPrefix: x", "repoPrefix", "ecr.repoPrefix or docker.repoPrefix"),
        ("xyzzy: 1", "xyzzy", "unknown key"),
        ("target_kind: ecr", "target_kind", '"targetKind"'),
        ("ecr: text", "ecr", "mapping of keys"),
        ("skipNames: [a]", "skipNames", "mapping of keys"),
        ("pathMap: x", "pathMap", "expected a list"),
        ("pathMap: [x]", "pathMap[0]", "mapping of keys"),
        ("pathMap: [{to: x}]", "pathMap[0].from", "is required"),
        ("pathMap: [{from: '', to: x}]", "pathMap[0].from", "is required"),
        ("ecr: {tags: x}", "ecr.tags", "mapping of keys"),
        ("ecr: {accountID: 123}", "ecr.accountID", "12 digits"),
        ("ecr: {region: Frankfurt}", "ecr.region", "AWS region"),
        ("ecr: {assumeRoleArn: admin}", "ecr.assumeRoleArn", "ARN of a role"),
        ("ecr: {tagMutability: FIXED}", "ecr.tagMutability", "IMMUTABLE"),
        ("ecr: {lifecyclePolicy: '{'}", "ecr.lifecyclePolicy", "JSON text"),
        ("docker: {repoPrefix: $namspace}", "docker.repoPrefix", '"$namespace"'),
        ("docker: {registry: 'http://x'}", "docker.registry", "without http://"),
        ("docker: {password: hunter2}", "docker.password", "TARGET_PASSWORD"),
        ("watchResources: [pods, podz]", "watchResources", '"pods"'),
        ("includeNamespaces: [a/b]", "includeNamespaces[0]", "no /"),
        ("skipNames: {pods: [A]}", "skipNames.pods[0]", "Kubernetes object"),
        ("excludeRegistries: ['*.io']", "excludeRegistries[0]", "wildcards"),
        ("extraImages: ['A B']", "extraImages[0]", "name of an image"),
        ("mirrorPlatforms: [arm64]", "mirrorPlatforms[0]", "os/arch"),
        ("maxConcurrentReconciles: 0", "maxConcurrentReconciles", "at least 1"),
        ("leaseName: Bad_Name", "leaseName", "Kubernetes object"),
        ("leaseName: ''", "leaseName", "is required"),
        ("registries: [{host: a.b}, {host: a.b}]", "registries", "more than one entry"),
        ("registries: [{host: a.b, clientCertFile: x}]", "registries[0]", "need each other"),
        ("registries: [{host: a.b, endpoints: ['ftp://x']}]", "registries[0].endpoints[0]", "http"),
        ("registryCredentials: [{registry: a.b}]", "registryCredentials[0]", "expected a token"),
        (
            "registryCredentials: [{registry: a.b, registryAliases: [c.d, '[e'], token: x}]",
            "registryCredentials[0].registryAliases",
            "number 2 has a bracket",
        ),
        (
            "registryCredentials: [{registry: a.b, tokenEnv: 'ghp-x'}]",
            "registryCredentials[0].tokenEnv",
            "name of an environment variable",
        ),
        ("1: x", "1", "unknown key"),
        ("ecr: {createRepo: 3}", "ecr.createRepo", "on-push"),
        ("leaderElect: perhaps", "leaderElect", "true or false"),
        (
            "registryCredentials: [{registry: a.b, token: true}]",
            "registryCredentials[0].token",
            "text",
        ),
        ("docker: {registry: true}", "docker.registry", "text"),
    ],
)
def test_each_mistake_is_told_where_it_is(write: Write, text: str, path: str, message: str) -> None:
    """The key's path and what was expected, from the file that says so."""
    file = write(text)
    found = problems(path=file, environ={"TARGET_KIND": "docker"})
    assert message in found[path].message
    assert found[path].origin == file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "no valid YAML in line 1"),
        (b"dryRun: true\ndryRun: false\n", 'the key "dryRun" is there twice'),
        (b"ecr: {region: a, region: b}", 'the key "region" is there twice'),
        (b"- a\n", "expected a mapping of keys"),
        (b"just text", "expected a mapping of keys"),
        (b"a: !!python/object/apply:os.system [x]", "no valid YAML"),
        (b"a: \xff", "not UTF-8"),
        (b"a: \x00", "no valid YAML"),
        (b"a: 2024-99-99", "no valid YAML"),
        (b"a: 1\n---\nb: 2\n", "no valid YAML"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "no valid YAML: RecursionError"),
    ],
    ids=[
        "broken",
        "twice",
        "twice below",
        "list",
        "text",
        "tag",
        "encoding",
        "NUL",
        "date",
        "two documents",
        "deep",
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    """The place of the mistake, and no second error about what the file might have said."""
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    found = problems(path=str(path), environ={})
    assert list(found) == [""]
    assert message in found[""].message
    assert found[""].origin == str(path)


def test_a_directory_cannot_be_read(tmp_path: Path) -> None:
    """Unreadable is an error, unlike absent."""
    assert "cannot be read" in problems(path=str(tmp_path))[""].message


def test_an_absent_file_is_fine(tmp_path: Path) -> None:
    """Whoever named the file is told that it is not there."""
    missing = str(tmp_path / "none.yaml")
    assert load(path=missing, environ=TARGET).warnings == (
        f"The configuration file {missing} does not exist; defaults are used.",
    )
    assert load(environ=TARGET | {"CONFIG_PATH": missing}).settings_origin == ""
    assert load(environ=TARGET).warnings == ()


def test_an_absent_file_explains_what_is_missing(tmp_path: Path) -> None:
    """A mistyped path shows up as keys that are required: the file is named beside them, and only then."""
    missing = str(tmp_path / "none.yaml")
    found = problems(path=missing, environ={})
    assert f"{missing} does not exist" in found[""].message
    assert "ecr.accountID" in found
    assert "" not in problems(environ={})


def test_keys_without_a_value_are_not_set(write: Write) -> None:
    """A mapping whose entries are all commented out, and an empty file, change nothing."""
    for text in ("", "# nothing\n", "ecr:\nskipNames:\n  pods:\ndryRun:\npathMap: []\n"):
        assert load(path=write(text), environ=TARGET).skip_names.pods == ()


def test_merge_keys_of_yaml_work(write: Write) -> None:
    """A key of one's own over a merged one is no duplicate."""
    text = "docker: &base {repoPrefix: a}\necr: {<<: *base, repoPrefix: b}\n"
    assert load(path=write(text), environ=TARGET).ecr.repo_prefix == "b"


def test_secrets_are_never_echoed(write: Write) -> None:
    """Neither values in wrong places nor broken YAML get into messages."""
    text = """
    docker: {password: hunter2-one, registry: [hunter2-two]}
    registryCredentials:
      - {registry: a.b, password: [hunter2-three], passwordEnv: "hunter2 four", tokn: hunter2-five}
    logLevel: hunter2-six
    requestTimeout: hunter2-seven
    extraKey: hunter2-eight
    registries: [{host: a.b, endpoints: ["https://u:hunter2-nine@proxy"]}]
    """
    with pytest.raises(ConfigError) as caught:
        load(path=write(text), environ=TARGET | {"DRY_RUN": "hunter2-ten"})
    assert len(caught.value.problems) >= 9
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as broken:
        load(path=write("password: hunter2\n  x: 'hunter2"), environ={})
    assert "hunter2" not in str(broken.value)


class _Later(Part):
    """A part with a feature that is not built."""

    thing: Annotated[Text, Key("A thing.", available=False)] = "none"


def test_features_that_are_not_built_are_off() -> None:
    """Their keys accept their own default and refuse everything else."""
    assert _Later.model_validate({"thing": "none"}).thing == "none"
    with pytest.raises(
        ValidationError, match=r"not available in this version; leave it out \(or at none\)"
    ):
        _Later.model_validate({"thing": "all"})


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("signatures: none", "signatures", "none"),
        ("signatures: off", "signatures", "none"),
        ("signatures: false", "signatures", "none"),
        ("maxBandwidth: '0'", "max_bandwidth", 0),
        ("pullQuotaReserve: 0", "pull_quota_reserve", 0.0),
        ("pullQuotaReserve: 0%", "pull_quota_reserve", 0.0),
    ],
)
def test_off_is_accepted_in_its_spellings(
    write: Write, text: str, attribute: str, value: object
) -> None:
    """YAML reads `off` as false, which still means off."""
    assert getattr(load(path=write(text), environ=TARGET), attribute) == value


@pytest.mark.parametrize(
    ("variable", "value", "attribute", "found"),
    [
        ("SIGNATURES", "Referrers", "signatures", "referrers"),
        ("MAX_BANDWIDTH", "50Mi", "max_bandwidth", 50 * 1024 * 1024),
        ("PULL_QUOTA_RESERVE", "35%", "pull_quota_reserve", 0.35),
    ],
)
def test_signatures_bandwidth_and_quota(
    variable: str, value: str, attribute: str, found: object
) -> None:
    """What variables say; without them everything that is signed is copied, at full speed, and the quota has its own default."""
    assert getattr(load(environ=TARGET | {variable: value}), attribute) == found
    plain = load(environ=TARGET)
    assert (plain.signatures, plain.max_bandwidth, plain.pull_quota_reserve) == ("all", 0, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", "auto"),
        ("pullSecrets: off", "off"),
        ("pullSecrets: 'OFF'", "off"),
        ("pullSecrets: All", "all"),
        ("pullSecrets: auto", "auto"),
        ("pullSecrets: [a, b]", ("a", "b")),
        ("pullSecrets: a, b", ("a", "b")),
    ],
)
def test_pull_secrets(write: Write, text: str, value: object) -> None:
    """Three words, or namespaces."""
    assert load(path=write(text), environ=TARGET).pull_secrets == value


@pytest.mark.parametrize("text", ["[team-*]", "on", "[a, Bad]", "[a, 1]"])
def test_pull_secrets_are_of_plain_namespaces(write: Write, text: str) -> None:
    """A wildcard is none: `all` says so plainly, and a Role is for one namespace."""
    found = problems(path=write(f"pullSecrets: {text}"), environ=TARGET)
    assert set(found) == {"pullSecrets"}
    assert "names of namespaces without wildcards" in found["pullSecrets"].message


@pytest.mark.parametrize(
    ("written", "value"),
    [("true", True), ("No", False), ("on-push", "on-push"), ("ON-PUSH", "on-push")],
)
def test_create_repo(written: str, *, value: object) -> None:
    """Three ways of getting a repository."""
    assert load(environ=ECR | {"ECR_CREATE_REPO": written}).ecr.create_repo == value


def test_regions_come_from_several_variables(write: Write) -> None:
    """One's own variable wins over those that EKS sets, and who wrote another region is told."""
    assert (
        load(
            environ={"ECR_ACCOUNT_ID": "123456789012", "AWS_DEFAULT_REGION": "us-east-1"}
        ).ecr.region
        == "us-east-1"
    )
    assert load(environ=ECR | {"ECR_REGION": "us-west-2"}).ecr.region == "us-west-2"
    settings = load(path=write("ecr: {region: us-east-1}"), environ=ECR)
    assert settings.ecr.region == "eu-central-1"
    assert settings.warnings == (
        "ecr.region from the file is overridden by the environment variable AWS_REGION.",
    )
    assert load(path=write("ecr: {region: eu-central-1}"), environ=ECR).warnings == ()


def test_what_ecr_would_refuse_is_a_problem_of_the_key(write: Write) -> None:
    """ECR's own rules are checked where ECR is the target."""
    text = "ecr: {mutabilityExclusions: [a, b, c, d, e, f]}"
    assert (
        "at most 5" in problems(path=write(text), environ=ECR)["ecr.mutabilityExclusions"].message
    )
    load(path=write(text), environ=TARGET)


def test_lifecycle_rules_that_hit_images_in_use_are_warned_about() -> None:
    """The README's own example expires any image."""
    settings = load(path=str(ORIGINAL), environ=ECR | {"TARGET_KIND": "ecr"})
    assert [w for w in settings.warnings if "digest-" in w]


@pytest.mark.parametrize("environ", [{}, {"TARGET_KIND": "docker"}], ids=["ecr", "docker"])
def test_a_target_may_be_left_open(environ: dict[str, str]) -> None:
    """Commands that need no target accept a configuration without one."""
    load(environ=environ, require_target=False)
    assert problems(environ=environ)


def test_an_empty_target_is_none(write: Write) -> None:
    """A chart writes empty texts for what is not set."""
    text = "targetKind: docker\ndocker: {registry: ''}\necr: {accountID: '', region: ''}\n"
    assert list(problems(path=write(text), environ={})) == ["docker.registry"]


def test_a_bad_parent_does_not_hide_the_rest(write: Write) -> None:
    """A variable for a key below something that is no mapping leaves the file's mistake to be reported."""
    found = problems(path=write("docker: text"), environ=TARGET)
    assert found.keys() == {"docker", "docker.registry"}


def test_regular_expressions_are_ready_for_use(write: Write) -> None:
    """Rules keep their order, and only regex rules have a pattern."""
    text = "pathMap: [{from: a, to: b}, {from: '^x/(.*)', to: 'y/$1', regex: true}]"
    first, second = load(path=write(text), environ=TARGET).path_map
    assert first.pattern is None
    assert second.pattern is not None
    assert second.pattern.match("x/1")


def test_named_and_insecure_hosts(write: Write) -> None:
    """Every place that names a host counts, in canonical spelling."""
    text = """
    docker: {insecure: true}
    insecureRegistries: [plain.local]
    allowedRegistries: [ghcr.io/team, bitnami]
    registries:
      - {host: quay.io, endpoints: ["http://proxy.local:8080/quay", single]}
      - {host: self.signed, insecure: true}
    registryCredentials: [{registry: index.docker.io, registryAliases: ["*.Docker.IO"], token: x}]
    """
    settings = load(path=write(text), environ=TARGET | {"ECR_ENDPOINT": "https://vpce.example"})
    assert settings.named_hosts == {
        "registry.local:5000",
        "plain.local",
        "ghcr.io",
        "docker.io",
        "quay.io",
        "proxy.local:8080",
        "single",
        "self.signed",
        "vpce.example",
    }
    assert settings.insecure_hosts == {"plain.local", "self.signed", "registry.local:5000"}
    assert settings.registry_credentials[0].registry_aliases == ("*.docker.io",)


def test_settings_can_be_made_in_python() -> None:
    """Tests and embedders write Python's names; nothing is known of origins then."""
    settings = Settings(dry_run=True)
    assert settings.dry_run
    assert settings.warnings == ()
    assert settings.repo_prefix == ""
    assert settings.insecure_hosts == frozenset()


@pytest.mark.parametrize(
    ("written", "platforms"),
    [("all", ()), ("linux/arm64,linux/amd64", ("linux/arm64", "linux/amd64"))],
)
def test_mirror_platforms(written: str, platforms: tuple[str, ...]) -> None:
    """`all` is the word for no choice."""
    assert load(environ=TARGET | {"MIRROR_PLATFORMS": written}).mirror_platforms == platforms


def test_resources_keep_their_order() -> None:
    """In any case, once each, and an empty list means all."""
    settings = load(environ=TARGET | {"WATCH_RESOURCES": "Pods,DEPLOYMENTS,pods"})
    assert settings.watch_resources == ("deployments", "pods")


def test_empty_lists_select_everything(write: Write) -> None:
    """No kinds and no namespaces cannot be what is meant."""
    settings = load(path=write("watchResources: []\nincludeNamespaces: []\n"), environ=TARGET)
    assert len(settings.watch_resources) == 6
    assert settings.include_namespaces == ("*",)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        pytest.param(
            "registries: [{host: ecr.corp, auth: ecr}]", "registries[0].auth", id="source"
        ),
        pytest.param(
            "targetKind: docker\ndocker: {registry: ecr.corp, auth: ecr}",
            "docker.auth",
            id="target",
        ),
    ],
)
def test_a_region_that_nobody_tells(write: Write, text: str, path: str) -> None:
    """`auth: ecr` for a host whose name says no region needs one; `ecr.region` or AWS_REGION give it."""
    found = problems(
        path=write(text), environ={"TARGET_KIND": "docker", "TARGET_REGISTRY": "ecr.corp"}
    )
    assert "ecr.corp does not tell its region" in found[path].message
    region = {"AWS_REGION": "eu-west-1"}
    load(path=write(text), environ=TARGET | region)
    hosts = ["public.ecr.aws", "123456789012.dkr.ecr.eu-west-1.amazonaws.com"]
    rows = ", ".join(f"{{host: {host}, auth: ecr}}" for host in hosts)
    load(path=write(f"registries: [{rows}]"), environ=TARGET)


@pytest.mark.parametrize(
    ("host", "auth", "warned"),
    [
        ("europe-docker.pkg.dev", "gcp", False),
        ("eu.gcr.io", "gcp", False),
        ("gcr.io", "gcp", False),
        ("pkg.dev.evil.example", "gcp", True),
        ("docker.io", "gcp", True),
        ("team.azurecr.io", "azure", False),
        ("team.azurecr.cn", "azure", False),
        ("team.azurecr.io.example:5000", "azure", True),
    ],
)
def test_identities_for_strangers(write: Write, host: str, auth: str, warned: bool) -> None:
    """Who gives a cloud's identity to a host that is none of that cloud's is warned, for source and target."""
    source = load(path=write(f"registries: [{{host: {host}, auth: {auth}}}]"), environ=TARGET)
    target = load(
        path=write("{}"),
        environ={"TARGET_KIND": "docker", "TARGET_REGISTRY": host, "TARGET_AUTH": auth},
    )
    for settings, key in ((source, "registries[0].auth"), (target, "docker.auth")):
        found = [w for w in settings.warnings if w.startswith(f"{key}: {host} is no registry of")]
        assert bool(found) is warned


def test_a_password_beside_an_identity() -> None:
    """A user name is of no use where the cloud's identity logs in, and that is said."""
    more = {"TARGET_AUTH": "gcp", "TARGET_USERNAME": "me", "TARGET_PASSWORD_FILE": "/secret"}
    settings = load(path="/nonexistent/x.yaml", environ=TARGET | more)
    assert any("docker.username and its password are not used" in w for w in settings.warnings)
