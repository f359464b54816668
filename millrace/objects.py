"""One attempt at an operation on the objects of a file system: local, in memory or remote."""

import asyncio
import base64
import os
import re
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fsspec.asyn import sync
from fsspec.implementations.memory import MemoryFileSystem

from millrace.deadline import within
from millrace.errors import CorruptError

T = TypeVar("T")
V = TypeVar("V")

PARTIAL = ".partial"
# Beyond an attempt's own limit: for cancelling it, and for aborting what it had begun.
GRACE_SECONDS = 5.0
_DAMAGED = "The object is damaged or cut: delete it and materialize what made it"
_PLAIN_MD5 = re.compile(r"[0-9a-f]{32}")
_AZURE = frozenset({"abfs", "abfss", "az"})


@dataclass(frozen=True)
class Told:
    """What a store tells of an object without sending it."""

    num_bytes: int | None
    """None where the server does not say (HTTP without Content-Length)."""
    mark: str = ""
    """MD5 of its bytes (hex), or of the MD5s of its parts and their number (`...-7`), or empty."""

    @property
    def md5(self) -> str:
        """MD5 of the object's bytes in hex, empty where the store tells none."""
        return self.mark if _PLAIN_MD5.fullmatch(self.mark) else ""


class Objects(Protocol):
    """Objects by full key. Each call is one attempt and takes at most about `seconds`."""

    is_remote: bool
    reports_absence: bool
    """Whether `list` and `delete` call a missing object a FileNotFoundError; to S3 it is none, so
    that one of those means no such bucket."""

    def tell(self, key: str, seconds: float) -> Told:
        """Size and mark; FileNotFoundError if there is no such object."""

    def read(self, key: str, start: int, end: int | None, seconds: float) -> bytes:
        """Bytes [start, end), exactly that many; CorruptError if the store sends another number."""

    def write(self, key: str, data: bytes, *, if_absent: bool, seconds: float) -> None:
        """Make an object appear whole; FileExistsError where it must be new and is not."""

    def list(self, key: str, seconds: float) -> dict[str, int]:
        """Sizes by full key of all objects below a folder; FileNotFoundError if it is not there."""

    def delete(self, key: str, seconds: float) -> None:
        """Remove an object; FileNotFoundError if there is none and the store says so."""


def check_length(key: str, start: int, end: int | None, data: bytes) -> bytes:
    """`data`, or a CorruptError if it is not as long as what was asked for."""
    if end is not None and len(data) != end - start:
        raise CorruptError(
            f"read bytes {start} to {end} of {key}",
            f"the store sent {len(data)} bytes",
            _DAMAGED,
        )
    return data


