"""Addresses in Go's spelling, and what is said when one cannot be had."""

from __future__ import annotations

import socket

import pytest

from copycat.admin.address import Address, is_loopback, split_host
from copycat.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        (":8080", "", 8080, False),
        ("127.0.0.1:8082", "127.0.0.1", 8082, True),
        ("127.9.9.9:1", "127.9.9.9", 1, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[::]:8080", "::", 8080, False),
        ("localhost:0", "localhost", 0, True),
        ("0.0.0.0:8080", "0.0.0.0", 8080, False),
        (" :8080 ", "", 8080, False),
    ],
)
def test_parse(text: str, host: str, port: int, loopback: bool) -> None:
    """Every spelling that Go's net.Listen takes is understood, and it is known whether it is loopback."""
    address = Address.parse(text, setting="metricsAddr")

    assert address is not None
    assert (address.host, address.port, address.loopback) == (host, port, loopback)
    assert str(address) == text.strip()


@pytest.mark.parametrize("text", ["0", "", " 0 "])
def test_off(text: str) -> None:
    """`0` and nothing turn a listener off."""
    assert Address.parse(text, setting="metricsAddr") is None


@pytest.mark.parametrize(
    "text", ["8080", "host", ":http", ":70000", "::1:8080", "[::1:8080", "::1]:8080", ":-1", ":²"]
)
def test_refused(text: str) -> None:
    """What is no address is refused, naming the setting and the right forms."""
    with pytest.raises(ConfigError, match=r"metricsAddr: .*8080"):
        Address.parse(text, setting="metricsAddr")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Localhost:80", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:8080", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("", ""),
        ("a.example.com:443", "a.example.com"),
    ],
)
def test_split_host(text: str, host: str) -> None:
    """The host of a Host header, whatever its form."""
    assert split_host(text) == host


@pytest.mark.parametrize(
    "host", ["example.com", "10.0.0.1", "", "localhost.example.com", "127.0.0.1.example.com"]
)
def test_not_loopback(host: str) -> None:
    """Names that only look like loopback are not."""
    assert not is_loopback(host)


def test_taken() -> None:
    """A port that is taken is a configuration error naming the setting and the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for text in (f"127.0.0.1:{port}", f":{port}"):
            address = Address.parse(text, setting="adminAddr (ADMIN_ADDR)")
            assert address is not None
            with pytest.raises(ConfigError, match=r"adminAddr \(ADMIN_ADDR\): .* listens there"):
                address.listen()


def test_not_ours() -> None:
    """An address that this machine does not have says so."""
    address = Address.parse("192.0.2.1:8080", setting="adminAddr")
    assert address is not None
    with pytest.raises(ConfigError, match=r"adminAddr: .*cannot be listened on"):
        address.listen()


@pytest.mark.parametrize("text", [":0", "127.0.0.1:0", "[::1]:0"])
def test_listen(text: str) -> None:
    """What is listened on can be connected to by IPv4 where that is included."""
    address = Address.parse(text, setting="x")
    assert address is not None
    with address.listen() as sock:
        port = sock.getsockname()[1]
        host = "::1" if text.startswith("[") else "127.0.0.1"
        with socket.create_connection((host, port)):
            pass
