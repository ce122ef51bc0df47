"""Finding the cluster: which file is taken, what is read from it, and what is said if it cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from copycat.errors import ConfigError
from copycat.kube.kubeconfig import find_access, read_kubeconfig, read_service_account

CONFIG: dict[str, Any] = {
    "clusters": [
        {"name": "c1", "cluster": {"server": "https://one.example:6443/"}},
        {"name": "c2", "cluster": {"server": "https://two.example"}},
    ],
    "users": [{"name": "u1", "user": {"token": "t1"}}],
    "contexts": [
        {"name": "x1", "context": {"cluster": "c1", "user": "u1", "namespace": "n1"}},
        {"name": "x2", "context": {"cluster": "c2"}},
    ],
    "current-context": "x1",
}


def _write(path: Path, config: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def _with_user(**user: Any) -> dict[str, Any]:
    return {**CONFIG, "users": [{"name": "u1", "user": user}]}


def _with_cluster(**cluster: Any) -> dict[str, Any]:
    entry = {"server": "https://one.example", **cluster}
    return {**CONFIG, "clusters": [{"name": "c1", "cluster": entry}]}


def test_context(tmp_path: Path) -> None:
    """The current context decides, or the one that is named."""
    path = _write(tmp_path / "config", CONFIG)
    current = read_kubeconfig([path], None)
    assert current.connection.url == "https://one.example:6443"
    assert (current.token, current.namespace) == ("t1", "n1")
    assert current.connection.environment_proxies
    named = read_kubeconfig([path], "x2")
    assert named.connection.url == "https://two.example"
    assert (named.token, named.namespace) == ("", "")


def test_merge(tmp_path: Path) -> None:
    """Of several files the first that has a thing wins, and paths start at the file that names them."""
    first = _write(tmp_path / "a" / "config", _with_user(tokenFile="my-token"))
    second = _write(tmp_path / "b" / "config", {**CONFIG, "current-context": "x2"})
    empty = _write(tmp_path / "c" / "config", {})
    missing = tmp_path / "missing"
    access = find_access(f"{empty}:{missing}:{first}:{second}", None, environ={})
    assert access.connection.url == "https://one.example:6443"
    assert access.token_file == tmp_path / "a" / "my-token"


def test_relative_command(tmp_path: Path) -> None:
    """A plugin's command with a slash starts at the kubeconfig; a bare name is looked up in the PATH."""
    version = "client.authentication.k8s.io/v1beta1"
    for command, expected in (("./get-token", str(tmp_path / "get-token")), ("aws", "aws")):
        config = _with_user(exec={"apiVersion": version, "command": command})
        access = read_kubeconfig([_write(tmp_path / "config", config)], None)
        assert access.plugin is not None
        assert access.plugin.command == expected


def test_order(tmp_path: Path) -> None:
    """The named file, KUBECONFIG, the service account, ~/.kube/config: the first that is there."""
    named = _write(tmp_path / "named", {**CONFIG, "current-context": "x2"})
    usual = _write(tmp_path / ".kube" / "config", CONFIG)
    account = tmp_path / "account"
    environ = {"HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}

    def found(kubeconfig: str | None = None, **more: str) -> str:
        access = find_access(kubeconfig, None, environ=environ | more, service_account=account)
        return access.connection.url

    assert found() == "https://one.example:6443"
    account.mkdir()
    (account / "token").write_text("t")
    (account / "ca.crt").write_text("ca")
    assert found() == "https://10.0.0.1:443"
    assert found(KUBECONFIG=str(named)) == "https://two.example"
    assert found(str(usual), KUBECONFIG=str(named)) == "https://one.example:6443"


def test_service_account(tmp_path: Path) -> None:
    """A Pod's access uses no proxy of the environment, and IPv6 addresses get their brackets."""
    (tmp_path / "ca.crt").write_text("ca")
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    access = read_service_account(tmp_path, environ)
    assert access.connection.url == "https://[fd00::1]:6443"
    assert access.connection.ca == b"ca"
    assert not access.connection.environment_proxies
    assert access.namespace == ""
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST"):
        read_service_account(tmp_path, {})


@pytest.mark.parametrize(
    ("host", "proxies"),
    [("127.0.0.1", False), ("[::1]", False), ("localhost", False), ("10.0.0.1", True)],
)
def test_loopback(tmp_path: Path, host: str, proxies: bool) -> None:
    """Loopback is never reached through a proxy."""
    config = _with_cluster(server=f"https://{host}:6443")
    access = read_kubeconfig([_write(tmp_path / "config", config)], None)
    assert access.connection.environment_proxies is proxies


def test_nothing_found(tmp_path: Path) -> None:
    """Without any cluster the error says where was looked and what to do."""
    environ = {"HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="pass --kubeconfig"):
        find_access(None, None, environ=environ, service_account=tmp_path / "none")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "current-context": ""}, "no current-context"),
        ({**CONFIG, "current-context": "x9"}, "no context named 'x9' .known: x1, x2"),
        ({**CONFIG, "clusters": []}, "no cluster named 'c1' .known: none"),
        (_with_cluster(server="one.example"), "no http or https URL"),
        (_with_cluster(**{"certificate-authority-data": "%"}), "not base64"),
        (_with_cluster(**{"certificate-authority": "ca.pem"}), "ca.pem cannot be read"),
        (_with_user(username="u", password="p"), "dropped passwords"),
        (_with_user(**{"auth-provider": {"name": "oidc"}}), "exec plugins"),
        (_with_user(**{"as": "admin"}), "impersonation"),
        (_with_user(exec={"apiVersion": "x/v1alpha1", "command": "c"}), "not supported"),
        (["a list"], "no kubeconfig"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable(tmp_path: Path, config: Any, message: str) -> None:
    """What cannot be used is refused with the place and the remedy."""
    with pytest.raises(ConfigError, match=message):
        read_kubeconfig([_write(tmp_path / "config", config)], None)


def test_unreadable(tmp_path: Path) -> None:
    """A file that is missing or no YAML is named."""
    broken = tmp_path / "broken"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match="broken is no YAML"):
        find_access(str(broken), None, environ={})
    with pytest.raises(ConfigError, match="missing does not exist"):
        find_access(str(tmp_path / "missing"), None, environ={})
    with pytest.raises(ConfigError, match="no file is named"):
        find_access(":", None, environ={})


def test_secrets_stay_hidden(tmp_path: Path) -> None:
    """Neither token nor key nor a plugin's environment is in the text of an access."""
    user = {
        "token": "hush-token",
        "client-key-data": "aHVzaC1rZXk=",
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "c",
            "env": [{"name": "A", "value": "hush-env"}],
        },
    }
    access = read_kubeconfig([_write(tmp_path / "config", _with_user(**user))], None)
    assert access.connection.key == b"hush-key"
    assert "hush" not in repr(access)
