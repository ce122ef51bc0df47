"""A token server for registries with `auth: token`: who logs in gets a signed JWT for what was asked.

The format is that of the distribution project's token specification; the registry checks signature,
issuer, audience, times and the access list against the issuer's certificate.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

__all__ = ["TokenServer"]

SERVICE, ISSUER = "registry of the tests", "issuer of the tests"


class TokenServer:
    """The server as a context manager.

    Args:
        directory: where the issuer's certificate goes.
        life: seconds until a token ends; the answer promises much more, so that it ends in use.
    """

    def __init__(self, directory: Path, *, username: str, password: str, life: float) -> None:
        self.certificate = directory / "issuer.crt"
        self.granted: list[str] = []
        """The scopes of every token, in order."""
        self._login = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
        self._life = life
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._chain = self._self_signed()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self._server.server_port}"

    def auth(self) -> dict[str, str]:
        """The registry's `auth: token` section."""
        return {
            "realm": f"http://{self.address}/token",
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": str(self.certificate),
        }

    def _self_signed(self) -> str:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
        now = dt.datetime.now(dt.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        return base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()

    def token(self, scopes: list[str]) -> str:
        """A JWT for these scopes (`repository:name:pull,push`)."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = time.time()
        claims = {
            "iss": ISSUER,
            "sub": "copycat",
            "aud": SERVICE,
            "iat": int(now),
            "nbf": int(now) - 60,
            "exp": int(now + self._life),
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._chain]}
        signed = f"{_part(json.dumps(head).encode())}.{_part(json.dumps(claims).encode())}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_part(signature)}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers.get("Authorization") != outer._login:
                    self._answer(401, {"details": "wrong login"})
                    return
                scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
                outer.granted += scopes
                self._answer(200, {"token": outer.token(scopes), "expires_in": 3600})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Nothing is printed."""

        return Handler


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
