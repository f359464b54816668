"""Read shuffled batches of 256 with one library and tell how fast, as a line of JSON.

    python -m benchmarks.peers.read_shards CONTESTANT DATA_SET URL CACHE_FOLDER PROCESSES

Importing comes before the clock, opening the data set after its start. The first epoch is told
apart from the steady ones, which have whatever the library keeps on the local disk.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.peers.process_tree import cpu_seconds

BATCH = 256
SEED = 1
STEADY_SECONDS = 1.5
"""Steady epochs are repeated for so long."""
LONGEST_EPOCH_SECONDS = 6.0
"""A steady epoch that takes longer is cut."""
OPENED_AT_ONCE = 1000
Epoch = Callable[[], Iterable[Any]]
"""Called for each epoch in turn, gives its batches."""
Contestant = tuple[Callable[[], Epoch], str]
"""What opens the data set, and the version of what it uses."""


def main() -> None:
    """Read, print one line."""
    name, data, url, cache, processes = sys.argv[1:]
    torch.set_num_threads(1)
    os.environ["MILLRACE_CACHE"] = cache
    open_it, version = CONTESTANTS[name](data, url, cache, int(processes))
    told = measure_limit(open_it) if name == "zstd" else measure(open_it)
    sys.stdout.write(json.dumps(told | {"version": version}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # libraries' threads and processes are not waited for


def measure(open_it: Callable[[], Epoch]) -> dict[str, float]:
    """The seconds to the first batch, the first epoch, and steady epochs."""
    start, cpu = time.perf_counter(), cpu_seconds()
    epoch = open_it()
    first_batch_seconds = 0.0
    samples = 0
    for batch in epoch():
        first_batch_seconds = first_batch_seconds or time.perf_counter() - start
        samples += num_samples(batch)
    told = _rates("first_epoch", samples, start, cpu)
    samples_of_epoch, samples = samples, 0
    start, cpu = time.perf_counter(), cpu_seconds()
    while time.perf_counter() - start < STEADY_SECONDS:
        for batch in epoch():
            samples += num_samples(batch)
            if time.perf_counter() - start > LONGEST_EPOCH_SECONDS:
                break
    return told | {
        **_rates("steady", samples, start, cpu),
        "first_batch_seconds": first_batch_seconds,
        "samples_of_epoch": samples_of_epoch,
    }


def _rates(what: str, samples: int, start: float, cpu: float) -> dict[str, float]:
    return {
        f"{what}_per_second": samples / (time.perf_counter() - start),
        f"{what}_per_cpu_second": samples / (cpu_seconds() - cpu),
    }


def num_samples(batch: Any) -> int:
    """Of a batch as any of the libraries gives it: by name, by place, or a list of texts."""
    if isinstance(batch, dict):
        batch = next(iter(batch.values()))
    elif isinstance(batch, list | tuple) and not isinstance(batch[0], str):
        batch = batch[0]
    return len(batch)


def measure_limit(open_it: Callable[[], Epoch]) -> dict[str, float]:
    """What one thread decodes, dropping it at once: the most that a reader could serve."""
    epoch = open_it()
    samples, start, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - start < STEADY_SECONDS:
        samples += sum(epoch())
    return _rates("steady", samples, start, cpu)


def millrace(_data: str, url: str, _cache: str, processes: int) -> Contestant:
    """Ours: threads, or loader processes through torch's DataLoader."""
    from millrace.data.columns import Ragged
    from millrace.data.loader import StreamDataset, tensors
    from millrace.data.stream import Stream

    open_samples = _opener(url)

    def open_stream() -> Stream:
        return Stream(open_samples(), BATCH, seed=SEED)

    def served(columns: dict[str, Any]) -> dict[str, Any]:
        texts = {n: c.texts() for n, c in columns.items() if isinstance(c, Ragged)}
        return texts or tensors(columns)

    def open_it() -> Epoch:
        if not processes:
            stream = open_stream()
            return lambda: (served(next(stream)) for _ in range(stream.steps_per_epoch))
        loader = DataLoader(StreamDataset(open_stream), batch_size=None, num_workers=processes)
        return lambda: loader

    return open_it, "this checkout"


def _opener(url: str) -> Callable[[], Any]:
    from millrace import manifest as manifests
    from millrace.data.samples import Samples
    from millrace.storage import FsspecStorage

    if url.startswith("s3://"):
        import s3fs  # noqa: F401  the store would import it when it is opened

    def open_samples() -> Samples:
        storage = FsspecStorage(url)
        path = manifests.Manifest("b", "shards", "0" * 64).path
        return Samples(storage, manifests.read(storage, path), "train")

    return open_samples


def zstd(_data: str, url: str, _cache: str, _processes: int) -> Contestant:
    """The limit of ours: the same frames, held in memory, decoded one after the other."""
    import zstandard

    open_samples = _opener(url)

    def open_it() -> Epoch:
        samples = open_samples()
        shards = {shard.file.path: shard for shard in samples._shards}
        frames = []
        for path, shard in shards.items():
            whole = Path(url, path).read_bytes()
            starts, sizes = shard.frames.start.tolist(), shard.frames.num_bytes.tolist()
            counts = shard.frames.num_samples.tolist()
            frames += [
                (whole[at : at + size], count)
                for at, size, count in zip(starts, sizes, counts, strict=True)
            ]
        decode = zstandard.ZstdDecompressor().decompress
        return lambda: (count if decode(frame) else 0 for frame, count in frames)

    return open_it, f"zstandard {zstandard.__version__}"


