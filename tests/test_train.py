import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from millrace import manifest as manifests
from millrace.errors import ProcessFailedError, SpecError, TrainingError
from millrace.job import Job
from millrace.launch import follow
from millrace.manifest import Manifest
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.train import loop
from millrace.train.checkpoint import Checkpoints
from millrace.train.loop import Trainer, TrainingData
from millrace.train.world import World, choose_device
from tests.pipelines_for_tests import NAME, Line, Tree, events


def build_trainer(line: Line, job: Job) -> Trainer:
    shards = manifests.read(line.storage, job.inputs["shards"])
    return Trainer(
        job, TrainingData.load(line.storage, shards, job.spec.train.mix), World.alone(threads=1)
    )


def train_section(line: Line, **fields: Any) -> dict[str, Any]:
    return line.spec.train.model_dump() | fields


def with_network(name: str, line: Line, folder: Path) -> tuple[Line, Job]:
    """A copy of the line, and the job to train this network on it on one rank."""
    copy = line.copy(folder / "line")
    network = {"name": f"networks.py:{name}"}
    return copy, copy.job("checkpoint", network=network, train=train_section(copy, ranks=1))


def checkpoint_of(line: Line) -> Manifest:
    return manifests.current(line.storage, NAME, "checkpoint")


def test_a_training_killed_again_and_again_ends_with_the_bits_of_an_unbroken_one(
    points: Line, trained_points: Line, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job("checkpoint")
    last_words = []

    for victim in ("millrace rank", "millrace train", "follower.json"):
        following = events(tree.follow("train", job))
        next(event for event in following if event["event"] == "checkpoint")
        tree.kill(victim)
        assert tree.is_gone()
        last_words.append([e["type"] for e in following if e["event"] == "raised"])
    resumed = line.run("train", job)

    assert last_words == [["ProcessDiedError"], ["ProcessDiedError"], []]
    assert resumed.measured["resumed_at"] >= 150
    assert resumed.digest == checkpoint_of(trained_points).digest
    last_attempt = (300 - resumed.measured["resumed_at"]) / resumed.measured["steps_per_second"]
    assert resumed.seconds > last_attempt + 1  # three starts of at least a second among them
    assert not [path for path in line.storage.list(f"{NAME}/checkpoint") if "/step-" in path]


def test_one_rank_and_two_go_through_the_same_losses(trained_points: Line) -> None:
    job = trained_points.job(train=train_section(trained_points, ranks=1))

    with closing(build_trainer(trained_points, job)) as alone:
        alone.run_to(alone.steps)

    together = checkpoint_of(trained_points).facts["curve"]
    together = [point for point in together if "train_loss" in point]
    assert len(alone.curve) == len(together) == 100
    for one, two in zip(alone.curve, together, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_a_training_tells_what_it_made_and_learns(trained_points: Line) -> None:
    made = checkpoint_of(trained_points)

    losses = [point["train_loss"] for point in made.facts["curve"] if "train_loss" in point]
    validations = [point["step"] for point in made.facts["curve"] if "accuracy" in point]
    assert losses[-1] < 0.7 * losses[0]
    assert validations == [100, 200, 300]
    assert made.facts["samples"] == 300 * 16
    assert made.measured["resumed_at"] == 0
    assert made.usd == pytest.approx(made.seconds)  # at 3,600 dollars an hour


def test_leaving_early_stops_the_whole_tree(points: Line, tree: Tree, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")

    following = follow("train", line.job("checkpoint"))
    next(event for event in following if event["event"] == "checkpoint")
    assert len(tree.pids("millrace")) == 3
    following.close()  # type: ignore[attr-defined]  # a generator is an Iterator with more to it

    assert tree.is_gone()
    assert not list((line.root / "work" / "jobs").glob("*-train-*"))


def test_a_loss_that_is_not_a_number_ends_the_training_and_publishes_nothing(
    points: Line, tmp_path: Path
) -> None:
    line, job = with_network("Nan", points, tmp_path)

    with pytest.raises(TrainingError, match="the loss is nan") as caught:
        list(follow("train", job))

    assert caught.value.asked == "train to step 1 of 300"
    assert "after 3 roll-backs" in caught.value.found
    assert "learning_rate" in caught.value.fix
    assert not [path for path in line.storage.list(f"{NAME}/checkpoint") if "manifest" in path]


def test_an_error_in_a_users_network_comes_back_with_its_last_words(
    points: Line, tmp_path: Path
) -> None:
    _, job = with_network("Raising", points, tmp_path)

    with pytest.raises(ProcessFailedError, match="the flux capacitor is missing") as caught:
        list(follow("train", job))

    assert "exited with 1" in caught.value.found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.py:Net", r"missing\.py does not exist"),
        ("networks.py:Missing", r"no torch\.nn\.Module `Missing`.*Bigram, .*Hungry, Linear"),
        ("networks.py:F", r"no torch\.nn\.Module `F`"),
    ],
)
def test_a_network_that_is_not_there_is_refused_by_name(
    points: Line, name: str, words: str
) -> None:
    job = points.job(network={"name": name})

    with pytest.raises(SpecError, match=words):
        build_network(job.spec.network, DataFacts(3, (4,)), job.folder)


def test_a_key_that_a_users_network_does_not_take_is_refused_with_the_nearest(
    sentences: Line,
) -> None:
    job = sentences.job(network={"name": "networks.py:Bigram", "widht": 16})

    with pytest.raises(SpecError, match=r"unknown key `widht`\. Did you mean `width`"):
        build_network(job.spec.network, DataFacts(256, (32,)), job.folder)


def test_a_resumed_trainer_repeats_the_unbroken_one_dropout_included(
    points: Line, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job(
        network={"name": "mlp", "width": 8, "dropout": 0.5},
        train=train_section(line, steps=230, ranks=1),
    )
    checkpoints = Checkpoints(line.storage, NAME, "k")

    with closing(build_trainer(line, job)) as unbroken:
        unbroken.run_to(7)  # between two points of the curve, which has one every 2 steps
        checkpoints.save(unbroken.place(12.5), unbroken.network, unbroken.optimizer)
        unbroken.run_to(16)
    with closing(build_trainer(line, job)) as resumed:
        resumed.resume(checkpoints)
        assert (resumed.step, resumed.seconds_before) == (7, 12.5)
        resumed.run_to(16)

    assert resumed.curve == unbroken.curve
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


def test_validation_looks_at_the_same_samples_whatever_the_batch(points: Line) -> None:
    found = []
    for batch in (8, 32):  # of about 120 samples, 100 is a multiple of neither
        section = train_section(points, batch=batch, ranks=1, validate_samples=100)
        job = points.job(train=section)
        with closing(build_trainer(points, job)) as trainer:
            found.append(trainer.validate())

    assert found[0] == pytest.approx(found[1])


def test_a_place_is_refused_when_the_loss_is_not_a_number(points: Line) -> None:
    job = points.job(train=train_section(points, steps=900, ranks=1))

    with closing(build_trainer(points, job)) as trainer:
        for parameter in trainer.network.parameters():
            nn.init.constant_(parameter, float("nan"))
        with pytest.raises(TrainingError, match="train to step 1 of 900: the loss is nan"):
            trainer.run_to(9, after_step=trainer.place)  # the curve looks every 9 steps only


def validated(line: Line, count: int, world_size: int = 1, seed: int = 0) -> torch.Tensor:
    """The inputs that all ranks of a world look at, sorted."""
    job = line.job(train=train_section(line, ranks=1, validate_samples=count, seed=seed))
    shards = manifests.read(line.storage, job.inputs["shards"])
    data = TrainingData.load(line.storage, shards, job.spec.train.mix)
    asked = []
    for rank in range(world_size):
        world = World(rank, world_size, torch.device("cpu"))
        for columns in loop._selection(data.validation, job.spec.train, world):
            asked += [tuple(row) for row in columns["inputs"].tolist()]
    return torch.tensor(sorted(asked))


def test_validation_looks_at_a_seeded_selection_not_at_the_first_samples(points: Line) -> None:
    shards = manifests.current(points.storage, NAME, "shards")
    stored = next(TrainingData.load(points.storage, shards, {}).validation.batches(20))["inputs"]

    first = validated(points, 20)
    asked = []
    job = points.job(train=train_section(points, ranks=1, validate_samples=20))
    with closing(build_trainer(points, job)) as trainer:
        trainer.network.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
        trainer.validate()

    assert sorted(torch.cat(asked).tolist()) == first.tolist()
    assert len(first) == len(stored) == 20
    assert first.tolist() != sorted(stored.tolist())
    assert torch.equal(first, validated(points, 20))
    assert not torch.equal(first, validated(points, 20, seed=1))


@pytest.mark.parametrize("count", [50, 10**9])
def test_every_world_size_validates_on_the_same_samples(points: Line, count: int) -> None:
    shards = manifests.current(points.storage, NAME, "shards")
    split = len(TrainingData.load(points.storage, shards, {}).validation)

    alone = validated(points, count)

    assert len(alone) == min(count, split)
    for world_size in (2, 4):
        assert torch.equal(validated(points, count, world_size), alone)


@pytest.mark.parametrize(
    ("gpus", "ranks", "is_first", "said"),
    [(1, 2, True, True), (1, 2, False, False), (0, 2, True, False), (2, 2, True, False)],
)
def test_too_few_gpus_for_the_ranks_are_told_once(
    gpus: int,
    ranks: int,
    is_first: bool,
    said: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    device = choose_device(0, ranks, is_first=is_first)

    assert device.type == ("cuda" if gpus >= ranks else "cpu")
    assert ("Set `train.ranks` to 1" in capsys.readouterr().out) == said


@pytest.mark.parametrize("proc", ["/proc", "/no/such/folder"])
def test_a_run_worker_is_known_to_live_with_and_without_proc(
    proc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Imported here: it loads Dagster, which the other tests can do without.
    from resources import launcher  # noqa: PLC0415

    monkeypatch.setattr(launcher, "PROC", Path(proc))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()

    assert launcher._is_alive(os.getpid())
    assert not launcher._is_alive(gone.pid)
