"""MaxCut: the expected cut of a graph, beside the largest there is."""

import torch
from torch import Tensor, nn

from millrace.tasks import MaxcutTask
from millrace.train.scores import Batch, Objective, Scores


def build(_: MaxcutTask) -> Objective:
    """The objective of graphs."""
    return _ExpectedCut()


class _ExpectedCut:
    """Share of the edges that is expected not to be cut; approximation ratio."""

    metric = "approximation_ratio"
    higher_is_better = True

    def scores(self, network: nn.Module, batch: Batch) -> Scores:
        cut_B: Tensor = network(batch["inputs"]).float()
        loss_B = 1 - cut_B / batch["inputs"].sum(1)
        return Scores(loss_B, cut_B.detach() / batch["optimum"], torch.ones_like(cut_B))
