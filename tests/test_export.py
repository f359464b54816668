"""Exports, read by the readers of others and, as source files, by ours."""

import io
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from webdataset.autodecode import Decoder, basichandlers
from webdataset.handlers import reraise_exception as reraise
from webdataset.tariterators import group_by_keys, tar_file_expander

from millrace import export as exports
from millrace import manifest as manifests
from millrace.data.columns import Field, Ragged, join, take
from millrace.data.formats.opened import Located
from millrace.data.ingest import ingest
from millrace.data.listing import list_source
from millrace.data.pack import pack
from millrace.data.parquet_file import ParquetFile
from millrace.data.records import Record, read_records
from millrace.data.samples import Samples
from millrace.data.tar_shard import TarShard
from millrace.errors import ExistsError, SpecError, StorageError
from millrace.export import Exported, export, fill_files
from millrace.manifest import Manifest
from millrace.spec import ClassificationTask, PipelineSpec, SourceSpec
from millrace.storage import FsspecStorage
from tests.peer_fixtures import RunPeer
from tests.pipelines_for_tests import NAME, ROOT, Line

FORMATS = {"webdataset": "tar", "parquet": "parquet"}
SPLITS = ("train", "validation", "test")


def shards_of(line: Line) -> Manifest:
    return manifests.current(line.storage, NAME, "shards")


def packed(line: Line, split: str = "train") -> dict[str, Any]:
    """All columns of a split, in stored order."""
    return join(list(Samples(line.storage, shards_of(line), split).batches(1000)))


def run_export(
    line: Line, folder: Path, format_name: str, split: str = "train", **options: Any
) -> list[Exported]:
    target = FsspecStorage(str(folder))
    return list(export(line.storage, shards_of(line), split, format_name, target, **options))


def read_back(folder: Path, pattern: str) -> list[Record]:
    """The records of an export as source files of ours."""
    spec = SourceSpec(url=f"{folder}/{pattern}")
    found = [item for file in list_source(spec, "/") for item in read_records(file, spec)]
    assert all(isinstance(item, Located) for item in found)
    return [item.record for item in found if isinstance(item, Located)]


