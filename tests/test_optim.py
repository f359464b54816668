import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from millrace.spec import TrainSpec
from millrace.train.optim import build_optimizer, learning_rate, set_learning_rate


def spec(**fields: float | str) -> TrainSpec:
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


def test_wsd_stays_at_its_peak_and_falls_in_the_last_fifth() -> None:
    rates = [learning_rate(step, spec(schedule="wsd"), 100) for step in range(101)]

    assert rates[:11] == [pytest.approx(0.05 * (i + 1)) for i in range(10)] + [0.5]
    assert set(rates[10:81]) == {0.5}
    assert rates[81:] == sorted(rates[81:], reverse=True)
    assert rates[85] == pytest.approx(0.25)  # half is lost after a quarter of the decay
    assert rates[100] == 0


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.99))
def test_wsd_is_never_above_its_peak_nor_zero_while_training(steps: int, warmup: float) -> None:
    told = spec(warmup=warmup, schedule="wsd")

    assert all(0 < learning_rate(step, told, steps) <= 0.5 for step in range(steps))


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.table(ids)
        for block in self.blocks:
            x = x + block(x).tanh()
        logits: torch.Tensor = self.head(x)
        return logits


def descend(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    ids = torch.tensor([0, 1, 2, 3])
    for _ in range(steps):
        nn.functional.cross_entropy(network(ids), ids + 1).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        optimizer.step()
        optimizer.zero_grad()


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    torch.manual_seed(0)
    network = Deep()
    optimizer = build_optimizer(network, spec(optimizer="muon"))

    descend(network, optimizer, 1)

    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(parameter)]: set(state) for parameter, state in optimizer.state.items()}
    muon = {name for name, state in found.items() if state == {"momentum_buffer"}}
    assert muon == {"blocks.0.weight", "blocks.1.weight"}
    assert len(found) == 7
    assert all("exp_avg" in state for name, state in found.items() if name not in muon)


def test_without_blocks_muon_leaves_the_last_matrix_to_adamw() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))

    optimizer = build_optimizer(network, spec(optimizer="muon"))

    matrices = [
        p for group in optimizer.param_groups if "momentum" in group for p in group["params"]
    ]
    assert [id(p) for p in matrices] == [id(network[0].weight), id(network[1].weight)]


def test_muon_goes_on_from_its_saved_state_bit_for_bit() -> None:
    torch.manual_seed(0)
    network = Deep()
    optimizer = build_optimizer(network, spec(optimizer="muon"))
    descend(network, optimizer, 3)
    again = Deep()
    again.load_state_dict(network.state_dict())
    resumed = build_optimizer(again, spec(optimizer="muon"))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # else both share it

    descend(network, optimizer, 3)
    descend(again, resumed, 3)

    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_muon_learns() -> None:
    torch.manual_seed(0)
    network, ids = Deep(), torch.tensor([0, 1, 2, 3])
    optimizer = build_optimizer(network, spec(optimizer="muon", learning_rate=0.05))
    before = nn.functional.cross_entropy(network(ids), ids + 1).item()

    descend(network, optimizer, 30)

    assert nn.functional.cross_entropy(network(ids), ids + 1).item() < before / 3
