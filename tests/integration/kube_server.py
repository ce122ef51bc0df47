"""A real Kubernetes control plane on loopback: etcd, kube-apiserver and, where wanted, the controller manager.

There is no kubelet: a Deployment makes ReplicaSets and Pods, and the Pods stay Pending until a test patches
their status. The binaries are those of `kube/build.sh`; keys are made by openssl.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.integration.net import free_ports, get
from tests.integration.process import end, spawn
from tests.needs import envtest_dir

__all__ = ["KubeServer"]

#: Seconds until a server must answer; a loaded machine of two cores needs about ten.
READY = 120.0

#: What ServiceAccounts ask for, so that a test can compare it with what they were granted.
_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, userGroups: [system:serviceaccounts]}
"""

_SERVER_EXTENSIONS = """\
subjectAltName=IP:127.0.0.1,IP:10.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
basicConstraints=critical,CA:FALSE
extendedKeyUsage=serverAuth
keyUsage=critical,digitalSignature
authorityKeyIdentifier=keyid
subjectKeyIdentifier=hash
"""


class KubeServer:
    """The control plane as a context manager; attributes are valid inside it.

    Args:
        controller_manager: also run it, so that workloads make Pods and namespaces get their ServiceAccount.
        assets: the directory of the binaries (default: `tests.needs.envtest_dir`).
        apiserver_args: further arguments of kube-apiserver.
    """

    url: str
    token: str
    ca_file: Path
    kubeconfig: Path

    def __init__(
        self,
        *,
        controller_manager: bool = False,
        assets: Path | None = None,
        apiserver_args: tuple[str, ...] = (),
    ) -> None:
        self.controller_manager = controller_manager
        self.assets = assets or envtest_dir()
        self.apiserver_args = apiserver_args
        self.directory = Path(tempfile.mkdtemp(prefix="copycat-kube-"))
        self.certs = self.directory / "certs"
        self.ca_file = self.certs / "ca.crt"
        self.kubeconfig = self.directory / "kubeconfig"
        self._audit = self.directory / "audit.log"
        self.token = secrets.token_hex(16)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends what was started, the newest first, and removes the directory."""
        for name in reversed(list(self._processes)):
            end(self._processes.pop(name))
        shutil.rmtree(self.directory, ignore_errors=True)

    def audited(self, user: str) -> list[dict[str, Any]]:
        """The audit events of one user: what was asked, and the answer's status."""
        events = [json.loads(line) for line in self._audit.read_text().splitlines()]
        return [event for event in events if event["user"]["username"] == user]

    def restart_apiserver(self, *, down: float = 0.0) -> None:
        """Kills kube-apiserver and starts it anew on the same port, after `down` seconds."""
        process = self._processes.pop("kube-apiserver")
        process.kill()
        process.wait()
        time.sleep(down)
        self._start_apiserver()

    def restart(self, *, swap: Callable[[Path], None] = lambda data: None) -> None:
        """Kills kube-apiserver and etcd, and starts both anew with what etcd kept.

        Args: `swap` is given the directory of etcd's data while nothing runs.
        """
        for name in ("kube-apiserver", "etcd"):
            process = self._processes.pop(name)
            process.kill()
            process.wait()
        swap(self.directory / "etcd")
        self._start_etcd()
        self._start_apiserver()

    def compact(self) -> None:
        """Makes etcd forget all history up to now."""
        status = self._etcd_call("maintenance/status", {})
        revision = status["header"]["revision"]
        self._etcd_call("kv/compaction", {"revision": revision, "physical": True})

    def _etcd_call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(  # our own etcd
            f"{self._etcd}/v3/{method}", data=json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # our own etcd
            found: dict[str, Any] = json.load(answer)
        return found

    # Starting

    def _start(self) -> None:
        self.certs.mkdir(parents=True)
        self._make_keys()
        line = f'{self.token},test-admin,test-admin-uid,"system:masters"\n'
        tokens = self.directory / "tokens.csv"
        tokens.write_text(line)
        tokens.chmod(0o600)
        (self.directory / "audit.yaml").write_text(_AUDIT_POLICY)
        client, peer, self._port = free_ports(3)
        self._etcd = f"http://127.0.0.1:{client}"
        self._peer = f"http://127.0.0.1:{peer}"
        self._start_etcd()
        self.url = f"https://127.0.0.1:{self._port}"
        self._start_apiserver()
        self._write_kubeconfig()
        if self.controller_manager:
            self._start_controller_manager()

    def _start_etcd(self) -> None:
        self._spawn(
            "etcd",
            "--name=default",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}",
            f"--listen-peer-urls={self._peer}",
            f"--initial-advertise-peer-urls={self._peer}",
            f"--initial-cluster=default={self._peer}",
            "--unsafe-no-fsync=true",
            "--log-level=warn",
        )
        self._wait("etcd", f"{self._etcd}/health")

    def _start_apiserver(self) -> None:
        # The ServiceAccount plugin refuses every Pod until its namespace has a `default` ServiceAccount,
        # which only the controller manager creates.
        plugins = () if self.controller_manager else ("--disable-admission-plugins=ServiceAccount",)
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers={self._etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={self.certs / 'server.crt'}",
            f"--tls-private-key-file={self.certs / 'server.key'}",
            f"--client-ca-file={self.ca_file}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--allow-privileged=true",
            "--authorization-mode=RBAC",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={self.certs / 'sa.pub'}",
            f"--service-account-signing-key-file={self.certs / 'sa.key'}",
            "--profiling=false",
            f"--audit-policy-file={self.directory / 'audit.yaml'}",
            f"--audit-log-path={self._audit}",
            # Without it an open watch holds the shutdown for up to a minute.
            "--shutdown-watch-termination-grace-period=200ms",
            *plugins,
            *self.apiserver_args,
        )
        self._wait("kube-apiserver", f"{self.url}/readyz")

    def _start_controller_manager(self) -> None:
        self._spawn(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--secure-port=0",
            f"--root-ca-file={self.ca_file}",
            f"--service-account-private-key-file={self.certs / 'sa.key'}",
            "--use-service-account-credentials=false",
        )
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait("kube-controller-manager", self.url + account)

    def _write_kubeconfig(self) -> None:
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "preferences": {},
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        }
        self.kubeconfig.write_text(json.dumps(config, indent=1))  # JSON is YAML
        self.kubeconfig.chmod(0o600)

    def kubeconfig_for(self, path: Path, token: str) -> Path:
        """Writes a kubeconfig for another bearer token, as of a ServiceAccount."""
        config = json.loads(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    def kubeconfig_with_token_file(self, path: Path, file: Path) -> Path:
        """Writes a kubeconfig whose bearer token is read from a file."""
        config = json.loads(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"tokenFile": str(file)}
        path.write_text(json.dumps(config))
        return path

    def kubeconfig_through(self, path: Path, port: int) -> Path:
        """Writes the administrator's kubeconfig with the API at another port of this machine."""
        config = json.loads(self.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    def suspended(self) -> contextlib.AbstractContextManager[None]:
        """kube-apiserver hangs for as long as the body runs: it accepts connections and answers nothing."""
        return _suspended(self._processes["kube-apiserver"].pid)

    @property
    def port(self) -> int:
        """Of kube-apiserver."""
        return self._port

    # Parts

    def _spawn(self, name: str, *arguments: str) -> None:
        program = self.assets / name
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = spawn([str(program), *arguments], output=log)

    def _wait(self, name: str, url: str) -> None:
        """Returns when the server answers 200.

        Raises:
            RuntimeError: it ended, or did not answer in time; with the end of its log.
        """
        deadline = time.monotonic() + READY
        last: object = None
        while time.monotonic() < deadline:
            code = self._processes[name].poll()
            if code is not None:
                raise RuntimeError(f"{name} ended with {code}:\n{self._tail(name)}")
            try:
                last = self._ask(url)
            except OSError as error:
                last = error
            if last == 200:
                return
            time.sleep(0.05)
        raise RuntimeError(f"{name} did not answer in {READY} s ({last}):\n{self._tail(name)}")

    def _ask(self, url: str) -> int:
        """The status of an answer."""
        if not url.startswith("https:"):
            return get(url)[0]
        tls = ssl.create_default_context(cafile=str(self.ca_file))
        return get(url, headers={"Authorization": f"Bearer {self.token}"}, tls=tls)[0]

    def _tail(self, name: str, size: int = 4000) -> str:
        log = self.directory / f"{name}.log"
        return log.read_text(errors="replace")[-size:] if log.exists() else ""

    def _make_keys(self) -> None:
        elliptic = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        authority = ("-keyout", "ca.key", "-out", "ca.crt", "-days", "3650", "-subj", "/CN=test-ca")
        self._openssl("req", "-x509", *elliptic, *authority, *usage)
        server = ("-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=kube-apiserver")
        self._openssl("req", *elliptic, *server)
        (self.certs / "server.ext").write_text(_SERVER_EXTENSIONS)
        signer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "3650")
        files = ("-in", "server.csr", "-extfile", "server.ext", "-out", "server.crt")
        self._openssl("x509", "-req", *files, *signer)
        size = ("-pkeyopt", "rsa_keygen_bits:2048")
        self._openssl("genpkey", "-algorithm", "RSA", *size, "-out", "sa.key")
        self._openssl("pkey", "-in", "sa.key", "-pubout", "-out", "sa.pub")

    def _openssl(self, *arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, check=True, cwd=self.certs, capture_output=True)


@contextlib.contextmanager
def _suspended(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)
