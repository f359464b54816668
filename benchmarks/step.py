"""Tokens per second of the training loop: ours against a plain loop, nanoGPT's, and two trainers.

    python -m benchmarks.step [--runs 3] [--peer-python PATH] [--quick]

The same small GPT, batch and precision for all, on 1 and 2 ranks; on a GPU a 124M GPT in bfloat16,
compiled, with its MFU. The limit is the plain loop, which has its data in memory. Ours reads
shards, tells its progress and draws its scalars.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contest import Asked, Outcome, Setting, hold, parse, settings_lines
from benchmarks.result import Bar, Bars, Series, Table, write
from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.data.samples import Samples
from millrace.frozen import digest
from millrace.job import Job
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage

OURS = ("millrace", "millrace_chosen")
PEERS = ("plain", "nanogpt", "huggingface", "lightning")
IN_PEERS_PYTHON = ("huggingface", "lightning")
OF_LIMIT, STALL = 0.98, 0.01
MEASURES = {
    "tokens_per_second": "tokens per second (higher is better)",
    "tokens_per_cpu_second": "tokens per CPU second (higher is better)",
}
CPU: dict[str, Any] = {
    "vocabulary": 4096,
    "block": 256,
    "batch": 8,
    "blocks": 4096,
    "network": {"width": 256, "depth": 4, "heads": 4, "window": 256},
}
GPU: dict[str, Any] = {
    "vocabulary": 50304,
    "block": 1024,
    "batch": 32,
    "blocks": 8192,
    "network": {"width": 768, "depth": 12, "heads": 12, "window": 1024},
}
NOTES = """Each contestant trains in fresh processes, in turn, the same network from the same
blocks of token ids with fused AdamW, clipping and a cosine; the clock runs from the end of the
warm-up to the last step. `plain` has all blocks in memory and does nothing but the arithmetic: the
limit. `nanogpt` is its loop in our words. Ours (`millrace`) has the precision of the others;
`millrace_chosen` took the strategy that it measured, told below. CPU seconds are those of a rank's
process in the loop, with its threads."""


def main() -> None:
    """Run, write the result file, print one JSON line."""
    asked = parse(__doc__ or "")
    case = GPU if torch.cuda.is_available() else CPU
    ranks = (1, 2) if torch.cuda.device_count() in (0, 2) else (1,)
    folder = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    try:
        _prepare(folder, case, quick=asked.quick)
        found = {number: _contest(asked, folder, number) for number in ranks}
    finally:
        shutil.rmtree(folder)
    lines = [NOTES, "", f"The work: {json.dumps(case)}.", ""]
    for number, outcomes in found.items():
        lines += [f"{_ranks(number)}:", "", *settings_lines(outcomes)]
        for told in outcomes["millrace_chosen"].told[:1]:
            lines.append(f"- {told['strategy']}")
        lines.append("")
    tables = [
        Table(
            f"{_ranks(number)}: {unit}",
            [Series(name, one.values(measure)) for name, one in outcomes.items() if one.told],
        )
        for number, outcomes in found.items()
        for measure, unit in MEASURES.items()
    ]
    write(
        "step",
        [Bars(_bars(found)), *tables],
        notes="\n".join(lines),
        packages="torch",
        is_kept=not asked.quick,
    )


def _prepare(folder: Path, case: Mapping[str, Any], *, quick: bool) -> None:
    """Shards and a job for ours; the very same blocks in memory order for the others."""
    number = min(case["blocks"], 512) if quick else case["blocks"]
    source = folder / "source"
    source.mkdir()
    shutil.copy(Path(__file__).parent / "peers" / "gpt.py", source)
    # Frequent ids are more frequent, as in texts; there is nothing to learn, only to compute.
    draw = np.random.default_rng(0).zipf(1.2, (number, case["block"])) % case["vocabulary"]
    with (source / "ids.jsonl").open("w") as file:
        file.writelines(json.dumps({"ids": block.tolist()}) + "\n" for block in draw)
    job = Job(
        pipeline="step",
        folder=str(source),
        spec=_spec(case),
        store=str(folder / "store"),
        work=str(folder),
    )
    storage = FsspecStorage(job.store)
    listed = manifests.publish(storage, ingest(job))
    update = {"inputs": {"source_files": listed.path}, "key": digest("shards", listed.digest)}
    shards = manifests.publish(storage, pack(job.model_copy(update=update)))
    job = job.model_copy(update={"inputs": {"shards": shards.path}})
    (folder / "job.json").write_text(job.model_dump_json())
    (folder / "case.json").write_text(json.dumps(case))
    with_blocks = Samples(storage, shards, "train")
    np.save(folder / "tokens.npy", next(with_blocks.batches(len(with_blocks)))["tokens"])
    with_blocks.close()


def _spec(case: Mapping[str, Any]) -> PipelineSpec:
    return PipelineSpec.model_validate(
        {
            "source": {"url": "*.jsonl"},
            "task": {
                "kind": "language_model",
                "tokens": "ids",
                "vocabulary": case["vocabulary"],
                "block_tokens": case["block"],
            },
            "network": {"name": "gpt.py:GPT", **case["network"]},
            # Steps of a training in earnest: over them the strategy has to pay back.
            "train": {"steps": 5000, "batch": case["batch"], "learning_rate": 3e-4},
            "search": {"space": {"train.learning_rate": {"low": 1e-4, "high": 1e-3}}},
        }
    )


def _contest(asked: Asked, folder: Path, ranks: int) -> dict[str, Outcome]:
    warm_up, steps = (2, 4) if asked.quick else (5, 30)

    def setting(name: str) -> Setting:
        argv = ["benchmarks.peers.step", name, str(folder), str(warm_up), str(steps)]
        if ranks > 1:
            torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
            argv = [*torchrun, *argv]
        return Setting(argv, asked.peer_python if name in IN_PEERS_PYTHON else "")

    contestants = {name: [setting(name)] for name in (*OURS, *PEERS)}
    return hold(contestants, asked.runs, lambda told: float(told["tokens_per_second"]))


def _bars(found: Mapping[int, Mapping[str, Outcome]]) -> list[Bar]:
    bars = []
    for ranks, outcomes in found.items():
        where, ours = _ranks(ranks), outcomes["millrace"]
        for measure, what in (("tokens_per_second", "tokens/s"), ("tokens_per_cpu_second", "CPU")):
            for peer in PEERS:
                ratio = ours.median(measure) / outcomes[peer].median(measure)
                bar = OF_LIMIT if peer == "plain" else 1.0
                bars.append(Bar(f"{where}: {what} to {peer}'s", ratio, bar))
        stall = ours.median("data_stall")
        bars.append(Bar(f"{where}: share of the time waiting for data", stall, STALL, True))
    return bars


def _ranks(number: int) -> str:
    return f"{number} rank" + ("s" if number > 1 else "")


if __name__ == "__main__":
    main()
