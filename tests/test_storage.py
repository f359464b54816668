import hashlib
import json
import os
import resource
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from millrace.deadline import Patience
from millrace.errors import CorruptError, ExistsError, NotFoundError, StorageError
from millrace.storage import FsspecStorage, StoredFile


def test_an_object_reads_back_as_written(storage: FsspecStorage) -> None:
    data = bytes(range(256)) * 100

    storage.write("a/b/c.bin", data)

    assert storage.read("a/b/c.bin") == data


def test_an_empty_object_is_an_object(storage: FsspecStorage) -> None:
    storage.write("empty", b"")

    assert storage.read("empty") == b""
    assert storage.list("") == {"empty": 0}


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 10), (3, 7), (9, 10), (4, None)])
def test_a_range_is_read_exactly(storage: FsspecStorage, start: int, end: int | None) -> None:
    storage.write("digits", b"0123456789")

    assert storage.read("digits", start, end) == b"0123456789"[start:end]


def test_a_range_past_the_end_is_an_error_and_not_fewer_bytes(storage: FsspecStorage) -> None:
    storage.write("digits", b"0123456789")

    with pytest.raises(CorruptError, match=r"bytes 5 to 20 .*the store sent 5 bytes"):
        storage.read("digits", 5, 20)


def test_writing_again_replaces(storage: FsspecStorage) -> None:
    storage.write("a", b"a longer first version")
    storage.write("a", b"second")

    assert storage.read("a") == b"second"


def test_a_missing_object_says_what_was_asked(storage: FsspecStorage) -> None:
    with pytest.raises(NotFoundError) as caught:
        storage.read("no/such/thing")

    assert caught.value.asked == f"read {storage.url}/no/such/thing"
    assert caught.value.found == "there is no such object"


def test_a_missing_object_is_missing_by_range_too(storage: FsspecStorage) -> None:
    with pytest.raises(NotFoundError):
        storage.read("no/such/thing", 0, 4)


def test_a_conditional_write_leaves_the_first_in_place(storage: FsspecStorage) -> None:
    storage.write("one", b"first", if_absent=True)

    with pytest.raises(ExistsError):
        storage.write("one", b"second", if_absent=True)

    assert storage.read("one") == b"first"


def test_writing_the_very_same_bytes_again_is_no_conflict(storage: FsspecStorage) -> None:
    storage.write("one", b"first", if_absent=True)
    storage.write("one", b"first", if_absent=True)

    assert storage.read("one") == b"first"


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads give way after a microsecond, so that a look before a write loses its race."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("eager_switching")
def test_of_concurrent_conditional_writers_exactly_one_wins(storage: FsspecStorage) -> None:
    num_writers = 16
    together = threading.Barrier(num_writers)

    def write(number: int) -> int | None:
        together.wait()
        try:
            FsspecStorage(storage.url).write("one", b"%d" % number, if_absent=True)
        except ExistsError:
            return None
        return number

    with ThreadPoolExecutor(num_writers) as pool:
        winners = [number for number in pool.map(write, range(num_writers)) if number is not None]

    assert len(winners) == 1
    assert storage.read("one") == b"%d" % winners[0]


def test_list_gives_sizes_below_a_folder_and_nothing_else(storage: FsspecStorage) -> None:
    for path, size in (("a/x", 1), ("a/deep/er/y", 22), ("ab/z", 333), ("top", 4)):
        storage.write(path, bytes(size))

    assert storage.list("a") == {"a/x": 1, "a/deep/er/y": 22}
    assert storage.list("") == {"a/x": 1, "a/deep/er/y": 22, "ab/z": 333, "top": 4}


def test_list_of_a_folder_that_was_never_made_is_empty(storage: FsspecStorage) -> None:
    assert storage.list("nothing/here") == {}


def test_a_deleted_object_is_gone_and_may_be_deleted_again(storage: FsspecStorage) -> None:
    storage.write("a/x", b"1")
    storage.write("a/y", b"2")

    storage.delete("a/x")
    storage.delete("a/x")

    assert storage.list("a") == {"a/y": 1}
    with pytest.raises(NotFoundError):
        storage.read("a/x")


@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "/etc/passwd", "..", "a\0b"])
def test_no_path_leaves_the_store(storage: FsspecStorage, path: str) -> None:
    for act in (
        storage.read,
        storage.list,
        storage.delete,
        lambda path: storage.write(path, b""),
    ):
        with pytest.raises(StorageError, match="leaves the store"):
            act(path)


def test_names_may_hold_spaces_and_signs(storage: FsspecStorage) -> None:
    name = "a b/ü+%20#1 (x).bin"

    storage.write(name, b"1")

    assert storage.read(name) == b"1"
    assert storage.list("a b") == {name: 1}


def test_a_stored_file_proves_its_bytes(storage: FsspecStorage) -> None:
    file = StoredFile.written(storage, "f", b"content")

    assert file.read(storage) == b"content"
    assert file.sha256 == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize("damaged", [b"contenT", b"content"[:-1], b"content ", b""])
def test_a_damaged_stored_file_is_never_handed_out(storage: FsspecStorage, damaged: bytes) -> None:
    file = StoredFile.written(storage, "f", b"content")
    storage.write("f", damaged)

    with pytest.raises(CorruptError, match=file.sha256):
        file.read(storage)


