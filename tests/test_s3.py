import os
import random
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from s3fs import S3FileSystem

from millrace.deadline import DOUBTFUL_ATTEMPTS, Patience
from millrace.errors import CorruptError, DeadlineError, ExistsError, NotFoundError, StorageError
from millrace.storage import FsspecStorage
from tests.fault_proxy import Fault, FaultProxy

PART_BYTES = 5 * 2**20  # the least an S3 server takes for any part but the last
DATA = random.Random(2).randbytes(2 * PART_BYTES + 1000)  # noqa: S311  test data
QUICK = Patience(attempt_seconds=5.0, total_seconds=60.0, first_pause_seconds=0.01)
GIVES_UP = Patience(
    attempts=2,
    attempt_seconds=1.0,
    total_seconds=5.0,
    slowest_bytes_per_second=2.0**24,
    first_pause_seconds=0.01,
)


@pytest.fixture
def faulty(through_proxy: FaultProxy, direct: FsspecStorage) -> Iterator[FsspecStorage]:
    yield FsspecStorage(direct.url, QUICK)
    through_proxy.faults = []


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace.s3.PART_BYTES", PART_BYTES)


@pytest.fixture
def path() -> str:
    return f"{uuid.uuid4().hex}/object"


def uploads(storage: FsspecStorage, path: str) -> list[str]:
    """Keys of the uploads below `path` that were begun and neither completed nor aborted."""
    bucket = storage.url.removeprefix("s3://").partition("/")[0]
    found = S3FileSystem().list_multipart_uploads(bucket)
    return [one["Key"] for one in found if one["Key"].endswith(path)]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("if_absent", [True, False])
def test_a_large_object_goes_up_in_parts_and_reads_back(
    direct: FsspecStorage, faulty: FsspecStorage, path: str, if_absent: bool
) -> None:
    faulty.write(path, DATA, if_absent=if_absent)

    assert direct.told(path).mark.endswith("-3")
    assert direct.read(path) == DATA
    assert uploads(direct, path) == []


@pytest.mark.usefixtures("small_parts")
def test_a_large_object_never_replaces_another_that_must_stay(
    direct: FsspecStorage, faulty: FsspecStorage, path: str
) -> None:
    direct.write(path, b"first")

    with pytest.raises(ExistsError):
        faulty.write(path, DATA, if_absent=True)

    assert direct.read(path) == b"first"
    assert uploads(direct, path) == []


@pytest.mark.usefixtures("small_parts")
def test_of_concurrent_writers_of_large_objects_exactly_one_wins(
    direct: FsspecStorage, faulty: FsspecStorage, path: str
) -> None:
    start = threading.Barrier(3)

    def write(number: int) -> int | None:
        start.wait()
        try:
            faulty.write(path, bytes([number]) + DATA, if_absent=True)
        except ExistsError:
            return None
        return number

    with ThreadPoolExecutor(3) as pool:
        winners = [number for number in pool.map(write, range(3)) if number is not None]

    assert [bytes([number]) for number in winners] == [direct.read(path, 0, 1)]
    assert uploads(direct, path) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", method="PUT", target="partNumber=2", times=1),
        Fault("lose_reply", method="PUT", target="partNumber=1", times=1),
        Fault("damage_request", method="PUT", target="partNumber=3", times=1),
        Fault("rst", method="POST", target="uploadId=", times=1),
        Fault("lose_reply", method="POST", target="uploadId=", times=1),
        Fault("cut_length", method="POST", target="uploadId=", times=1),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.target}",
)
def test_a_fault_in_an_upload_of_parts_costs_time_and_nothing_else(
    direct: FsspecStorage,
    through_proxy: FaultProxy,
    faulty: FsspecStorage,
    path: str,
    fault: Fault,
) -> None:
    through_proxy.faults = [fault]

    faulty.write(path, DATA, if_absent=True)

    assert fault.met == 1
    assert direct.read(path) == DATA
    assert uploads(direct, path) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("kind", "method", "target"),
    [
        ("status", "PUT", "partNumber=2"),
        ("hang", "PUT", "partNumber=2"),
        ("hang", "POST", "uploadId="),
    ],
)
def test_an_upload_that_fails_leaves_nothing_behind(
    direct: FsspecStorage,
    through_proxy: FaultProxy,
    faulty: FsspecStorage,
    path: str,
    kind: str,
    method: str,
    target: str,
) -> None:
    faulty.patience = GIVES_UP
    through_proxy.faults = [Fault(kind, method=method, target=target)]

    with pytest.raises(DeadlineError if kind == "hang" else StorageError, match=path):
        faulty.write(path, DATA)

    assert direct.list(path) == {}
    assert uploads(direct, path) == []


def test_a_lost_answer_is_not_taken_for_another_writer(
    direct: FsspecStorage, through_proxy: FaultProxy, faulty: FsspecStorage, path: str
) -> None:
    through_proxy.faults = [Fault("lose_reply", method="PUT")]

    faulty.write(path, b"ours", if_absent=True)

    assert direct.read(path) == b"ours"


@pytest.mark.parametrize("kind", ["lose_reply", "rst", "status"])
def test_another_writer_is_told_even_when_answers_are_lost(
    direct: FsspecStorage,
    through_proxy: FaultProxy,
    faulty: FsspecStorage,
    path: str,
    kind: str,
) -> None:
    direct.write(path, b"theirs")
    through_proxy.faults = [Fault(kind, method="PUT", times=1)]

    with pytest.raises(ExistsError):
        faulty.write(path, b"ours", if_absent=True)

    assert direct.read(path) == b"theirs"


