"""A language model over a window of bytes: small enough to be trained thousands of times."""

import torch.nn.functional as F
from torch import Tensor, nn

from millrace.models.facts import DataFacts

CHANNELS = 16
"""Of a byte's embedding."""


class Window(nn.Module):
    """Each byte from the `context` bytes before it, through one hidden layer (Bengio et al. 2003).

    Shape suffixes: B blocks of the batch, T positions, C context, D channels, V vocabulary.
    """

    def __init__(self, facts: DataFacts, *, width: int, context: int) -> None:
        super().__init__()
        self.context, self.begin = context, facts.num_classes
        self.embedding = nn.Embedding(facts.num_classes + 1, CHANNELS)
        self.inner = nn.Linear(context * CHANNELS, width)
        self.out = nn.Linear(width, facts.num_classes)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        before_BT = F.pad(tokens_BT.long()[:, :-1], (self.context, 0), value=self.begin)
        x_BTCD = self.embedding(before_BT.unfold(1, self.context, 1))
        logits_BTV: Tensor = self.out(F.gelu(self.inner(x_BTCD.flatten(2))))
        return logits_BTV
