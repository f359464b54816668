"""Vision transformer: an image as a sequence of patches.

    image --> patches, each a linear map of its pixels --> where they are added --> blocks
          --> mean over the patches --> logits

Dosovitskiy et al. 2021, without a token of its own for the class.

Shape suffixes: B batch, C channels of the image, T patches, D width, K classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from millrace.models.facts import DataFacts
from millrace.models.standardize import Standardize
from millrace.models.transformer import HEAD_CHANNELS, Block

MOST_PATCHES = 64
"""Where the patch is left open: attention to more pays only with more data and compute."""


class VisionTransformer(nn.Module):
    """`depth` blocks of attention between all patches.

    Args:
        facts: Of the images; mean and deviation of each channel.
        width: Channels.
        depth: Blocks.
        heads: Of the attention; 0 gives each `HEAD_CHANNELS` channels.
        patch: Pixels of a patch's side; 0 takes the least that gives at most MOST_PATCHES.
        dropout: Share of the channels dropped while training.
    """

    def __init__(
        self,
        facts: DataFacts,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, width_pixels = facts.shape
        side = patch or patch_side(height, width_pixels)
        down, across = -(-height // side), -(-width_pixels // side)
        # Patches that reach over the edge see the mean there.
        self._padding = (0, across * side - width_pixels, 0, down * side - height)
        self.standardize = Standardize(facts)
        self.embed = nn.Conv2d(channels, width, side, stride=side)
        self.place = nn.Embedding(down * across, width)
        nn.init.normal_(self.place.weight, std=0.02)
        num_heads = heads or max(1, width // HEAD_CHANNELS)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, dropout, is_causal=False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.classify = nn.Linear(width, facts.num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Class logits (batch, classes) of images (batch, channels, height, width) of any scale."""
        padded_BCHW = F.pad(self.standardize(x_BCHW), self._padding)
        x_BTD = self.embed(padded_BCHW).flatten(2).transpose(1, 2) + self.place.weight
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BK: Tensor = self.classify(self.norm(x_BTD).mean(1))
        return logits_BK


def patch_side(height: int, width: int) -> int:
    """The least side of a patch of which at most MOST_PATCHES cover the image."""
    side = 1
    while -(-height // side) * -(-width // side) > MOST_PATCHES:
        side += 1
    return side
