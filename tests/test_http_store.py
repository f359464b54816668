"""A store behind plain HTTP: read in full, by range and without listing; never written."""

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from threading import Event
from urllib.request import Request, urlopen

import numpy as np
import pytest

from millrace import manifest as manifests
from millrace.answers.classification import classify
from millrace.data.samples import Samples
from millrace.errors import CorruptError, NotFoundError, StorageError
from millrace.manifest import Manifest
from millrace.released import Released
from millrace.storage import FsspecStorage, StoredFile
from tests.pipelines_for_tests import NAME, Line
from tests.services import nginx
from tests.services.keeper import stop
from tests.services.nginx import Edge
from tests.services.web import Ranges, WebFolder, web_folder

DIGITS = b"0123456789"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebFolder]:
    with web_folder(tmp_path) as server:
        yield server


@pytest.fixture
def bucket(web: WebFolder) -> FsspecStorage:
    """The store that the web server shows, to write to."""
    return FsspecStorage(str(web.folder / "store"))


@pytest.fixture
def storage(web: WebFolder, bucket: FsspecStorage) -> FsspecStorage:
    """The store as seen over HTTP, with ten digits in it."""
    bucket.write("a/digits", DIGITS)
    return FsspecStorage(f"{web.url}/store")


def test_an_object_reads_back_as_written(storage: FsspecStorage, bucket: FsspecStorage) -> None:
    data = bytes(range(256)) * 10_000
    bucket.write("a/b/c.bin", data)
    bucket.write("empty", b"")

    assert storage.read("a/b/c.bin") == data
    assert storage.read("empty") == b""


@pytest.mark.parametrize("ranges", ["sent", "ignored"])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 10), (3, 7), (9, 10), (4, None), (0, 0)])
def test_a_range_is_read_exactly_whether_or_not_the_server_knows_ranges(
    storage: FsspecStorage, web: WebFolder, ranges: Ranges, start: int, end: int | None
) -> None:
    web.ranges = ranges

    assert storage.read("a/digits", start, end) == DIGITS[start:end]


@pytest.mark.parametrize("ranges", ["sent", "ignored"])
def test_a_range_past_the_end_is_an_error_and_not_fewer_bytes(
    storage: FsspecStorage, web: WebFolder, ranges: Ranges
) -> None:
    web.ranges = ranges

    with pytest.raises(CorruptError, match=r"bytes 5 to 20 .*the store sent 5 bytes"):
        storage.read("a/digits", 5, 20)


def test_another_range_than_asked_for_is_refused(storage: FsspecStorage, web: WebFolder) -> None:
    web.ranges = "shifted"

    with pytest.raises(
        StorageError, match="asked for bytes from 3, the server sent 'bytes 4-6/10'"
    ):
        storage.read("a/digits", 3, 7)


def test_names_may_hold_spaces_and_signs(storage: FsspecStorage, bucket: FsspecStorage) -> None:
    name = "a b/ü+%20#1? (x).bin"
    bucket.write(name, DIGITS)

    assert storage.read(name) == DIGITS
    assert storage.read(name, 2, 4) == b"23"


def test_a_missing_object_says_what_was_asked(storage: FsspecStorage) -> None:
    for span in ((0, None), (0, 4)):
        with pytest.raises(NotFoundError) as caught:
            storage.read("no/such/thing", *span)
        assert caught.value.asked == f"read {storage.url}/no/such/thing"


def test_a_refusal_says_that_the_object_may_not_exist(
    storage: FsspecStorage, web: WebFolder
) -> None:
    web.refusal = HTTPStatus.FORBIDDEN

    with pytest.raises(
        StorageError, match="403 Forbidden; a bucket that may not be listed answers"
    ):
        storage.read("a/digits")
    assert len(web.requests) <= 2  # what is forbidden stays so


def test_nothing_is_listed_written_or_deleted_and_no_request_is_made(
    storage: FsspecStorage, web: WebFolder
) -> None:
    with pytest.raises(StorageError, match=r"list http://.*/store/a: plain HTTP has no listing"):
        storage.list("a")
    for if_absent in (True, False):
        with pytest.raises(StorageError, match=r"write http://.*/store/a/new: .*read-only"):
            storage.write("a/new", b"1", if_absent=if_absent)
    with pytest.raises(StorageError, match=r"delete http://.*/store/a/digits: .*read-only"):
        storage.delete("a/digits")

    assert web.requests == []


