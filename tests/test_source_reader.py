import gzip
import io
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.data.listing import SourceFile, list_source
from millrace.data.records import Located, read_records
from millrace.data.source_reader import SourceReader
from millrace.deadline import Patience
from millrace.errors import MillraceError, SourceError, StorageError
from millrace.spec import SourceSpec
from millrace.storage import FsspecStorage
from tests.fault_proxy import Fault, FaultProxy

BLOCK_BYTES = 10_000
DATA = random.Random(3).randbytes(3 * BLOCK_BYTES + 1234)  # noqa: S311  test data
QUICK = Patience(attempt_seconds=0.8, total_seconds=20.0, first_pause_seconds=0.01)
GIVES_UP = Patience(attempts=2, attempt_seconds=0.2, total_seconds=0.6, first_pause_seconds=0.01)
OF_A_BODY = (
    "cut_fin", "cut_rst", "cut_length", "cut_chunked", "cut_chunked_end", "cut_http10", "pad",
    "ignore_range", "stall", "trickle", "hang", "drop", "rst", "status",
)  # fmt: skip
SILENT = ("flip", "shift_range")
"""Of the right length: only a digest tells."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace.data.source_reader.BLOCK_BYTES", BLOCK_BYTES)


@pytest.fixture
def faulty(through_proxy: FaultProxy) -> Iterator[FaultProxy]:
    yield through_proxy
    through_proxy.faults = []


def put(direct: FsspecStorage, data: bytes, name: str = "file.txt") -> SourceFile:
    path = f"{uuid.uuid4().hex}/{name}"
    direct.write(path, data)
    return SourceFile(path, f"{direct.url}/{path}", len(data), "")


def test_a_remote_file_reads_as_a_local_one_does(
    direct: FsspecStorage, faulty: FaultProxy, tmp_path: Path
) -> None:
    file = put(direct, DATA)
    (tmp_path / "same").write_bytes(DATA)

    with (tmp_path / "same").open("rb") as local, SourceReader(file) as raw:
        remote = io.BufferedReader(raw, 1000)
        for where, whence in ((0, 0), (25_000, 0), (-5, 2), (9_990, 0), (3, 1), (40_000, 0)):
            assert remote.seek(where, whence) == local.seek(where, whence)
            for size in (1, 20, 12_345):
                assert remote.read(size) == local.read(size)
                assert remote.tell() == local.tell()

    assert not faulty.faults


@pytest.mark.parametrize("kind", [*OF_A_BODY, "flip"])
def test_a_fault_that_passes_costs_time_and_nothing_else(
    direct: FsspecStorage, faulty: FaultProxy, kind: str
) -> None:
    file = put(direct, DATA[:BLOCK_BYTES])  # one block, so that the digest proves it while it can
    faulty.faults = [Fault(kind, method="GET", times=1)]

    with SourceReader(file, QUICK) as reader:
        assert reader.readall() == DATA[:BLOCK_BYTES]

    assert faulty.faults[0].met == 1


@pytest.mark.parametrize("kind", [*OF_A_BODY, *SILENT])
def test_a_fault_for_ever_is_an_error_and_never_other_bytes(
    direct: FsspecStorage, faulty: FaultProxy, kind: str
) -> None:
    file = put(direct, DATA)
    faulty.faults = [Fault(kind, method="GET")]

    with pytest.raises(MillraceError), SourceReader(file, GIVES_UP) as reader:
        reader.readall()


@pytest.mark.parametrize("kind", SILENT)
def test_a_block_that_was_damaged_silently_is_found_at_the_end(
    direct: FsspecStorage, faulty: FaultProxy, kind: str
) -> None:
    file = put(direct, DATA)
    faulty.faults = [Fault(kind, method="GET", times=1)]

    with pytest.raises(StorageError, match="MD5"), SourceReader(file, QUICK) as reader:
        reader.readall()


def test_a_file_that_grew_since_it_was_listed_is_refused(
    direct: FsspecStorage, faulty: FaultProxy
) -> None:
    file = put(direct, DATA)
    direct.write(file.path, DATA + b"more")

    with pytest.raises(SourceError, match="it has 31238 bytes now"):
        SourceReader(file)

    assert not faulty.faults


def records_of(url: str) -> list[dict[str, object]]:
    spec = SourceSpec(url=url)
    (file,) = list_source(spec, "/")
    return [found.record for found in read_records(file, spec) if isinstance(found, Located)]


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"{DATA[i]}" * 50 for i in range(3000)]}), buffer)
    return buffer.getvalue()


LINES = b"".join(b"line %d %d\n" % (number, DATA[number]) for number in range(5000))


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.txt", LINES), ("a.txt.gz", gzip.compress(LINES, mtime=0)), ("a.parquet", parquet())],
)
def test_records_are_the_same_from_a_faulty_store_as_from_a_folder(
    direct: FsspecStorage, faulty: FaultProxy, tmp_path: Path, name: str, data: bytes
) -> None:
    file = put(direct, data, name)
    (tmp_path / name).write_bytes(data)
    faulty.faults = [Fault("cut_length", method="GET", target=name, times=2)]

    found = records_of(file.url)

    assert found == records_of(str(tmp_path / name))
    assert faulty.faults[0].met == 2


def test_a_file_that_is_gone_is_named(direct: FsspecStorage, faulty: FaultProxy) -> None:
    file = put(direct, LINES)
    direct.delete(file.path)

    with pytest.raises(SourceError, match=f"{file.path}.*it is gone"):
        list(read_records(file, SourceSpec(url=file.url)))

    assert not faulty.faults


def test_a_file_that_does_not_arrive_is_an_error_of_the_source(
    direct: FsspecStorage, faulty: FaultProxy
) -> None:
    file = put(direct, LINES)
    faulty.faults = [Fault("cut_length", method="GET", target=file.path)]

    with pytest.raises(SourceError, match=rf"read the source file {file.path}.*the store sent"):
        list(read_records(file, SourceSpec(url=file.url)))


@pytest.mark.parametrize("kind", [*OF_A_BODY, "flip"])
@pytest.mark.parametrize("pattern", ["", "/*.txt"])
def test_a_listing_with_a_fault_is_the_same_as_without(
    direct: FsspecStorage,
    faulty: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    pattern: str,
) -> None:
    monkeypatch.setattr("millrace.data.listing.PATIENCE", QUICK)
    folder = uuid.uuid4().hex
    names = [f"{folder}/{number}.txt" for number in range(5)]
    for name in names:
        direct.write(name, LINES[: len(name)])
    faulty.faults = [Fault(kind, method="GET", target="list-type", times=1)]

    found = list_source(SourceSpec(url=f"{direct.url}/{folder}{pattern}"), "/")

    assert faulty.faults[0].met == 1
    assert [(file.url, file.num_bytes) for file in found] == [
        (f"{direct.url}/{name}", len(name)) for name in names
    ]
