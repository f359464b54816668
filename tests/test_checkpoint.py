import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from millrace import manifest as manifests
from millrace.errors import StorageError
from millrace.spec import TrainSpec
from millrace.storage import FsspecStorage
from millrace.telemetry import parse
from millrace.train.checkpoint import (
    Checkpoints,
    Place,
    load_weights,
    superfluous,
    weights_to_bytes,
)
from millrace.train.optim import build_optimizer

SPEC = TrainSpec(steps=10, batch=2)


def build_training(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    return network, build_optimizer(network, SPEC)


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    network(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save_steps(checkpoints: Checkpoints, count: int) -> dict[int, bytes]:
    """Train, saving after each step; the weights by step."""
    network, optimizer = build_training(0)
    weights = {}
    for number in range(1, count + 1):
        step(network, optimizer)
        place = Place(number, [{"step": number, "train_loss": 1 / number}], [[0.1, 2.0]])
        checkpoints.save(place, network, optimizer)
        weights[number] = weights_to_bytes(network)
    return weights


def test_a_checkpoint_brings_back_weights_optimizer_and_place(storage: FsspecStorage) -> None:
    checkpoints = Checkpoints(storage, "p", "key")
    weights = save_steps(checkpoints, 2)
    unbroken = build_training(0)
    for _ in range(3):
        step(*unbroken)

    network, optimizer = build_training(1)
    place = checkpoints.resume(network, optimizer)

    assert place == Place(2, [{"step": 2, "train_loss": 0.5}], [[0.1, 2.0]])
    assert weights_to_bytes(network) == weights[2]
    step(network, optimizer)  # differs without the moments and the optimizer's count of steps
    assert weights_to_bytes(network) == weights_to_bytes(unbroken[0])


def test_without_a_checkpoint_training_begins_at_the_beginning(tmp_path: Path) -> None:
    network, optimizer = build_training(0)
    before = weights_to_bytes(network)

    place = Checkpoints(FsspecStorage(str(tmp_path)), "p", "key").resume(network, optimizer)

    assert place == Place()
    assert weights_to_bytes(network) == before


def test_only_the_newest_two_are_kept_and_clearing_leaves_nothing(storage: FsspecStorage) -> None:
    checkpoints = Checkpoints(storage, "p", "key")

    save_steps(checkpoints, 4)
    kept = {path.split("/")[-2] for path in storage.list("p")}
    checkpoints.clear()

    assert kept == {"step-00000003", "step-00000004"}
    assert not storage.list("p")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["part-00000.safetensors", "manifest.json"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    name: str, damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(FsspecStorage(str(tmp_path)), "p", "key")
    weights = save_steps(checkpoints, 3)
    damage(tmp_path / "p/checkpoint/key/step-00000003" / name)

    network, optimizer = build_training(1)
    place = checkpoints.resume(network, optimizer)

    assert place.step == 2
    assert weights_to_bytes(network) == weights[2]
    was_listed = (name, damage) != ("manifest.json", Path.unlink)
    assert ("checkpoint skipped" in capsys.readouterr().out) == was_listed


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(FsspecStorage(str(tmp_path)), "p", "key")
    save_steps(checkpoints, 3)
    flip(tmp_path / "p/checkpoint/key/step-00000003/part-00000.safetensors")

    save_steps(checkpoints, 3)

    assert checkpoints.resume(*build_training(1)).step == 3


def test_weights_go_into_a_network_of_the_same_shape_only() -> None:
    network, _ = build_training(0)

    with pytest.raises(RuntimeError, match="size mismatch"):
        load_weights(
            nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)), weights_to_bytes(network)
        )


class Failing(FsspecStorage):
    """A store that lists, and fails for a while when asked for content."""

    def read(self, path: str, *_: object, **__: object) -> bytes:
        raise StorageError(f"read {path}", "503 Slow Down", "Try again")


def test_a_store_that_does_not_answer_is_no_reason_to_begin_again(tmp_path: Path) -> None:
    save_steps(Checkpoints(FsspecStorage(str(tmp_path)), "p", "key"), 2)

    with pytest.raises(StorageError, match="503 Slow Down"):
        Checkpoints(Failing(str(tmp_path)), "p", "key").resume(*build_training(1))


def test_seconds_are_kept_and_change_no_digest(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    checkpoints, digests = Checkpoints(storage, "p", "key"), []

    for seconds in (1.5, 99.0):
        checkpoints.save(Place(7, seconds=seconds), *build_training(0))
        assert checkpoints.resume(*build_training(1)).seconds == seconds
        path = "p/checkpoint/key/step-00000007/manifest.json"
        digests.append(manifests.read(storage, path).digest)

    assert digests[0] == digests[1]


class Gated(FsspecStorage):
    """A store whose writes wait at a gate, or fail."""

    gate = threading.Event()
    is_failing = False

    def write(self, path: str, data: bytes, **named: Any) -> None:
        self.gate.wait()
        if self.is_failing:
            raise StorageError(f"write {path}", "503 Slow Down", "Try again")
        super().write(path, data, **named)


def test_the_training_goes_on_while_its_state_is_written(tmp_path: Path) -> None:
    storage = Gated(str(tmp_path))
    checkpoints, (network, optimizer) = Checkpoints(storage, "p", "key"), build_training(0)
    step(network, optimizer)
    copied = weights_to_bytes(network)

    checkpoints.begin(Place(1), network, optimizer)
    step(network, optimizer)
    was_busy, seen = checkpoints.is_busy, checkpoints.steps()
    storage.gate.set()
    checkpoints.finish()

    assert was_busy
    assert not seen
    other, fresh = build_training(1)
    assert checkpoints.resume(other, fresh) == Place(1)
    assert weights_to_bytes(other) == copied != weights_to_bytes(network)


def test_a_write_that_fails_is_told_and_the_next_one_is_another_attempt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Gated(str(tmp_path))
    storage.gate.set()
    checkpoints, training = Checkpoints(storage, "p", "key"), build_training(0)

    storage.is_failing = True
    checkpoints.save(Place(1), *training)
    storage.is_failing = False
    checkpoints.save(Place(2), *training)

    told = [event for line in capsys.readouterr().out.splitlines() if (event := parse(line))]
    assert [event["event"] for event in told] == ["checkpoint_failed", "checkpoint"]
    assert "503 Slow Down" in told[0]["error"]
    assert checkpoints.steps() == [2]


def test_an_error_that_is_not_the_stores_ends_the_training(tmp_path: Path) -> None:
    checkpoints = Checkpoints(FsspecStorage(str(tmp_path)), "p", "key")

    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(Place(1, guard={"trend": object()}), *build_training(0))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({10: 1.0, 20: 0.5, 30: 0.8, 40: 0.9}, [10]),  # 20 is the best
        ({10: 1.0, 20: 1.0, 30: 0.8, 40: 0.9}, [10, 20]),
        ({10: 1.0, 20: 1.0, 30: math.inf, 40: math.inf}, [10]),  # of equals the newest
        ({10: 1.0, 20: 2.0}, []),
        ({}, []),
    ],
)
def test_the_newest_and_the_best_are_kept(losses: dict[int, float], expected: list[int]) -> None:
    assert superfluous(losses) == expected


