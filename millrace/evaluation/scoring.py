"""What a network says of a split: scores per sample, and their sums per record."""

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from millrace.data.columns import Columns, run_starts
from millrace.data.images import decoded, decoded_bytes
from millrace.data.samples import Samples
from millrace.evaluation.intervals import Floats
from millrace.train.objective import to_batch
from millrace.train.scores import Objective
from millrace.train.world import World

BATCH_BYTES = 2**18
"""Of samples per forward pass: enough to keep the cores busy, little enough for any network."""
SUMS = ("loss", "metric", "weight")


def score(network: nn.Module, objective: Objective, split: Samples) -> Columns:
    """Score every sample of a split, in stored order, on this process's device.

    Returns:
        Columns `record`, those of SUMS, `length` where samples have one; where there are classes
        `label` and `probability` (samples, classes; float32).
    """
    device = World.alone().device
    network.to(device).eval()
    found: defaultdict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    with torch.inference_mode():
        sample_bytes = max(split.sample_bytes, decoded_bytes(split.fields))
        batches = split.batches(max(1, BATCH_BYTES // sample_bytes))
        for columns in decoded(batches, split.fields):
            scores = objective.scores(network, to_batch(columns, device))
            found["loss"].append(scores.loss_B.double().cpu().numpy())
            found["metric"].append(scores.metric_B.double().cpu().numpy())
            found["weight"].append(scores.weight_B.double().cpu().numpy())
            for name in ("record", "label", "length"):
                if name in columns:
                    found[name].append(columns[name])
            if scores.logits_BK is not None:
                found["probability"].append(scores.logits_BK.softmax(1).cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def by_record(samples: Columns) -> dict[str, Floats]:
    """The columns of SUMS, summed over the samples of each record, records in stored order."""
    starts = run_starts(samples["record"])
    return {name: np.add.reduceat(samples[name], starts) for name in SUMS}
