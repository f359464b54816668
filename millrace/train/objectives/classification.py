"""Classification of numbers and images: the label."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace.tasks import ClassificationTask
from millrace.train.scores import Batch, Objective, Scores


def build(_: ClassificationTask) -> Objective:
    """The objective of a classification's task."""
    return _Classification()


def label_scores(logits_BK: Tensor, label_B: Tensor) -> Scores:
    """Cross-entropy of the label, and 1 where its logit is the highest."""
    loss_B = F.cross_entropy(logits_BK.float(), label_B, reduction="none")
    right_B = (logits_BK.argmax(1) == label_B).to(loss_B.dtype)
    return Scores(loss_B, right_B, torch.ones_like(right_B))


class _Classification:
    """Cross-entropy of the label; accuracy."""

    metric = "accuracy"
    higher_is_better = True

    def scores(self, network: nn.Module, batch: Batch) -> Scores:
        # Pixels come as bytes and are widened here, on the device, after a trip a quarter as long.
        return label_scores(network(batch["inputs"].float()), batch["label"])
