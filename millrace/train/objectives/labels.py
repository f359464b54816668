"""Labels: how a network's logits for classes are scored."""

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace.train.scores import Scores


def label_scores(logits_BK: Tensor, label_B: Tensor) -> Scores:
    """Cross-entropy of the label, and 1 where its logit is the highest."""
    logits_BK = logits_BK.float()
    loss_B = F.cross_entropy(logits_BK, label_B, reduction="none")
    right_B = (logits_BK.argmax(1) == label_B).to(loss_B.dtype)
    return Scores(loss_B, right_B, torch.ones_like(right_B), logits_BK.detach())