def of_tars(folder: Path, decoders: Sequence[Any] = (basichandlers,)) -> list[dict[str, Any]]:
    """The samples of an export as WebDataset itself reads and decodes them.

    Through its stages, since its `WebDataset` leaves the files open.
    """
    found = []
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            files = tar_file_expander([{"url": str(path), "stream": stream}], handler=reraise)
            found += [Decoder(list(decoders))(sample) for sample in group_by_keys(files)]
    return found


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, and so row groups and the steps in which files grow, of about 32 KiB."""
    monkeypatch.setattr(exports, "BATCH_BYTES", 2**15)


@pytest.mark.usefixtures("small_batches")
def test_webdataset_reads_a_classification(points: Line, tmp_path: Path) -> None:
    run_export(points, tmp_path, "webdataset", file_bytes=2**18)

    expected, classes = packed(points), shards_of(points).facts["classes"]
    found = of_tars(tmp_path)
    assert len(list(tmp_path.glob("*.tar"))) > 2
    assert [sample["__key__"] for sample in found] == [f"{i:09}" for i in range(len(found))]
    assert np.array_equal(np.stack([sample["npy"] for sample in found]), expected["inputs"])
    assert [sample["cls"] for sample in found] == expected["label"].tolist()
    assert [sample["json"] for sample in found] == [
        {"record": str(record), "label": classes[label]}
        for record, label in zip(
            expected["record"].tolist(), expected["label"].tolist(), strict=True
        )
    ]


def test_webdataset_reads_a_language_model(sentences: Line, tmp_path: Path) -> None:
    run_export(sentences, tmp_path, "webdataset", "validation")

    expected, found = packed(sentences, "validation"), of_tars(tmp_path)
    assert np.array_equal(np.stack([sample["npy"] for sample in found]), expected["tokens"])
    assert found[0]["npy"].dtype == np.uint8
    for name in ("length", "record"):
        assert [int(sample["json"][name]) for sample in found] == expected[name].tolist()


def test_pyarrow_reads_a_classification(points: Line, tmp_path: Path) -> None:
    run_export(points, tmp_path, "parquet", file_bytes=2**12)

    manifest, expected = shards_of(points), packed(points)
    paths = sorted(tmp_path.glob("*.parquet"))
    table = pq.read_table(paths)
    inputs = table["inputs"].combine_chunks()
    assert np.array_equal(inputs.values.to_numpy().reshape(-1, 4), expected["inputs"])
    assert table["label_number"].to_pylist() == expected["label"].tolist()
    classes = manifest.facts["classes"]
    assert table["label"].to_pylist() == [classes[i] for i in expected["label"].tolist()]
    assert table["record"].to_pylist() == expected["record"].tolist()
    file = pq.ParquetFile(paths[0])
    assert json.loads(file.schema_arrow.field("inputs").metadata[b"shape"]) == [4]
    told = json.loads(file.schema_arrow.metadata[b"millrace"])
    assert told["shards"] == manifest.digest
    assert told["classes"] == classes
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_pyarrow_reads_a_language_model(sentences: Line, tmp_path: Path) -> None:
    run_export(sentences, tmp_path, "parquet")

    expected, table = packed(sentences), pq.read_table(tmp_path)
    tokens = table["tokens"].combine_chunks().values.to_numpy().reshape(-1, 32)
    assert np.array_equal(tokens, expected["tokens"])
    assert table["length"].to_pylist() == expected["length"].tolist()
    assert table["record"].to_pylist() == expected["record"].tolist()


def test_a_row_group_is_a_batch_of_about_a_frame(
    sentences: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "BATCH_BYTES", 2**10)

    run_export(sentences, tmp_path, "parquet")

    (path,) = tmp_path.glob("*.parquet")
    metadata = pq.ParquetFile(path).metadata
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert max(rows) <= 2**10 // 32
    assert len(rows) > 5


@pytest.mark.parametrize("format_name", FORMATS)
def test_an_export_is_the_source_of_the_same_samples(
    points: Line, tmp_path: Path, format_name: str
) -> None:
    """Out, in again through listing, ingestion and packing: every record, with its label."""
    out = tmp_path / "again" / "source"
    for split in SPLITS:
        run_export(points, out, format_name, split)
    sections = points.spec.model_dump()
    sections["source"] = {"url": f"*.{FORMATS[format_name]}"}
    name = {"webdataset": "npy", "parquet": "inputs"}[format_name]
    sections["task"] = {
        "kind": "classification", "shape": [4], "inputs": [name], "label": "label",
    }  # fmt: skip
    again = Line(tmp_path / "again", PipelineSpec.model_validate(sections))
    again.publish(ingest(again.job()))
    again.publish(pack(again.job("shards")))

    assert shards_of(again).facts["classes"] == shards_of(points).facts["classes"]
    for split in SPLITS:
        before, after = packed(points, split), packed(again, split)
        orders = [np.argsort(columns["record"]) for columns in (before, after)]
        before, after = take(before, orders[0]), take(after, orders[1])
        assert set(before) == set(after)
        for column in before:
            assert np.array_equal(before[column], after[column])


def test_blocks_of_a_language_model_come_back_by_either_format(
    sentences: Line, tmp_path: Path
) -> None:
    expected = packed(sentences)
    for format_name, name in (("webdataset", "npy"), ("parquet", "tokens")):
        run_export(sentences, tmp_path / format_name, format_name)

        found = read_back(tmp_path / format_name, f"*.{FORMATS[format_name]}")

        assert np.array_equal(np.stack([r[name] for r in found]), expected["tokens"])
        assert [r["length"] for r in found] == expected["length"].tolist()
        assert [int(r["record"]) for r in found] == expected["record"].tolist()


MIXED = {
    "label": Field("int32"), "photo": Field("image"), "caption": Field("text"),
    "blob": Field("bytes"), "grid": Field("float16", (2, 3)), "mask": Field("uint8", (2,)),
    "weight": Field("float64"),
}  # fmt: skip
JPEG, PNG = b"\xff\xd8\xff\xe0 photo", b"\x89PNG\r\n drawing"


@pytest.fixture
def mixed() -> dict[str, Any]:
    """Three samples with a column of each kind."""
    return {
        "label": np.array([1, 0, 1]),
        "photo": Ragged.of([JPEG, PNG, JPEG]),
        "caption": Ragged.of(["grün".encode(), b"", b"x"]),
        "blob": Ragged.of([b"\0", b"", b"\xff" * 600]),
        "grid": np.arange(18, dtype=np.float16).reshape(3, 2, 3),
        "mask": np.arange(6, dtype=np.uint8).reshape(3, 2),
        "weight": np.array([0.5, -1.0, 1e300]),
    }


def test_every_kind_of_column_has_its_extension_in_a_tar(
    mixed: dict[str, Any], tmp_path: Path
) -> None:
    shard = TarShard(MIXED, ["cat", "hound"], {})
    shard.add(mixed, 7)
    (tmp_path / "a.tar").write_bytes(shard.finish())

    found = of_tars(tmp_path, [lambda extension, data: data])

    assert [sample["__key__"] for sample in found] == ["000000007", "000000008", "000000009"]
    assert [sample.get("jpg", sample.get("png")) for sample in found] == [JPEG, PNG, JPEG]
    assert "png" in found[1]
    assert [sample["txt"].decode() for sample in found] == ["grün", "", "x"]
    assert [sample["bin"] for sample in found] == [b"\0", b"", b"\xff" * 600]
    assert [sample["cls"] for sample in found] == [b"1", b"0", b"1"]
    assert json.loads(found[0]["json"]) == {"label": "hound", "weight": 0.5}
    for name in ("grid", "mask"):
        read = [np.load(io.BytesIO(sample[f"{name}.npy"]), allow_pickle=False) for sample in found]
        assert np.array_equal(np.stack(read), mixed[name])
        assert read[0].dtype == mixed[name].dtype


def test_every_kind_of_column_has_its_type_in_parquet(mixed: dict[str, Any]) -> None:
    file = ParquetFile(MIXED, ["cat", "hound"], {"a": 1})
    file.add(mixed, 0)
    file.add(mixed, 3)

    table = pq.read_table(io.BytesIO(file.finish()))

    assert {name: str(table.schema.field(name).type) for name in table.schema.names} == {
        "label": "string", "label_number": "int32", "photo": "binary", "caption": "string",
        "blob": "binary", "grid": "fixed_size_list<element: halffloat>[6]",
        "mask": "fixed_size_list<element: uint8>[2]", "weight": "double",
    }  # fmt: skip
    assert table["label"].to_pylist() == 2 * ["hound", "cat", "hound"]
    assert table["photo"].to_pylist() == 2 * [JPEG, PNG, JPEG]
    assert table["caption"].to_pylist() == 2 * ["grün", "", "x"]
    assert table["mask"].to_pylist() == 2 * [[0, 1], [2, 3], [4, 5]]
    assert json.loads(table.schema.field("grid").metadata[b"shape"]) == [2, 3]


def test_what_exists_is_never_replaced(points: Line, tmp_path: Path) -> None:
    first = run_export(points, tmp_path, "webdataset")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    for format_name in FORMATS:
        with pytest.raises(ExistsError, match="files of the split train already"):
            run_export(points, tmp_path, format_name)
    run_export(points, tmp_path, "webdataset", "test")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items() > before.items()
    index = json.loads((tmp_path / ".train.json").read_text())
    assert [file["num_samples"] for file in index["files"]] == [one.num_samples for one in first]


@pytest.mark.usefixtures("small_batches")
def test_an_export_that_broke_off_has_no_index(
    points: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FsspecStorage.write

    def full(self: FsspecStorage, path: str, data: bytes, *, if_absent: bool = False) -> None:
        if path == "train-000002.tar":
            raise StorageError("write", "the disk is full", "Empty it")
        write(self, path, data, if_absent=if_absent)

    monkeypatch.setattr(FsspecStorage, "write", full)

    with pytest.raises(StorageError, match="full"):
        run_export(points, tmp_path, "webdataset", file_bytes=2**18)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train-000000.tar", "train-000001.tar",
    ]  # fmt: skip
    with pytest.raises(ExistsError, match="delete those files"):
        run_export(points, tmp_path, "webdataset")


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_same_samples_give_the_same_bytes(
    points: Line, tmp_path: Path, format_name: str
) -> None:
    assert run_export(points, tmp_path / "a", format_name) == run_export(
        points, tmp_path / "b", format_name
    )


def test_it_is_written_to_every_store(points: Line, storage: FsspecStorage) -> None:
    made = list(export(points.storage, shards_of(points), "test", "parquet", storage))

    assert storage.list("") == {
        ".test.json": len(storage.read(".test.json")),
        made[0].file.path: made[0].file.num_bytes,
    }
    assert made[0].file.read(storage)


@pytest.mark.parametrize("writer_type", [TarShard, ParquetFile])
def test_no_file_nor_the_memory_grows_with_the_split(
    writer_type: type[TarShard] | type[ParquetFile],
) -> None:
    limit = 2**17
    fields = {"inputs": Field("float32", (256,)), "label": Field("int32")}

    def batches(count: int) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        for _ in range(count // 16):
            inputs = rng.normal(size=(16, 256)).astype(np.float32)
            yield {"inputs": inputs, "label": np.zeros(16, np.int64)}

    peaks = []
    for count in (384, 1152):
        tracemalloc.start()
        sizes, num_samples = [], 0
        for data, samples in fill_files(
            batches(count), lambda: writer_type(fields, ["a"], {}), limit
        ):
            sizes.append(len(data))
            num_samples += samples
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert num_samples == count
        assert len(sizes) > 2
        assert max(sizes) <= 1.1 * limit  # a Parquet file's footer comes on top

    assert peaks[1] < 1.2 * peaks[0]


def test_a_split_that_is_none_is_refused_by_name(points: Line, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown split `tarin`\. Did you mean `train`"):
        run_export(points, tmp_path, "parquet", "tarin")
    assert list(tmp_path.iterdir()) == []


def millrace(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "millrace", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_writes_and_tells(points: Line, tmp_path: Path) -> None:
    command = [
        "export", NAME, "--split", "train", "--format", "webdataset", "--to", tmp_path / "out",
        "--store", points.storage.url,
    ]  # fmt: skip

    first, again = millrace(*command), millrace(*command)

    *lines, last = first.stdout.splitlines()
    told = json.loads(last)
    assert (first.returncode, first.stderr) == (0, "")
    assert told["num_samples"] == len(packed(points)["record"])
    assert told["num_files"] == len(lines) == len(list((tmp_path / "out").glob("*.tar")))
    assert f"{tmp_path}/out/train-000000.tar  {told['num_samples']} samples" in lines[0]
    assert again.returncode == 1
    assert again.stderr.startswith("millrace export: export to ")


def test_the_command_refuses_what_is_not_there(tmp_path: Path) -> None:
    found = millrace(
        "export", "nowhere", "--split", "train", "--format", "parquet", "--to", tmp_path / "out",
        "--store", tmp_path,
    )  # fmt: skip

    assert found.returncode == 1
    assert "Materialize nowhere/shards first" in found.stderr
    assert not (tmp_path / "out").exists()


PAGE = (ROOT / "docs" / "exchange.md").read_text()


def test_the_documented_commands_work(
    points: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_STORE", points.storage.url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    python -m millrace (export .*)$", PAGE, re.MULTILINE)

    for command in commands:
        assert millrace(*command.replace("digits", NAME).split()).returncode == 0

    assert len(commands) == 2
    assert (tmp_path / "exported" / "tars" / "train-000000.tar").exists()
    assert (tmp_path / "exported" / "parquet" / "train-000000.parquet").exists()


def test_the_documented_lines_of_yaml_are_specs() -> None:
    examples = re.findall(r"^    source: .*\n    task: .*$", PAGE, re.MULTILINE)

    for example in examples:
        sections = yaml.safe_load(example)
        SourceSpec.model_validate(sections["source"])
        ClassificationTask.model_validate(sections["task"])
    assert len(examples) == 2


PEER_READS = """
import json, sys
from datasets import load_dataset

