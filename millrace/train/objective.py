"""The objective of each task, and how its scores become the loss of a step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from millrace.data.columns import Columns
from millrace.spec import Task
from millrace.train.objectives import classification, language_model, maxcut, text_classification
from millrace.train.scores import Batch, Objective, Scores

_OBJECTIVES: dict[str, Callable[[Any], Objective]] = {
    "classification": classification.build,
    "language_model": language_model.build,
    "maxcut": maxcut.build,
    "text_classification": text_classification.build,
}


def build_objective(task: Task) -> Objective:
    """The objective of a task."""
    return _OBJECTIVES[task.kind](task)


def to_batch(columns: Columns, device: torch.device) -> Batch:
    """The tensors of a batch; record ids are left out, torch has no arithmetic for them."""
    return {
        name: torch.from_numpy(np.require(column, requirements="W")).to(device, non_blocking=True)
        for name, column in columns.items()
        if name != "record"
    }


def mean_loss(scores: Scores, samples: int, weight_per_sample: float) -> Tensor:
    """Loss to differentiate: the sum over this rank's samples by a constant.

    The constant, not the sum of the weights, keeps a step the same on any world size.
    """
    return scores.loss_B.sum() / (samples * weight_per_sample)
