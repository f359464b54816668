"""What level and frame size are chosen by cost for real data, against levels taken by habit.

    python -m benchmarks.layout FOLDER [--runs 3]

FOLDER holds tinyshakespeare/, quijote-es/, ecoli-k12/ and fashion-mnist/ as their authors publish
them. Points are measured on each; bills are made for 1 TiB of like data, on a local store over the
link that is measured, and on S3 over a link that is assumed, both with the shipped prices.
"""

import argparse
import gzip
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import Series, Table, write
from millrace.cost import Prices
from millrace.data.bill import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_LEVEL,
    Choice,
    Life,
    decide,
    make_bill,
    name,
    usd,
)
from millrace.data.cache import DEFAULT_BUDGET_BYTES
from millrace.data.frontier import FRAME_BYTES, LEVELS, Link, Point, measure, measure_link
from millrace.data.ingest import ingest
from millrace.data.layout import build_frames, read_sample
from millrace.job import Job
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage

TIB = 2**40
S3_LINK = Link(100e6, 100e6, 0.02)
HABITS = (1, 3, 9, 19)
CASES = (("file", 1), ("file", 100), ("s3", 1), ("s3", 100))
MACHINE = "cloud-cpu-on-demand"


@dataclass(frozen=True)
class Run:
    """One measuring of a data set's sample."""

    points: Sequence[Point]
    local: Link
    seconds: float


def main() -> None:
    """Run, write the result file, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    try:
        sources = _sources(asked.folder, work)
        runs = {
            data: [_measure(data, sections, work) for _ in range(asked.runs)]
            for data, sections in sources.items()
        }
    finally:
        shutil.rmtree(work)
    seconds = [Series(data, [run.seconds for run in found]) for data, found in runs.items()]
    write(
        "layout",
        [Table("CPU seconds to sample and to measure the whole grid (lower is better)", seconds)],
        notes="\n".join(_notes(runs)),
        packages="zstandard pyarrow",
    )


def _sources(folder: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Sections of a spec for each data set."""
    text = {"kind": "language_model", "block_bytes": 1024}
    language = {"task": text, "network": {"name": "ngram_copy"}}
    images = work / "fashion.csv"
    with gzip.open(folder / "fashion-mnist" / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(folder / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    np.savetxt(images, np.column_stack([pixels, labels]), "%d", ",")
    return {
        "tinyshakespeare": language
        | {"source": {"url": f"{folder}/tinyshakespeare/*.txt", "records": "file"}},
        "quijote-es": language
        | {"source": {"url": f"{folder}/quijote-es/*.txt", "records": "file"}},
        "ecoli-k12": language
        | {
            "source": {"url": f"{folder}/ecoli-k12/*.fna.gz", "format": "fasta"},
            "task": text | {"text": "sequence"},
        },
        "fashion-mnist": {
            "source": {"url": str(images), "header": False},
            "task": {"kind": "classification", "label": "784", "shape": [1, 28, 28]},
            "network": {"name": "conv"},
        },
    }


def _measure(data: str, sections: dict[str, Any], work: Path) -> Run:
    space = {"train.learning_rate": {"low": 1e-4, "high": 1e-2}}
    train = {"steps": 1, "batch": 2}
    spec = PipelineSpec.model_validate(sections | {"train": train, "search": {"space": space}})
    job = Job(pipeline=data, folder=str(work), spec=spec, store=str(work / "s"), work=str(work))
    storage = FsspecStorage(job.store)
    source = ingest(job)
    start = time.process_time()
    sample = read_sample(job, source)
    assert sample is not None, f"{data} has records"
    frames = build_frames(job, sample.columns, FRAME_BYTES, DEFAULT_FRAME_BYTES)
    points = measure(frames, LEVELS, lambda _point, _points: True)
    local = measure_link(storage, data)
    return Run(points, local, time.process_time() - start)


def _notes(runs: dict[str, list[Run]]) -> list[str]:
    prices = Prices.read(Path(__file__).parents[1] / "resources" / "prices.yaml")
    cores = os.cpu_count() or 1
    life = Life(
        TIB,
        0.8,
        1,
        64 * 2**20,
        prices.storage_price("/"),
        cache_bytes=0,
        usd_per_hour=prices.usd_per_hour(MACHINE),
        num_cores=cores,
    )
    lines = [
        f"Bills for 1 TiB raw of like data, kept for {prices.months_kept:g} months, read by a "
        f"`{MACHINE}` of {cores} cores; medians of the runs. The link to S3 is assumed: "
        f"{S3_LINK.read_bytes_per_second / 1e6:g} MB/s, {S3_LINK.request_seconds * 1e3:g} ms. "
        "The frame size of the levels by habit is 1 MiB; -: too slow to fit into the time box.",
        "",
        "| data | store | reads | chosen (in each run) | its bill | "
        + " | ".join(f"level {level}" for level in HABITS)
        + " |",
        "|---" * (5 + len(HABITS)) + "|",
    ]
    for data, found in runs.items():
        for store, reads in CASES:
            cache_bytes = DEFAULT_BUDGET_BYTES if store == "s3" else 0
            price = prices.storage_price(f"{store}://")
            case = replace(life, reads=reads, storage=price, cache_bytes=cache_bytes)
            links = [run.local if store == "file" else S3_LINK for run in found]
            choices = [
                decide(run.points, (DEFAULT_LEVEL, DEFAULT_FRAME_BYTES), case, link)
                for run, link in zip(found, links, strict=True)
            ]
            told = [_habit(level, found, case, links) for level in HABITS]
            lines.append(f"| {data} | {store} | {reads} | {_told(choices)} | {' | '.join(told)} |")
    return lines


def _told(choices: Sequence[Choice]) -> str:
    names = dict.fromkeys(name(choice.point) for choice in choices)
    return f"{'; '.join(names)} | {usd(statistics.median(c.bill.total for c in choices))}"


def _habit(level: int, runs: Sequence[Run], life: Life, links: Sequence[Link]) -> str:
    bills = [
        make_bill(point, life, link).total
        for run, link in zip(runs, links, strict=True)
        for point in run.points
        if (point.level, point.frame_bytes) == (level, DEFAULT_FRAME_BYTES)
    ]
    return usd(statistics.median(bills)) if bills else "-"


if __name__ == "__main__":
    main()
