"""Training that is stopped in every way: it goes on as if nothing had been."""

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from millrace import manifest as manifests
from millrace.errors import BudgetError, StoppedError
from millrace.job import Job
from millrace.launch import follow
from millrace.manifest import Manifest
from millrace.train.checkpoint import Checkpoints
from millrace.train.guard import SKIPPED_BEFORE
from millrace.train.loop import Trainer, TrainingData
from millrace.train.world import World
from tests.kill_loop import VICTIMS, kill_again_and_again
from tests.pipelines_for_tests import NAME, Line, Tree, events

NETWORKS = '''
import torch
from torch import nn


class Touchy(nn.Module):
    """Bursts at one sample: a gradient of NaN where its first number is the largest of all."""

    def __init__(self, facts):
        super().__init__()
        self.out = nn.Linear(facts.shape[0], facts.num_classes)

    def forward(self, inputs):
        bad = inputs[:, :1] > LARGEST - 1e-3
        return self.out(torch.where(bad & self.training, inputs * float("inf"), inputs))
'''


def job_of(line: Line, key: str = "checkpoint", **train: Any) -> Job:
    section = line.spec.train.model_dump() | {"steps": 300, "checkpoint_every": 20} | train
    return line.job(key, train=section)


def test_a_training_killed_at_random_ends_with_the_bits_of_an_unbroken_one(
    points: Line, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    sections = {"steps": 2000, "validate_every": 1000, "checkpoint_every": 20}
    unbroken = line.run("train", job_of(line, "unbroken", **sections))
    job = job_of(line, "killed", **sections)

    tally = kill_again_and_again(job, tree, len(VICTIMS), seed=0)
    resumed = line.run("train", job)

    assert resumed.measured["resumed_at"] > 0
    assert resumed.digest == unbroken.digest
    assert (tally.num_strays, tally.num_unreadable) == (0, 0)
    assert tally.num_read > 0


def test_a_spot_notice_to_one_rank_stops_all_of_them_at_a_checkpoint(
    points: Line, trained_points: Line, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    job = job_of(line, steps=20_000, checkpoint_every=10**6)
    following = events(tree.follow("train", job))
    next(event for event in following if event["event"] == "validation")

    os.kill(tree.pids("millrace rank")[-1], signal.SIGTERM)
    last = list(following)

    stopped = next(event for event in last if event["event"] == "stopped")
    assert stopped["by"] == "SIGTERM"
    assert stopped["checkpoint"] == stopped["step"] > 0
    assert last[-1]["type"] == StoppedError.__name__
    assert tree.is_gone()
    assert Checkpoints(line.storage, NAME, "checkpoint").steps() == [stopped["step"]]


def test_a_notice_to_the_launcher_is_passed_on_and_the_training_goes_on_later(
    points: Line, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    unbroken = line.run("train", job_of(line, "unbroken", steps=2000, checkpoint_every="auto"))
    job = job_of(line, "stopped", steps=2000, checkpoint_every="auto")
    following = events(tree.follow("train", job))
    next(event for event in following if event["event"] == "validation")

    os.kill(tree.pids("millrace train")[0], signal.SIGTERM)
    last = list(following)
    resumed = line.run("train", job)

    assert last[-1]["type"] in ("StoppedError", "ProcessDiedError")
    assert resumed.measured["resumed_at"] > 0
    assert resumed.digest == unbroken.digest  # also: how often it is saved changes nothing


def test_a_spent_budget_stops_at_a_checkpoint_and_a_raised_one_goes_on(
    points: Line, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    unbroken = line.run("train", job_of(line, "unbroken"))
    cents = {"max_usd": 0.01}

    with pytest.raises(BudgetError, match="Raise the limit") as caught:  # at a dollar a second
        list(follow("train", job_of(line, "spent", **cents)))
    with pytest.raises(BudgetError):
        list(follow("train", job_of(line, "spent", **cents)))
    resumed = line.run("train", job_of(line, "spent", **cents | {"max_usd": 1000}))

    assert "train.max_usd 0.01" in caught.value.asked
    assert resumed.measured["resumed_at"] > 0
    assert resumed.digest == unbroken.digest


def touchy(points: Line, folder: Path, *, key: str, every: int) -> tuple[Line, Job]:
    """A line with a network that bursts at one sample, and the job to train it."""
    line = points.copy(folder)
    shards = manifests.current(line.storage, NAME, "shards")
    with closing(TrainingData.load(line.storage, shards, {})) as data:
        largest = max(float(c["inputs"][:, 0].max()) for c in data.train[0][0].batches(100))
    text = NETWORKS.replace("LARGEST", repr(largest))
    (line.root / "source" / "touchy.py").write_text(text)
    section = line.spec.train.model_dump() | {"ranks": 1, "steps": 30, "checkpoint_every": every}
    return line, line.job(key, network={"name": "touchy.py:Touchy"}, train=section)


def test_a_burst_is_rolled_back_and_what_led_there_is_skipped_the_same_way_each_time(
    points: Line, tmp_path: Path
) -> None:
    made: list[Manifest] = []
    told = []
    for every in (7, 1000):  # whatever there is to go back to
        line, job = touchy(points, tmp_path / str(every), key="touchy", every=every)
        said = list(follow("train", job))
        told.append([event for event in said if event["event"] == "roll_back"])
        made.append(manifests.read(line.storage, said[-1]["path"]))

    assert told[0]
    assert told[0][0]["what"] in ("loss", "norm of the gradient")
    assert made[0].facts["skipped_batches"] == told[0][-1]["skipped"]
    start, stop = told[0][0]["skipped"][0]
    assert stop - start <= SKIPPED_BEFORE + 1
    assert made[0].digest == made[1].digest


def test_on_other_ranks_in_the_middle_the_samples_and_losses_are_the_same(
    points: Line, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    together = line.run("train", job_of(line, "together"))
    shards = manifests.read(line.storage, job_of(line).inputs["shards"])

    job = job_of(line, "moved")
    checkpoints = Checkpoints(line.storage, NAME, "moved")
    alone = job_of(line, "moved", ranks=1)
    with closing(TrainingData.load(line.storage, shards, {})) as data:
        world = World.alone(threads=1)
        with closing(Trainer(alone, data, world)) as trainer:  # 1
            trainer.run_to(99)
            checkpoints.save(trainer.place(), trainer.network, trainer.optimizer)
    moved = line.run("train", job)  # 2

    assert moved.measured["resumed_at"] == 99
    expected = [p for p in together.facts["curve"] if "train_loss" in p]
    found = [p for p in moved.facts["curve"] if "train_loss" in p]
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_a_training_proves_that_it_repeats_itself(trained_points: Line) -> None:
    measured = manifests.current(trained_points.storage, NAME, "checkpoint").measured

    assert measured["replay_is_equal"]
    assert measured["replayed_updates"] > 0
    assert 0 <= measured["checkpoint_stall"] < 1