def test_a_stored_file_overwrites_nothing(storage: FsspecStorage) -> None:
    first = StoredFile.written(storage, "a/f", b"first")
    other = StoredFile.written(storage, "a/f", b"other")
    again = StoredFile.written(storage, "a/f", b"other")

    assert (first.path, other.path) == ("a/f", f"a/{other.sha256[:12]}/f")
    assert again == other
    assert StoredFile.written(storage, "a/f", b"first") == first
    assert (first.read(storage), other.read(storage)) == (b"first", b"other")


def test_a_stored_file_with_no_place_left_says_what_to_delete(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    StoredFile.written(storage, "f", b"first")
    other = StoredFile.written(storage, "f", b"other")
    storage.write(other.path, b"damaged")

    with pytest.raises(CorruptError, match=rf"{other.path} .*other bytes lie there\. Delete"):
        StoredFile.written(storage, "f", b"other")


def test_a_stored_file_survives_json(storage: FsspecStorage) -> None:
    file = StoredFile.written(storage, "f", b"content")

    assert StoredFile.from_dict(json.loads(json.dumps(vars(file)))) == file


def test_a_local_write_leaves_nothing_beside_it(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))

    storage.write("a", b"1", if_absent=True)
    with pytest.raises(ExistsError):
        storage.write("a", b"2", if_absent=True)

    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_half_written_local_file_is_not_listed(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    storage.write("a", b"1")

    (tmp_path / ".b.0123.partial").write_bytes(b"half")  # as a process killed in a write leaves it

    assert storage.list("") == {"a": 1}


@pytest.mark.parametrize("if_absent", [True, False])
def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path, if_absent: bool) -> None:
    (tmp_path / "store").write_text("in the way")
    storage = FsspecStorage(str(tmp_path / "store"))

    for path in ("a", "folder/a"):
        with pytest.raises(StorageError, match=r"is a file|Not a directory") as caught:
            storage.write(path, b"1", if_absent=if_absent)
        assert not isinstance(caught.value, ExistsError)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 1,000 bytes: the kernel refuses, as it does on a full disk."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("if_absent", [True, False])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, if_absent: bool) -> None:
    storage = FsspecStorage(str(tmp_path))
    storage.write("kept", b"before")

    for path in ("kept", "new", "folder/new"):
        with pytest.raises(StorageError, match="free space"):
            storage.write(path, bytes(10_000), if_absent=if_absent and path != "kept")

    assert storage.list("") == {"kept": 6}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept"]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that may be read and not be written to, even where the tests run as root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kept").write_bytes(b"before")
        Path(folder).chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield Path(folder)
        os.seteuid(user)
        Path(folder).chmod(0o755)


@pytest.mark.parametrize("if_absent", [True, False])
def test_a_read_only_folder_is_an_error_and_stays_as_it_was(
    unprivileged: Path, if_absent: bool
) -> None:
    storage = FsspecStorage(str(unprivileged))

    for path in ("new", "folder/new"):
        with pytest.raises(StorageError, match=r"Permission denied.*its permissions"):
            storage.write(path, b"1", if_absent=if_absent)
    with pytest.raises(StorageError, match="Permission denied"):
        storage.delete("kept")

    assert storage.list("") == {"kept": 6}
    assert storage.read("kept") == b"before"


def test_reading_a_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    storage.write("folder/a", b"1")

    with pytest.raises(StorageError, match=f"read {tmp_path}/folder: IsADirectoryError"):
        storage.read("folder")


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(StorageError, match="Use a local path, s3://"):
        FsspecStorage("s4://bucket/store")


def test_a_missing_bucket_is_named(s3_url: str) -> None:
    storage = FsspecStorage(f"{s3_url}-missing/x")

    with pytest.raises(StorageError, match=f"write {s3_url}-missing/x/a: no such bucket"):
        storage.write("a", b"1")


@pytest.fixture
def elsewhere(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For tests that point the environment at another endpoint: s3fs forgets it afterwards."""
    assert s3_url
    S3FileSystem.clear_instance_cache()
    yield monkeypatch
    S3FileSystem.clear_instance_cache()


def test_a_refused_endpoint_says_what_to_check(elsewhere: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        elsewhere.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        storage = FsspecStorage("s3://bucket/store")

        with pytest.raises(StorageError, match="Could not connect") as caught:
            storage.read("a")

    assert caught.value.asked == "read s3://bucket/store/a"
    assert "AWS_ENDPOINT_URL" in caught.value.fix


def test_an_endpoint_that_swallows_packets_is_given_up(elsewhere: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as silent, closing(socket.socket()) as first:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        first.connect(silent.getsockname())  # the queue is full: later connections hang
        elsewhere.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        storage = FsspecStorage("s3://bucket/store", Patience(attempts=1))

        with pytest.raises(StorageError, match=r"[Cc]onnect.*timeout"):
            storage.write("a", b"1", if_absent=True)


def test_missing_keys_are_named(s3_url: str, elsewhere: pytest.MonkeyPatch) -> None:
    elsewhere.delenv("AWS_ACCESS_KEY_ID")
    elsewhere.delenv("AWS_SECRET_ACCESS_KEY")
    elsewhere.setenv("AWS_EC2_METADATA_DISABLED", "true")
    elsewhere.setenv("AWS_SHARED_CREDENTIALS_FILE", "absent")
    elsewhere.setenv("AWS_CONFIG_FILE", "absent")

    storage = FsspecStorage(s3_url, Patience(attempts=1))

    with pytest.raises(StorageError, match=r"Unable to locate credentials.*AWS_ACCESS_KEY_ID"):
        storage.write("a", b"1")
