"""Text classification: the label."""

from torch import nn

from millrace.tasks import TextClassificationTask
from millrace.train.objectives.labels import label_scores
from millrace.train.scores import Batch, Objective, Scores


def build(_: TextClassificationTask) -> Objective:
    """The objective of a text classification's task."""
    return _TextClassification()


class _TextClassification:
    """Cross-entropy of the label; accuracy."""

    metric = "accuracy"
    higher_is_better = True

    def scores(self, network: nn.Module, batch: Batch) -> Scores:
        text_BT = batch["text"]
        if text_BT.device.type == "cpu":  # elsewhere to look at lengths is to wait for the device
            text_BT = text_BT[:, : int(batch["length"].long().max())]
        return label_scores(network(text_BT), batch["label"])
