import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace.spec import ClassificationTask, LanguageModelTask
from millrace.train.objective import build_objective, mean_loss, to_batch

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """Answers with the same scores whatever it is asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _: Tensor) -> Tensor:
        return self.answer


def test_a_batch_leaves_record_ids_out_and_can_be_written_to() -> None:
    label = np.array([1, 2])
    label.flags.writeable = False

    batch = to_batch({"label": label, "record": np.array([2**63], np.uint64)}, CPU)
    batch["label"] += 1

    assert batch["label"].tolist() == [2, 3]
    assert label.tolist() == [1, 2]
    assert list(batch) == ["label"]


def test_a_class_is_right_when_it_scores_highest() -> None:
    objective = build_objective(ClassificationTask(kind="classification", shape=(1,)))
    logits = torch.tensor([[0.0, 0.0, 0.0], [5.0, 1.0, 0.0], [5.0, 1.0, 0.0]])
    batch = {"inputs": torch.zeros(3, 1), "label": torch.tensor([2, 0, 1])}

    scores = objective.scores(Fixed(logits), batch)

    assert scores.metric_B.tolist() == [0, 1, 0]
    assert scores.weight_B.tolist() == [1, 1, 1]
    assert math.isclose(scores.loss_B[0].item(), math.log(3), rel_tol=1e-6)
    assert (objective.metric, objective.higher_is_better) == ("accuracy", True)


def test_bits_are_counted_up_to_the_end_of_a_text_and_no_further() -> None:
    objective = build_objective(LanguageModelTask(kind="language_model", block_bytes=4))
    tokens = torch.tensor([[7, 7, 0, 0], [1, 2, 3, 4]], dtype=torch.uint8)
    batch = {"tokens": tokens, "length": torch.tensor([2, 4], dtype=torch.uint32)}
    uniform = torch.zeros(2, 4, 256)
    uniform[0, 2:] = float(99) * F.one_hot(torch.tensor(5), 256)  # padding: must not count

    scores = objective.scores(Fixed(uniform), batch)

    torch.testing.assert_close(scores.metric_B, torch.tensor([16.0, 32.0]))
    torch.testing.assert_close(scores.loss_B, scores.metric_B * math.log(2))
    assert scores.weight_B.tolist() == [2, 4]
    assert (objective.metric, objective.higher_is_better) == ("bits_per_byte", False)


def test_token_ids_reach_the_network_as_whole_numbers_whatever_they_are_stored_in() -> None:
    task = LanguageModelTask(kind="language_model", tokens="ids", vocabulary=70_000, block_tokens=2)
    objective = build_objective(task)
    stored = {"tokens": np.array([[69_999, 3]], np.uint32), "length": np.array([2], np.uint32)}

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(70_000, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            found: Tensor = self.rows(tokens).mean(-1, keepdim=True) * torch.zeros(70_000)
            return found

    scores = objective.scores(Embedding(), to_batch(stored, CPU))

    assert scores.metric_B.tolist() == pytest.approx([2 * math.log2(70_000)])
    assert (objective.metric, objective.higher_is_better) == ("bits_per_token", False)


def test_the_loss_of_a_batch_is_the_mean_of_its_halves() -> None:
    objective = build_objective(ClassificationTask(kind="classification", shape=(1,)))
    logits, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 0] * 2

    def loss(rows: slice, size: int) -> Tensor:
        batch = {"inputs": logits[rows], "label": torch.tensor(labels)[rows]}
        return mean_loss(objective.scores(Fixed(logits[rows]), batch), size, 1.0)

    halves = (loss(slice(0, 4), 4) + loss(slice(4, 8), 4)) / 2
    torch.testing.assert_close(loss(slice(0, 8), 8), halves)
