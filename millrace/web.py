"""Objects read over plain HTTP(S): whole or by range, as a CDN in front of a bucket serves them."""

from http import HTTPStatus
from typing import Any

from fsspec.implementations.http import HTTPFileSystem

# A body compressed on the way has other byte positions.
_PLAIN = {"Accept-Encoding": "identity"}
_NO_HEAD = (HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)


class WebFileSystem(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's HTTP file system, whose ranges are what was asked for or an error.

    fsspec takes whatever body answers a range. A server may ignore the range and send the whole
    object (it is cut here), and a cache may send another range (it is refused here). And it calls
    every object missing that the server cannot or will not tell of just now.
    """

    async def _info(self, url: str, **request: Any) -> dict[str, Any]:
        session = await self.set_session()
        async with session.head(
            self.encode_url(url), headers=_PLAIN, allow_redirects=True, **request
        ) as response:
            if response.status in _NO_HEAD:
                told: dict[str, Any] = await super()._info(url, **request)
                return told
            _refuse(response, url)
            size = response.headers.get("Content-Length")
            told = {"name": url, "size": int(size) if size else None, "type": "file"}
            kept = ("ETag", "Last-Modified")
            return told | {
                name: response.headers[name] for name in kept if name in response.headers
            }

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **request: Any
    ) -> bytes:
        whole = start is None and end is None
        first = start or 0
        if first < 0 or (end is not None and end < 0):
            raise ValueError(f"bytes {start} to {end} of {url}: count from the start")
        if end is not None and end <= first:
            return b""
        span = {} if whole else {"Range": f"bytes={first}-{'' if end is None else end - 1}"}
        session = await self.set_session()
        async with session.get(self.encode_url(url), headers=_PLAIN | span, **request) as response:
            _refuse(response, url)
            data: bytes = await response.read()
        if whole:
            return data
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            return data[first:end]
        sent = response.headers.get("Content-Range", "")
        if not sent.startswith(f"bytes {first}-"):
            raise OSError(f"asked for bytes from {first}, the server sent {sent or 'others'!r}")
        return data


def _refuse(response: Any, url: str) -> None:
    """Raise for an answer that is no object."""
    if response.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise FileNotFoundError(url)
    if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise PermissionError(
            f"the server answered {response.status} {response.reason}; a bucket that may not be "
            "listed answers so for an object that does not exist, too"
        )
    response.raise_for_status()
