"""Fully connected classifier of flat numbers."""

import math
from itertools import pairwise

from torch import Tensor, nn

from millrace.models.facts import DataFacts
from millrace.models.standardize import Standardize


class Mlp(nn.Module):
    """`depth` hidden layers of `width` units with GELU."""

    def __init__(self, facts: DataFacts, *, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        sizes = [math.prod(facts.shape)] + [width] * depth
        hidden = [
            layer
            for inputs, outputs in pairwise(sizes)
            for layer in (nn.Linear(inputs, outputs), nn.GELU(), nn.Dropout(dropout))
        ]
        self.layers = nn.Sequential(
            Standardize(facts), nn.Flatten(), *hidden, nn.Linear(width, facts.num_classes)
        )

    def forward(self, x_BF: Tensor) -> Tensor:
        """Class logits (batch, classes) of inputs (batch, ...) of any scale."""
        logits_BK: Tensor = self.layers(x_BF)
        return logits_BK
