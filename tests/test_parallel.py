import importlib
import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from millrace import manifest as manifests
from millrace.job import Job
from millrace.models.blocks import blocks_of
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.train.choice import Choice, measure, settle
from millrace.train.feed import parts
from millrace.train.loop import Trainer, TrainingData
from millrace.train.strategy import Strategy
from millrace.train.timings import Timings
from millrace.train.world import World
from tests.pipelines_for_tests import ROOT, Line

STACK = {"name": "networks.py:Stack"}


def on_ranks(number: int, program: str, job: Job, folder: Path) -> Any:
    """What the first of several ranks found, each a process."""
    (folder / "job.json").write_text(job.model_dump_json())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    argv = ["tests.training_on_ranks", program, str(folder / "job.json"), str(folder / "found")]
    told = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", *argv],
            cwd=ROOT,
            env=os.environ
            | {name: str(value) for name, value in told.items()}
            | {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    words = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * number, words[0]
    return json.loads((folder / "found").read_text())


def job_of(line: Line, network: dict[str, Any], **train: Any) -> Job:
    section = line.spec.train.model_dump() | {"ranks": 1, "batch": 24, "steps": 40} | train
    search = {"space": {"train.learning_rate": {"low": 1e-4, "high": 0.1}}}
    return line.job("strategy-test", network=network, train=section, search=search)


def data_of(line: Line, job: Job) -> TrainingData:
    shards = manifests.read(line.storage, job.inputs["shards"])
    return TrainingData.load(line.storage, shards, job.spec.train.mix)


def trained(line: Line, job: Job, strategy: Strategy, steps: int = 8) -> Trainer:
    """A trainer after a few steps and a validation."""
    with closing(data_of(line, job)) as data:
        trainer = Trainer(job, data, World.alone(threads=1), strategy=strategy)
        with closing(trainer):
            trainer.run_to(steps)
            trainer.validate()
    return trainer


def measured(line: Line, job: Job, steps: int) -> Choice:
    """What is chosen where nothing is known; no figure is kept."""
    world = World.alone(threads=1)
    with closing(data_of(line, job)) as data:
        return measure(job, world, Timings(job, data, world, line.storage), steps)


def test_more_than_two_ranks_take_up_a_training_bit_for_bit(points: Line, tmp_path: Path) -> None:
    job = job_of(points, STACK, ranks=3)

    assert on_ranks(3, "take_up", job, tmp_path)


def test_buckets_laid_out_anew_would_change_the_bits(points: Line, tmp_path: Path) -> None:
    job = job_of(points, STACK, ranks=3)

    assert not on_ranks(3, "take_up_unsettled", job, tmp_path)


def test_a_sharded_training_goes_through_the_losses_of_a_replicated_one(
    points: Line, tmp_path: Path
) -> None:
    job = job_of(points, STACK, ranks=2, validate_samples=37)  # a rank has one microbatch more

    replicated, *others = on_ranks(2, "shard", job, tmp_path)

    for curve, names in others:
        assert names == replicated[1]
        assert len(curve) == len(replicated[0]) == 9
        for one, two in zip(curve, replicated[0], strict=True):
            assert one == pytest.approx(two, rel=1e-4)


def test_ranks_choose_together_and_take_their_choice_up(points: Line, tmp_path: Path) -> None:
    copy = points.copy(tmp_path / "line")
    job = job_of(copy, STACK, ranks=2)

    first = on_ranks(2, "choose", job, tmp_path)
    second = on_ranks(2, "choose", job, tmp_path)

    assert first == second  # the seconds, too: nothing was measured again
    assert first["strategy"] == Strategy().model_dump()
    assert first["flops_per_sample"] > 0
    assert first["peak_flops_per_second"] > 0


def test_microbatches_add_up_to_the_batch(points: Line) -> None:
    job = job_of(points, STACK)

    whole = trained(points, job, Strategy())
    cut = trained(points, job, Strategy(microbatches=5))

    assert len(cut.curve) == 9
    for one, two in zip(whole.curve, cut.curve, strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def test_recomputed_blocks_give_the_same_bits_dropout_included(points: Line) -> None:
    job = job_of(points, STACK | {"dropout": 0.5})

    kept = trained(points, job, Strategy())
    recomputed = trained(points, job, Strategy(is_recomputing=True))

    assert recomputed.curve == kept.curve
    for name, value in kept.network.state_dict().items():
        assert torch.equal(recomputed.network.state_dict()[name], value), name


def test_bfloat16_is_near_float32_and_leaves_weights_in_float32(points: Line) -> None:
    job = job_of(points, STACK)

    plain, half = (
        trained(points, job, Strategy()),
        trained(points, job, Strategy(precision="bfloat16")),
    )

    assert half.curve != plain.curve
    assert half.curve[-1]["validation_loss"] == pytest.approx(
        plain.curve[-1]["validation_loss"], rel=0.05
    )
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.float32}


def test_a_choice_changes_neither_the_random_state_nor_the_weights_of_the_trained(
    points: Line, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    job = job_of(line, STACK | {"dropout": 0.5})
    before = trained(line, job, Strategy())

    with closing(data_of(line, job)) as data:
        settle(job, data, World.alone(threads=1), line.storage, 40)

    assert trained(line, job, Strategy()).curve == before.curve


def test_a_damaged_choice_is_made_anew(points: Line, tmp_path: Path) -> None:
    line, world = points.copy(tmp_path / "line"), World.alone(threads=1)
    job = job_of(line, STACK)
    path = "p/checkpoint/strategy-test/strategy.json"
    line.storage.write(path, b'{"strategy": {"paral')

    with closing(data_of(line, job)) as data:
        made = settle(job, data, world, line.storage, 40)

    assert Choice.model_validate_json(line.storage.read(path)) == made


def test_a_short_training_is_not_measured_further(points: Line) -> None:
    job = job_of(points, STACK)

    choice = measured(points, job, steps=2)

    assert choice.strategy == Strategy()
    assert "not worth measuring" in choice.why["speed"]
    assert "1 replicas, float32, not compiled" in choice.told


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")  # of torch's own compiler
def test_a_machine_without_a_compiler_is_a_reason_not_a_crash(
    points: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(points, STACK)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is compiled yet
    inductor = importlib.import_module("torch._inductor.config")
    monkeypatch.setattr(inductor.cpp, "cxx", ("/no/such/compiler",))

    choice = measured(points, job, steps=10**8)

    assert not choice.strategy.is_compiled
    assert choice.why["compile"].startswith("it failed (")
    assert "No working C++ compiler" in choice.why["compile"]


@pytest.mark.parametrize(("size", "number"), [(7, 1), (7, 3), (8, 8), (24, 5)])
def test_parts_of_a_batch_are_all_of_it(size: int, number: int) -> None:
    batch = {"inputs": torch.arange(2 * size).view(size, 2), "label": torch.arange(size)}

    cut = list(parts(batch, number))

    assert len(cut) == number
    assert all(len(part["label"]) in (size // number, -(-size // number)) for part in cut)
    for name, tensor in batch.items():
        assert torch.equal(torch.cat([part[name] for part in cut]), tensor)


def test_blocks_are_the_longest_list_of_a_network(points: Line) -> None:
    job = job_of(points, STACK)
    network = build_network(job.spec.network, DataFacts(3, (4,)), job.folder)

    blocks = network.get_submodule("blocks")
    assert list(map(id, blocks_of(network))) == list(map(id, blocks.children()))
    assert blocks_of(torch.nn.Linear(2, 2)) == []
