"""Bits per byte after the same seconds of training: `ngram_copy` against a small GPT.

    python -m benchmarks.language_model [--seconds 60] [--seeds 3]

Both read the same split of the standard library through the same stream and loop, one process with
all cores. The number of steps is set from each network's measured speed, so that its learning rate
falls to zero when the seconds are over. The GPT reads slowly, so it gets small batches (4 KiB to
`ngram_copy`'s 32) of short blocks, and the best of three learning rates.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.result import Series, Table, write
from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.frozen import digest
from millrace.job import Job
from millrace.launch import environment_of_child
from millrace.spec import LanguageModelTask, PipelineSpec
from millrace.spec_file import read_specs
from millrace.storage import FsspecStorage
from millrace.train.loop import Trainer, TrainingData
from millrace.train.world import World

ROOT = Path(__file__).parents[1]
PROBE_STEPS = 6
GPT: dict[str, Any] = {
    "name": "gpt.py:GPT", "width": 128, "depth": 3, "heads": 4, "window": 256
}  # fmt: skip
GPT_RATES = (1e-3, 3e-3, 6e-3)
GPT_BLOCK_BYTES = 1024
GPT_BATCH = 4
WHOLE_SPLIT = 10**9
"""Validation samples: a selection would be of other texts where blocks are of another length."""


def main() -> None:
    """Run, write the result file, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # as our ranks run, for both contestants
        os.execve(sys.executable, sys.orig_argv, environment_of_child())  # noqa: S606  ourselves
    folder = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    spec = next(read_specs(ROOT / "pipelines" / "stdlib_lm" / "defs.yaml"))
    try:
        job, data = _pack(spec, folder)
        jobs = {rate: _gpt(job.spec, rate) for rate in GPT_RATES}
        _, peer_data = _pack(jobs[GPT_RATES[0]], folder)
        peers = {rate: job.model_copy(update={"spec": jobs[rate]}) for rate in GPT_RATES}
        rate = min(GPT_RATES, key=lambda r: _train(peers[r], peer_data, asked.seconds, 0)[0])
        ours, peer = [], []
        for seed in range(asked.seeds):
            ours.append(_train(job, data, asked.seconds, seed))
            peer.append(_train(peers[rate], peer_data, asked.seconds, seed))
    finally:
        shutil.rmtree(folder)
    bits, other_bits = ([run[0] for run in runs] for runs in (ours, peer))
    write(
        "language_model",
        [
            Table(
                "bits per byte on the validation split (lower is better)",
                [
                    Series("ngram_copy", bits),
                    Series(f"GPT 3 x 128, window 256, rate {rate:g}", other_bits),
                ],
            )
        ],
        notes=f"{asked.seconds:g} s of training each were asked for, in turn, {asked.seeds} seeds. "
        f"Measured: {_told(ours)} (ngram_copy) and {_told(peer)} (GPT). "
        "Validation: the whole split, the same texts for both.",
        packages="torch",
    )


def _told(runs: list[tuple[float, float, float]]) -> str:
    seconds = [run[1] for run in runs]
    rate = statistics.median(run[2] for run in runs)
    return f"{min(seconds):.1f} to {max(seconds):.1f} s at {rate / 1e3:.0f} kB/s (median)"


def _pack(spec: PipelineSpec, folder: Path) -> tuple[Job, TrainingData]:
    store = str(folder / "store")
    storage = FsspecStorage(store)
    base = Job(
        pipeline="lm", folder=str(ROOT / "benchmarks" / "peers"), spec=spec, store=store,
        work=str(folder),
    )  # fmt: skip
    source = manifests.publish(storage, ingest(base))
    update = {"inputs": {"source_files": source.path}, "key": digest("shards", source.digest)}
    shards = manifests.publish(storage, pack(base.model_copy(update=update)))
    return base, TrainingData.load(storage, shards, spec.train.mix)


def _gpt(spec: PipelineSpec, rate: float) -> PipelineSpec:
    assert isinstance(spec.task, LanguageModelTask), "stdlib_lm is a language model"
    train = spec.train.model_dump() | {"learning_rate": rate, "batch": GPT_BATCH}
    search = {"space": {"train.learning_rate": {"low": rate / 2, "high": rate * 2}}}
    task = spec.task.model_dump() | {"block_bytes": GPT_BLOCK_BYTES}
    return spec.with_parts({"network": GPT, "train": train, "search": search, "task": task})


def _train(job: Job, data: TrainingData, seconds: float, seed: int) -> tuple[float, float, float]:
    """Bits per byte after about `seconds` of training, the seconds, and the bytes per second."""
    section = {"seed": seed, "validate_samples": WHOLE_SPLIT}
    parts = {"train": job.spec.train.model_dump() | section}
    seeded = job.model_copy(update={"spec": job.spec.with_parts(parts)})
    world = World.alone()
    probe = Trainer(seeded, data, world, steps=10 * PROBE_STEPS)
    probe.run_to(1)
    start = time.perf_counter()
    probe.run_to(1 + PROBE_STEPS)
    steps = max(10, round(seconds * PROBE_STEPS / (time.perf_counter() - start)))
    probe.close()
    trainer = Trainer(seeded, data, world, steps=steps)
    start = time.perf_counter()
    trainer.run_to(steps)
    spent = time.perf_counter() - start
    found = trainer.validate()["bits_per_byte"]
    trainer.close()
    return found, spent, steps * seeded.spec.train.batch * data.facts.shape[0] / spent


if __name__ == "__main__":
    main()
