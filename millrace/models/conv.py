"""Small convolutional classifier of images."""

from torch import Tensor, nn

from millrace.models.facts import DataFacts
from millrace.models.standardize import Standardize


class ConvNet(nn.Module):
    """Two convolutions, average pooling to at most 4 x 4, and a linear layer."""

    def __init__(self, facts: DataFacts, *, width: int, dropout: float) -> None:
        super().__init__()
        channels, height, width_pixels = facts.shape
        pooled = (min(4, height), min(4, width_pixels))
        self.features = nn.Sequential(
            Standardize(facts),
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
        """Class logits (batch, classes) of images (batch, channels, height, width) of any scale."""
        features_BF = self.features(x_BCHW)
        logits_BK: Tensor = self.classify(features_BF)
        return logits_BK