def mds(_data: str, url: str, cache: str, processes: int) -> Contestant:
    """MDS: mosaicml-streaming's own data set and loader."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import streaming

    def open_it() -> Epoch:
        data_set = streaming.StreamingDataset(
            remote=url, local=cache, shuffle=True, batch_size=BATCH
        )
        loader = streaming.StreamingDataLoader(
            data_set,
            batch_size=BATCH,
            num_workers=processes,
            drop_last=True,
            persistent_workers=processes > 0,
        )
        return lambda: loader

    return open_it, f"mosaicml-streaming {streaming.__version__}"


def litdata(
    _data: str, url: str, cache: str, processes: int, *, is_flat: bool = False
) -> Contestant:
    """The library's own data set and loader; flat: with its TokensLoader."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import litdata as package
    from litdata.streaming import downloader

    # Its client for S3 refuses plain HTTP, and only this says otherwise.
    downloader._OBSTORE_CLIENT_OPTIONS = {**downloader._OBSTORE_CLIENT_OPTIONS, "allow_http": True}
    is_s3 = url.startswith("s3://")
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} if is_s3 else {}

    def open_it() -> Epoch:
        data_set = package.StreamingDataset(
            url if is_s3 else f"local:{url}",
            cache_dir=cache,
            shuffle=True,
            drop_last=True,
            item_loader=package.TokensLoader(block_size=512) if is_flat else None,
            storage_options=options,
        )
        loader = package.StreamingDataLoader(
            data_set,
            batch_size=BATCH,
            num_workers=processes,
            drop_last=True,
            persistent_workers=processes > 0,
        )
        return lambda: loader

    return open_it, f"litdata {package.__version__}"


def webdataset(data: str, url: str, _cache: str, processes: int) -> Contestant:
    """WebDataset over plain tar files, through a shuffle buffer of 1000 records."""
    import webdataset as package

    def decoded(record: dict[str, Any]) -> Any:
        if data == "text":
            return record["txt"].decode()
        if data == "tokens":
            return torch.from_numpy(np.frombuffer(bytearray(record["x.bin"]), np.uint16))
        image = np.frombuffer(bytearray(record["x.bin"]), np.uint8).reshape(32, 32, 3)
        return torch.from_numpy(image), int(record["cls"])

    def collated(records: list[Any]) -> Any:
        if data == "text":
            return records
        if data == "tokens":
            return torch.stack(records)
        images, labels = zip(*records, strict=True)
        return torch.stack(images), torch.tensor(labels)

    def open_it() -> Epoch:
        urls = sorted(map(str, Path(url).glob("*.tar")))
        data_set = (
            package.WebDataset(urls, shardshuffle=100, seed=SEED, empty_check=False)
            .shuffle(OPENED_AT_ONCE)
            .map(decoded)
            .batched(BATCH, collation_fn=collated, partial=False)
        )
        loader = package.WebLoader(
            data_set, batch_size=None, num_workers=processes, persistent_workers=processes > 0
        )
        return lambda: loader

    return open_it, f"webdataset {package.__version__}"


def huggingface(data: str, url: str, cache: str, processes: int) -> Contestant:
    """Hugging Face datasets streaming Parquet, through a shuffle buffer of 1000 records."""
    import datasets

    datasets.disable_progress_bars()

    def open_it() -> Epoch:
        files = sorted(map(str, Path(url).glob("*.parquet")))
        data_set = datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=True, cache_dir=cache
        ).shuffle(seed=SEED, buffer_size=OPENED_AT_ONCE)
        if data != "text":
            data_set = data_set.with_format("torch")
        loader: Any = DataLoader(
            data_set,
            batch_size=BATCH,
            num_workers=processes,
            drop_last=True,
            persistent_workers=processes > 0,
        )
        return lambda: loader

    return open_it, f"datasets {datasets.__version__}"


def lance(data: str, url: str, _cache: str, processes: int) -> Contestant:
    """Lance's data set for torch, which shuffles whole batches only."""
    import lance as package
    from lance.sampler import ShardedBatchSampler
    from lance.torch.data import LanceDataset

    def open_it() -> Epoch:
        data_set = LanceDataset(
            f"{url}/data.lance",
            batch_size=BATCH,
            sampler=ShardedBatchSampler(0, 1, randomize=True, seed=SEED),
            to_tensor_fn=_texts_of_arrow if data == "text" else _tensors_of_arrow,
        )
        if not processes:
            return lambda: data_set
        loader = DataLoader(
            data_set, batch_size=None, num_workers=processes, multiprocessing_context="spawn"
        )
        return lambda: loader

    return open_it, f"pylance {package.__version__}"


def _texts_of_arrow(batch: Any, **_: Any) -> dict[str, list[str]]:
    return {"text": batch["text"].to_pylist()}


def _tensors_of_arrow(batch: Any, **_: Any) -> dict[str, torch.Tensor]:
    shapes = {"tokens": (512,), "image": (32, 32, 3)}
    return {
        name: torch.from_numpy(
            batch[name].values.to_numpy().reshape(-1, *shapes[name])
            if name in shapes
            else batch[name].to_numpy()
        )
        for name in batch.schema.names
    }


CONTESTANTS: dict[str, Callable[[str, str, str, int], Contestant]] = {
    "millrace": millrace,
    "zstd": zstd,
    "mds": mds,
    "litdata": litdata,
    "litdata_tokens": partial(litdata, is_flat=True),
    "webdataset": webdataset,
    "huggingface": huggingface,
    "lance": lance,
}


if __name__ == "__main__":
    main()
