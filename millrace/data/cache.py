"""Fetched chunks of shards, kept in a local folder up to a budget of bytes.

A chunk's name never means other bytes. It appears by rename, so what is there is whole; the one
used longest ago goes first. Processes of a node share the folder and nothing else: a lock that dies
with its holder lets one of them fetch while the others wait.
"""

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from millrace.errors import SpecError
from millrace.telemetry import log

DEFAULT_BUDGET_BYTES = 16 * 2**30
WAIT_SECONDS = 60.0
"""For another process that fetches the same chunk; after that it is fetched here as well."""
ABANDONED_SECONDS = 3600.0
"""Age at which what a killed process was writing counts as a chunk like any other."""
_POLL_SECONDS = 0.01
_KEPT = 0.9
"""Share of the budget left when room is made: each look at the folder costs milliseconds."""


def is_remote(url: str) -> bool:
    """Whether objects of this store are worth keeping on the local disk."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme not in ("file", "local", "memory")


class ChunkCache:
    """A folder of chunks.

    Args:
        folder: Made when it is first needed.
        budget_bytes: What it may hold; processes that share it may together exceed it by the chunks
            that each has added since it last looked.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder, self.budget_bytes = folder, budget_bytes
        self._held_bytes = budget_bytes  # unknown: the first insertion looks

    @classmethod
    def from_environment(cls) -> "ChunkCache":
        """MILLRACE_CACHE (default: `cache` in DAGSTER_HOME) and MILLRACE_CACHE_BYTES (16 GiB)."""
        home = os.environ.get("DAGSTER_HOME", "dagster_home")
        folder = Path(os.environ.get("MILLRACE_CACHE", Path(home) / "cache")).absolute()
        told = os.environ.get("MILLRACE_CACHE_BYTES", str(DEFAULT_BUDGET_BYTES))
        if not told.isdecimal():
            raise SpecError(
                "use MILLRACE_CACHE_BYTES",
                f"it is {told!r}",
                "Set it to a whole number of bytes, or leave it out",
            )
        return cls(folder, int(told))

    def refuse_smaller_than(self, largest_bytes: int) -> None:
        """Raise a SpecError if not even the largest chunk fits."""
        if largest_bytes > self.budget_bytes:
            raise SpecError(
                f"keep chunks of up to {largest_bytes} bytes in {self._folder}",
                f"its budget is {self.budget_bytes} bytes",
                "Raise MILLRACE_CACHE_BYTES",
            )

    def read(self, name: str, start: int, end: int, fetch: Callable[[], bytes]) -> bytes:
        """Bytes [start, end) of a chunk, which is fetched if it is not here."""
        path = self._folder / name
        found = _read_file(path, start, end)
        return self._fetched(path, fetch)[start:end] if found is None else found

    def holds(self, name: str) -> bool:
        """Whether the chunk is here now."""
        return (self._folder / name).exists()

    def drop(self, name: str) -> None:
        """Forget a chunk."""
        (self._folder / name).unlink(missing_ok=True)

    def _fetched(self, path: Path, fetch: Callable[[], bytes]) -> bytes:
        """Fetch a chunk, or take it from whoever was fetching it; keep it if the disk lets us."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path.with_name(f".{path.name}.lock")):
                found = _read_file(path, 0, None)
                if found is not None:
                    return found
                data = fetch()
                self._keep(path, data)
                return data
        except OSError as error:  # of the lock or its folder: a fetch raises errors of ours
            log(f"cache: {path.parent} cannot be used ({error}); fetched without it")
            return fetch()

    def _keep(self, path: Path, data: bytes) -> None:
        """Write the chunk beside and rename it; a full disk costs a second fetch, nothing else."""
        self._held_bytes += len(data)
        if self._held_bytes > self.budget_bytes:
            self._make_room(len(data))
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            beside.write_bytes(data)
            beside.replace(path)
        except OSError as error:
            log(f"cache: {path} cannot be kept ({error})")
        finally:
            beside.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        """Delete the chunks used longest ago until another of this size fits well."""
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                told = entry.stat()
                is_ours_alone = entry.name.startswith(".")  # a lock, or a chunk being written
                if not is_ours_alone or time.time() - told.st_mtime > ABANDONED_SECONDS:
                    files.append((told.st_mtime_ns, told.st_size, entry.path))
        held = sum(size for _, size, _ in files)
        room = self.budget_bytes - num_bytes
        if held > room:
            for _, size, path in sorted(files):
                if held <= min(room, int(_KEPT * self.budget_bytes)):
                    break
                Path(path).unlink(missing_ok=True)
                held -= size
        self._held_bytes = held + num_bytes


def _read_file(path: Path, start: int, end: int | None) -> bytes | None:
    """Bytes [start, end) of a file that is marked as used now; None if it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            os.utime(file.fileno())
            size = os.fstat(file.fileno()).st_size
            return os.pread(file.fileno(), (size if end is None else end) - start, start)
    except OSError:
        return None


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file, or go on without it when its holder takes too long."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        with lock.open("w") as file:
            is_held = _is_taken(file, lock)
            if is_held or time.monotonic() > deadline:
                try:
                    yield
                finally:
                    if is_held:
                        lock.unlink(missing_ok=True)
                return
        time.sleep(_POLL_SECONDS)


def _is_taken(file: IO[str], lock: Path) -> bool:
    """Take the lock if it is free and still the file of that name: its last holder removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(file.fileno()).st_ino == lock.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
