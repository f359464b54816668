"""A fault-injecting HTTP proxy on loopback, to stand in front of an S3 server (or any other).

    client -> FaultProxy -> upstream
                 |
                 faults: which request (method, path and query), what goes wrong, how many times

The proxy runs an event loop in a thread of its own and speaks HTTP/1.1 over plain sockets, because
most of what can go wrong is something that no HTTP library would send.
"""

import asyncio
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

FOR_EVER = 2**62
SPLIT = b"\r\n"
_CODES = {
    400: "RequestTimeout", 403: "AccessDenied", 404: "NoSuchKey", 429: "TooManyRequests",
    500: "InternalError", 503: "SlowDown",
}  # fmt: skip

BEFORE = ("status", "drop", "rst", "hang", "damage_request")
"""Kinds that act before the upstream is asked: an error status, the connection closed or reset, no
answer at all, and a request whose body reaches the upstream with one bit flipped."""
AFTER = (
    "cut_fin", "cut_rst", "cut_length", "cut_chunked", "cut_chunked_end", "cut_http10", "flip",
    "pad", "ignore_range", "shift_range", "stall", "trickle", "lose_reply",
)  # fmt: skip
"""Kinds that damage the upstream's answer:

cut_fin, cut_rst    half of the body, then FIN or RST
cut_length          half of the body with a Content-Length that fits it
cut_chunked         half of the body in chunks without the last chunk, then FIN
cut_chunked_end     half of the body in chunks, properly ended
cut_http10          half of the body, delimited by the end of the connection
flip                one bit of the body flipped, anywhere
pad                 16 zero bytes behind the body, with a Content-Length that fits
ignore_range        status 200 and a body as long as the whole object
shift_range         the range one byte further on
stall               half of the body, then silence
trickle             half of the body, then a byte every 0.2 s
lose_reply          the upstream did it, the client is told nothing
"""


@dataclass
class Fault:
    """What goes wrong with requests of one kind."""

    kind: str
    method: str = ""
    """A regular expression; empty matches all, as for the target."""
    target: str = ""
    """A regular expression searched for in path and query."""
    times: int = FOR_EVER
    """How many requests it may hit. Set to 0, it lets go of those that it holds."""
    code: int = 503
    share: float = 1.0
    """Of the requests that it is meant for; which ones is drawn by a seeded generator."""
    met: int = 0
    """How many requests it has hit."""


