"""Parquet as source files: columns of every kind, from pyarrow and from Hugging Face's datasets."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from millrace.data.fields import build_encoder
from millrace.data.formats import tables
from millrace.data.listing import list_source
from millrace.data.records import Located, Record, read_records
from millrace.data.values import UnusableRecordError
from millrace.errors import SourceError
from millrace.spec import ClassificationTask, LanguageModelTask, SourceSpec
from tests.peer_fixtures import RunPeer


def read(path: Path, **source: Any) -> list[Record]:
    spec = SourceSpec(url=str(path), **source)
    (file,) = list_source(spec, "/")
    found = list(read_records(file, spec))
    assert all(isinstance(item, Located) for item in found)
    return [item.record for item in found if isinstance(item, Located)]


@pytest.mark.parametrize("kind", [
    pa.list_(pa.uint16()), pa.large_list(pa.uint8()), pa.list_(pa.float32()), pa.list_(pa.int64()),
    pa.list_(pa.float16()), pa.list_(pa.uint32(), 2),
])  # fmt: skip
def test_lists_of_numbers_become_arrays_of_their_type(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    values = [[1, 2], [3, 4], None, [0, 9]]
    if not pa.types.is_fixed_size_list(kind):
        values += [[], [5], [6, 7, 8]]
    pq.write_table(pa.table({"tokens": pa.array(values, kind)}), path, row_group_size=3)

    found = [record["tokens"] for record in read(path)]

    assert [None if array is None else array.tolist() for array in found] == values
    assert found[0].dtype == kind.value_type.to_pandas_dtype()


def test_bytes_categories_and_nulls_are_what_they_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table(
        {
            "blob": pa.array([b"\0\xff", None, b""]),
            "category": pa.array(["a", "b", "a"]).dictionary_encode(),
            "number": pa.array([1, None, 3], pa.uint8()),
            "texts": pa.array([["x", None], [], None]),
            "struct": pa.array([{"p": 1}, None, {"p": None}]),
            "photo": pa.array(
                [{"bytes": b"jpeg", "path": None}, None, {"bytes": None, "path": "x"}]
            ),
        }
    )
    pq.write_table(table, path)

    assert read(path) == [
        {"blob": b"\0\xff", "category": "a", "number": 1, "texts": ["x", None],
         "struct": {"p": 1}, "photo": b"jpeg"},
        {"blob": None, "category": "b", "number": None, "texts": [], "struct": None, "photo": None},
        {"blob": b"", "category": "a", "number": 3, "texts": None, "struct": {"p": None},
         "photo": None},
    ]  # fmt: skip


def test_a_null_that_the_task_needs_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "x": pa.array([[1.0, None], None, [1.0, 2.0]]), "label": pa.array(["a", "b", None]),
    }  # fmt: skip
    pq.write_table(pa.table(columns), path)
    encoder = build_encoder(ClassificationTask(kind="classification", shape=(2,)))

    for record, reason in zip(
        read(path), ("`x` is .*nan.*, a finite", "`x` is null", "`label` is null"), strict=True
    ):
        with pytest.raises(UnusableRecordError, match=reason):
            encoder.extract(record)


def test_tokens_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([[1, 2]], pa.list_(pa.uint16()))}), path)
    (record,) = read(path)

    with pytest.raises(UnusableRecordError, match="`text` is ndarray, text is needed"):
        build_encoder(LanguageModelTask(kind="language_model")).extract(record)


def test_an_array_beyond_the_limit_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [[1.0], [0.0] * 200]}), path)

    with pytest.raises(SourceError, match=r"record 2.*max_record_bytes"):
        read(path, max_record_bytes=1000)


def test_large_rows_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    rows: list[int] = []
    values = tables._values
    monkeypatch.setattr(tables, "BATCH_BYTES", 2**16)

    def watched(column: pa.Array) -> list[Any]:
        rows.append(len(column))
        return values(column)

    monkeypatch.setattr(tables, "_values", watched)
    rng = np.random.default_rng(0)
    pq.write_table(pa.table({"blob": [rng.bytes(2**14) for _ in range(40)]}), path)

    assert len(read(path)) == 40
    assert max(rows) <= 4


PEER_WRITES = """
import sys
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Sequence, Value
from PIL import Image as Picture

rng = np.random.default_rng(0)
features = Features({
    "image": Image(), "label": ClassLabel(names=["cat", "dog"]),
    "tokens": Sequence(Value("uint16")), "text": Value("string"), "extra": Value("float32"),
})
Dataset.from_dict({
    "image": [Picture.fromarray(np.full((4, 4, 3), 10 * i, np.uint8)) for i in range(5)],
    "label": [i % 2 for i in range(5)], "tokens": [list(range(i)) for i in range(5)],
    "text": [f"grün {i}" for i in range(5)], "extra": [None, 1.5, None, 2.5, None],
}, features=features).to_parquet(sys.argv[1])
"""


@pytest.mark.peers
def test_what_the_datasets_library_writes_is_read(run_peer: RunPeer, tmp_path: Path) -> None:
    path = tmp_path / "hub.parquet"
    run_peer(PEER_WRITES, path)

    found = read(path)

    assert [record["label"] for record in found] == [0, 1, 0, 1, 0]
    assert [record["tokens"].tolist() for record in found] == [list(range(i)) for i in range(5)]
    assert [record["text"] for record in found] == [f"grün {i}" for i in range(5)]
    assert [record["extra"] for record in found] == [None, 1.5, None, 2.5, None]
    task = ClassificationTask(kind="classification", shape=(3, 4, 4), images="pixels")
    for i, record in enumerate(found):
        with Image.open(io.BytesIO(record["image"])) as image:
            assert np.asarray(image).tolist() == np.full((4, 4, 3), 10 * i).tolist()
        value = build_encoder(task).extract(record)
        assert value.label == str(i % 2)
        assert np.frombuffer(value.inputs, np.uint8).tolist() == [10 * i] * 48
