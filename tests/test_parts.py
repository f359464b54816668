from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_tensors
from torch import nn

from millrace import manifest as manifests
from millrace.storage import FsspecStorage
from millrace.train import parts
from millrace.train.parts import blank_state, merged, pieces_of, put_state, read_into, state_of
from tests.pipelines_for_tests import NAME, Line
from tests.test_parallel import STACK, job_of, on_ranks


def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return network, optimizer


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_over_all_ranks_each_tensor_is_written_once(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 16)
    state = state_of(*build(0))

    written = [pieces_of(state, rank, world_size) for rank in range(world_size)]

    names = [piece.name for pieces in written for piece in pieces]
    assert sorted(names) == sorted(state)
    assert all(written)
    layout = merged({p.name: p.layout("f") for p in pieces} for pieces in written)
    assert layout["optimizer.0.weight.exp_avg"]["size"] == [8, 3]


def test_a_small_state_is_written_by_one_rank() -> None:
    state = state_of(*build(0))

    assert len(pieces_of(state, 0, 4)) == len(state)
    assert not pieces_of(state, 1, 4)


def test_a_piece_that_is_missing_is_noticed_before_anything_is_published() -> None:
    pieces = pieces_of(state_of(*build(0)), 0, 1)
    layout = {p.name: p.layout("f") for p in pieces}
    layout["network.0.weight"]["pieces"] = [[[0, 0], [4, 3], "f"]]

    with pytest.raises(AssertionError, match=r"12 of 24 elements of network\.0\.weight"):
        merged([layout])


def test_a_state_of_names_goes_back_into_an_optimizer_that_has_none() -> None:
    network, optimizer = build(0)
    state = {name: value.clone() for name, value in state_of(network, optimizer).items()}
    layout = merged([{p.name: p.layout("f") for p in pieces_of(state, 0, 1)}])
    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    fresh = torch.optim.AdamW(other.parameters(), fused=True)

    blank = blank_state(other, layout)
    for name, value in blank.items():
        value.copy_(state[name])
    put_state(other, fresh, blank)

    again = state_of(other, fresh)
    assert sorted(again) == sorted(state)
    assert all(torch.equal(again[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("saved", "ranks", "resumed", "ranks_then"),
    [("fsdp", 2, "fsdp", 2), ("fsdp", 2, "ddp", 3), ("ddp", 2, "fsdp", 2), ("fsdp", 3, "fsdp", 2)],
)
def test_a_checkpoint_is_taken_up_on_other_ranks_and_by_another_strategy(
    saved: str, ranks: int, resumed: str, ranks_then: int, points: Line, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    job = job_of(line, STACK).model_copy(update={"key": f"{saved}/1"})
    then = job.model_copy(update={"key": f"{resumed}/1"})

    at_4, at_8, curve = on_ranks(ranks, "save", job, tmp_path)
    then_at_4, then_at_8, then_curve = on_ranks(ranks_then, "resume", then, tmp_path)

    assert then_at_4 == at_4
    assert len(then_curve) == len(curve)
    for one, other in zip(curve, then_curve, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    if (saved, ranks) == (resumed, ranks_then):
        assert (then_at_8, then_curve) == (at_8, curve)


def test_shards_are_safetensors_that_anyone_can_read(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    job = job_of(line, STACK).model_copy(update={"key": "fsdp/1"})

    on_ranks(2, "save", job, tmp_path)

    path = f"{manifests.folder(NAME, 'checkpoint', 'on-ranks')}/step-00000004"
    made = manifests.read(line.storage, f"{path}/manifest.json")
    assert [file.path for file in made.files] == [
        f"{path}/part-0000{rank}.safetensors" for rank in (0, 1)
    ]
    halves = [load_tensors(file.read(line.storage)) for file in made.files]
    shapes = [half["network.inner.weight"].shape for half in halves]
    assert [tuple(shape) for shape in shapes] == [(8, 4), (8, 4)]
    whole = {"network.inner.weight": torch.empty(16, 4)}
    read_into(whole, FsspecStorage(line.storage.url), made)
    stacked = torch.cat([half["network.inner.weight"] for half in halves])
    assert torch.equal(whole["network.inner.weight"], stacked)
