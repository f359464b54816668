"""A folder over HTTP, with ranges, by the standard library; it can be told to behave badly."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

Ranges = Literal["sent", "ignored", "shifted"]


class WebFolder(ThreadingHTTPServer):
    """Serves the files below `folder`, notes each request, and answers as the test wants it to."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        self.requests: list[str] = []
        """Method and path of each, in order."""
        self.ranges: Ranges = "sent"
        self.refusal: HTTPStatus | None = None
        """The status that answers everything."""

    @property
    def url(self) -> str:
        """Where the folder is found."""
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: WebFolder

    def _answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.server.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        if self.server.refusal is not None:
            self._send(self.server.refusal, b"refused")
        elif not path.is_file():
            self._send(HTTPStatus.NOT_FOUND, b"<html>no such file</html>")
        else:
            self._send_file(path.read_bytes())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815  the base class's names

    def _send_file(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.server.ranges == "ignored":
            self._send(HTTPStatus.OK, data)
            return
        first = int(asked[1]) + (self.server.ranges == "shifted")
        last = min(int(asked[2] or len(data)), len(data) - 1)
        if first > last:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"")
            return
        content_range = f"bytes {first}-{last}/{len(data)}"
        self._send(HTTPStatus.PARTIAL_CONTENT, data[first : last + 1], content_range)

    def _send(self, status: HTTPStatus, data: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def web_folder(folder: Path) -> Iterator[WebFolder]:
    """A running server of `folder`."""
    with WebFolder(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
