"""Inputs with the training split's mean and deviation brought to 0 and 1."""

import torch
from torch import Tensor, nn

from millrace.models.facts import DataFacts


class Standardize(nn.Module):
    """Per channel of images (C, H, W), per feature of flat inputs; saved with the weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, facts: DataFacts) -> None:
        super().__init__()
        rest = [1] * (len(facts.shape) - 1)
        mean, deviation = torch.tensor(facts.mean), torch.tensor(facts.deviation)
        self.register_buffer("mean", mean.reshape(-1, *rest))
        self.register_buffer("deviation", deviation.reshape(-1, *rest))

    def forward(self, x: Tensor) -> Tensor:
        """Standardized inputs, (batch, *shape) as they came."""
        return (x - self.mean) / self.deviation
