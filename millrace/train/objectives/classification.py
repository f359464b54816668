"""Classification of numbers and images: the label."""

from torch import nn

from millrace.tasks import ClassificationTask
from millrace.train.objectives.labels import label_scores
from millrace.train.scores import Batch, Objective, Scores


def build(_: ClassificationTask) -> Objective:
    """The objective of a classification's task."""
    return _Classification()


class _Classification:
    """Cross-entropy of the label; accuracy."""

    metric = "accuracy"
    higher_is_better = True

    def scores(self, network: nn.Module, batch: Batch) -> Scores:
        # Pixels come as bytes and are widened here, on the device, after a trip a quarter as long.
        return label_scores(network(batch["inputs"].float()), batch["label"])
