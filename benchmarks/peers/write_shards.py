"""Write one data set with one library and tell how fast, as a line of JSON.

    python -m benchmarks.peers.write_shards CONTESTANT DATA_SET INPUT OUTPUT SHARD_BYTES

Importing and mapping the input come before the clock. Peers are handed record after record as they
ask for it, or whole tables where they take them. Where zstd is used, its level is 3.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.peers.process_tree import cpu_seconds
from benchmarks.peers.records import Records

LEVEL = 3
FRAME_BYTES = 2**20
WRITE_BYTES = 4 * 2**20
CORES = os.cpu_count() or 1
Write = Callable[[], object]
Contestant = tuple[Write, str]
"""What writes everything when called, and the version of what it uses."""


def main() -> None:
    """Write once, print one line."""
    name, data, source, output, shard_bytes = sys.argv[1:]
    records = Records(source, data)
    write, version = CONTESTANTS[name](records, output, int(shard_bytes))
    cpu, start = cpu_seconds(), time.perf_counter()
    stored = write()
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    files = [path.stat().st_size for path in Path(output).rglob("*") if path.is_file()]
    told = {
        "mb_per_second": records.raw_bytes / seconds / 1e6,
        "mb_per_cpu_second": records.raw_bytes / cpu / 1e6,
        "stored_bytes": sum(files) if files else stored,
        "num_files": len(files),
        "version": version,
    }
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    os._exit(0)  # libraries' threads and processes are not waited for


def millrace(
    records: Records, output: str, shard_bytes: int, *, is_proven: bool = False
) -> Contestant:
    """Ours; proven: every shard read back and decoded, as a pipeline does."""
    from millrace import manifest as manifests
    from millrace.data.codec import FORMAT_VERSION
    from millrace.data.columns import Field, Ragged
    from millrace.data.shard import Layout, ShardReader, ShardWriter
    from millrace.storage import FsspecStorage

    arrays = records.arrays
    fields = {name: Field(str(a.dtype), a.shape[1:]) for name, a in arrays.items()}
    if records.name == "text":
        fields = {"text": Field("text")}
    largest = int(arrays["label"].max()) if "label" in arrays else -1
    classes = tuple(map(str, range(largest + 1)))
    storage = FsspecStorage(output)
    layout = Layout(LEVEL, FRAME_BYTES, shard_bytes)

    def columns(start: int, stop: int) -> dict[str, Any]:
        if records.name != "text":
            return {name: array[start:stop] for name, array in arrays.items()}
        offsets = np.array(arrays["offsets"][start : stop + 1])
        data = arrays["data"][offsets[0] : offsets[-1]]
        return {"text": Ragged(offsets - offsets[0], data)}

    def write() -> None:
        writer = ShardWriter(storage, "b/shards", fields, split="train", layout=layout)
        for start, stop in spans(records, WRITE_BYTES):
            writer.write(columns(start, stop))
        shards = writer.close(classes)
        if is_proven:
            reader = ShardReader(storage, fields)
            assert sum(map(reader.prove, shards)), "frames were read back"
        facts = {
            "format": FORMAT_VERSION,
            "fields": {name: [field.dtype, list(field.shape)] for name, field in fields.items()},
            "classes": classes,
            "shards": [shard.to_dict() for shard in shards],
        }
        files = tuple(shard.file for shard in shards)
        manifests.publish(
            storage, manifests.Manifest("b", "shards", "0" * 64, files=files, facts=facts)
        )

    return write, "this checkout"


def spans(records: Records, num_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of runs of about so many bytes."""
    step = records.step(num_bytes)
    for start in range(0, len(records), step):
        yield start, min(len(records), start + step)


def zstd(records: Records, _output: str, _shard_bytes: int) -> Contestant:
    """The limit: the same bytes compressed in as many threads as there are cores, and dropped."""
    import zstandard

    name = {"text": "data", "tokens": "tokens", "images": "image"}[records.name]
    raw = np.ravel(records.arrays[name]).view(np.uint8).data

    def compress(first: int) -> int:
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        starts = range(first * FRAME_BYTES, len(raw), CORES * FRAME_BYTES)
        return sum(len(compressor.compress(raw[at : at + FRAME_BYTES])) for at in starts)

    def write() -> int:
        with ThreadPoolExecutor(CORES) as pool:
            return sum(pool.map(compress, range(CORES)))

    return write, f"zstandard {zstandard.__version__}"


