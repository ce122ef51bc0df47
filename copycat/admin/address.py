"""Addresses to listen on, as Go programs spell them: `:8080`, `127.0.0.1:8080`, `[::1]:8080`, `0` for none."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass

from copycat.errors import ConfigError, Problem

__all__ = ["Address", "is_loopback", "split_host"]


def split_host(text: str) -> str:
    """The host of `host`, `host:port`, `[v6]:port` or a bare v6 address, in lower case and without brackets."""
    text = text.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, colon, rest = text.partition(":")
    return text if colon and ":" in rest else host


def is_loopback(host: str) -> bool:
    """Whether the name or literal can only mean this machine (RFC 6761 reserves `localhost` and names under it)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen. `host` is empty for every interface, port 0 takes any free port."""

    host: str
    port: int
    setting: str
    """The configuration key, for messages."""

    @classmethod
    def parse(cls, text: str, *, setting: str) -> Address | None:
        """The address, or None for off (`0` or nothing). Raises ConfigError naming the setting."""
        text = text.strip()
        if text in {"", "0"}:
            return None
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise _refused(
                setting, text, "is no address; use :8080, 127.0.0.1:8080, [::1]:8080, or 0 for off"
            )
        if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
            raise _refused(
                setting, text, "is no address; an IPv6 address stands in brackets: [::1]:8080"
            )
        return cls(host=host.strip("[]"), port=int(port), setting=setting)

    @property
    def loopback(self) -> bool:
        """Whether only processes of this machine (or Pod) can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def listen(self) -> socket.socket:
        """Take the address. May block for a name. Raises ConfigError naming the setting."""
        try:
            return self._listen()
        except OSError as error:
            text = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                text = "something else listens there; choose another address, or 0 for off"
            raise _refused(self.setting, str(self), f"cannot be listened on: {text}") from error

    def _listen(self) -> socket.socket:
        if self.host:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            return socket.create_server((self.host, self.port), family=family)
        try:
            return socket.create_server(
                ("", self.port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            # the kernel has no IPv6
            return socket.create_server(("", self.port), family=socket.AF_INET)


def _refused(setting: str, text: str, message: str) -> ConfigError:
    return ConfigError(Problem(path=setting, message=f"{text!r} {message}"))