@dataclass
class Request:
    """One request as it came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Answer:
    """One answer as the upstream gave it."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class FaultProxy:
    """The proxy: `faults` may be replaced at any time, `seen` names each request."""

    upstream: str
    """URL of the server behind, http://host:port."""
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(7)  # noqa: S311  which bit flips is no secret
        self._writers: set[asyncio.StreamWriter] = set()
        # moto looks whether a key is free and then takes it, in two steps: of concurrent
        # conditional writers two may win there, unless their requests come one by one.
        self._one_change = asyncio.Lock()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def abort(self) -> None:
        """Cut every connection that is open: hanging ones would outlive their test."""
        for writer in list(self._writers):
            _reset(writer)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while request := await _read_request(reader, writer):
                if not await self._answer(request, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the proxy ends
        finally:
            self._writers.discard(writer)
            writer.close()

    def _pick(self, request: Request) -> Fault | None:
        for fault in self.faults:
            is_meant = re.fullmatch(fault.method or ".*", request.method) and re.search(
                fault.target, request.target
            )
            is_drawn = fault.share == 1.0 or self._random.random() < fault.share
            if is_meant and is_drawn and fault.met < fault.times:
                fault.met += 1
                return fault
        return None

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; whether the connection may serve another."""
        fault = self._pick(request)
        kind = fault.kind if fault else ""
        self.seen.append(f"{request.method} {request.target} {kind}".rstrip())
        if fault and kind == "status":
            _send(writer, _error(fault.code, request))
            await writer.drain()
            return True
        if kind == "rst":
            _reset(writer)
        if fault and kind == "hang":
            await _until_over(fault)
        if kind in ("drop", "rst", "hang"):
            return False
        if kind == "damage_request" and request.body:
            request.body = self._flip(request.body)
        if request.method in ("GET", "HEAD"):
            answer = await _forward(self.upstream, request)
        else:
            async with self._one_change:
                answer = await _forward(self.upstream, request)
        if kind == "lose_reply":
            return False
        if fault and kind in AFTER and answer.body:
            return await self._damage(fault, answer, writer)
        _send(writer, answer, is_head=request.method == "HEAD")
        await writer.drain()
        return True

    async def _damage(self, fault: Fault, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        kind, body = fault.kind, answer.body
        half = body[: len(body) // 2]
        whole = {
            "flip": lambda: self._flip(body),
            "pad": lambda: body + bytes(16),
            "cut_length": lambda: half,
            "ignore_range": lambda: _whole(answer),
            "shift_range": lambda: body[1:] + b"\0",
        }
        if kind in whole:
            answer.body = whole[kind]()
            _send(writer, answer)
            await writer.drain()
            return True
        if kind.startswith("cut_chunked"):
            _send_head(writer, answer, [("Transfer-Encoding", "chunked")])
            writer.write(b"%x\r\n%s\r\n" % (len(half), half) if half else b"")
            writer.write(b"0\r\n\r\n" if kind == "cut_chunked_end" else b"")
        elif kind == "cut_http10":
            _send_head(writer, answer, [("Connection", "close")])
            writer.write(half)
        else:
            _send_head(writer, answer, [("Content-Length", str(len(body)))])
            writer.write(half)
        await writer.drain()
        if kind == "cut_rst":
            _reset(writer)
        if kind == "stall":
            await _until_over(fault)
        if kind == "trickle":
            for number in range(len(half), len(body)):
                await asyncio.sleep(0.2)
                if not fault.times:
                    break
                writer.write(body[number : number + 1])
                await writer.drain()
        return kind == "cut_chunked_end"

    def _flip(self, body: bytes) -> bytes:
        place = self._random.randrange(len(body))
        return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


@contextmanager
def running(upstream: str) -> Iterator[FaultProxy]:
    """A proxy in front of `upstream`, served by a thread until the block ends."""
    proxy, loop, ready = FaultProxy(upstream), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        server = await proxy.serve()
        ready.set()
        async with server:
            with suppress(asyncio.CancelledError):
                await server.serve_forever()
            proxy.abort()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    task = loop.create_task(serve())

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


async def _until_over(fault: Fault) -> None:
    while fault.times:
        await asyncio.sleep(0.05)


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    lines = (await reader.readuntil(2 * SPLIT)).decode("latin-1").split("\r\n")[:-2]
    headers = [
        (name, value.strip()) for name, _, value in (one.partition(":") for one in lines[1:])
    ]
    return lines[0], headers


def _value(headers: list[tuple[str, str]], name: str) -> str:
    return next((value for known, value in headers if known.lower() == name), "")


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(SPLIT)).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readuntil(SPLIT)
    while await reader.readuntil(SPLIT) != SPLIT:
        pass  # trailers
    return b"".join(parts)


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    try:
        line, headers = await _read_head(reader)
    except asyncio.IncompleteReadError:
        return None
    method, target, _ = line.split(" ")
    if _value(headers, "expect"):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "chunked" in _value(headers, "transfer-encoding"):
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(_value(headers, "content-length") or 0))
    return Request(method, target, headers, body)


_OF_THE_CONNECTION = ("connection", "expect", "keep-alive", "transfer-encoding", "content-length")


def _kept(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [one for one in headers if one[0].lower() not in _OF_THE_CONNECTION]


async def _forward(upstream: str, request: Request) -> Answer:
    place = urlsplit(upstream)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        headers = [*_kept(request.headers), ("Connection", "close")]
        if request.body or request.method in ("PUT", "POST"):
            headers.append(("Content-Length", str(len(request.body))))
        _write_lines(writer, f"{request.method} {request.target} HTTP/1.1", headers)
        writer.write(request.body)
        await writer.drain()
        line, headers = await _read_head(reader)
        while line.split(" ")[1] == "100":
            line, headers = await _read_head(reader)
        status = line.split(" ", 1)[1]
        if request.method == "HEAD" or status[:3] in ("204", "304"):
            return Answer(status, headers, b"")
        if "chunked" in _value(headers, "transfer-encoding"):
            body = await _read_chunks(reader)
        elif length := _value(headers, "content-length"):
            body = await reader.readexactly(int(length))
        else:
            body = await reader.read()
        return Answer(status, headers, body)
    finally:
        writer.close()


def _write_lines(writer: asyncio.StreamWriter, line: str, headers: list[tuple[str, str]]) -> None:
    lines = [line, *(f"{name}: {value}" for name, value in headers), "", ""]
    writer.write("\r\n".join(lines).encode("latin-1"))


def _send_head(writer: asyncio.StreamWriter, answer: Answer, more: list[tuple[str, str]]) -> None:
    _write_lines(writer, f"HTTP/1.1 {answer.status}", [*_kept(answer.headers), *more])


def _send(writer: asyncio.StreamWriter, answer: Answer, *, is_head: bool = False) -> None:
    length = _value(answer.headers, "content-length") if is_head else str(len(answer.body))
    no_length = answer.status[:3] in ("204", "304")
    _send_head(writer, answer, [] if no_length else [("Content-Length", length or "0")])
    writer.write(answer.body)


def _error(code: int, request: Request) -> Answer:
    name = _CODES.get(code, "Error")
    body = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>{name}</Message></Error>"
    is_head = request.method == "HEAD"
    return Answer(
        f"{code} {name}",
        [("Content-Type", "application/xml")],
        b"" if is_head else body.encode(),
    )


def _whole(answer: Answer) -> bytes:
    """The range's bytes where they stand in an object of which the rest is zero."""
    told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", _value(answer.headers, "content-range"))
    if not told:
        return answer.body
    start, stop, size = int(told[1]), int(told[2]) + 1, int(told[3])
    answer.status = "200 OK"
    answer.headers = [one for one in answer.headers if one[0].lower() != "content-range"]
    return bytes(start) + answer.body + bytes(size - stop)


def _reset(writer: asyncio.StreamWriter) -> None:
    plain = writer.get_extra_info("socket")
    if plain is not None:
        with suppress(OSError):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
