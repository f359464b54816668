import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.data.properties import MOST_CHARS, NONE, NOTHING, Properties, properties_of
from millrace.evaluation.evaluate import evaluate
from tests.pipelines_for_tests import NAME, Line

ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", NONE])), max_size=8)


def rows_of(properties: Properties) -> list[tuple[str, ...]]:
    return [
        tuple(values[number] for values, number in zip(properties.values, row, strict=True))
        for row in properties.numbers.tolist()
    ]


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_parts_joined_are_the_whole_and_cut_again_are_the_parts(
    parts: list[list[tuple[str, str]]],
) -> None:
    rows = [row for part in parts for row in part]

    whole = Properties.join([Properties.of(part, 2) for part in parts])

    assert rows_of(whole) == rows
    assert whole.values == tuple(tuple(sorted({row[i] for row in rows})) for i in range(2))
    start = 0
    for part in parts:
        again = whole[start : start + len(part)]
        assert rows_of(again) == part
        assert again.values == Properties.of(part, 2).values
        start += len(part)


def test_any_value_of_a_field_becomes_a_short_printable_text() -> None:
    record = {"a": 1, "b": None, "c": "de\x1b[2J\n", "d": "x" * 1000, "e": [1], "f": " "}

    found = properties_of(record, ("a", "b", "c", "d", "e", "f", "missing"))

    assert found == ("1", NONE, "de [2J", "x" * MOST_CHARS, "[1]", NONE, NONE)


def test_where_the_gate_names_no_field_nothing_is_kept(points: Line) -> None:
    made = manifests.current(points.storage, NAME, "source_files")

    assert Properties.load(points.storage, made) is NOTHING
    assert [file.path.rsplit("/", 1)[1] for file in made.files] == ["records.npy"]


def with_field(line: Line, folder: Path, **gate: Any) -> Line:
    """A copy of a line whose gate divides records by a field."""
    copy = line.copy(folder)
    return Line(folder, copy.spec.with_parts({"gate": gate}))


def test_dividing_by_a_field_reads_source_files_again_and_packs_nothing(
    released_points: Line, tmp_path: Path
) -> None:
    line = with_field(released_points, tmp_path / "line", slices=["field:label"])
    before = manifests.current(line.storage, NAME, "shards")

    made = line.publish(ingest(line.job()))
    again = line.publish(ingest(line.job()))
    packed = pack(line.job("shards-2"))

    kept = Properties.load(line.storage, made)
    lines = (line.root / "source" / "points.jsonl").read_text().splitlines()
    assert rows_of(kept) == [(json.loads(line)["label"],) for line in lines]
    assert made.facts["properties"] == {"label": ["0", "1", "2"]}
    assert again.digest == made.digest
    assert packed.digest == before.digest


def test_records_are_judged_by_a_field_as_by_any_other_property(
    released_points: Line, tmp_path: Path
) -> None:
    line = with_field(released_points, tmp_path / "line", slices=["field:label", "class"])
    line.publish(ingest(line.job()))

    slices = evaluate(line.job("evaluation-2")).facts["slices"]

    assert slices["field:label"] == slices["class"]
    assert len(slices["class"]) == 3
