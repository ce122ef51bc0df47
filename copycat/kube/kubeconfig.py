"""Where the API server is and how to speak to it: a kubeconfig, or the service account of a Pod.

kr8s could read both, but it leaves keys in /tmp at each new authentication, drops an exec plugin's
expiry, knows no tokenFile, and takes `default` for the namespace of every Pod. Everything here
blocks (it reads files): call it in a worker thread.

Proxies. In a cluster the API server's address is an inner one that no proxy reaches, so the
environment's proxies (which a Pod may need for its registries) are never used for it. With a
kubeconfig its `proxy-url` rules, else the environment, as for kubectl; never for loopback.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import yaml

from copycat.errors import ConfigError, Problem

__all__ = [
    "SERVICE_ACCOUNT",
    "Access",
    "Connection",
    "ExecPlugin",
    "find_access",
    "read_kubeconfig",
    "read_service_account",
]

#: Where every Pod finds its token, the CA and its namespace.
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_Fields: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a new connection needs: two that are equal can share sessions."""

    url: str
    ca: bytes = b""
    """PEM; empty for the system's."""
    insecure: bool = False
    """Do not verify the server."""
    server_name: str = ""
    """The name to verify instead of the URL's."""
    proxy: str = field(default="", repr=False)
    environment_proxies: bool = False
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecPlugin:
    """A program that prints credentials (client.authentication.k8s.io)."""

    command: str
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    api_version: str = "client.authentication.k8s.io/v1"
    install_hint: str = ""
    cluster: str = ""
    """JSON for KUBERNETES_EXEC_INFO, if the plugin wants to know the cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One user at one cluster."""

    connection: Connection
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    plugin: ExecPlugin | None = None
    namespace: str = ""
    in_cluster: bool = False


def find_access(
    kubeconfig: str | None,
    context: str | None,
    *,
    environ: Mapping[str, str],
    service_account: Path = SERVICE_ACCOUNT,
) -> Access:
    """The kubeconfig that was named, KUBECONFIG, the Pod's service account, or ~/.kube/config.

    Raises ConfigError if there is none of them, or if it cannot be used.
    """
    named = kubeconfig or environ.get("KUBECONFIG", "")
    if named:
        return read_kubeconfig([Path(p) for p in named.split(":") if p], context)
    if (service_account / "token").exists():
        return read_service_account(service_account, environ)
    usual = Path(environ.get("HOME", "/")) / ".kube" / "config"
    if usual.exists():
        return read_kubeconfig([usual], context)
    raise _problem(
        "there is no cluster to watch: no kubeconfig was named, KUBECONFIG is not set, this is no"
        f" Pod with a service account, and {usual} does not exist; pass --kubeconfig"
    )


def read_service_account(directory: Path, environ: Mapping[str, str]) -> Access:
    """The access of a Pod. Raises ConfigError."""
    host = environ.get("KUBERNETES_SERVICE_HOST", "")
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise _problem(
            f"{directory} exists, but KUBERNETES_SERVICE_HOST is not set; pass --kubeconfig"
        )
    namespace = directory / "namespace"
    return Access(
        connection=Connection(
            url=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
            ca=_read(directory / "ca.crt"),
        ),
        token_file=directory / "token",
        namespace=_read(namespace).decode().strip() if namespace.exists() else "",
        in_cluster=True,
    )


def read_kubeconfig(paths: Sequence[Path], context: str | None) -> Access:
    """The access that a context gives; of several files the first that has a thing wins. Raises ConfigError."""
    config = _merged(paths)
    name = context or str(config["current-context"])
    if not name:
        raise _problem(f"{paths[0]} has no current-context; pass --context")
    chosen = _entry(config, "contexts", "context", name)
    cluster = _entry(config, "clusters", "cluster", str(chosen.get("cluster", "")))
    user_name = str(chosen.get("user", ""))
    user = _entry(config, "users", "user", user_name) if user_name else {}
    _refuse_unsupported(user, user_name)
    token_file = user.get("tokenFile")
    return Access(
        connection=_connection(cluster, user),
        token="" if token_file else str(user.get("token", "")),
        token_file=Path(token_file) if token_file else None,
        plugin=_plugin(user["exec"], cluster) if user.get("exec") else None,
        namespace=str(chosen.get("namespace", "")),
    )


