"""Seconds and CPU seconds from launch to the first step: `millrace train` against torchrun.

    python -m benchmarks.start [--runs 5]

Ours starts the ranks of `digits`, which join, build the network, open the shards and finish one
step. The peer is torchrun with a script that joins and does one step on data made in memory: the
least that any launcher of torch elastic can do.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.result import Series, Table, write
from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.frozen import digest
from millrace.job import Job
from millrace.launch import follow
from millrace.spec_file import read_specs
from millrace.storage import FsspecStorage

ROOT = Path(__file__).parents[1]
RANKS = 2
Runs = Sequence[tuple[float, float]]
"""Wall and CPU seconds of each run."""
PEER = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 10))
optimizer = torch.optim.AdamW(net.parameters())
torch.nn.functional.cross_entropy(net(torch.randn(32, 64)), torch.arange(32) % 10).backward()
optimizer.step()
dist.destroy_process_group()
"""


def main() -> None:
    """Run, write the result file, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    folder = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    script = folder / "peer.py"
    script.write_text(PEER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={RANKS}", str(script)]
    try:
        job = _job(folder)
        ours, peer = [], []
        for number in range(runs):
            keyed = job.model_copy(update={"key": digest("start", number)})
            ours.append(_measure(partial(_exhaust, keyed)))
            peer.append(_measure(partial(subprocess.run, command, check=True, env=os.environ)))
    finally:
        shutil.rmtree(folder)
    write(
        "start",
        [
            _table("seconds of wall time (lower is better)", ours, peer, 0),
            _table("CPU seconds of all processes (lower is better)", ours, peer, 1),
        ],
        notes=f"{RANKS} ranks on gloo, from the call to the end of the last process.",
        packages="torch",
    )


def _table(unit: str, ours: Runs, peer: Runs, column: int) -> Table:
    contestants = {"millrace train, one step": ours, "torchrun, one step": peer}
    return Table(
        unit, [Series(name, [run[column] for run in runs]) for name, runs in contestants.items()]
    )


def _job(folder: Path) -> Job:
    spec = next(read_specs(ROOT / "pipelines" / "digits" / "defs.yaml"))
    short = spec.train.model_dump() | {"steps": 1, "ranks": RANKS, "validate_samples": 1}
    store = str(folder / "store")
    storage = FsspecStorage(store)
    base = Job(
        pipeline="digits",
        folder=str(ROOT / "pipelines" / "digits"),
        spec=spec.with_parts({"train": short}),
        store=store,
        work=str(folder),
    )
    source = manifests.publish(storage, ingest(base))
    update = {"inputs": {"source_files": source.path}, "key": digest("shards", source.digest)}
    shards = manifests.publish(storage, pack(base.model_copy(update=update)))
    return base.model_copy(update={"inputs": {"shards": shards.path}})


def _exhaust(job: Job) -> None:
    for _ in follow("train", job):
        pass


def _measure(act: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of all child processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    act()
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
