"""Answers as values, and the one place that writes them to a socket, whole or spoiled by a fault."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus

from aiohttp import web

from copycat.sandbox.faults import Fault
from copycat.sandbox.ledger import Request

__all__ = ["Aborted", "Answered", "Reply", "close", "deliver", "refusal"]

_CHUNK = 256 * 1024
_CODES = {
    400: "UNSUPPORTED",
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "NOT_FOUND",
    405: "UNSUPPORTED",
    413: "SIZE_INVALID",
    416: "RANGE_INVALID",
    429: "TOOMANYREQUESTS",
}


@dataclass(slots=True, kw_only=True)
class Reply:
    """What a handler decided. `length` is what HEAD says when there is no body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None


class Answered(Exception):
    """A handler ends early with this answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class Aborted(Exception):
    """The connection was broken on purpose."""


def refusal(
    status: int, code: str = "", message: str = "", detail: object = None, **headers: str
) -> Reply:
    """An error in the form of the specification; header names are given with `_` for `-`."""
    code = code or _CODES.get(status, "UNKNOWN")
    errors = [
        {"code": code, "message": message or code.lower().replace("_", " "), "detail": detail}
    ]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(
        status=status,
        headers={"Content-Type": "application/json", **named},
        body=json.dumps({"errors": errors}).encode(),
    )


def close(transport: asyncio.Transport | None, *, reset: bool) -> None:
    """Ends a connection: with a TCP reset, or after what was written is out."""
    if transport is None:
        return
    if not reset:
        transport.close()
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def deliver(
    request: web.BaseRequest, entry: Request, reply: Reply, fault: Fault | None
) -> web.StreamResponse:
    """Writes the answer and counts its bytes."""
    if fault is not None:
        _apply(reply, fault)
    entry.status = reply.status
    if request.method == "HEAD" or reply.status in (204, 304):
        return await _send_head(request, reply)
    if fault is not None and fault.close_delimited:
        return await _send_until_close(request, entry, reply, fault)
    if fault is None and len(reply.body) <= _CHUNK:
        entry.bytes_out = len(reply.body)
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)
    return await _stream(request, entry, reply, fault)


def _apply(reply: Reply, fault: Fault) -> None:
    if fault.body is not None and not fault.replaces:
        reply.body = fault.body
    reply.body = fault.spoil(reply.body)
    if fault.encoding:
        reply.headers["Content-Encoding"] = fault.encoding
    for name, value in fault.headers.items():
        reply.headers.pop(name, None)
        if value is not None:
            reply.headers[name] = value


async def _send_head(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    if reply.status != 204:
        response.content_length = len(reply.body) if reply.length is None else reply.length
    await response.prepare(request)
    return response


async def _stream(
    request: web.BaseRequest, entry: Request, reply: Reply, fault: Fault | None
) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    if fault is not None and fault.chunked:
        response.enable_chunked_encoding()
    elif "Content-Length" not in reply.headers:
        response.content_length = len(reply.body)
    await response.prepare(request)
    if fault is not None:
        request.writer.send_headers()  # a cut or stall at 0 comes after them
    async for piece in _pieces(request, reply.body, fault):
        entry.bytes_out += len(piece)
        await response.write(piece)
    return response


async def _send_until_close(
    request: web.BaseRequest, entry: Request, reply: Reply, fault: Fault
) -> web.StreamResponse:
    """As HTTP/1.0 did it: the end of the connection is the end of the body. aiohttp would say `chunked` instead."""
    transport = request.transport
    if transport is not None:
        phrase = HTTPStatus(reply.status).phrase
        headers = {**reply.headers, "Connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        transport.write(f"HTTP/1.1 {reply.status} {phrase}\r\n{head}\r\n".encode())
        async for piece in _pieces(request, reply.body, fault):
            entry.bytes_out += len(piece)
            transport.write(piece)
        transport.close()
    raise Aborted


async def _pieces(
    request: web.BaseRequest, body: bytes, fault: Fault | None
) -> AsyncIterator[memoryview]:
    """The body in pieces that end where the fault wants something to happen."""
    view = memoryview(body)
    at = 0
    for end in _stops(len(body), fault):
        if end > at:
            yield view[at:end]
        at = end
        if fault is None:
            continue
        if at == fault.stall_at:
            await fault.stall()
        if at == fault.cut_at:
            await _flushed(request)
            close(request.transport, reset=fault.reset)
            raise Aborted


async def _flushed(request: web.BaseRequest) -> None:
    """A reset throws away what has not left the process yet."""
    if request.transport is not None:
        request.transport.set_write_buffer_limits(high=0)
        await request.writer.drain()


def _stops(size: int, fault: Fault | None) -> Iterator[int]:
    stops = set(range(_CHUNK, size, _CHUNK)) | {size}
    if fault is not None:
        stops |= {at for at in (fault.stall_at, fault.cut_at) if at is not None and at <= size}
    return iter(sorted(stops))