def _connection(cluster: _Fields, user: _Fields) -> Connection:
    url = str(cluster.get("server", "")).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise _problem(f"the cluster's server is no http or https URL: {url!r}")
    return Connection(
        url=url,
        ca=_bytes(cluster, "certificate-authority"),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        server_name=str(cluster.get("tls-server-name", "")),
        proxy=str(cluster.get("proxy-url", "")),
        environment_proxies=not _is_loopback(parts.hostname),
        certificate=_bytes(user, "client-certificate"),
        key=_bytes(user, "client-key"),
    )


def _plugin(fields: _Fields, cluster: _Fields) -> ExecPlugin:
    version = str(fields.get("apiVersion", ""))
    if version.rpartition("/")[2] not in {"v1", "v1beta1"}:
        raise _problem(f"exec plugins of {version!r} are not supported; use v1 or v1beta1")
    shown = ("server", "tls-server-name", "certificate-authority-data", "proxy-url")
    info: _Fields = {key: cluster[key] for key in shown if key in cluster}
    return ExecPlugin(
        command=str(fields.get("command", "")),
        arguments=tuple(str(a) for a in fields.get("args") or ()),
        environment=tuple((str(e["name"]), str(e["value"])) for e in fields.get("env") or ()),
        api_version=version,
        install_hint=str(fields.get("installHint", "")),
        cluster=json.dumps(info) if fields.get("provideClusterInfo") else "",
    )


def _refuse_unsupported(user: _Fields, name: str) -> None:
    for key, remedy in (
        ("username", "Kubernetes dropped passwords in 1.19; use a token or a certificate"),
        ("auth-provider", "it was replaced by exec plugins; run the provider's login command"),
        ("as", "impersonation is not supported; use the identity itself"),
    ):
        if user.get(key):
            raise _problem(f"user {name!r} has {key!r}: {remedy}")


def _merged(paths: Sequence[Path]) -> _Fields:
    merged: _Fields = {"clusters": [], "users": [], "contexts": [], "current-context": ""}
    found = [path for path in paths if path.exists()]
    if not found:
        raise _problem(f"{paths[0]} does not exist" if paths else "no file is named")
    for path in found:
        try:
            config = yaml.safe_load(_read(path))
        except yaml.YAMLError as error:
            raise _problem(f"{path} is no YAML: {error.__class__.__name__}") from error
        if not isinstance(config, dict):
            raise _problem(f"{path} is no kubeconfig")
        _make_absolute(config, path.parent)
        for kind in ("clusters", "users", "contexts"):
            merged[kind] += config.get(kind) or []
        merged["current-context"] = merged["current-context"] or config.get("current-context", "")
    return merged


def _make_absolute(config: _Fields, directory: Path) -> None:
    """Relative paths in a kubeconfig start at its own directory."""
    for entry in config.get("clusters") or ():
        _join(entry.get("cluster") or {}, directory, "certificate-authority")
    for entry in config.get("users") or ():
        user = entry.get("user") or {}
        _join(user, directory, "client-certificate", "client-key", "tokenFile")
        plugin = user.get("exec") or {}
        if "/" in str(plugin.get("command", "")):
            _join(plugin, directory, "command")


def _join(fields: _Fields, directory: Path, *keys: str) -> None:
    for key in keys:
        if fields.get(key):
            fields[key] = str(directory / str(fields[key]))


def _entry(config: _Fields, kind: str, field_name: str, name: str) -> _Fields:
    for entry in config[kind]:
        if entry.get("name") == name:
            return dict(entry.get(field_name) or {})
    known = ", ".join(sorted(str(e.get("name")) for e in config[kind])) or "none"
    raise _problem(f"there is no {field_name} named {name!r} (known: {known})")


def _bytes(fields: _Fields, key: str) -> bytes:
    data = fields.get(f"{key}-data")
    if data:
        try:
            return base64.b64decode(str(data), validate=True)
        except binascii.Error as error:
            raise _problem(f"{key}-data is not base64") from error
    return _read(Path(fields[key])) if fields.get(key) else b""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _problem(f"{path} cannot be read: {error.strerror}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _problem(message: str) -> ConfigError:
    return ConfigError(Problem(path="kubeconfig", message=message))