class LocalObjects:
    """Files below a folder, without deadlines.

    What hangs in the kernel (a dead NFS server) cannot be cancelled, only left behind in a thread
    that keeps its file open; so it is waited for.
    """

    is_remote = False
    reports_absence = True

    def tell(self, key: str, seconds: float) -> Told:
        """See `Objects.tell`."""
        del seconds
        if Path(key).is_dir():
            raise IsADirectoryError(f"{key} is a folder")
        return Told(Path(key).stat().st_size)

    def read(self, key: str, start: int, end: int | None, seconds: float) -> bytes:
        """See `Objects.read`."""
        del seconds
        with Path(key).open("rb") as file:
            file.seek(start)
            return check_length(key, start, end, file.read(-1 if end is None else end - start))

    def write(self, key: str, data: bytes, *, if_absent: bool, seconds: float) -> None:
        """Write beside, sync, then one atomic step: link when the name must be new, else rename."""
        del seconds
        target = Path(key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(f"{error.filename} is a file, a folder is needed") from error
        beside = target.parent / f".{target.name}.{uuid.uuid4().hex}{PARTIAL}"
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if if_absent:
                os.link(beside, target)
            else:
                beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    def list(self, key: str, seconds: float) -> dict[str, int]:
        """See `Objects.list`."""
        del seconds
        sizes = {}
        for folder, _, names in os.walk(key, onerror=_raise):
            for name in names:
                if not name.endswith(PARTIAL):
                    path = Path(folder, name)
                    try:
                        sizes[path.as_posix()] = path.stat().st_size
                    except FileNotFoundError:
                        continue  # deleted since, or a link to nothing
        return sizes

    def delete(self, key: str, seconds: float) -> None:
        """See `Objects.delete`."""
        del seconds
        Path(key).unlink()


class MemoryObjects:
    """Objects in this process's memory."""

    is_remote = False
    reports_absence = True
    # Looking whether a key is free and taking it are two steps there.
    _creating = threading.Lock()

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem

    def tell(self, key: str, seconds: float) -> Told:
        """See `Objects.tell`."""
        del seconds
        return _told(self._fs, self._fs.info(key))

    def read(self, key: str, start: int, end: int | None, seconds: float) -> bytes:
        """See `Objects.read`."""
        del seconds
        return check_length(key, start, end, self._fs.cat_file(key, start=start, end=end))

    def write(self, key: str, data: bytes, *, if_absent: bool, seconds: float) -> None:
        """See `Objects.write`."""
        del seconds
        with self._creating:
            self._fs.pipe_file(key, data, mode="create" if if_absent else "overwrite")

    def list(self, key: str, seconds: float) -> dict[str, int]:
        """See `Objects.list`."""
        del seconds
        return {name: info["size"] for name, info in self._fs.find(key, detail=True).items()}

    def delete(self, key: str, seconds: float) -> None:
        """See `Objects.delete`."""
        del seconds
        self._fs.rm_file(key)


class RemoteObjects:
    """Objects of an asynchronous fsspec file system, each call cancelled when its time is over.

    Args:
        filesystem: The file system.
        hedge_seconds: A read that takes longer than this is asked a second time, and the first
            whole answer counts; 0 never asks twice.
    """

    is_remote = True
    reports_absence = True

    def __init__(self, filesystem: Any, hedge_seconds: float = 0.0) -> None:
        self._fs = filesystem
        self._hedge_seconds = hedge_seconds

    def tell(self, key: str, seconds: float) -> Told:
        """See `Objects.tell`."""
        return self._run(lambda: self._tell(key), seconds)

    def read(self, key: str, start: int, end: int | None, seconds: float) -> bytes:
        """See `Objects.read`."""

        async def fetch() -> bytes:
            bounds = {"start": start, "end": end} if (start, end) != (0, None) else {}
            try:
                data = await self._fs._cat_file(key, **bounds)
            except Exception as error:
                if type(error).__name__ == "FlexibleChecksumError":  # botocore's own check
                    raise CorruptError(f"read {key} from {start}", str(error), _DAMAGED) from error
                if http_status(error) != 416:  # it begins past the end
                    raise
                data = b""
            return check_length(key, start, end, data)

        if self._hedge_seconds:
            return self._run(lambda: first_answer(fetch, self._hedge_seconds), seconds)
        return self._run(fetch, seconds)

    def write(self, key: str, data: bytes, *, if_absent: bool, seconds: float) -> None:
        """See `Objects.write`."""
        try:
            self._run(lambda: self._put(key, data, if_absent=if_absent), seconds)
        except Exception as error:
            # Azure's own class, and s3fs where a server words its 412 differently; importing the
            # classes would ask for a package that only their stores need.
            if type(error).__name__ == "ResourceExistsError" or http_status(error) == 412:
                raise FileExistsError(key) from error
            raise

    def list(self, key: str, seconds: float) -> dict[str, int]:
        """See `Objects.list`.

        Listed twice (`agreed`), because what is deleted hangs on it.
        """
        return self._run(lambda: agreed(lambda: self._list(key)), seconds)

    def delete(self, key: str, seconds: float) -> None:
        """See `Objects.delete`."""
        self._run(lambda: self._fs._rm_file(key), seconds)

    def _run(self, work: Callable[[], Awaitable[T]], seconds: float) -> T:
        return run(self._fs, work, seconds)

    async def _tell(self, key: str) -> Told:
        return _told(self._fs, await self._fs._info(key))

    async def _put(self, key: str, data: bytes, *, if_absent: bool) -> None:
        # mode="create" becomes If-None-Match: * or the like; open(..., "xb") accepts a second
        # writer. adlfs knows no mode; it hands `overwrite` to Azure's upload_blob.
        if _AZURE & protocols(self._fs):
            await self._fs._pipe_file(key, data, overwrite=not if_absent)
        elif if_absent:
            await self._fs._pipe_file(key, data, mode="create")
        else:
            await self._fs._pipe_file(key, data)

    async def _list(self, key: str) -> dict[str, int]:
        found = await self._fs._find(key, detail=True)
        return {name: int(info["size"]) for name, info in found.items()}


def run(filesystem: Any, work: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What `work` gives, run on the file system's own loop and cancelled after `seconds`."""

    async def limited() -> T:
        try:
            return await within(seconds, work())
        except TimeoutError as error:
            # The store's word, or a limit of its client's; `sync` would drop what it says.
            raise OSError(f"it timed out, says the store or its client ({error!r})") from error

    # The outer limit only acts when fsspec's loop itself hangs.
    result: T = sync(filesystem.loop, limited, timeout=seconds + GRACE_SECONDS)
    return result


async def agreed(listing: Callable[[], Awaitable[dict[str, V]]]) -> dict[str, V]:
    """What two listings taken at once agree on, and a third decides where they differ.

    Nothing else proves a listing. An object that appears or goes meanwhile is told as it was at
    some moment, like in a single one.
    """
    first, second = await asyncio.gather(listing(), listing())
    if first == second:
        return first
    third = (await listing()).items()
    return dict((first.items() & second.items()) | ((first.items() | second.items()) & third))


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


async def first_answer(fetch: Callable[[], Awaitable[T]], hedge_seconds: float) -> T:
    """What `fetch` gives, asked a second time if the first takes longer than `hedge_seconds`.

    The first success counts; the last error is raised where both fail.
    """
    tasks = {asyncio.ensure_future(fetch())}
    try:
        done, waiting = await asyncio.wait(tasks, timeout=hedge_seconds)
        if not done:
            tasks.add(asyncio.ensure_future(fetch()))
            waiting = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            good = [task for task in done if not task.exception()]
            if good or not waiting:
                return (good or list(done))[0].result()
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def protocols(filesystem: Any) -> frozenset[str]:
    """All names a file system goes by."""
    names = filesystem.protocol
    return frozenset((names,) if isinstance(names, str) else names)


def md5_told(filesystem: Any, info: Mapping[str, Any]) -> str:
    """MD5 (hex) of an object's bytes as fsspec's `info` has it from the store; or empty."""
    told = info.get("md5Hash") or info.get("content_md5") or ""
    if isinstance(told, bytes | bytearray):
        return bytes(told).hex()
    return base64.b64decode(told).hex() if told else ""


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status that a backend's error came from, if it tells one."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
        for name in ("status", "status_code", "code"):  # aiohttp, azure, gcsfs
            if isinstance(status := getattr(error, name, None), int):
                return status
        error = error.__cause__
    return None


def _told(filesystem: Any, info: Mapping[str, Any]) -> Told:
    if info["type"] == "directory":
        raise IsADirectoryError(f"{info['name']} is a folder")
    size = info["size"]
    mark = "" if isinstance(filesystem, MemoryFileSystem) else md5_told(filesystem, info)
    return Told(None if size is None else int(size), mark)
