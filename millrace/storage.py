"""One URL in, bytes out: read, write whole, list and delete on any fsspec store, each in time.

    an operation -> attempts, each with a deadline and all together with one (deadline.py)
      an attempt -> one call on the objects of a file system (objects.py, s3.py)

Reads are checked for length, and for content where the caller or the store brings a proof; each
write to a remote store is looked at before it counts.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from millrace.deadline import PATIENCE, OverdueError, Patience, persist
from millrace.errors import (
    CorruptError,
    DeadlineError,
    ExistsError,
    MillraceError,
    NotFoundError,
    StorageError,
)
from millrace.filesystem import join, open_filesystem, refuse_unless_read, what_to_check
from millrace.objects import (
    LocalObjects,
    MemoryObjects,
    Objects,
    RemoteObjects,
    Told,
    protocols,
)
from millrace.s3 import S3Objects, parts_mark

T = TypeVar("T")
Proof = Callable[[bytes], None]
"""Raises a CorruptError, naming object, offset and both digests, for bytes that are not right."""

HEAL = "Delete that object and materialize what made it again: what lacks a file is made anew"
RANGE_BYTES = 16 * 2**20
"""A longer object is read whole in ranges of this size, each with attempts of its own."""
RANGES_AT_ONCE = 4
_SCHEMES = "Use a local path, s3://, gs://, abfs:// or https://"
_NOT_FOUND_FIX = (
    "Materialize what made it again: what lacks a file is made anew; or check the store's URL"
)


def default_store() -> str:
    """URL of the store: MILLRACE_STORE, else a folder beside Dagster's own state."""
    home = Path(os.environ.get("DAGSTER_HOME", "dagster_home")).absolute()
    return os.environ.get("MILLRACE_STORE", str(home / "store"))


class Storage(Protocol):
    """Objects under one URL. Paths are relative to it and use forward slashes."""

    url: str

    def read(
        self, path: str, start: int = 0, end: int | None = None, *, prove: Proof | None = None
    ) -> bytes:
        """Bytes [start, end) of an object; NotFoundError if there is none.

        Bytes that `prove` refuses are fetched again; its CorruptError is raised if that does not
        help. Without it, a range is only checked for its length.
        """

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """Make an object appear whole; with `if_absent`, ExistsError if other bytes are there.

        Of concurrent writers of different bytes with `if_absent` exactly one succeeds. The very
        same bytes count as written: whose they are cannot be told where an answer was lost.
        """

    def list(self, prefix: str) -> dict[str, int]:
        """Sizes in bytes of all objects below the folder `prefix`, by path."""

    def delete(self, path: str) -> None:
        """Remove an object; no error if there is none."""


