"""Classifier of sequences of letters, such as DNA: convolutions over letters, the best matches.

    bytes --> letters, one channel each --> convolutions --> best match in each part --> logits

After DeepBind (Alipanahi et al. 2015). Shape suffixes: B sequences, T letters, C channels of
letters, D width, P parts, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace.models.facts import DataFacts


class MotifConv(nn.Module):
    """Logits of each sequence's classes.

    Args:
        facts: Of the data; sequences are bytes filled up with zeros.
        letters: The alphabet; other bytes are no letter.
        width: Motifs that are looked for.
        kernel: Letters of a motif.
        depth: Convolutions.
        parts: Into which a sequence is divided.
        dropout: Share of the matches dropped while training.
    """

    channels_VC: Tensor

    def __init__(
        self,
        facts: DataFacts,
        *,
        letters: str,
        width: int,
        kernel: int,
        depth: int,
        parts: int,
        dropout: float,
    ) -> None:
        super().__init__()
        (self._num_letters,) = facts.shape
        self._parts = min(parts, self._num_letters)
        self.register_buffer("channels_VC", _channels(letters), persistent=False)
        inputs = [self.channels_VC.shape[1]] + [width] * (depth - 1)
        self.convolutions = nn.ModuleList(nn.Conv1d(size, width, kernel) for size in inputs)
        self._padding = ((kernel - 1) // 2, kernel // 2)
        self.drop = nn.Dropout(dropout)
        self.classify = nn.Linear(width * self._parts, facts.num_classes)

    def forward(self, text_BT: Tensor) -> Tensor:
        """Logits (B, K) of sequences: bytes, zero where there are no more of them."""
        if self._parts > 1:  # places are counted from the beginning, whatever the longest here
            text_BT = F.pad(text_BT, (0, self._num_letters - text_BT.shape[1]))
        is_there_B1T = (text_BT > 0)[:, None]
        x_BDT = F.embedding(text_BT.long(), self.channels_VC).transpose(1, 2)
        for number, convolution in enumerate(self.convolutions):
            found_BDT = F.relu(convolution(F.pad(x_BDT, self._padding))) * is_there_B1T
            x_BDT = x_BDT + found_BDT if number else found_BDT
        best_BDP = F.adaptive_max_pool1d(x_BDT, self._parts)
        logits_BK: Tensor = self.classify(self.drop(best_BDP.flatten(1)))
        return logits_BK


def _channels(letters: str) -> Tensor:
    """For each byte a channel per letter: 1 in its own, none where it is no letter."""
    known = list(dict.fromkeys(letters.upper().encode()))
    table_VC = torch.zeros(256, len(known))
    for channel, byte in enumerate(known):
        table_VC[[byte, *bytes([byte]).lower()], channel] = 1
    return table_VC
