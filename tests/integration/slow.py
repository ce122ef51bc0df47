"""A slow line to a server, so that a test can act while a copy is under way, or cut the line."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

from tests.integration.net import free_port

__all__ = ["SlowLine"]

_PIECE = 64 * 1024


class SlowLine:
    """Forwards TCP connections to a port of this machine; what comes back is held to `rate` bytes a second.

    The rate holds for all connections together and can be changed at any time; None is no limit. While
    `frozen` is set nothing passes in either direction, as if the cable were cut.
    """

    def __init__(self, upstream: int, *, rate: float | None = None) -> None:
        self.rate = rate
        self.frozen = False
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._upstream = upstream
        self._free_at = time.monotonic()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket()

    def __enter__(self) -> Self:
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen()
        self._start(self._accept)
        return self

    def drop(self) -> None:
        """Ends every connection; what is under way is lost."""
        for one in list(self._open):
            self._end(one)
        self._open.clear()

    @staticmethod
    def _end(one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.rate = None
        self.frozen = False
        self.drop()
        self._end(self._listener)
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]  # any callable
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:
                    return
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream), timeout=None)
            except OSError:  # the server is stopped
                client.close()
                continue
            self._open |= {client, server}
            self._start(self._forward, client, server, False)
            self._start(self._forward, server, client, True)

    def _forward(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                if slow:
                    self._wait(len(piece))
                while self.frozen:
                    time.sleep(0.02)
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _wait(self, size: int) -> None:
        with self._lock:
            now = time.monotonic()
            rate = self.rate
            if rate is None:
                self._free_at = now
                return
            self._free_at = max(now, self._free_at) + size / rate
            until = self._free_at
        while self._limited() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))

    def _limited(self) -> bool:
        """Another thread may lift the limit at any time."""
        return self.rate is not None
