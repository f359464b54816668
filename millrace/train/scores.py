"""What a task says of each sample of a batch: its loss, and what its metric adds up."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Scores:
    """Per sample: loss in a unit of LOSS_UNITS, what the metric adds up, and what divides both."""

    loss_B: Tensor
    metric_B: Tensor
    weight_B: Tensor
    logits_BK: Tensor | None = None
    """Of each class, where there are classes; the highest one is the answer."""


class Objective(Protocol):
    """A task's loss and metric."""

    metric: str
    higher_is_better: bool

    def scores(self, network: nn.Module, batch: Batch) -> Scores:
        """Scores of each sample; differentiable in `loss_B`."""
