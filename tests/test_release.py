import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors

from millrace import manifest as manifests
from millrace.errors import GateError, NotFoundError
from millrace.manifest import Manifest
from millrace.release import release
from tests.pipelines_for_tests import NAME, Line


def release_of(line: Line) -> Manifest:
    return manifests.current(line.storage, NAME, "release")


def files_of(line: Line) -> dict[str, bytes]:
    paths = line.storage.list(f"{NAME}/release")
    return {path: line.storage.read(path) for path in paths}


def test_a_release_holds_all_that_its_user_needs(released_points: Line) -> None:
    storage, made = released_points.storage, release_of(released_points)
    checkpoint = manifests.current(storage, NAME, "checkpoint")
    evaluation = manifests.current(storage, NAME, "evaluation")

    contents = {file.path.rsplit("/", 1)[1]: file.read(storage) for file in made.files}

    assert set(contents) == {
        "weights.safetensors", "spec.json", "metrics.json", "records.npy", "MODEL_CARD.md",
    }  # fmt: skip
    assert contents["weights.safetensors"] == checkpoint.file("weights.safetensors").read(storage)
    assert json.loads(contents["metrics.json"]) == evaluation.facts
    spec = json.loads(contents["spec.json"])
    assert spec["network"] == {"name": "mlp", "width": 8, "depth": 1, "dropout": 0.0}
    assert spec["classes"] == ["0", "1", "2"]
    assert spec["made_from"] == made.inputs
    assert spec["made_from"]["checkpoint"] == checkpoint.digest
    assert all(
        t.dtype is torch.float32 for t in load_tensors(contents["weights.safetensors"]).values()
    )


def test_the_model_card_tells_numbers_and_limits(released_points: Line) -> None:
    made = release_of(released_points)
    estimate = made.facts["estimate"]

    card = made.file("MODEL_CARD.md").read(released_points.storage).decode()

    assert card.startswith(f"# {NAME}\n")
    assert f"**{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]**" in card
    assert "| majority |" in card
    assert "300 steps of 16 samples" in card
    assert "## Limits" in card
    assert f"Gate: {made.facts['verdict']}" in card


def test_a_users_network_file_is_released_with_its_weights(released_sentences: Line) -> None:
    storage, made = released_sentences.storage, release_of(released_sentences)

    source = (released_sentences.root / "source" / "networks.py").read_bytes()

    assert made.file("networks.py").read(storage) == source


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        ({"bar": 0.999}, "fail: accuracy >= 0.999"),
        ({"beats": ["logistic-regression"]}, "cannot tell: beats logistic-regression"),
    ],
)
def test_a_closed_gate_keeps_the_last_release(
    gate: dict[str, Any], verdict: str, released_points: Line, tmp_path: Path
) -> None:
    line = released_points.copy(tmp_path / "line")
    before = files_of(line)

    with pytest.raises(GateError, match=verdict) as caught:
        release(line.job("another", gate=gate))

    assert "the last release stays" in caught.value.fix
    assert files_of(line) == before


def test_an_evaluation_of_another_checkpoint_opens_nothing(
    released_points: Line, tmp_path: Path
) -> None:
    line = released_points.copy(tmp_path / "line")
    checkpoint = manifests.current(line.storage, NAME, "checkpoint")
    line.publish(
        Manifest(NAME, "checkpoint", "newer", files=checkpoint.files, facts={"steps": 301})
    )
    before = files_of(line)

    with pytest.raises(GateError, match="the evaluation is of checkpoint") as caught:
        release(line.job("another"))

    assert caught.value.fix == f"Materialize {NAME}/evaluation first"
    assert files_of(line) == before


def test_a_release_made_again_changes_no_byte(released_points: Line, tmp_path: Path) -> None:
    line = released_points.copy(tmp_path / "line")
    before = files_of(line)

    again = line.publish(release(line.job("release")))

    assert again.digest == release_of(released_points).digest
    assert files_of(line) == before


def test_nothing_is_released_before_the_first_gate_opens(
    trained_points: Line, tmp_path: Path
) -> None:
    line = trained_points.copy(tmp_path / "line")

    with pytest.raises(NotFoundError, match="find the current release of p"):
        release_of(line)
