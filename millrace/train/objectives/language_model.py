"""Language model: the next byte or token id."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace.tasks import LanguageModelTask
from millrace.train.scores import Batch, Objective, Scores


def build(task: LanguageModelTask) -> Objective:
    """The objective of a language model's task."""
    return _NextToken("bits_per_token" if task.tokens else "bits_per_byte")


class _NextToken:
    """Cross-entropy of each byte, or token id, given those before it in its block; bits per one."""

    higher_is_better = False

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def scores(self, network: nn.Module, batch: Batch) -> Scores:
        tokens_BT, length_B = batch["tokens"], batch["length"].long()
        if tokens_BT.dtype != torch.uint8:  # torch knows little arithmetic of its like
            tokens_BT = tokens_BT.long()
        logits_BTV: Tensor = network(tokens_BT)
        nats_BT = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), tokens_BT.flatten().long(), reduction="none"
        ).view(tokens_BT.shape)
        position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        loss_B = (nats_BT * (position_T < length_B[:, None])).sum(1)
        # Of a tokenizer's ids the bytes they stand for are stored: bits are told per byte.
        weight_B = batch.get("num_bytes", length_B).to(loss_B.dtype)
        return Scores(loss_B, loss_B.detach() / math.log(2), weight_B)
