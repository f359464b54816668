import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from millrace.spec import TrainSpec
from millrace.train.optim import build_optimizer, learning_rate, set_learning_rate


def spec(**fields: float) -> TrainSpec:
    return TrainSpec.model_validate({"steps": 100, "batch": 2, "learning_rate": 0.5} | fields)


def test_the_schedule_rises_to_its_peak_and_ends_at_zero() -> None:
    rates = [learning_rate(step, spec(warmup=0.1), 100) for step in range(101)]

    assert rates[0] == 0.05
    assert rates[9] == rates[10] == 0.5
    assert rates[55] == pytest.approx(0.25)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_without_a_warm_up_the_first_step_takes_the_peak() -> None:
    assert learning_rate(0, spec(warmup=0.0), 1) == 0.5


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.99))
def test_the_rate_rises_then_falls_and_is_never_zero_while_training(
    steps: int, warmup: float
) -> None:
    rates = [learning_rate(step, spec(warmup=warmup), steps) for step in range(steps)]

    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert all(0 < rate <= 0.5 for rate in rates)


class Tables(nn.Module):
    rate_scales = {"table": 3.0}  # noqa: RUF012  as a user would write it

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 2)
        self.tables = nn.Linear(2, 2)  # a name that `table` begins
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_only_matrices_decay_and_a_named_table_learns_at_its_own_rate() -> None:
    network = Tables()

    optimizer = build_optimizer(network, spec(weight_decay=0.1))
    set_learning_rate(optimizer, 0.2)

    found = {
        id(parameter): (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        id(network.table.weight): (0.0, pytest.approx(0.6)),
        id(network.tables.weight): (0.1, 0.2),
        id(network.tables.bias): (0.0, 0.2),
    }
