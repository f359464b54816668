"""Random 3-regular graphs: one layer of QAOA, trained, beside the published fixed angles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality_cases.case import Case, Outcome, packed_shards, train
from millrace.data.samples import Samples
from millrace.graphs import num_pairs
from millrace.models.facts import DataFacts
from millrace.models.qaoa import Qaoa
from millrace.storage import FsspecStorage
from millrace.train.loop import TrainingData

VERTICES = 14
SPEC: dict[str, Any] = {
    "source": {"url": f"synthetic://regular_graphs?degree=3&vertices={VERTICES}&records=200"},
    "task": {"kind": "maxcut", "vertices": VERTICES},
    "split": {"validation": 0.15, "test": 0.3},
    "network": {"name": "qaoa", "depth": 1},
    "train": {"steps": 100, "batch": 16, "ranks": 1, "learning_rate": 0.03},
    "search": {"space": {"train.learning_rate": {"low": 0.001, "high": 0.1}}},
}


def run(data: Path, scratch: Path, seed: int) -> Outcome:
    """Train on the graphs of the train split; compare on those of the test split.

    The quality is the share of edges that is expected to be cut, less that of the fixed angles.
    """
    told = json.loads((data.with_name("qaoa") / "fixed_angles_3_regular.json").read_text())["3"][
        "1"
    ]
    job, shards = packed_shards(SPEC, scratch)
    storage = FsspecStorage(job.store)
    network, cpu_seconds = train(job, TrainingData.load(storage, shards, {}), seed)
    fixed = Qaoa(DataFacts(0, (num_pairs(VERTICES),)), depth=1)
    with torch.no_grad():
        fixed.gamma.copy_(torch.tensor(told["gamma"]))
        fixed.beta.copy_(torch.tensor(told["beta"]))
    test = Samples(storage, shards, "test")
    pairs = np.concatenate([batch["inputs"] for batch in test.batches(64)])
    inputs, num_edges = torch.from_numpy(pairs), pairs.sum(1).mean()
    with torch.inference_mode():
        ours, theirs = (float(each(inputs).mean()) / num_edges for each in (network, fixed))
    return Outcome(ours - theirs, cpu_seconds)


CASE = Case(
    what="share of edges cut, less that of the fixed angles",
    bar=-1e-3,
    is_ceiling=False,
    cpu_seconds=60,
    run=run,
    notes=(
        f"200 random 3-regular graphs of {VERTICES} vertices, made and not downloaded; no two are "
        f"the same. One layer, trained for {SPEC['train']['steps']} steps on those of the train "
        "split; both are asked about those of the test split. Fixed angles: Wurtz and Lykov 2021 "
        "(arXiv 2107.00677)."
    ),
)
