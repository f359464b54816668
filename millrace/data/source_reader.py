"""A remote source file as a seekable stream: ranges checked for length, in time, proven at the end.

    readinto -> block of 4 MiB -> FsspecStorage.read, which tries again
                  and the next one meanwhile, in a thread

Where the store tells an object's MD5, a file whose blocks were all fetched in order is held against
it before its last block is handed out.
"""

import hashlib
import io
from concurrent.futures import Future, ThreadPoolExecutor

from millrace.data.listing import SourceFile
from millrace.deadline import PATIENCE, Patience
from millrace.errors import CorruptError, SourceError
from millrace.storage import FsspecStorage

BLOCK_BYTES = 4 * 2**20


class SourceReader(io.RawIOBase):
    """Reads a listed file; wrap it in an `io.BufferedReader`.

    Raises:
        SourceError: The file is no longer of the listed size.
        StorageError: From any read: the place cannot be reached in time, or what it sends is not
            what it says the file is.
    """

    def __init__(self, file: SourceFile, patience: Patience = PATIENCE) -> None:
        super().__init__()
        folder, _, self._name = file.url.rpartition("/")
        self._storage = FsspecStorage(folder, patience)
        self._size = file.num_bytes
        told = self._storage.told(self._name)
        if told.num_bytes is not None and told.num_bytes != self._size:
            raise SourceError(
                f"read the source file {file.path} ({self._size} bytes as listed)",
                f"it has {told.num_bytes} bytes now",
                "It was changed since it was listed: materialize from source_files again",
            )
        self._md5 = told.md5
        self._digest = hashlib.md5(usedforsecurity=False)
        self._num_digested = 0
        self._position = 0
        self._blocks: dict[int, Future[bytes]] = {}
        # One thread, so that blocks are fetched and digested in the order they are asked for.
        self._pool = ThreadPoolExecutor(1)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the file's beginning."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go somewhere; what is read there is fetched then."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]  # as typeshed, less
        """Fill the buffer from one block; 0 at the file's end."""
        if self._position >= self._size:
            return 0
        number, start = divmod(self._position, BLOCK_BYTES)
        data = self._block(number)[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Let go of the thread; a block on its way is not waited for."""
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _block(self, number: int) -> bytes:
        wanted = [n for n in (number, number + 1) if n * BLOCK_BYTES < self._size]
        for n in wanted:
            if n not in self._blocks:
                self._blocks[n] = self._pool.submit(self._fetch, n)
        self._blocks = {n: self._blocks[n] for n in wanted}
        return self._blocks[number].result()

    def _fetch(self, number: int) -> bytes:
        start = number * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, self._size)
        if number != self._num_digested:
            return self._storage.read(self._name, start, end)
        is_last = end == self._size
        prove = self._prove if is_last and self._md5 else None
        data = self._storage.read(self._name, start, end, prove=prove)
        self._digest.update(data)
        self._num_digested += 1
        return data

    def _prove(self, last: bytes) -> None:
        digest = self._digest.copy()
        digest.update(last)
        if digest.hexdigest() != self._md5:
            raise CorruptError(
                f"read {self._storage.url}/{self._name} ({self._size} bytes, MD5 {self._md5})",
                f"bytes with MD5 {digest.hexdigest()}",
                "They were damaged on the way, or the file was changed meanwhile: run it again",
            )
