"""What is made from the table of keys fits the table, and the table fits the contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # its stubs are not worth a dependency

from copycat.config import Settings, load
from copycat.config.keys import Part, key_of, plain, rows
from copycat.config.schema import explain, json_schema, markdown
from copycat.errors import ConfigError

ORIGINAL = Path(__file__).parent / "original.yaml"
TARGET = {"TARGET_KIND": "docker", "TARGET_REGISTRY": "r.local"}

#: Every key of the contract that has a variable.
VARIABLES = frozenset(
    {
        "TARGET_KIND",
        "ECR_ACCOUNT_ID",
        "AWS_REGION",
        "ECR_REPO_PREFIX",
        "ECR_CREATE_REPO",
        "ECR_ENDPOINT",
        "TARGET_REGISTRY",
        "TARGET_REPO_PREFIX",
        "TARGET_INSECURE",
        "TARGET_USERNAME",
        "TARGET_PASSWORD",
        "TARGET_PASSWORD_FILE",
        "TARGET_AUTH",
        "INCLUDE_NAMESPACES",
        "SKIP_NAMESPACES",
        "SKIP_DEPLOYMENTS",
        "SKIP_STATEFULSETS",
        "SKIP_DAEMONSETS",
        "SKIP_JOBS",
        "SKIP_CRONJOBS",
        "SKIP_PODS",
        "EXCLUDE_REGISTRIES",
        "ALLOWED_REGISTRIES",
        "WATCH_RESOURCES",
        "EXTRA_IMAGES",
        "DIGEST_PULL",
        "DIGEST_PULL_IGNORED_TAGS",
        "CHECK_NODE_PLATFORM",
        "MIRROR_PLATFORMS",
        "IGNORE_MISSING_PLATFORMS",
        "ALLOW_DIFFERENT_DIGEST_REPUSH",
        "OVERWRITE_FOREIGN_TAGS",
        "DRY_RUN",
        "DRY_PULL",
        "REGISTRY_REQUEST_TIMEOUT",
        "REGISTRY_RETRY_ATTEMPTS",
        "REGISTRY_RETRY_BACKOFF",
        "FAILURE_COOLDOWN_MINUTES",
        "FORCE_RECONCILE_MINUTES",
        "TARGET_CHECK_MINUTES",
        "TAG_REFRESH_MINUTES",
        "MAX_CONCURRENT_RECONCILES",
        "MAX_TRANSFERS",
        "REGISTRY_CONCURRENCY",
        "MAX_BANDWIDTH",
        "PULL_QUOTA_RESERVE",
        "INSECURE_REGISTRIES",
        "REGISTRY_CA_FILE",
        "DENY_PRIVATE_NETWORKS",
        "PULL_SECRETS",
        "PRIVATE_IMAGES",
        "SIGNATURES",
        "ADMIN_AUTH",
        "ADMIN_TOKEN_FILE",
        "ADMIN_ADDR",
        "METRICS_ADDR",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "SHUTDOWN_GRACE_SECONDS",
        "LEASE_NAME",
    }
)


def valid(document: object) -> bool:
    """Whether the JSON schema accepts a file's content."""
    return bool(Draft202012Validator(json_schema()).is_valid(document))


