"""Certificates, proxies and exec plugins: everything that decides how the API server is reached and as whom."""

from __future__ import annotations

import base64
import json
import ssl
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from copycat.errors import KubeDenied, KubeUnavailable
from copycat.kube.client import open_api
from copycat.sandbox.kube_api import KubeApi
from tests.kube.support import client_for, pod, until

PODS = "/api/v1/namespaces/shop/pods"
WATCH = {"watch": "true", "resourceVersion": "1000"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority for both sides."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca(authority: trustme.CA) -> bytes:
    """Its certificate, as PEM."""
    return authority.cert_pem.bytes()


def _server_context(authority: trustme.CA, *, clients: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "api.example").configure_cert(context)
    if clients:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
async def secure(authority: trustme.CA) -> AsyncIterator[KubeApi]:
    """A sandbox API over TLS."""
    async with KubeApi(ssl_context=_server_context(authority)) as server:
        yield server


def _service_account(directory: Path, ca: bytes, **files: str) -> Path:
    directory.mkdir()
    (directory / "ca.crt").write_bytes(ca)
    for name, content in files.items():
        (directory / name).write_text(content)
    return directory


async def test_in_cluster(secure: KubeApi, ca: bytes, tmp_path: Path) -> None:
    """In a Pod the service account's files say who asks and whom to trust; its namespace is ours."""
    directory = _service_account(tmp_path / "sa", ca, token="t1", namespace="tools\n")
    host, _, port = secure.url.removeprefix("https://").partition(":")
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    secure.access.tokens = {"t1"}
    async with open_api(environ=environ, service_account=directory) as client:
        assert client.in_cluster
        assert client.namespace == "tools"
        await client.request("GET", PODS)
    environ["POD_NAMESPACE"] = "other"
    async with open_api(environ=environ, service_account=directory) as client:
        assert client.namespace == "other"


async def test_untrusted_server(secure: KubeApi, tmp_path: Path) -> None:
    """A server whose certificate is not trusted gets no request."""
    other = trustme.CA().cert_pem.bytes()
    async with client_for(secure, tmp_path, ca=other, token="secret") as client:
        with pytest.raises(KubeUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await client.request("GET", PODS)
    async with client_for(secure, tmp_path) as client:  # the system's authorities
        with pytest.raises(KubeUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await client.request("GET", PODS)
    assert secure.requests == []


async def test_unusable_authority(secure: KubeApi, tmp_path: Path) -> None:
    """A CA that is no certificate is an error that says so."""
    async with client_for(secure, tmp_path, ca=b"\xff no certificate") as client:
        with pytest.raises(KubeUnavailable, match="certificates for https://"):
            await client.request("GET", PODS)


@pytest.mark.parametrize(
    ("fields", "accepted"),
    [
        ({"insecure-skip-tls-verify": True}, True),
        ({"tls-server-name": "api.example"}, True),
        ({"tls-server-name": "other.example"}, False),
    ],
    ids=["insecure", "server-name", "wrong-server-name"],
)
async def test_cluster_fields(
    secure: KubeApi, ca: bytes, tmp_path: Path, fields: dict[str, Any], accepted: bool
) -> None:
    """`insecure-skip-tls-verify` and `tls-server-name` mean what they mean to kubectl."""
    path = secure.kubeconfig(
        tmp_path / "kubeconfig", ca=b"" if "insecure-skip-tls-verify" in fields else ca
    )
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"] |= fields
    path.write_text(json.dumps(config))
    async with open_api(str(path), environ={}) as client:
        if accepted:
            await client.request("GET", PODS)
        else:
            with pytest.raises(KubeUnavailable):
                await client.request("GET", PODS)


async def test_client_certificate(authority: trustme.CA, ca: bytes, tmp_path: Path) -> None:
    """A client certificate is presented, from files and from data, and its key is not left on the disk."""
    issued = authority.issue_cert("someone@example")
    certificate, key = issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes()
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    files = {"client-certificate": "cert.pem", "client-key": "key.pem"}
    data = {
        "client-certificate-data": base64.b64encode(certificate).decode(),
        "client-key-data": base64.b64encode(key).decode(),
    }
    async with KubeApi(ssl_context=_server_context(authority, clients=True)) as api:
        for user in (files, data):
            async with client_for(api, tmp_path, ca=ca, user=user) as client:
                await client.request("GET", PODS)
        async with client_for(api, tmp_path, ca=ca) as client:
            with pytest.raises(KubeUnavailable):
                await client.request("GET", PODS)


# Proxies: the sandbox itself stands in for one, as it answers requests in absolute form.


async def test_proxy_url(api: KubeApi, tmp_path: Path) -> None:
    """The kubeconfig's `proxy-url` is used."""
    path = api.kubeconfig(tmp_path / "kubeconfig")
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"] = {"server": "http://cluster.example", "proxy-url": api.url}
    path.write_text(json.dumps(config))
    async with open_api(str(path), environ={}) as client:
        await client.request("GET", PODS)
    assert api.count("list", "pods") == 1


async def test_environment_proxies(
    api: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `proxy-url` a kubeconfig's server is reached as by kubectl; loopback never by a proxy."""
    monkeypatch.setenv("HTTP_PROXY", api.url)
    monkeypatch.setenv("http_proxy", api.url)
    path = api.kubeconfig(tmp_path / "kubeconfig")
    path.write_text(path.read_text().replace(api.url, "http://cluster.example"))
    async with open_api(str(path), environ={}) as client:
        await client.request("GET", PODS)
    assert api.count("list", "pods") == 1
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with client_for(api, tmp_path) as client:
        await client.request("GET", PODS)


# Exec plugins

PLUGIN = """
import json, os, sys
with open("{log}", "a") as log:
    log.write(os.environ["KUBERNETES_EXEC_INFO"] + os.environ.get("EXTRA", "") + chr(10))
with open("{answer}") as answer:
    sys.stdout.write(answer.read())
"""


class Plugin:
    """A program that prints what it is told to, and notes each of its runs."""

    def __init__(self, directory: Path) -> None:
        self.answer = directory / "answer.json"
        self.log = directory / "runs"
        self.script = directory / "plugin.py"
        self.script.write_text(PLUGIN.format(log=self.log, answer=self.answer))

    def gives(self, **status: Any) -> None:
        self.answer.write_text(json.dumps({"kind": "ExecCredential", "status": status}))

    def user(self, **fields: Any) -> dict[str, Any]:
        plugin = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-S", "-E", str(self.script)],
            **fields,
        }
        return {"exec": plugin}

    @property
    def runs(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """A plugin that gives nothing yet."""
    return Plugin(tmp_path)


async def test_plugin_token(api: KubeApi, plugin: Plugin, tmp_path: Path) -> None:
    """A plugin runs once for many requests, is told about the cluster if it wants, and runs again at a 401."""
    now = 100.0
    api.access.tokens = {"one"}
    plugin.gives(token="one")
    user = plugin.user(provideClusterInfo=True, env=[{"name": "EXTRA", "value": "extra"}])
    path = api.kubeconfig(tmp_path / "kubeconfig", user=user)
    async with open_api(str(path), environ={}, clock=lambda: now) as client:
        await client.request("GET", PODS)
        await client.request("GET", PODS)
        (run,) = plugin.runs
        assert run.endswith("extra")
        info = json.loads(run.removesuffix("extra"))
        assert info["spec"] == {"interactive": False, "cluster": {"server": api.url}}
        api.access.tokens = {"two"}
        plugin.gives(token="two")
        with pytest.raises(KubeDenied):  # it has just run: not again at once
            await client.request("GET", PODS)
        now += 10.0
        await client.request("GET", PODS)
    assert len(plugin.runs) == 2


async def test_plugin_expiry(api: KubeApi, plugin: Plugin, tmp_path: Path) -> None:
    """Credentials that have expired are renewed before the request; if that fails the old ones stay."""
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    future = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    api.access.tokens = {"one", "two"}
    plugin.gives(token="one", expirationTimestamp=past)
    async with client_for(api, tmp_path, user=plugin.user()) as client:
        await client.request("GET", PODS)
        api.access.tokens = {"two"}
        plugin.gives(token="two", expirationTimestamp=past)
        await client.request("GET", PODS)
        plugin.answer.write_text("nothing")
        await client.request("GET", PODS)
        assert len(plugin.runs) == 3
        plugin.gives(token="two", expirationTimestamp=future)
        await client.request("GET", PODS)
    assert [r.status for r in api.requests] == [200] * 4


@pytest.mark.parametrize(
    ("fields", "answer", "message"),
    [
        ({"command": "/nonexistent/plugin", "installHint": "get it"}, "", "get it"),
        ({"args": ["-c", "import sys; sys.exit('no login')"]}, "", "ended with 1: no login"),
        ({}, "no json", "no ExecCredential"),
        ({}, '{"status": {}}', "neither a token nor a certificate"),
    ],
    ids=["missing", "fails", "garbage", "empty"],
)
async def test_plugin_fails(
    api: KubeApi,
    plugin: Plugin,
    tmp_path: Path,
    *,
    fields: dict[str, Any],
    answer: str,
    message: str,
) -> None:
    """A plugin that gives nothing is an error that names it and the reason; nothing is sent."""
    plugin.answer.write_text(answer)
    async with client_for(api, tmp_path, user=plugin.user(**fields)) as client:
        with pytest.raises(KubeDenied, match=message):
            await client.request("GET", PODS)
    assert api.requests == []


async def test_plugin_certificate(
    authority: trustme.CA, ca: bytes, plugin: Plugin, tmp_path: Path
) -> None:
    """A new certificate gets a new connection; a stream over the old one goes on until it ends by itself."""

    def give(name: str, expires: datetime) -> None:
        issued = authority.issue_cert(name)
        plugin.gives(
            clientCertificateData=issued.cert_chain_pems[0].bytes().decode(),
            clientKeyData=issued.private_key_pem.bytes().decode(),
            expirationTimestamp=expires.isoformat(),
        )

    async with KubeApi(ssl_context=_server_context(authority, clients=True)) as api:
        give("first@example", datetime.now(UTC))
        async with client_for(api, tmp_path, ca=ca, user=plugin.user()) as client:
            async with client.stream(PODS, params=WATCH, silence=5) as chunks:
                give("second@example", datetime.now(UTC) + timedelta(hours=1))
                async with client.stream(PODS, params=WATCH, silence=5) as others:
                    assert len(plugin.runs) == 2
                    api.create("pods", pod("p"))
                    assert b'"ADDED"' in await anext(chunks)
                    assert b'"ADDED"' in await anext(others)
            await until(lambda: api.watching("pods") == 0)
            await client.request("GET", PODS)
        assert len(plugin.runs) == 2


async def test_idle_connection_is_replaced(
    authority: trustme.CA, ca: bytes, plugin: Plugin, tmp_path: Path
) -> None:
    """Without open streams the old certificate's connection is closed as soon as there is a new certificate."""

    def give(name: str) -> None:
        issued = authority.issue_cert(name)
        plugin.gives(
            clientCertificateData=issued.cert_chain_pems[0].bytes().decode(),
            clientKeyData=issued.private_key_pem.bytes().decode(),
            expirationTimestamp=datetime.now(UTC).isoformat(),
        )

    async with KubeApi(ssl_context=_server_context(authority, clients=True)) as api:
        async with client_for(api, tmp_path, ca=ca, user=plugin.user()) as client:
            for number in range(3):
                give(f"c{number}@example")
                await client.request("GET", PODS)
        assert [r.status for r in api.requests] == [200] * 3
