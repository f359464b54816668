import threading

import pytest

from millrace.errors import StorageError
from millrace.manifest import Manifest
from millrace.plan import history
from millrace.plan.spread import Interval
from millrace.plan.stages import predict_step
from millrace.plan.time_model import default_constants
from millrace.storage import FsspecStorage
from tests.plan_runs import build_work, entry_of_run, run_of

RUN = run_of(build_work(), default_constants("cpu"))


def test_a_record_is_read_as_it_was_written(storage: FsspecStorage) -> None:
    entry = entry_of_run(RUN, predicted=Interval(value=3.0, low=2.0, high=4.0), joules=5.0)

    history.write(storage, entry)

    assert history.newest(storage, "p", "checkpoint") == [entry]
    assert history.newest(storage, "p", "study") == []
    assert entry.run == RUN


def test_the_newest_are_read_in_the_order_of_time(storage: FsspecStorage) -> None:
    for number in (3, 1, 2, 0):
        history.write(storage, entry_of_run(RUN, number))

    found = history.newest(storage, "p", "checkpoint", most=3)

    assert [entry.made_at[17:19] for entry in found] == ["01", "02", "03"]


def test_the_entry_of_a_manifest_is_found_by_what_it_made(storage: FsspecStorage) -> None:
    made = Manifest("p", "shards", "k" * 40, seconds=2.5, made_at="2026-01-02T03:04:05+00:00")
    entry = history.entry_of(made, machine="local", usd_per_hour=1.0, predicted=None)

    history.write(storage, entry)

    assert history.of_manifest(storage, made) == entry
    other = Manifest("p", "shards", "k" * 40, made_at="2026-01-02T03:04:06+00:00")
    assert history.of_manifest(storage, other) is None


def test_of_two_writers_at_the_same_second_the_first_is_kept(storage: FsspecStorage) -> None:
    first = entry_of_run(RUN)
    history.write(storage, first)

    history.write(storage, first.model_copy(update={"seconds": 99.0}))

    assert history.newest(storage, "p", "checkpoint") == [first]


def test_many_writers_leave_whole_records(storage: FsspecStorage) -> None:
    entries = [entry_of_run(RUN, number) for number in range(16)]
    threads = [threading.Thread(target=history.write, args=(storage, one)) for one in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert history.newest(storage, "p", "checkpoint") == entries


@pytest.mark.parametrize("data", [b"", b"{", b'{"pipeline": "p"}', b"\xff\x00"])
def test_a_damaged_record_is_passed_over(data: bytes, storage: FsspecStorage) -> None:
    entry = entry_of_run(RUN)
    history.write(storage, entry)
    storage.write(history.path_of("p", "checkpoint", "2026-02-01T00:00:00+00:00", "x"), data)

    assert history.newest(storage, "p", "checkpoint") == [entry]


def test_an_entry_of_which_a_digit_was_changed_is_passed_over(storage: FsspecStorage) -> None:
    data = entry_of_run(RUN, seconds=123.0).to_bytes()

    storage.write("p/history/checkpoint/x.json", data.replace(b"123.0", b"923.0"))

    assert b"123.0" in data
    assert history.newest(storage, "p", "checkpoint") == []


def test_a_store_that_does_not_answer_leaves_a_plan_without_history(tmp_path: object) -> None:
    storage = FsspecStorage(str(tmp_path))

    with pytest.raises(StorageError):
        history.newest(storage, "../p", "checkpoint")
    assert history.of_manifest(storage, Manifest("../p", "shards", "k")) is None
    assert history.read_quietly(storage, "../p", "checkpoint") == []


def test_steps_are_predicted_by_their_size_from_runs_on_such_machines() -> None:
    entries = [
        entry_of_run(RUN, number, seconds=2 + 0.01 * size, size=size)
        for number, size in enumerate((100.0, 400.0, 1000.0, 2000.0))
    ]

    found = predict_step(entries, 3000.0, "local")

    assert found is not None
    assert found.value == pytest.approx(32, rel=0.1)
    assert predict_step(entries, 3000.0, "another") is None
    assert predict_step([], 1.0, "local") is None


def test_one_run_predicts_itself_with_a_wide_interval() -> None:
    found = predict_step([entry_of_run(RUN, seconds=10.0, size=5.0)], 5.0, "local")

    assert found is not None
    assert found.value == pytest.approx(10, rel=0.05)
    assert found.high > 1.5 * found.value