class FsspecStorage:
    """Storage over an fsspec file system; docs/stores.md tells the kinds and how each is tested.

    Args:
        url: Folder, bucket or prefix.
        patience: How long operations on a remote store may take. Local folders have no deadline.
        hedge_seconds: Ask a second time for a range that takes longer than this (0: never).
    """

    def __init__(self, url: str, patience: Patience = PATIENCE, hedge_seconds: float = 0.0) -> None:
        self.url = url.rstrip("/")
        self.patience = patience
        try:
            filesystem, root = open_filesystem(self.url)
        except (ImportError, ValueError) as error:
            raise StorageError(f"open the store {url}", str(error), _SCHEMES) from error
        self._root = root.rstrip("/")
        self._objects = _objects(filesystem, url, hedge_seconds)

    def read(
        self, path: str, start: int = 0, end: int | None = None, *, prove: Proof | None = None
    ) -> bytes:
        """See `Storage.read`."""
        if end is not None:
            return self._read_range(path, start, end, prove)

        def fetch(key: str, _seconds: float) -> bytes:
            told = self._objects.tell(key, self.patience.attempt_limit(0))
            data = self._read_told(path, key, told, start)
            if prove:
                prove(data)
            elif start == 0 and told.md5:
                _check_md5(self._name(path), told.md5, data)
            return data

        return self._attempt("read", path, fetch)

    def told(self, path: str) -> Told:
        """What the store tells of an object; NotFoundError if there is none."""
        return self._attempt("read", path, self._objects.tell)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """See `Storage.write`.

        On a remote store a write counts once the object has been looked at: its ETag where that is
        an MD5, else its bytes. After an attempt without an answer the look comes first. A refusal
        is looked into as well: aiohttp itself sends a PUT again when a kept connection breaks, so
        that the first thing we hear of a write that got through may be that the object exists.
        """
        objects, tries, is_ours = self._objects, 0, False

        def put(key: str, seconds: float) -> None:
            nonlocal tries, is_ours
            tries += 1
            if tries > 1 and objects.is_remote and self._holds(key, data, seconds):
                return
            try:
                objects.write(key, data, if_absent=if_absent and not is_ours, seconds=seconds)
            except FileExistsError:
                if self._holds(key, data, seconds):
                    return
                raise
            is_ours = True
            if objects.is_remote and not self._holds(key, data, seconds):
                raise CorruptError(
                    f"write {self._name(path)} ({len(data)} bytes)",
                    "the store holds other bytes than were sent",
                    "Check the network and the server between here and the store",
                )

        self._attempt("write", path, put, len(data))

    def list(self, prefix: str) -> dict[str, int]:
        """See `Storage.list`."""
        found = self._unless_absent("list", prefix, self._objects.list) or {}
        return {name[len(self._root) + 1 :]: size for name, size in found.items()}

    def delete(self, path: str) -> None:
        """See `Storage.delete`."""
        self._unless_absent("delete", path, self._objects.delete)

    def _read_range(self, path: str, start: int, end: int, prove: Proof | None = None) -> bytes:
        def fetch(key: str, seconds: float) -> bytes:
            data = self._objects.read(key, start, end, seconds) if end > start else b""
            if prove:
                prove(data)
            return data

        return self._attempt("read", path, fetch, end - start)

    def _read_told(self, path: str, key: str, told: Told, start: int) -> bytes:
        """From `start` to the end of an object of known size, a long one in ranges."""
        end = told.num_bytes
        if end is None:
            return self._objects.read(key, start, None, self.patience.attempt_limit(RANGE_BYTES))
        if end - start <= RANGE_BYTES:
            seconds = self.patience.attempt_limit(end - start)
            return self._objects.read(key, start, end, seconds) if end > start else b""
        starts = range(start, end, RANGE_BYTES)
        with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
            return b"".join(
                pool.map(lambda at: self._read_range(path, at, min(at + RANGE_BYTES, end)), starts)
            )

    def _holds(self, key: str, data: bytes, seconds: float) -> bool:
        """Whether the store holds exactly these bytes."""
        try:
            told = self._objects.tell(key, min(seconds, self.patience.attempt_limit(0)))
        except FileNotFoundError:
            return False
        if told.num_bytes is not None and told.num_bytes != len(data):
            return False
        if told.md5:
            return told.md5 == hashlib.md5(data, usedforsecurity=False).hexdigest()
        if told.mark and told.mark == parts_mark(data):
            return True
        return self._objects.read(key, 0, len(data), seconds) == data if data else True

    def _name(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url

    def _key(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise StorageError(
                f"use {path!r} below {self.url}", "it leaves the store", "Use a plain relative path"
            )
        return join(self._root, path) if path else self._root

    def _unless_absent(self, verb: str, path: str, act: Callable[[str, float], T]) -> T | None:
        """`act`, or None where the store says that there is nothing to act on."""
        try:
            return self._attempt(verb, path, act)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError) and self._objects.reports_absence:
                return None
            raise

    def _attempt(
        self, verb: str, path: str, act: Callable[[str, float], T], num_bytes: int = 0
    ) -> T:
        """`act` on the full key, as often as `patience` says, its last error told in our words."""
        key, asked = self._key(path), f"{verb} {self._name(path)}"
        refuse_unless_read(verb, self.url, asked)
        is_remote = self._objects.is_remote
        try:
            return persist(
                lambda seconds: act(key, seconds), self.patience, num_bytes, is_remote=is_remote
            )
        except MillraceError:
            raise
        except FileNotFoundError as error:
            if verb == "read":
                raise NotFoundError(asked, "there is no such object", _NOT_FOUND_FIX) from error
            raise StorageError(
                asked, "no such bucket or folder", what_to_check(self.url)
            ) from error
        except FileExistsError as error:
            raise ExistsError(asked, "it exists already", "Another run was first") from error
        except OverdueError as error:
            limits = (
                f"{self.patience.attempts} attempts, {self.patience.total_seconds:.0f} s in all"
            )
            raise DeadlineError(
                asked, f"{error} (at most {limits})", what_to_check(self.url)
            ) from error
        except Exception as error:
            # At this edge every backend's errors mean the same to the caller.
            raise StorageError(asked, _reason(error), what_to_check(self.url)) from error


def _objects(filesystem: Any, url: str, hedge_seconds: float) -> Objects:
    if isinstance(filesystem, LocalFileSystem):
        return LocalObjects()
    if isinstance(filesystem, MemoryFileSystem):
        return MemoryObjects(filesystem)
    if not isinstance(filesystem, AsyncFileSystem):
        raise StorageError(
            f"open the store {url}",
            f"{type(filesystem).__name__} cannot be cancelled, so that no deadline would hold",
            _SCHEMES,
        )
    kind = S3Objects if "s3" in protocols(filesystem) else RemoteObjects
    return kind(filesystem, hedge_seconds)


def _check_md5(name: str, md5: str, data: bytes) -> None:
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise CorruptError(
            f"read {name} (MD5 {md5} as the store tells it)",
            f"{len(data)} bytes with MD5 {found}",
            "They were damaged on the way, or the object is overwritten all the time: try again",
        )


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

        def prove(data: bytes) -> None:
            found = hashlib.sha256(data).hexdigest()
            if found != self.sha256:
                raise CorruptError(
                    f"read {storage.url}/{self.path} "
                    f"({self.num_bytes} bytes from 0, sha256 {self.sha256})",
                    f"{len(data)} bytes with sha256 {found}",
                    f"The object was damaged or overwritten. {HEAL}",
                )

        return storage.read(self.path, prove=prove)

    @classmethod
    def written(cls, storage: Storage, path: str, data: bytes, *, sha256: str = "") -> "StoredFile":
        """Write `data`, of this digest where it is known, to `path` and describe it.

        Nothing that exists is overwritten: where other bytes lie at `path` (another run's, for whom
        they are right), the object goes to a folder named by its digest beside them.
        """
        sha256 = sha256 or hashlib.sha256(data).hexdigest()
        folder, slash, name = path.rpartition("/")
        for place in (path, f"{folder}{slash}{sha256[:12]}/{name}"):
            file = cls(place, len(data), sha256)
            try:
                storage.write(place, data, if_absent=True)
            except ExistsError:
                try:
                    file.read(storage)
                except CorruptError:
                    continue
            return file
        raise CorruptError(
            f"write {storage.url}/{place} (sha256 {sha256})", "other bytes lie there", HEAL
        )

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "StoredFile":
        """Inverse of `dataclasses.asdict`."""
        return cls(**value)
