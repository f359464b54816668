import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.evaluation.gate import MIN_DRAWN
from millrace.evaluation.origins import Origins
from millrace.evaluation.quality import Measured, choose_clusters, judge_slices
from millrace.evaluation.slices import (
    MOST_SLICES,
    NUM_LENGTHS,
    Slices,
    by_class,
    by_folder,
    by_length,
    by_source,
)
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, StoredFile

LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=60)


def origins_of(*paths: str) -> Origins:
    """A record of each path's file, in this order."""
    listed = sorted(set(paths))
    file = np.array([listed.index(path) for path in paths])
    return Origins(listed, file, np.ones(len(paths), np.int64), np.arange(len(paths)))


def divided(slices: Slices) -> list[str]:
    """The name of each record's slice."""
    return [slices.names[number] for number in slices.number]


def test_records_are_divided_by_class_and_classes_that_none_is_of_are_left_out() -> None:
    slices = by_class(np.array([2, 0, 2]), ("cat", "dog", "owl"))

    assert divided(slices) == ["owl", "cat", "owl"]
    assert list(slices.names) == ["cat", "owl"]


def test_records_are_divided_by_the_folder_of_their_file_and_by_source() -> None:
    origins = origins_of("wiki/en/a.txt", "code/b.py", "wiki/en/c.txt", "wiki/d.txt")

    assert divided(by_folder(origins)) == ["wiki/en", "code", "wiki/en", "wiki"]
    assert divided(by_source(origins)) == ["wiki", "code", "wiki", "wiki"]
    assert divided(by_folder(origins_of("a.txt"))) == ["."]


def test_of_many_folders_the_smallest_are_one_slice() -> None:
    many = [f"{number:03}/a.txt" for number in range(MOST_SLICES + 30)]
    large = [f"{number:03}/a.txt" for number in range(30, 30 + MOST_SLICES - 1)]

    slices = by_folder(origins_of(*many, *large))

    assert len(slices.names) == MOST_SLICES
    counts = dict(zip(slices.names, np.bincount(slices.number).tolist(), strict=True))
    assert counts.pop("(others)") == 31
    assert set(counts.values()) == {2}


@given(LENGTHS)
def test_lengths_are_divided_in_order_and_equal_ones_stay_together(lengths: list[int]) -> None:
    slices = by_length(np.array(lengths), "bytes")

    assert len(slices.names) <= NUM_LENGTHS
    assert set(slices.number.tolist()) == set(range(len(slices.names)))  # none is empty
    of_length = dict(zip(lengths, slices.number.tolist(), strict=True))
    assert [of_length[length] for length in lengths] == slices.number.tolist()
    ordered = [of_length[length] for length in sorted(of_length)]
    assert ordered == sorted(ordered)


def test_slices_by_length_say_how_long_their_records_are() -> None:
    slices = by_length(np.arange(1000, 3000), "bytes")

    assert list(slices.names) == [
        "up to 1,499 bytes", "up to 1,999 bytes", "up to 2,499 bytes", "above 2,499 bytes",
    ]  # fmt: skip
    assert np.bincount(slices.number).tolist() == [500, 500, 500, 500]
    assert list(by_length(np.full(9, 7), "ids").names) == ["7 ids"]


def build_measured(metric: Any, clusters: Any | None = None) -> Measured:
    values = np.array(metric, np.float64)
    return Measured(values, np.ones(len(values)), higher_is_better=True, clusters=clusters)


def test_each_slice_has_its_own_metric_and_gain() -> None:
    rng = np.random.default_rng(0)
    number = np.repeat([0, 1], [300, 100])
    right = (rng.random(400) < np.array([0.9, 0.5])[number]).astype(np.float64)
    released = (rng.random(400) < 0.7).astype(np.float64)

    found = judge_slices({"class": Slices(["cat", "dog"], number)}, build_measured(right), released)

    cat, dog = found["class"]
    assert (cat["name"], cat["num_records"], dog["num_drawn"]) == ("cat", 300, 100)
    assert cat["value"] == pytest.approx(right[:300].mean())
    assert dog["gain"]["value"] == pytest.approx(right[300:].mean() - released[300:].mean())
    for part in (cat, dog, cat["gain"], dog["gain"]):
        wide = part["simultaneous"]
        assert wide["low"] < part["low"] < part["value"] < part["high"] < wide["high"]
    (alone,) = judge_slices({"class": Slices(["all"], 0 * number)}, build_measured(right))["class"]
    assert "gain" not in alone


def test_slices_too_small_to_judge_do_not_widen_the_others_intervals() -> None:
    rng = np.random.default_rng(0)
    number = np.repeat([0, 1, 2], [100, 100, MIN_DRAWN - 1])
    right = (rng.random(len(number)) < 0.8).astype(np.float64)

    with_small = judge_slices({"class": Slices(["a", "b", "c"], number)}, build_measured(right))
    without = judge_slices({"class": Slices(["a", "b"], number[:200])}, build_measured(right[:200]))

    assert with_small["class"][:2] == without["class"]


def test_an_only_slice_needs_no_correction() -> None:
    right = (np.random.default_rng(0).random(100) < 0.8).astype(np.float64)

    whole = Slices(["all"], np.zeros(100, np.int64))

    (part,) = judge_slices({"class": whole}, build_measured(right))["class"]

    ends = build_measured(right).estimate().to_dict()
    assert part["simultaneous"] == ends
    assert {name: part[name] for name in ends} == ends


@pytest.mark.parametrize(
    ("num_files", "per_file", "drawn"),
    [
        (MIN_DRAWN, 5, "source files"),
        (MIN_DRAWN - 1, 5, "records"),  # too few to tell how much files differ
        (100, 1, "records"),
        (1, 100, "records"),
    ],
)
def test_source_files_are_drawn_where_there_are_enough_of_them(
    num_files: int, per_file: int, drawn: str
) -> None:
    files = np.repeat(np.arange(num_files), per_file)

    clusters, told = choose_clusters(files)

    assert told["drawn"] == drawn
    assert told["num_files"] == num_files
    assert told["num_drawn"] == (num_files if drawn == "source files" else len(files))
    assert (clusters is None) == (drawn == "records")
    assert build_measured(np.zeros(len(files)), clusters).num_drawn == told["num_drawn"]


def test_records_are_found_in_the_files_that_they_were_first_seen_in(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    ids = np.array([[7, 1], [5, 2], [9, 3], [5, 2], [3, 4]], np.uint64)
    buffer = io.BytesIO()
    np.save(buffer, ids, allow_pickle=False)
    files = [
        {"path": path, "records": records}
        for path, records in (("a", [0, 2]), ("empty", [2, 2]), ("b", [2, 5]), ("last", [5, 5]))
    ]
    stored = StoredFile.written(storage, "records.npy", buffer.getvalue())
    listed = Manifest("p", "source_files", "key", files=(stored,), facts={"files": files})

    found = Origins.find(storage, listed, np.array([3, 5, 7, 9], np.uint64))

    assert [found.paths[number] for number in found.file] == ["b", "a", "a", "b"]
    assert found.place.tolist() == [3, 2, 1, 1]
    assert found.row.tolist() == [4, 1, 0, 2]
