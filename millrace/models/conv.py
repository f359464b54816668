"""Small convolutional classifier of images."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from millrace.models.build import DataFacts


class ConvNet(nn.Module):
    """Two convolutions, average pooling to at most 4 x 4, and a linear layer."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, facts: "DataFacts", *, width: int, dropout: float) -> None:
        super().__init__()
        channels, height, width_pixels = facts.shape
        self.register_buffer("mean", torch.tensor(facts.mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(facts.deviation, dtype=torch.float32))
        pooled = (min(4, height), min(4, width_pixels))
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(pooled),
            nn.Flatten(),
        )
        self.classify = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * width * pooled[0] * pooled[1], facts.num_classes),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Class logits (batch, classes) of images (batch, channels, height, width), any scale."""
        features_BF = self.features((x_BCHW - self.mean) / self.deviation)
        logits_BK: Tensor = self.classify(features_BF)
        return logits_BK