def mds(records: Records, output: str, shard_bytes: int) -> Contestant:
    """mosaicml-streaming's MDSWriter."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import streaming

    columns = {
        "text": {"text": "str"},
        "tokens": {"tokens": "ndarray:uint16:512"},
        "images": {"image": "ndarray:uint8:32,32,3", "label": "int"},
    }[records.name]

    def write() -> None:
        with streaming.MDSWriter(
            out=output, columns=columns, compression=f"zstd:{LEVEL}", size_limit=shard_bytes
        ) as writer:
            for i in range(len(records)):
                writer.write(records[i])

    return write, f"mosaicml-streaming {streaming.__version__}"


@lru_cache
def _opened(source: str, data: str) -> Records:
    return Records(source, data)


def _record(source: str, data: str, i: int) -> dict[str, Any]:
    return _opened(source, data)[i]


def _tokens(source: str, data: str, i: int) -> Any:
    import torch

    return torch.from_numpy(_opened(source, data)[i]["tokens"])


def litdata(
    records: Records, output: str, shard_bytes: int, *, is_flat: bool = False
) -> Contestant:
    """Its `optimize` in as many processes as there are cores; flat: for its TokensLoader."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import litdata as package

    source, data = sys.argv[3], sys.argv[2]
    how: dict[str, Any] = {"chunk_bytes": shard_bytes, "compression": f"zstd:{LEVEL}"}
    if is_flat:
        loader = package.TokensLoader(block_size=records.arrays["tokens"].shape[1])
        how = {"chunk_size": shard_bytes // 2, "item_loader": loader}
    write = partial(
        package.optimize,
        fn=partial(_tokens if is_flat else _record, source, data),
        inputs=list(range(len(records))),
        output_dir=output,
        num_workers=CORES,
        mode="overwrite",
        verbose=False,
        **how,
    )
    return write, f"litdata {package.__version__}"


def webdataset(
    records: Records, output: str, shard_bytes: int, *, is_zstd: bool = False
) -> Contestant:
    """WebDataset's ShardWriter, tar files as they are or through zstd."""
    import webdataset as package
    import zstandard

    compressor = zstandard.ZstdCompressor(level=LEVEL)
    opened: list[Any] = []

    def opener(path: str) -> Any:
        while opened:
            opened.pop().close()
        plain = Path(path).open("wb")  # noqa: SIM115  the writer asks for a file at a time
        opened.append(compressor.stream_writer(plain, closefd=True) if is_zstd else plain)
        return opened[-1]

    def write() -> None:
        pattern = f"{output}/%05d.tar{'.zst' if is_zstd else ''}"
        with package.ShardWriter(pattern, maxsize=shard_bytes, verbose=0, opener=opener) as writer:
            for i in range(len(records)):
                writer.write({"__key__": f"{i:08d}"} | _members(records[i]))
        opened.pop().close()

    return write, f"webdataset {package.__version__}"


def _members(record: dict[str, Any]) -> dict[str, Any]:
    """The files of a record in a tar."""
    if "text" in record:
        return {"txt": record["text"]}
    if "tokens" in record:
        return {"x.bin": record["tokens"].tobytes()}
    return {"x.bin": record["image"].tobytes(), "cls": record["label"]}


def _table(records: Records, start: int, stop: int) -> Any:
    import pyarrow as pa

    arrays = records.arrays
    if records.name == "text":
        offsets = np.array(arrays["offsets"][start : stop + 1])
        data = np.array(arrays["data"][offsets[0] : offsets[-1]])
        buffers = [None, pa.py_buffer((offsets - offsets[0]).astype(np.int32)), pa.py_buffer(data)]
        return pa.table({"text": pa.StringArray.from_buffers(stop - start, *buffers[1:])})
    found = {}
    for name, array in arrays.items():
        part = np.ascontiguousarray(array[start:stop])
        flat = pa.array(part.reshape(-1))
        size = part[0].size
        found[name] = pa.FixedSizeListArray.from_arrays(flat, size) if part.ndim > 1 else flat
    return pa.table(found)


def parquet(records: Records, output: str, shard_bytes: int) -> Contestant:
    """Parquet files of pyarrow, as many at a time as there are cores, row groups of a frame."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write_file(numbered: tuple[int, tuple[int, int]]) -> None:
        number, (start, stop) = numbered
        pq.write_table(
            _table(records, start, stop),
            f"{output}/{number:05d}.parquet",
            compression="zstd",
            compression_level=LEVEL,
            row_group_size=records.step(FRAME_BYTES),
            use_dictionary=False,
        )

    def write() -> None:
        Path(output).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(write_file, enumerate(spans(records, shard_bytes))))

    return write, f"pyarrow {pa.__version__}"


def lance(records: Records, output: str, shard_bytes: int) -> Contestant:
    """Lance's own columnar files, with its zstd."""
    import lance as package
    import pyarrow as pa

    told = {
        "lance-encoding:compression": "zstd",
        "lance-encoding:compression-level": str(LEVEL),
    }

    def write() -> None:
        for number, (start, stop) in enumerate(spans(records, shard_bytes)):
            table = _table(records, start, stop)
            schema = pa.schema([pa.field(f.name, f.type, metadata=told) for f in table.schema])
            package.write_dataset(
                table.cast(schema),
                f"{output}/data.lance",
                mode="append" if number else "create",
                data_storage_version="2.1",
            )

    return write, f"pylance {package.__version__}"


CONTESTANTS = cast(
    "dict[str, Callable[[Records, str, int], Contestant]]",
    {
        "millrace": millrace,
        "millrace_proven": partial(millrace, is_proven=True),
        "zstd": zstd,
        "mds": mds,
        "litdata": litdata,
        "litdata_tokens": partial(litdata, is_flat=True),
        "webdataset": webdataset,
        "webdataset_zstd": partial(webdataset, is_zstd=True),
        "parquet": parquet,
        "lance": lance,
    },
)


if __name__ == "__main__":
    main()