def test_of_concurrent_writers_whose_answers_are_lost_exactly_one_wins(
    direct: FsspecStorage, through_proxy: FaultProxy, faulty: FsspecStorage, path: str
) -> None:
    through_proxy.faults = [
        Fault("lose_reply", method="PUT", times=6), Fault("rst", method="PUT", times=4)
    ]  # fmt: skip
    start = threading.Barrier(8)

    def write(number: int) -> int | None:
        start.wait()
        try:
            faulty.write(path, b"%d" % number, if_absent=True)
        except ExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(write, range(8)) if number is not None]

    assert [b"%d" % number for number in winners] == [direct.read(path)]


def test_a_slow_read_is_asked_again_and_the_first_answer_counts(
    direct: FsspecStorage, through_proxy: FaultProxy, path: str
) -> None:
    direct.write(path, b"0123456789")
    hedging = FsspecStorage(direct.url, Patience(attempts=1), hedge_seconds=0.05)
    hedging.list("")
    through_proxy.faults = [Fault("hang", method="GET", times=1)]
    through_proxy.seen.clear()

    assert hedging.read(path, 2, 5) == b"234"  # in its only attempt

    assert len(through_proxy.seen) == 2
    through_proxy.faults = []


def test_a_hedged_read_fails_only_when_both_do(
    direct: FsspecStorage, through_proxy: FaultProxy, path: str
) -> None:
    direct.write(path, b"0123456789")
    hedging = FsspecStorage(direct.url, GIVES_UP, hedge_seconds=0.05)
    through_proxy.faults = [Fault("status", method="GET")]

    with pytest.raises(StorageError, match="SlowDown"):
        hedging.read(path, 2, 5)

    through_proxy.faults = []


def test_a_long_object_is_read_in_ranges_that_heal_alone(
    direct: FsspecStorage,
    through_proxy: FaultProxy,
    faulty: FsspecStorage,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millrace.storage.RANGE_BYTES", 100_000)
    direct.write(path, DATA[:1_050_000])
    through_proxy.faults = [Fault("cut_rst", method="GET", times=3)]
    through_proxy.seen.clear()

    assert faulty.read(path) == DATA[:1_050_000]

    assert len(through_proxy.seen) == 1 + 11 + 3


@pytest.mark.parametrize("bounds", [(0, None), (3, 7)])
def test_what_is_truly_missing_is_asked_for_twice_and_no_more(
    through_proxy: FaultProxy, faulty: FsspecStorage, path: str, bounds: tuple[int, int | None]
) -> None:
    through_proxy.seen.clear()

    with pytest.raises(NotFoundError, match=path):
        faulty.read(path, *bounds)

    assert len(through_proxy.seen) == DOUBTFUL_ATTEMPTS


def test_what_is_truly_forbidden_is_asked_for_twice_and_no_more(
    direct: FsspecStorage, through_proxy: FaultProxy, faulty: FsspecStorage, path: str
) -> None:
    direct.write(path, b"secret")
    through_proxy.faults = [Fault("status", code=403)]
    through_proxy.seen.clear()

    with pytest.raises(StorageError, match=rf"{path}.*(Forbidden|AccessDenied|PermissionError)"):
        faulty.read(path)

    assert len(through_proxy.seen) == DOUBTFUL_ATTEMPTS
    assert os.environ["AWS_ENDPOINT_URL"] == through_proxy.url


def test_a_body_that_is_damaged_on_every_way_is_never_published(
    direct: FsspecStorage, through_proxy: FaultProxy, path: str
) -> None:
    through_proxy.faults = [Fault("damage_request", method="PUT")]
    with pytest.raises(StorageError, match=path):
        FsspecStorage(direct.url, GIVES_UP).write(path, DATA[:1000])
    through_proxy.faults = []

    with pytest.raises(NotFoundError):
        direct.read(path)


@pytest.fixture
def unsummed(direct: FsspecStorage, path: str) -> str:
    """An object that the server knows no checksum of but its ETag, as most servers have them."""
    plain = S3FileSystem(
        skip_instance_cache=True,
        config_kwargs={"request_checksum_calculation": "when_required"},
    )
    plain.pipe_file(f"{direct.url.removeprefix('s3://')}/{path}", DATA[:100_000])
    return path


def test_a_bit_flipped_in_flight_heals_by_the_etag_alone(
    through_proxy: FaultProxy, faulty: FsspecStorage, unsummed: str
) -> None:
    through_proxy.faults = [Fault("flip", method="GET", times=2)]

    assert faulty.read(unsummed) == DATA[:100_000]

    assert through_proxy.faults[0].met == 2


def test_bits_flipped_in_every_answer_are_an_error_by_the_etag_alone(
    through_proxy: FaultProxy, faulty: FsspecStorage, unsummed: str
) -> None:
    through_proxy.faults = [Fault("flip", method="GET")]

    with pytest.raises(CorruptError, match=f"{unsummed}.*MD5"):
        faulty.read(unsummed)


def test_a_bit_flipped_in_a_listing_is_outvoted(
    direct: FsspecStorage, through_proxy: FaultProxy, faulty: FsspecStorage
) -> None:
    folder = uuid.uuid4().hex
    truth = {f"{folder}/{letter * 200}": 1 for letter in "abcdef"}  # most of the answer is names
    for name in truth:
        direct.write(name, b"1")

    for _ in range(8):
        through_proxy.faults = [Fault("flip", method="GET", times=1)]
        assert faulty.list(folder) == truth