def accepted(tmp_path: Path, document: object) -> bool:
    """Whether `load` does."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    try:
        load(path=str(path), environ={}, require_target=False)
    except ConfigError:
        return False
    return True


def test_every_variable_of_the_contract_is_known() -> None:
    """And every variable sets one key alone."""
    names = [name for row in rows(Settings) for name in row.key.env]
    assert set(names) >= VARIABLES
    assert len(names) == len(set(names))


def test_every_key_says_what_it_means() -> None:
    """A sentence each, and every top-level key belongs to a section."""
    for row in rows(Settings):
        assert row.key.doc.endswith("."), row.path
        assert row.section, row.path


def test_variables_are_named_after_their_keys() -> None:
    """Nothing but the variables of the original has a name of its own style."""
    for row in rows(Settings):
        for name in row.key.env:
            assert name.isupper(), row.path


def test_the_schema_is_one() -> None:
    """It is valid itself, closed everywhere, and describes every key."""
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    json.dumps(schema)
    for definition in (schema, *schema["$defs"].values()):
        assert definition["additionalProperties"] is False
        for name, property_ in definition["properties"].items():
            assert property_["description"], name
    assert "password" not in schema["$defs"]["Docker"]["properties"]
    for row in rows(Settings):
        if len(row.attributes) == 1 and row.path in schema["properties"]:
            says = "not available in this version" in schema["properties"][row.path]["description"]
            assert says is not row.key.available, row.path


def test_the_originals_file_fits_the_schema() -> None:
    """Editors that know the schema show no error in a file that loads."""
    assert valid(yaml.safe_load(ORIGINAL.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "document",
    [
        {"requestTimeout": "2m", "registryRetryBackoff": 0.5},
        {"dryRun": "Yes", "dryPull": 1, "digestPull": True},
        {"failureCooldownMinutes": "growing"},
        {"failureCooldownMinutes": 0},
        {"includeNamespaces": "a,b", "skipNamespaces": ["c"]},
        {"watchResources": "pods"},
        {"ecr": {"createRepo": "on-push", "scanOnPush": "yes", "tags": {"a": 1}}},
        {"targetKind": "docker", "ecr": {"lifecyclePolicy": {"rules": []}}},
        {"metricsAddr": 0},
        {"pullSecrets": False},
        {"leaderElect": True},
        {"registries": [{"host": "a.b", "concurrency": 4, "endpoints": ["c.d"]}]},
        {"registryCredentials": [{"registry": "a.b", "token": "x"}]},
        {"pathMap": [{"from": "a", "to": "", "regex": "no"}]},
        {"maxBandwidth": "0", "maxTransfers": "8"},
    ],
    ids=str,
)
def test_the_schema_accepts_what_loads(tmp_path: Path, document: object) -> None:
    """Further spellings are no errors in an editor or a chart."""
    assert valid(document)
    assert accepted(tmp_path, document)


@pytest.mark.parametrize(
    "document",
    [
        {"dryRunn": True},
        {"dryRun": "maybe"},
        {"requestTimeout": "soon"},
        {"requestTimeout": -1},
        {"docker": {"password": "x"}},
        {"maxTransfers": 0},
        {"targetKind": "gcr"},
        {"ecr": {"createRepo": "sometimes"}},
        {"pathMap": [{"to": "x"}]},
        {"registries": [{"host": "a.b", "port": 1}]},
        {"watchResources": 3},
        {"leaseName": "Bad_Name"},
    ],
    ids=str,
)
def test_the_schema_refuses_what_does_not_load(tmp_path: Path, document: object) -> None:
    """What a schema can tell, it tells."""
    assert not valid(document)
    assert not accepted(tmp_path, document)


def test_explain_says_value_and_origin_of_every_key(tmp_path: Path) -> None:
    """File, variable, flag and default, with secrets masked and what is not set left out."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "logLevel: debug\n"
        "registryCredentials: [{registry: ghcr.io, username: me, password: hunter2}]\n"
        "ecr: {tags: {team: a}}\n"
    )
    settings = load(
        path=str(path),
        environ=TARGET | {"TARGET_PASSWORD": "hunter2", "REGISTRY_REQUEST_TIMEOUT": "2m"},
        flags={"dry_run": True},
    )
    found = {row.key: row for row in explain(settings)}
    assert found.keys() == {row.path for row in rows(Settings) if row.attributes}
    assert (found["logLevel"].value, found["logLevel"].origin) == ("debug", str(path))
    assert found["requestTimeout"].value == "120"
    assert found["requestTimeout"].origin == "environment REGISTRY_REQUEST_TIMEOUT"
    assert found["requestTimeout"].environment == "REGISTRY_REQUEST_TIMEOUT"
    assert (found["dryRun"].value, found["dryRun"].origin) == ("true", "--dry-run")
    assert found["docker.password"].value == "***"
    assert (
        found["registryCredentials"].value == "[{registry: ghcr.io, username: me, password: ***}]"
    )
    assert found["ecr.tags"].value == "{team: a}"
    assert found["failureCooldownMinutes"].value == "growing to 1440"
    assert (found["maxTransfers"].value, found["maxTransfers"].origin) == ("16", "default")
    assert "hunter2" not in str(found)


def test_the_reference_has_every_key() -> None:
    """One row each, in tables that Markdown can read."""
    page = markdown()
    for row in rows(Settings):
        key = row.path.partition("[].")[2] or row.path
        assert f"| `{key}` |" in page or f"| {key} (variable only) |" in page, row.path
        for name in row.key.env:
            assert f"`{name}`" in page
    assert ("*(Not available in this version.)*" in page) is not all(
        row.key.available for row in rows(Settings)
    )
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {4, 5}


def test_the_published_reference_is_this_one() -> None:
    """docs/configuration.md is made from the table: `python -m copycat.config.schema > docs/configuration.md`."""
    published = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert published.read_text(encoding="utf-8") == markdown()


def test_a_field_without_a_key_is_a_mistake_of_ours() -> None:
    """The table cannot have a hole."""

    class Hole(Part):
        field: Annotated[int, "no key"] = 0

    with pytest.raises(TypeError, match="without Key"):
        key_of(Hole.model_fields["field"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, '""'),
        ("", '""'),
        (True, "true"),
        (1.0, "1"),
        (1.5, "1.5"),
        (("a", 1), "[a, 1]"),
        ({"a": [True]}, "{a: [true]}"),
    ],
    ids=repr,
)
def test_values_are_shown_as_in_yaml(*, value: Any, shown: str) -> None:
    """On one line, as one would write them."""
    assert plain(value) == shown
