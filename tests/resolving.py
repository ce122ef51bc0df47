"""Host names of tests, which lead to loopback."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult


class OneHost(AbstractResolver):
    """Knows one name, and on which port it really is."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The one, or nobody."""
        if host != self.name:
            raise OSError(f"nobody knows {host}")
        return [
            ResolveResult(
                hostname=host,
                host="127.0.0.1",
                port=self.port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing to close."""
