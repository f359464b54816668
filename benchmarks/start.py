"""Seconds and CPU seconds to the first step: ours against torchrun and Ray; and of a whole chain.

    python -m benchmarks.start [--runs 5] [--quick]

Ours starts the ranks of `digits`, which join, build the network, open the shards, choose a strategy
and finish one step. The peers are torchrun and, where it is installed, Ray Train with a script that
joins and does one step on data made in memory: the least that any launcher can do. The clock of the
launch runs until all ranks have done their step; ours has also validated by then.

The chain is `dagster asset materialize` of `digits` in an empty store. Its overhead is what is left
of its CPU seconds without those of its study and its training, which are then run alone.
"""

import argparse
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.result import Bar, Bars, Series, Table, write
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
Run = tuple[float, float, float]
"""Wall seconds to the first step and to the end of the last process, and CPU seconds."""
Act = Callable[[], Iterator[None]]
"""Does the work, and yields when a rank has done its first step."""
PEER = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 10))
optimizer = torch.optim.AdamW(net.parameters())
torch.nn.functional.cross_entropy(net(torch.randn(32, 64)), torch.arange(32) % 10).backward()
optimizer.step()
print("stepped", flush=True)
dist.destroy_process_group()
"""


RAY = """
import ray
import ray.train.torch
def train():
    import torch
    net = ray.train.torch.prepare_model(torch.nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(net.parameters())
    torch.nn.functional.cross_entropy(net(torch.randn(32, 64)), torch.arange(32) % 10).backward()
    optimizer.step()
    print("stepped", flush=True)
ray.init(address="local")
scaling = ray.train.ScalingConfig(num_workers=2)
ray.train.torch.TorchTrainer(train, scaling_config=scaling).fit()
"""
NOUNS = ("source_files", "shards", "study", "checkpoint", "evaluation", "release")
MOST_SECONDS_LATER, MOST_CPU_SECONDS = 1.0, 2.0


def main() -> None:
    """Run, write the result file, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one run, no file")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    launches: dict[str, list[Run]] = {}
    chains = []
    try:
        job, peers = _job(folder), _peers(folder)
        for number in range(1 if asked.quick else asked.runs):
            keyed = job.model_copy(update={"key": digest("start", number)})
            acts: dict[str, Act] = {"millrace train": partial(_train, keyed), **peers}
            for name, act in acts.items():
                launches.setdefault(f"{name}, one step", []).append(_measure(act))
            chains.append(_chain_overhead(folder / f"chain-{number}"))
    finally:
        shutil.rmtree(folder)
    units = ("seconds to the first step", "seconds to the end", "CPU seconds of all processes")
    launched = [_table(f"{unit} (lower is better)", launches, i) for i, unit in enumerate(units)]
    first, second = (launched[0].series[i].median for i in (0, 1))
    chain = Series("the chain without its study and training, per asset", chains)
    bars = [
        Bar("launch: seconds after torchrun's", first - second, MOST_SECONDS_LATER, True),
        Bar("chain: CPU seconds per asset", chain.median, MOST_CPU_SECONDS, True),
    ]
    write(
        "start",
        [Bars(bars), *launched, Table("CPU seconds (lower is better)", [chain])],
        notes=f"{RANKS} ranks on gloo, wall time from the call. Ray Train: "
        f"{'with a cluster of its own' if 'Ray Train, one step' in launches else 'not installed'}."
        f" The chain makes {len(NOUNS)} assets.",
        packages="torch dagster",
        is_kept=not asked.quick,
    )


def _peers(folder: Path) -> dict[str, Act]:
    """Those that are installed, each with its script."""
    torchrun, ray = folder / "peer.py", folder / "ray_peer.py"
    torchrun.write_text(PEER)
    ray.write_text(RAY)
    elastic = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}")
    commands = {"torchrun": [*elastic, str(torchrun)]}
    if importlib.util.find_spec("ray"):
        commands["Ray Train"] = [str(ray)]
    return {name: partial(_script, command) for name, command in commands.items()}


def _script(command: Sequence[str]) -> Iterator[None]:
    argv = [sys.executable, *command]
    with subprocess.Popen(argv, env=os.environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "stdout is a pipe"
        for line in process.stdout:
            if "stepped" in line:
                yield
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)


def _train(job: Job) -> Iterator[None]:
    for event in follow("train", job):
        if event["event"] == "validation":  # right after the last step, the only one
            yield


def _chain_overhead(folder: Path) -> float:
    """CPU seconds per asset of a whole chain, less those of its study and training alone."""
    home = folder / "home"
    home.mkdir(parents=True)
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", home)
    store, work = str(folder / "store"), str(folder / "work")
    names = {"DAGSTER_HOME": str(home), "MILLRACE_STORE": store, "MILLRACE_WORK": work}
    select = ("-m", "pipelines", "--select", 'group:"digits"')
    command = [sys.executable, "-m", "dagster", "asset", "materialize", *select]
    run = partial(
        subprocess.run,
        command,
        cwd=ROOT,
        env=os.environ | names,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    whole = _cpu_seconds(run)
    storage = FsspecStorage(store)
    alone = Job(
        pipeline="digits",
        folder=str(ROOT / "pipelines" / "digits"),
        spec=next(read_specs(ROOT / "pipelines" / "digits" / "defs.yaml")),
        store=store,
        work=str(folder / "alone"),
        key="alone",
        inputs={"shards": manifests.current(storage, "digits", "shards").path},
    )
    parts = [_cpu_seconds(partial(_exhaust, verb, alone)) for verb in ("tune", "train")]
    return (whole - sum(parts)) / len(NOUNS)


def _table(unit: str, launches: Mapping[str, Sequence[Run]], column: int) -> Table:
    return Table(
        unit, [Series(name, [run[column] for run in runs]) for name, runs in launches.items()]
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


def _exhaust(verb: str, job: Job) -> None:
    for _ in follow(verb, job):
        pass


def _measure(act: Act) -> Run:
    before, start = _spent_by_children(), time.perf_counter()
    stepped = float("nan")
    for _ in act():
        stepped = time.perf_counter() - start
    return stepped, time.perf_counter() - start, _spent_by_children() - before


def _cpu_seconds(act: Callable[[], object]) -> float:
    before = _spent_by_children()
    act()
    return _spent_by_children() - before


def _spent_by_children() -> float:
    """CPU seconds of the processes that were started here and waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