def test_the_best_outlives_newer_ones_also_of_a_later_attempt(tmp_path: Path) -> None:
    storage, training = FsspecStorage(str(tmp_path)), build_training(0)

    for number, loss in enumerate((3.0, 1.0, 2.0, 2.5, 2.6), 1):
        curve = [{"step": number, "validation_loss": loss}]
        Checkpoints(storage, "p", "key").save(Place(number, curve), *training)

    assert Checkpoints(storage, "p", "key").steps() == [2, 4, 5]


def test_clearing_also_takes_what_killed_attempts_left(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    checkpoints = Checkpoints(storage, "p", "key")
    storage.write("p/checkpoint/key/step-00000009/part-00000.safetensors", b"half")
    storage.write("p/checkpoint/key/strategy.json", b"{}")
    save_steps(checkpoints, 1)

    checkpoints.clear()

    assert list(storage.list("p")) == ["p/checkpoint/key/strategy.json"]


def test_only_checkpoints_before_a_step_are_gone_back_to(tmp_path: Path) -> None:
    checkpoints = Checkpoints(FsspecStorage(str(tmp_path)), "p", "key")
    weights = save_steps(checkpoints, 3)
    network, optimizer = build_training(1)

    place = checkpoints.resume(network, optimizer, before=3)
    checkpoints.forget(after=2)

    assert place.step == 2
    assert weights_to_bytes(network) == weights[2]
    assert checkpoints.steps() == [2]


def test_tied_weights_are_written_under_each_of_their_names() -> None:
    tied = []
    for _ in range(2):
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        second.weight = first.weight
        tied.append(nn.Sequential(first, second))

    load_weights(tied[1], weights_to_bytes(tied[0]))

    assert all(map(torch.equal, tied[0].parameters(), tied[1].parameters()))


def test_a_checkpoint_of_another_network_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(FsspecStorage(str(tmp_path)), "p", "key")
    save_steps(checkpoints, 1)
    network = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))

    place = checkpoints.resume(network, build_optimizer(network, SPEC))

    assert place == Place()
    assert "another network" in capsys.readouterr().out
