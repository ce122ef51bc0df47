"""Who may use a listener: trust follows from where it is bound, never from who seems to call.

Everybody who reaches a loopback listener is inside the Pod or came by `kubectl port-forward`, which the
cluster has authorised. Elsewhere a bearer token is needed. Browsers are the exception to both: a page from
anywhere can make them call (cross-site requests, DNS rebinding), so their tell-tale headers are judged.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import anyio.to_thread

from copycat.admin.address import is_loopback, split_host

__all__ = ["MIN_TOKEN", "AuthMode", "Guard", "Refusal", "TokenFile"]

AuthMode = Literal["auto", "open"]

#: Characters of a token; shorter lines of the file are no tokens, as they could be guessed.
MIN_TOKEN: Final = 16
_MAX_FILE: Final = 64 << 10

#: Names that no public domain has: nobody can point them at us from outside.
_INNER: Final = (".svc", ".cluster.local", ".local", ".internal", ".localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not served."""

    status: Literal[401, 403]
    message: str


class TokenFile:
    """The tokens of a file, one a line (several while they are rotated), read again when the file changes."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._tokens: tuple[bytes, ...] = ()

    async def tokens(self) -> tuple[bytes, ...]:
        """The usable tokens now. Raises OSError if the file cannot be read."""
        seen, self._tokens = await anyio.to_thread.run_sync(self._read, self._seen, self._tokens)
        self._seen = seen
        return self._tokens

    def _read(
        self, seen: tuple[int, int, int] | None, tokens: tuple[bytes, ...]
    ) -> tuple[tuple[int, int, int], tuple[bytes, ...]]:
        with self._path.open("rb") as file:
            stat = os.fstat(file.fileno())
            now = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if now == seen:
                return now, tokens
            lines = [line.strip() for line in file.read(_MAX_FILE).splitlines()]
        return now, tuple(line for line in lines if len(line) >= MIN_TOKEN)


class Guard:
    """Decides for one listener."""

    def __init__(self, *, loopback: bool, mode: AuthMode, token_file: str) -> None:
        """Args: `loopback` is whether the listener is bound to a loopback address."""
        self._loopback = loopback
        self._open = mode == "open"
        self._path = token_file
        self._file = TokenFile(token_file) if token_file else None

    async def refuse(self, headers: Mapping[str, str], *, action: bool) -> Refusal | None:
        """Why a request with these (case-insensitive) headers is not served; None if it is. Actions are judged more strictly."""
        if action and (refusal := _foreign(headers)):
            return refusal
        if self._loopback:
            return self._check_host(headers.get("Host", ""), "a loopback listener", inner=False)
        if self._open:
            if not action:
                return None
            return self._check_host(headers.get("Host", ""), "adminAuth: open", inner=True)
        return await self._check_token(headers.get("Authorization", ""))

    def _check_host(self, host: str, why: str, *, inner: bool) -> Refusal | None:
        """A name of a public domain may have been pointed at us by its owner (DNS rebinding)."""
        name = split_host(host)
        if not name or is_loopback(name) or (inner and _is_inner(name)):
            return None
        return Refusal(
            status=403,
            message=f"the Host {name[:100]!r} is not one that {why} answers to;"
            " use the address itself, or another listener with adminTokenFile",
        )

    async def _check_token(self, header: str) -> Refusal | None:
        if self._file is None:
            return Refusal(
                status=403,
                message="not allowed on this listener: set adminTokenFile (ADMIN_TOKEN_FILE) and send its token as a bearer token,"
                " or use the loopback listener: kubectl port-forward deploy/k8s-copycat 8082, then http://127.0.0.1:8082/",
            )
        try:
            tokens = await self._file.tokens()
        except OSError as error:
            return Refusal(
                status=403,
                message=f"adminTokenFile cannot be read ({error.strerror}): nobody is let in",
            )
        if not tokens:
            return Refusal(
                status=403,
                message=f"adminTokenFile holds no token (a line of at least {MIN_TOKEN} characters): nobody is let in",
            )
        scheme, _, given = header.partition(" ")
        offered = given.strip().encode("utf-8", "surrogateescape")
        # every token is compared, so that the time tells nothing
        matches = [hmac.compare_digest(offered, token) for token in tokens]
        if scheme.lower() == "bearer" and any(matches):
            return None
        return Refusal(
            status=401,
            message="the token is not one of adminTokenFile"
            if offered
            else "a bearer token of adminTokenFile is needed",
        )


def _foreign(headers: Mapping[str, str]) -> Refusal | None:
    """A request that another site's page made a browser send."""
    site = headers.get("Sec-Fetch-Site", "none").lower()
    if site not in {"none", "same-origin"}:
        return Refusal(status=403, message="refused: the request comes from another site's page")
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("Host", "").lower():
        return Refusal(status=403, message="refused: the request comes from another origin's page")
    return None


def _is_inner(name: str) -> bool:
    if "." not in name or name.endswith(_INNER):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