kind, files = sys.argv[1], sorted(sys.argv[2:])
found = load_dataset(kind, data_files={"train": files}, split="train")
print(json.dumps({"features": {name: repr(kind) for name, kind in found.features.items()},
                  "rows": [found[i] for i in range(len(found))]}))
"""


@pytest.mark.peers
@pytest.mark.parametrize("format_name", FORMATS)
def test_the_datasets_library_reads_it(
    points: Line, run_peer: RunPeer, tmp_path: Path, format_name: str
) -> None:
    out = tmp_path / "out"
    run_export(points, out, format_name, "test", file_bytes=2**16)

    told = json.loads(
        run_peer(PEER_READS, format_name, *out.glob(f"*.{FORMATS[format_name]}")).splitlines()[-1]
    )

    expected, rows = packed(points, "test"), told["rows"]
    classes = shards_of(points).facts["classes"]
    labels = expected["label"].tolist()
    key = {"webdataset": "npy", "parquet": "inputs"}[format_name]
    assert np.array_equal(np.array([row[key] for row in rows], np.float32), expected["inputs"])
    if format_name == "parquet":
        assert [row["label"] for row in rows] == [classes[label] for label in labels]
        assert [row["label_number"] for row in rows] == labels
    else:
        assert [row["cls"] for row in rows] == labels
        assert [row["json"]["label"] for row in rows] == [classes[label] for label in labels]
