"""A checkpoint beside the release before it: which release that is, and what comes of it."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from millrace import manifest as manifests
from millrace.errors import GateError
from millrace.evaluation.evaluate import evaluate
from millrace.evaluation.gate import Outcome, decide
from millrace.evaluation.predecessor import find_predecessor
from millrace.gates import GateSpec
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.release import release
from millrace.storage import StoredFile
from millrace.train.checkpoint import WEIGHTS, load_weights, weights_to_bytes
from tests.pipelines_for_tests import NAME, Line

WIDE = {"tolerance": 0.05}
"""Of 124 test records a narrower one is undecided, be two networks ever so alike."""


def current(line: Line, noun: str) -> Manifest:
    return manifests.current(line.storage, NAME, noun)


def publish_changed(line: Line, noise: float, *, shards: str = "") -> Manifest:
    """Make a checkpoint current whose weights are those of the current one, with noise added."""
    checkpoint = current(line, "checkpoint")
    facts = DataFacts.from_manifest(current(line, "shards").facts)
    network = build_network(line.spec.network, facts, str(line.root / "source"))
    load_weights(network, checkpoint.file(WEIGHTS).read(line.storage))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    key = f"noise-{noise}"
    path = f"{NAME}/checkpoint/{key}/{WEIGHTS}"
    file = StoredFile.written(line.storage, path, weights_to_bytes(network))
    inputs = {**checkpoint.inputs} | ({"shards": shards} if shards else {})
    return line.publish(replace(checkpoint, key=key, inputs=inputs, files=(file,)))


def evaluated(line: Line, key: str = "evaluation-2", **sections: Any) -> Manifest:
    return line.publish(evaluate(line.job(key, **sections)))


@pytest.fixture
def line(released_points: Line, tmp_path: Path) -> Line:
    return released_points.copy(tmp_path / "line")


def test_the_first_release_says_that_there_was_none_before(released_points: Line) -> None:
    made = current(released_points, "release")
    card = made.file("MODEL_CARD.md").read(released_points.storage).decode()

    assert current(released_points, "evaluation").facts["release"] == {"standing": "none"}
    told = "no worse than the release: no baseline (no release before this one)"
    assert told in made.facts["verdict"]
    assert told in card


def test_a_checkpoint_that_is_released_stands_beside_what_it_was_released_beside(
    line: Line,
) -> None:
    storage, shards = line.storage, current(line, "shards")
    first, first_release = current(line, "checkpoint"), current(line, "release")
    assert find_predecessor(storage, shards, first) is None

    second = publish_changed(line, 0.001)
    assert find_predecessor(storage, shards, second) == first_release
    evaluated(line)
    second_release = line.publish(release(line.job("release-2", gate=WIDE)))

    assert find_predecessor(storage, shards, second) == first_release
    assert find_predecessor(storage, shards, first) == second_release
    other_shards = Manifest(NAME, "shards", "other", facts={"num_duplicates": 1})
    assert find_predecessor(storage, other_shards, second) == second_release


def test_released_weights_are_scored_on_the_very_same_records(line: Line) -> None:
    before = current(line, "evaluation")
    other = publish_changed(line, 0.3)

    facts = evaluated(line).facts

    told = facts["release"]
    assert other.digest != current(line, "release").inputs["checkpoint"]
    assert (told["standing"], told["digest"]) == ("compared", current(line, "release").digest)
    assert {name: told[name] for name in ("value", "low", "high")} == before.facts["estimate"]
    gain = facts["estimate"]["value"] - told["value"]
    assert told["gain"]["value"] == pytest.approx(gain)
    unpaired = facts["estimate"]["high"] - facts["estimate"]["low"]
    assert told["gain"]["high"] - told["gain"]["low"] < 1.3 * unpaired


def test_what_never_differs_from_the_release_is_released_where_records_suffice(line: Line) -> None:
    publish_changed(line, 1e-6)

    made = evaluated(line)
    with pytest.raises(GateError, match=r"no worse than the release .* cannot tell"):
        release(line.job("release-2"))
    released = line.publish(release(line.job("release-2", gate=WIDE)))

    assert made.facts["release"]["gain"]["value"] == 0
    assert "no worse than the release" in released.facts["verdict"]
    assert "| the release before |" in released.file("MODEL_CARD.md").read(line.storage).decode()


def test_a_worse_checkpoint_is_refused_and_the_release_stays(line: Line) -> None:
    before = current(line, "release")
    publish_changed(line, 0.4)
    made = evaluated(line)

    verdict = decide(line.spec.gate, made.facts)
    with pytest.raises(GateError, match=r"no worse than the release .* fail") as caught:
        release(line.job("release-2"))

    assert [rule.outcome for rule in verdict.rules] == [Outcome.PASS, Outcome.FAIL]
    assert verdict.rules[0].asked.startswith("beats majority")
    assert "the last release stays" in caught.value.fix
    assert current(line, "release") == before


def test_a_loss_within_the_tolerance_is_accepted(line: Line) -> None:
    publish_changed(line, 0.4)
    made = evaluated(line)

    assert decide(GateSpec(tolerance=0.1), made.facts).outcome is Outcome.CANNOT_TELL
    assert decide(GateSpec(tolerance=0.5), made.facts).outcome is Outcome.PASS


def test_the_same_weights_pass_on_other_shards(line: Line) -> None:
    """The release in place has these weights: to refuse them would change nothing."""
    job = line.job("evaluation-2")
    beside = {"release": current(line, "release").path}
    made = evaluate(Job.model_validate(job.model_dump() | {"inputs": job.inputs | beside}))

    assert made.facts["release"]["standing"] == "same"
    assert "no worse than the release: pass (same weights)" in str(
        decide(line.spec.gate, made.facts)
    )


def publish_other_shards(line: Line) -> None:
    """Make shards current that hold the same samples, and a checkpoint of other weights of them."""
    made = current(line, "shards")
    changed = replace(made, key="other", facts={**made.facts, "source_bytes": 1})
    line.publish(changed)
    publish_changed(line, 0.3, shards=changed.digest)


def test_on_other_shards_the_released_network_is_rebuilt_and_scored(line: Line) -> None:
    released = current(line, "evaluation").facts["estimate"]
    publish_other_shards(line)

    told = evaluated(line).facts["release"]

    assert told["standing"] == "compared"
    assert {name: told[name] for name in released} == pytest.approx(released)


def test_a_release_without_kept_scores_is_scored_on_the_same_shards_too(line: Line) -> None:
    released = current(line, "evaluation").facts["estimate"]
    made = current(line, "release")
    kept = tuple(file for file in made.files if not file.path.endswith("records.npy"))
    line.publish(replace(made, key="other", files=kept))
    publish_changed(line, 0.3)

    told = evaluated(line).facts["release"]

    assert told["standing"] == "compared"
    assert {name: told[name] for name in released} == pytest.approx(released)


def republish_release(line: Line, **changed: Any) -> None:
    """Make a release current whose spec.json differs."""
    made = current(line, "release")
    spec = json.loads(made.file("spec.json").read(line.storage)) | changed
    path = f"{NAME}/release/other/spec.json"
    file = StoredFile.written(line.storage, path, json.dumps(spec).encode())
    kept = (file for file in made.files if not file.path.endswith("spec.json"))
    line.publish(replace(made, key="other", files=(*kept, file)))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"classes": ["0", "1", "9"]}, "its classes differ: 2, 9"),
        (
            {"task": {"kind": "classification", "label": "species", "shape": [4]}},
            "its task differs in label",
        ),
        ({"network": {"name": "quantum_leap", "qubits": 3}}, "its spec is of another version"),
        (
            {"network": {"name": "mlp", "width": 9, "depth": 1, "dropout": 0.0}},
            "its network cannot be rebuilt",
        ),
    ],
)
def test_a_release_that_cannot_be_compared_is_no_baseline_and_the_reason_is_told(
    line: Line, changed: dict[str, Any], reason: str
) -> None:
    republish_release(line, **changed)
    publish_other_shards(line)

    facts = evaluated(line).facts

    assert facts["release"]["standing"] == "not comparable"
    assert reason in facts["release"]["reason"]
    assert "no baseline (not comparable: its " in str(decide(line.spec.gate, facts))


def edited(released: Line, folder: Path) -> Line:
    """A copy whose network file was edited after the release, and trained again."""
    line = released.copy(folder)
    path = line.root / "source" / "networks.py"
    path.write_text(path.read_text() + "# edited\n")
    checkpoint = current(line, "checkpoint")
    code = hashlib.sha256(path.read_bytes()).hexdigest()
    line.publish(replace(checkpoint, key="edited", facts={**checkpoint.facts, "code": code}))
    return line


def test_an_edited_network_is_compared_by_what_the_release_scored_on_the_same_shards(
    released_sentences: Line, tmp_path: Path
) -> None:
    line = edited(released_sentences, tmp_path / "line")
    publish_changed(line, 1e-6)

    told = evaluated(line).facts["release"]

    assert told["standing"] == "compared"
    assert abs(told["gain"]["value"]) < 1e-4


def test_on_other_shards_a_network_file_that_was_edited_is_not_run(
    released_sentences: Line, tmp_path: Path
) -> None:
    line = edited(released_sentences, tmp_path / "line")
    publish_other_shards(line)

    facts = evaluated(line).facts

    assert facts["release"]["standing"] == "not comparable"
    assert (
        facts["release"]["reason"] == "its network's file networks.py was changed or removed since"
    )


def test_where_the_release_before_was_deleted_a_released_checkpoint_stands_beside_itself(
    line: Line,
) -> None:
    first = current(line, "release")
    second = publish_changed(line, 0.001)
    evaluated(line)
    second_release = line.publish(release(line.job("release-2", gate=WIDE)))

    line.storage.delete(first.path)

    assert find_predecessor(line.storage, current(line, "shards"), second) == second_release
