"""Recurrent language model over bytes or token ids: much for little compute where data are few.

    ids before a position --> embedding --> LSTM layers --> norm --> logits

Long short-term memory after Hochreiter and Schmidhuber 1997. Each block begins with no memory.

Shape suffixes: B blocks of the batch, T positions, D width, V vocabulary.
"""

from torch import Tensor, nn

from millrace.models.facts import DataFacts


class Lstm(nn.Module):
    """Logits of each id of a block from the ids before it in the block.

    Args:
        facts: Of the data: how many ids there are.
        width: Channels of the memory.
        depth: Layers.
        dropout: Share of the channels dropped after each layer while training.
    """

    def __init__(self, facts: DataFacts, *, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self._begin = facts.num_classes
        self.embedding = nn.Embedding(facts.num_classes + 1, width)
        self.layers = nn.LSTM(width, width, depth, dropout=dropout if depth > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, facts.num_classes)
        for name, parameter in self.layers.named_parameters():
            if name.startswith("bias_ih"):  # gates in, forget, cell, out: a fresh memory lasts
                nn.init.ones_(parameter.data[width : 2 * width])

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V): those at position t depend on the ids before t alone."""
        before_TB = tokens_BT.T.long().roll(1, dims=0)
        before_TB[0] = self._begin
        h_TBD, _ = self.layers(self.embedding(before_TB))
        logits_TBV: Tensor = self.logits(self.dropout(self.norm(h_TBD)))
        return logits_TBV.transpose(0, 1)
