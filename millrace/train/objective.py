"""What a task minimizes and how its quality is measured."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace.data.columns import Columns
from millrace.spec import LanguageModelTask, Task

Batch = dict[str, Tensor]


def to_batch(columns: Columns, device: torch.device, *, pinned: bool = False) -> Batch:
    """The tensors of a batch; record ids are left out, torch has no arithmetic for them.

    From pinned memory a copy to a GPU goes on beside its computing.
    """
    tensors = {
        name: torch.from_numpy(np.require(column, requirements="W"))
        for name, column in columns.items()
        if name != "record"
    }
    if pinned:
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Scores:
    """Per sample: loss in nats, what the metric adds up, and the weight both are divided by."""

    loss_B: Tensor
    metric_B: Tensor
    weight_B: Tensor


class Objective(Protocol):
    """A task's loss and metric."""

    metric: str
    higher_is_better: bool

    def scores(self, network: nn.Module, batch: Batch) -> Scores:
        """Scores of each sample; differentiable in `loss_B`."""


def build_objective(task: Task) -> Objective:
    """The objective of a task."""
    if isinstance(task, LanguageModelTask):
        return _NextToken("bits_per_token" if task.tokens else "bits_per_byte")
    return _Classification()


def mean_loss(scores: Scores, samples: int, weight_per_sample: float) -> Tensor:
    """Loss to differentiate: the sum over this rank's samples by a constant.

    The constant, not the sum of the weights, keeps a step the same on any world size.
    """
    return scores.loss_B.sum() / (samples * weight_per_sample)


class _NextToken:
    """Cross-entropy of each byte, or token id, given those before it in its block; bits per one."""

    higher_is_better = False

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def scores(self, network: nn.Module, batch: Batch) -> Scores:
        tokens_BT, length_B = batch["tokens"], batch["length"].long()
        if tokens_BT.dtype != torch.uint8:  # torch knows little arithmetic of its like
            tokens_BT = tokens_BT.long()
        logits_BTV: Tensor = network(tokens_BT)
        nats_BT = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), tokens_BT.flatten().long(), reduction="none"
        ).view(tokens_BT.shape)
        position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        loss_B = (nats_BT * (position_T < length_B[:, None])).sum(1)
        return Scores(loss_B, loss_B.detach() / math.log(2), length_B.to(loss_B.dtype))


class _Classification:
    """Cross-entropy of the label; accuracy."""

    metric = "accuracy"
    higher_is_better = True

    def scores(self, network: nn.Module, batch: Batch) -> Scores:
        # Pixels come as bytes and are widened here, on the device, after a trip a quarter as long.
        logits_BK: Tensor = network(batch["inputs"].float())
        loss_B = F.cross_entropy(logits_BK.float(), batch["label"], reduction="none")
        right_B = (logits_BK.argmax(1) == batch["label"]).to(loss_B.dtype)
        return Scores(loss_B, right_B, torch.ones_like(right_B))