def test_a_damaged_stored_file_is_never_handed_out(
    storage: FsspecStorage, bucket: FsspecStorage
) -> None:
    file = StoredFile.written(bucket, "f", b"content")
    assert file.read(storage) == b"content"

    bucket.write("f", b"contenT")
    with pytest.raises(CorruptError, match=file.sha256):
        file.read(storage)


def test_samples_stream_over_http_as_they_do_from_the_folder(points: Line) -> None:
    with web_folder(points.root) as web:
        remote = FsspecStorage(f"{web.url}/store")
        made = manifests.current(remote, NAME, "shards")
        read, expected = (
            list(Samples(storage, made, "train").batches(50))
            for storage in (remote, points.storage)
        )

    assert made == manifests.current(points.storage, NAME, "shards")
    assert sum(len(batch["record"]) for batch in read) > 50
    for batch, other in zip(read, expected, strict=True):
        np.testing.assert_equal(batch, other)
    shards = {file.path for file in made.files if file.path in " ".join(web.requests)}
    needed = {f"{NAME}/shards/current.json", made.path, *shards}
    assert shards
    assert {request.split()[0] for request in web.requests} <= {"GET", "HEAD"}
    assert {request.split()[1] for request in web.requests} == {f"/store/{path}" for path in needed}


def test_a_release_answers_over_http_as_it_does_from_the_folder(released_points: Line) -> None:
    record = {"x0": 0.0, "x1": 9.0, "x2": 0.0, "x3": 0.0}
    with web_folder(released_points.root) as web:
        stores = (f"{web.url}/store", released_points.storage.url)
        remote, local = (Released(store, NAME, released_points.root) for store in stores)

    assert remote.digest == local.digest
    assert classify(remote, record) == classify(local, record)


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with nginx.edge(tmp_path) as running:
        yield running


def cache_status(url: str, start: int, end: int) -> str:
    request = Request(url, headers={"Range": f"bytes={start}-{end - 1}"})  # noqa: S310  our server
    with urlopen(request) as answer:  # noqa: S310  our server
        assert len(answer.read()) == end - start
        return str(answer.headers["X-Cache"])


@pytest.mark.services
def test_what_s3_writes_is_read_through_a_cdn_which_outlives_the_bucket(edge: Edge) -> None:
    bucket, cdn = FsspecStorage(f"{edge.bucket_url}/store"), FsspecStorage(f"{edge.url}/store")
    data = np.random.default_rng(0).bytes(3 * 2**20)
    made = manifests.publish(
        bucket, Manifest(NAME, "shards", "0" * 64, files=(StoredFile.written(bucket, "f", data),))
    )
    manifests.point(bucket, made)
    bucket.write("never read", DIGITS)
    across = (2**20 - 10, 2**20 + 10)  # from one slice of the cache into the next

    assert cdn.read("f", *across) == data[slice(*across)]
    assert cache_status(f"{cdn.url}/f", *across) == "HIT"
    assert cache_status(f"{cdn.url}/f", 5, 500_000) == "HIT"  # in a slice that is there
    assert cache_status(f"{cdn.url}/f", 2**21, 2**21 + 9) == "MISS"
    assert manifests.current(cdn, NAME, "shards") == made
    assert made.files[0].read(cdn) == data

    stop(edge.origin)

    assert manifests.current(cdn, NAME, "shards") == made
    assert made.files[0].read(cdn) == data
    assert cdn.read("f", 2**21 - 5) == data[2**21 - 5 :]
    with pytest.raises(StorageError, match="502"):
        cdn.read("never read")


@pytest.mark.services
def test_a_cdn_shows_a_moved_pointer_and_tells_what_is_missing(edge: Edge) -> None:
    bucket, cdn = FsspecStorage(f"{edge.bucket_url}/store"), FsspecStorage(f"{edge.url}/store")
    first, second = (
        manifests.publish(bucket, Manifest(NAME, "shards", digit * 64)) for digit in "12"
    )
    manifests.point(bucket, first)
    assert manifests.current(cdn, NAME, "shards") == first

    manifests.point(bucket, second)
    pause = Event()
    for _ in range(200):  # the edge keeps a pointer for one second
        if manifests.current(cdn, NAME, "shards") == second:
            break
        pause.wait(0.05)

    assert manifests.current(cdn, NAME, "shards") == second
    with pytest.raises(NotFoundError):
        cdn.read("no/such/thing", 0, 4)
    with pytest.raises(NotFoundError, match="none has been published"):
        manifests.current(cdn, NAME, "study")
    for refused in (lambda: cdn.list(""), lambda: cdn.write("a", b""), lambda: cdn.delete("f")):
        with pytest.raises(StorageError, match=r"no listing|read-only"):
            refused()
