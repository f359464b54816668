"""How one library's order mixes an epoch, as a line of JSON; and what ours costs.

    python -m benchmarks.peers.orders CONTESTANT SEED NUM_SAMPLES

Samples are 1 KiB, shards 16 MiB, and what is mixed at a time, where a library lets one choose,
64 MiB. Each library's own functions decide; nothing is read or decoded.
"""

import json
import random
import resource
import sys
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE_BYTES = 1024
SHARD_SAMPLES = 16 * 2**20 // SAMPLE_BYTES
MIXED_SAMPLES = 64 * 2**20 // SAMPLE_BYTES
FRAME_BYTES = 2**20
BATCH = 256
EDGE = 0.1
"""This share of the batches at either end of an epoch is no part of the steady state."""
Samples = npt.NDArray[np.int64]


def main() -> None:
    """Measure an order, or its cost; print one line."""
    name, seed, num_samples = sys.argv[1:]
    if name == "cost":
        sys.stdout.write(json.dumps(cost(int(num_samples))) + "\n")
        return
    served, version = CONTESTANTS[name](int(seed), int(num_samples))
    sys.stdout.write(json.dumps(variances(served, int(num_samples)) | {"version": version}) + "\n")


def variances(served: Samples, num_samples: int) -> dict[str, float]:
    """Variance of the batch mean of samples' places in the data, in units of i.i.d. samples'."""
    means = (served[: len(served) // BATCH * BATCH].reshape(-1, BATCH) / num_samples).mean(axis=1)
    squares = (means - 0.5) ** 2 * 12 * BATCH
    edge = round(len(squares) * EDGE)
    return {"steady": float(squares[edge : len(squares) - edge].mean()), "whole": squares.mean()}


@dataclass
class Numbered:
    """A data set for a stream, whose samples are their own numbers."""

    samples_per_frame: Samples
    frame_bytes: Samples
    chunk_starts: Samples
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from millrace.data.columns import Field

        self.fields = {"number": Field("int64")}
        self._starts = np.cumsum(self.samples_per_frame) - self.samples_per_frame

    @classmethod
    def of(cls, num_samples: int, shard_bytes: int = SHARD_SAMPLES * SAMPLE_BYTES) -> "Numbered":
        """As many samples, in full frames and shards."""
        from millrace.data.order import chunk_starts

        per_frame = FRAME_BYTES // SAMPLE_BYTES
        counts = np.full(-(-num_samples // per_frame), per_frame, np.int64)
        counts[-1] = num_samples - per_frame * (len(counts) - 1)
        sizes = counts * SAMPLE_BYTES
        breaks = np.arange(0, len(counts), shard_bytes // FRAME_BYTES)
        return cls(counts, sizes, chunk_starts(sizes, breaks))

    def frame(self, number: int) -> dict[str, Any]:
        """The numbers of a frame's samples."""
        return {"number": self._starts[number] + np.arange(self.samples_per_frame[number])}

    def prefetch(self, frames: Sequence[int]) -> None:
        """There is nothing to fetch."""


def millrace(seed: int, num_samples: int) -> tuple[Samples, str]:
    """Ours: the stream itself."""
    from millrace.data.stream import Stream

    stream = Stream(Numbered.of(num_samples), BATCH, seed=seed)
    batches = [next(stream)["number"] for _ in range(stream.steps_per_epoch)]
    stream.close()
    return np.concatenate(batches), "this checkout"


def mds(seed: int, num_samples: int, *, algorithm: str) -> tuple[Samples, str]:
    """mosaicml-streaming's shuffles, on one node."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import streaming
    from streaming.base.shuffle import get_shuffle

    sizes = np.array([len(shard) for shard in _shards(num_samples, SHARD_SAMPLES)], np.int64)
    served: Samples = get_shuffle(algorithm, sizes, 1, seed, 0, MIXED_SAMPLES)
    return served, f"mosaicml-streaming {streaming.__version__}"


def _shards(num_samples: int, size: int) -> list[Samples]:
    return np.split(np.arange(num_samples), range(size, num_samples, size))


def litdata(seed: int, num_samples: int, *, window: int | None = None) -> tuple[Samples, str]:
    """litdata's: chunks of 64 MiB permuted, and within each its default or a full shuffle."""
    import_module("benchmarks.peers.cpu_torchvision")  # before the library imports torchvision
    import litdata as package
    from litdata.streaming.shuffle import FullShuffle

    chunks = _shards(num_samples, MIXED_SAMPLES)
    shuffle = FullShuffle(None, seed, drop_last=True, item_window=window)
    order = np.random.RandomState([seed, 1]).permutation(len(chunks))  # as its _global_assign does
    served = [shuffle(chunks[i], len(chunks), 1, int(i)) for i in order]
    return np.concatenate(served), f"litdata {package.__version__}"


def webdataset(seed: int, num_samples: int, *, buffer: int) -> tuple[Samples, str]:
    """WebDataset's: shards permuted, then a shuffle buffer."""
    import webdataset as package
    from webdataset.filters import _shuffle

    rng = random.Random(seed)  # noqa: S311  an order, not a secret
    shards = _shards(num_samples, SHARD_SAMPLES)
    rng.shuffle(shards)
    records = iter(np.concatenate(shards).tolist())
    served = list(_shuffle(records, bufsize=buffer, initial=buffer, rng=rng))
    return np.array(served), f"webdataset {package.__version__}"


def cost(num_samples: int) -> dict[str, float]:
    """CPU milliseconds and MB to make ready the order of an epoch and each lane's first group.

    The numbers of samples and bytes of each frame are the data set's and there before.
    """
    from millrace.data.order import LANES, Epoch, Layout

    data = Numbered.of(num_samples)

    def begin() -> None:
        layout = Layout(data.samples_per_frame, data.chunk_starts, float(FRAME_BYTES))
        epoch = Epoch(layout, 1, 0, LANES)
        for lane in range(LANES):
            next(epoch.groups(lane))

    start = _cpu_seconds()
    begin()
    cpu = _cpu_seconds() - start
    tracemalloc.start()
    begin()
    _, peak = tracemalloc.get_traced_memory()
    return {"cpu_ms": cpu * 1e3, "peak_mb": peak / 1e6}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


CONTESTANTS: dict[str, Callable[[int, int], tuple[Samples, str]]] = {
    "millrace": millrace,
    "mds_py1e": partial(mds, algorithm="py1e"),
    "mds_py1br": partial(mds, algorithm="py1br"),
    "litdata": litdata,
    "litdata_full": partial(litdata, window=0),
    "buffer_1000": partial(webdataset, buffer=1000),
    "buffer_64mib": partial(webdataset, buffer=MIXED_SAMPLES),
}


if __name__ == "__main__":
    main()
