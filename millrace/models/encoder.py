"""Classifier of texts: hashed n-grams, averaged, and a transformer over their averages.

    bytes --> units (words or bytes), hashed --> n-grams of units --> rows of one table
          --> mean of each patch of units --> blocks --> mean of the text --> logits

Blocks begin as the identity, so that the network begins as fastText (Joulin et al. 2016), which
learns most of what there is to learn within seconds, and adds what the order of words says while
there is time. The bidirectional encoder is after BERT (Devlin et al. 2018).

Shape suffixes: B texts, T bytes, U units, N n-gram orders, P patches, R table rows of a patch,
D width, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace.models.facts import DataFacts
from millrace.models.transformer import HEAD_CHANNELS, Block, rotary

MULTIPLIER = 0x2545F4914F6CDD1D  # odd; spreads a hash over the high bits
BASE = 0x5851F42D4C957F2D  # odd, so that it has an inverse modulo 2**64
INVERSE = (pow(BASE, -1, 2**64) + 2**63) % 2**64 - 2**63  # as a signed number
TABLE_DEVIATION = 0.05
SPACE, PART, ALONE = 0, 1, 2
"""What a byte is: between words, part of one, or a word by itself."""


class Encoder(nn.Module):
    """Logits of each text's classes.

    Args:
        facts: Of the data; texts are bytes filled up with zeros.
        unit: `word` or `byte`.
        ngrams: Up to so many units in a row are looked up together.
        table_bits: Each n-gram order hashes into 2**table_bits rows.
        patch: Units that make one position of the blocks.
        width: Channels.
        depth: Blocks.
        heads: Of the attention; 0 gives each HEAD_CHANNELS channels.
        pool: `mean` over the positions, or the `first` one, which is no patch.
        dropout: Share of the units, and of the channels, dropped while training.
    """

    rate_scales = {"table": 2.0}  # noqa: RUF012  a row is met rarely and must move when it is
    kind_V: Tensor
    lower_V: Tensor

    def __init__(  # noqa: PLR0913  the fields of its spec
        self,
        facts: DataFacts,
        *,
        unit: str,
        ngrams: int,
        table_bits: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        pool: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self._reads_words, self._patch, self._dropout = unit == "word", patch, dropout
        self._orders, self._table_bits = ngrams, table_bits
        for name, values in (("kind_V", _kinds()), ("lower_V", _lower())):
            self.register_buffer(name, values, persistent=False)
        num_heads = heads or max(1, width // HEAD_CHANNELS if width % HEAD_CHANNELS == 0 else 1)
        self._head_channels = width // num_heads
        self.table = nn.EmbeddingBag(1 + (ngrams << table_bits), width, mode="mean", padding_idx=0)
        with torch.no_grad():
            self.table.weight[1:].normal_(std=TABLE_DEVIATION)
        if pool == "first":
            self.first = nn.Parameter(torch.randn(width) * TABLE_DEVIATION)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, dropout, is_causal=False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.drop = nn.Dropout(dropout)
        self.classify = nn.Linear(width, facts.num_classes)

    def forward(self, text_BT: Tensor) -> Tensor:
        """Logits (B, K) of texts: bytes, zero where there are no more of them."""
        row_BUN = self._rows(text_BT)
        num_texts, _, num_orders = row_BUN.shape
        row_BPR = row_BUN.reshape(num_texts, -1, self._patch * num_orders)
        x_BPD = self.table(row_BPR.flatten(0, 1)).reshape(*row_BPR.shape[:2], -1)
        is_unit_BU = row_BUN[:, :, 0] > 0
        weight_BP = is_unit_BU.reshape(num_texts, -1, self._patch).sum(2)
        if len(self.blocks):
            x_BPD, weight_BP = self._in_context(x_BPD, weight_BP)
        total_B1 = weight_BP.sum(1, keepdim=True).clamp(min=1)
        pooled_BD = (x_BPD * weight_BP[:, :, None]).sum(1) / total_B1
        logits_BK: Tensor = self.classify(self.drop(self.norm(pooled_BD)))
        return logits_BK

    def _in_context(self, x_BPD: Tensor, weight_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Patches after the blocks, and how much each of them counts."""
        is_real_BP = weight_BP > 0
        if hasattr(self, "first"):
            first_B1D = self.first.expand(len(x_BPD), 1, -1)
            x_BPD = torch.cat([first_B1D, x_BPD], dim=1)
            weight_BP = F.pad(torch.zeros_like(weight_BP), (1, 0), value=1)
            is_real_BP = F.pad(is_real_BP, (1, 0), value=True)
        rotation = rotary(x_BPD.shape[1], self._head_channels, x_BPD.device)
        for block in self.blocks:
            x_BPD = block(x_BPD, rotation, is_real_BP)
        return x_BPD, weight_BP

    @torch.no_grad()
    def _rows(self, text_BT: Tensor) -> Tensor:
        """Table rows (B, U, N), 0 where there is no n-gram; U is a multiple of the patch."""
        hash_BU = self._words(text_BT) if self._reads_words else self._bytes(text_BT)
        hash_BU = F.pad(hash_BU, (0, -hash_BU.shape[1] % self._patch))
        if self.training and self._dropout:
            hash_BU = hash_BU * (torch.rand(hash_BU.shape, device=hash_BU.device) > self._dropout)
        found, gram_BU = [], torch.zeros_like(hash_BU)
        is_there_BU = torch.ones_like(hash_BU, dtype=torch.bool)
        for order in range(self._orders):
            earlier_BU = F.pad(hash_BU, (order, 0))[:, : hash_BU.shape[1]]
            is_there_BU = is_there_BU & (earlier_BU != 0)
            gram_BU = (gram_BU + earlier_BU) * MULTIPLIER
            gram_BU = gram_BU ^ (gram_BU >> 29)
            row_BU = 1 + (order << self._table_bits) + (gram_BU >> 20 & (2**self._table_bits - 1))
            found.append(row_BU * is_there_BU)
        return torch.stack(found, dim=-1)

    def _bytes(self, text_BT: Tensor) -> Tensor:
        """A number for each byte, 0 where there is none."""
        return text_BT.long()

    def _words(self, text_BT: Tensor) -> Tensor:
        """Hashes (B, U) of the words in a row, then zeros; at most one word for every two bytes."""
        kind_BT = self.kind_V[text_BT.long()]
        is_end_BT = (kind_BT == ALONE) | (
            (kind_BT == PART) & (F.pad(kind_BT[:, 1:], (0, 1)) != PART)
        )
        number_BT = is_end_BT.cumsum(1)
        most = text_BT.shape[1] // 2 + 1
        if text_BT.device.type == "cpu":  # elsewhere to look at numbers is to wait for the device
            most = min(most, max(1, int(number_BT[:, -1].max())))
        # A word's bytes are those of its kind since the word before it ended.
        word_BT = (number_BT - is_end_BT.long()).clamp(max=most)
        # Added up from the end of the text, so that a word's hash does not depend on its place.
        value_BT = (self.lower_V[text_BT.long()] + 1) * (kind_BT != SPACE)
        ones_T = text_BT.new_ones(text_BT.shape[1], dtype=torch.int64)
        power_T, inverse_T = (ones_T * BASE).cumprod(0), (ones_T * INVERSE).cumprod(0)
        sum_BU = torch.zeros(len(text_BT), most + 1, dtype=torch.int64, device=text_BT.device)
        sum_BU.scatter_add_(1, word_BT, value_BT * power_T)
        end_BU = torch.zeros_like(sum_BU)
        position_T = torch.arange(text_BT.shape[1], device=text_BT.device)
        end_BU.scatter_add_(1, word_BT, position_T * is_end_BT)
        hash_BU = sum_BU[:, :most] * inverse_T[end_BU[:, :most]]  # the last are what lies beyond
        is_word_BU = torch.arange(most, device=text_BT.device) < number_BT[:, -1:]
        return hash_BU * is_word_BU


def _kinds() -> Tensor:
    """SPACE, PART or ALONE for each byte; those beyond ASCII are parts of letters."""
    kinds = []
    for byte in range(256):
        is_part = chr(byte).isalnum() or byte == ord("_") if byte < 128 else True
        kinds.append(PART if is_part else ALONE if 33 <= byte < 127 else SPACE)
    return torch.tensor(kinds)


def _lower() -> Tensor:
    """Each byte, capital letters of ASCII as small ones."""
    return torch.tensor(list(bytes(range(256)).lower()))
