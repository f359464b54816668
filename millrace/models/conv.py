"""Small convolutional classifier of images."""

from torch import Tensor, nn

from millrace.models.facts import DataFacts
from millrace.models.standardize import Standardize

LEAST_SIDE = 8
"""Pixels of an image's shorter side from which on it is halved once more."""
MOST_WIDENED = 8
"""Times the first convolution's channels that a later one may have."""


class ConvNet(nn.Module):
    """Convolutions that halve the image down to a side of 4 to 7 pixels, and a linear layer."""

    def __init__(self, facts: DataFacts, *, width: int, dropout: float) -> None:
        super().__init__()
        channels, height, width_pixels = facts.shape
        layers: list[nn.Module] = [Standardize(facts), *_convolution(channels, width)]
        side, found = min(height, width_pixels), width
        while side >= LEAST_SIDE or len(layers) == 3:
            if side >= LEAST_SIDE:
                layers.append(nn.MaxPool2d(2))
            wider = min(2 * found, MOST_WIDENED * width)
            layers += _convolution(found, wider)
            side, found = side // 2, wider
        pooled = (min(4, height), min(4, width_pixels))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pooled), nn.Flatten())
        self.classify = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(found * pooled[0] * pooled[1], facts.num_classes),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Class logits (batch, classes) of images (batch, channels, height, width) of any scale."""
        features_BF = self.features(x_BCHW)
        logits_BK: Tensor = self.classify(features_BF)
        return logits_BK


def _convolution(channels: int, wider: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU()
