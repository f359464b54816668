"""One URL in, bytes out: read, write whole, list, measure and delete on any fsspec store."""

import contextlib
import hashlib
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from millrace.errors import (
    CorruptError,
    ExistsError,
    MillraceError,
    NotFoundError,
    StorageError,
)
from millrace.filesystem import join, open_filesystem, refuse_unless_read
from millrace.filesystem import what_to_check as _fix

T = TypeVar("T")


def default_store() -> str:
    """URL of the store: MILLRACE_STORE, else a folder beside Dagster's own state."""
    home = Path(os.environ.get("DAGSTER_HOME", "dagster_home")).absolute()
    return os.environ.get("MILLRACE_STORE", str(home / "store"))


ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.2
HEAL = "Delete that object and materialize what made it again: what lacks a file is made anew"
# What a store says when asking again cannot help.
_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError)


class Storage(Protocol):
    """Objects under one URL. Paths are relative to it and use forward slashes."""

    url: str

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of an object; NotFoundError if there is none."""

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """Make an object appear whole; with `if_absent`, ExistsError if there is one already."""

    def list(self, prefix: str) -> dict[str, int]:
        """Sizes in bytes of all objects below the folder `prefix`, by path."""

    def delete(self, path: str) -> None:
        """Remove an object; no error if there is none."""


class FsspecStorage:
    """Storage over an fsspec file system; docs/stores.md tells the kinds and how each is tested."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.attempts = ATTEMPTS
        try:
            self._fs, root = open_filesystem(self.url)
        except (ImportError, ValueError) as error:
            raise StorageError(
                f"open the store {url}",
                str(error),
                "Use a local path, s3://, gs://, abfs:// or https://",
            ) from error
        self._root = root.rstrip("/")

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Storage.read`."""

        def fetch(key: str) -> bytes:
            whole = (start, end) == (0, None)
            data: bytes = self._fs.cat_file(key, **({} if whole else {"start": start, "end": end}))
            if end is not None and len(data) != end - start:
                raise CorruptError(
                    f"read bytes {start} to {end} of {self.url}/{path}",
                    f"the store sent {len(data)} bytes",
                    f"The object is shorter than its manifest says. {HEAL}",
                )
            return data

        return self._attempt("read", path, fetch)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """See `Storage.write`."""
        if isinstance(self._fs, LocalFileSystem):
            self._attempt("write", path, lambda key: _write_local(Path(key), data, if_absent))
        elif if_absent:
            self._attempt("write", path, lambda key: self._create(key, data))
        else:
            self._attempt("write", path, lambda key: self._fs.pipe_file(key, data))

    def list(self, prefix: str) -> dict[str, int]:
        """See `Storage.list`."""

        def find(key: str) -> dict[str, int]:
            with contextlib.suppress(FileNotFoundError):
                found = self._fs.find(key, detail=True)
                return {
                    name[len(self._root) + 1 :]: int(info["size"])
                    for name, info in found.items()
                    if not name.endswith(_PARTIAL)
                }
            return {}

        return self._attempt("list", prefix, find)

    def delete(self, path: str) -> None:
        """See `Storage.delete`."""

        def remove(key: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(key)

        self._attempt("delete", path, remove)

    def _create(self, key: str, data: bytes) -> None:
        # s3fs refuses an existing key only through mode="create" (If-None-Match: *);
        # open(..., "xb") accepts a second writer. memory:// looks, then writes: two steps.
        is_memory = isinstance(self._fs, MemoryFileSystem)
        # adlfs knows no mode; it hands `overwrite` to Azure's upload_blob.
        new = {"overwrite": False} if _AZURE & set(_protocols(self._fs)) else {"mode": "create"}
        with _memory_lock if is_memory else contextlib.nullcontext():
            try:
                self._fs.pipe_file(key, data, **new)
            except Exception as error:
                # Azure's own class, and s3fs's OSError where the answer does not name the
                # condition, as Amazon's does and Swift's does not.
                answer = getattr(error.__cause__, "response", None) or {}
                code = answer.get("Error", {}).get("Code")
                if type(error).__name__ == "ResourceExistsError" or code == "PreconditionFailed":
                    raise FileExistsError(key) from error
                raise

    def _key(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise StorageError(
                f"use {path!r} below {self.url}", "it leaves the store", "Use a plain relative path"
            )
        return join(self._root, path) if path else self._root

    def _attempt(self, verb: str, path: str, act: Callable[[str], T]) -> T:
        """`act` on the full key, again after a pause for errors that may pass."""
        key, asked = self._key(path), f"{verb} {self.url}/{path}"
        refuse_unless_read(verb, self.url, asked)
        for attempt in range(1, self.attempts + 1):
            try:
                return act(key)
            except FileNotFoundError as error:
                if verb == "read":
                    raise NotFoundError(asked, "there is no such object", _NOT_FOUND_FIX) from error
                raise StorageError(asked, "no such bucket or folder", _fix(self.url)) from error
            except FileExistsError as error:
                raise ExistsError(asked, "it exists already", "Another run was first") from error
            except Exception as error:
                # Each backend has errors of its own (botocore, aiohttp, OSError); which of them
                # may pass is told by what they are not.
                if isinstance(error, _FINAL) or attempt == self.attempts:
                    if isinstance(error, MillraceError):
                        raise
                    raise StorageError(asked, _reason(error), _fix(self.url)) from error
                pause = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  jitter, not a secret
        raise AssertionError("the last attempt returns or raises")


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


_AZURE = frozenset({"abfs", "abfss", "az"})
_memory_lock = threading.Lock()
_PARTIAL = ".partial"
_NOT_FOUND_FIX = (
    "Materialize what made it again: what lacks a file is made anew; or check the store's URL"
)


def _write_local(target: Path, data: bytes, if_absent: bool) -> None:
    """Write beside, sync, then one atomic step: link when the name must be new, else rename."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(f"{error.filename} is a file, a folder is needed") from error
    beside = target.parent / f".{target.name}.{uuid.uuid4().hex}{_PARTIAL}"
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


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class StoredFile:
    """An object a manifest names: path below the store, size and SHA-256 (hex)."""

    path: str
    num_bytes: int
    sha256: str

    def read(self, storage: Storage) -> bytes:
        """The object's bytes, proven against the digest; CorruptError if they differ."""
        data = storage.read(self.path)
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise CorruptError(
                f"read {storage.url}/{self.path} ({self.num_bytes} bytes, sha256 {self.sha256})",
                f"{len(data)} bytes with sha256 {found}",
                f"The object was damaged or overwritten. {HEAL}",
            )
        return data

    @classmethod
    def written(cls, storage: Storage, path: str, data: bytes) -> "StoredFile":
        """Write `data` to `path` and describe it; nothing that exists is overwritten.

        Where other bytes lie at `path` (another run's, for whom they are right), the object goes to
        a folder named by its digest beside them.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        folder, slash, name = path.rpartition("/")
        for place in (path, f"{folder}{slash}{sha256[:12]}/{name}"):
            try:
                storage.write(place, data, if_absent=True)
            except ExistsError:
                if hashlib.sha256(storage.read(place)).hexdigest() != sha256:
                    continue
            return cls(place, len(data), sha256)
        raise CorruptError(
            f"write {storage.url}/{place} (sha256 {sha256})", "other bytes lie there", HEAL
        )

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "StoredFile":
        """Inverse of `dataclasses.asdict`."""
        return cls(**value)
