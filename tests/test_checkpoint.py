from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from millrace import manifest as manifests
from millrace.errors import StorageError
from millrace.spec import TrainSpec
from millrace.storage import FsspecStorage
from millrace.train.checkpoint import Checkpoints, Place, load_weights, weights_to_bytes
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
