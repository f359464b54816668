import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from millrace import manifest as manifests
from millrace.baselines import compression
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.data.samples import Samples
from millrace.errors import SpecError, TrainingError
from millrace.evaluation.evaluate import evaluate
from millrace.evaluation.intervals import ratio
from millrace.evaluation.worst import NUM_WORST, excerpt, printable
from millrace.manifest import Manifest
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.storage import StoredFile
from millrace.train.checkpoint import WEIGHTS, load_weights, weights_to_bytes
from tests.pipelines_for_tests import NAME, Line


def evaluation_of(line: Line) -> Manifest:
    return manifests.current(line.storage, NAME, "evaluation")


def load_network(line: Line) -> nn.Module:
    shards = manifests.current(line.storage, NAME, "shards")
    checkpoint = manifests.current(line.storage, NAME, "checkpoint")
    facts = DataFacts.from_manifest(shards.facts)
    network = build_network(line.spec.network, facts, str(line.root / "source"))
    load_weights(network, checkpoint.file(WEIGHTS).read(line.storage))
    return network.eval()


def publish_weights(line: Line, network: nn.Module) -> None:
    """Make these the weights of the current checkpoint."""
    path = f"{NAME}/checkpoint/other/{WEIGHTS}"
    file = StoredFile.written(line.storage, path, weights_to_bytes(network))
    line.publish(Manifest(NAME, "checkpoint", "other", files=(file,), facts={"code": ""}))


def test_accuracy_is_the_share_of_test_records_that_the_weights_get_right(
    released_points: Line,
) -> None:
    line = released_points
    shards = manifests.current(line.storage, NAME, "shards")
    batches = list(Samples(line.storage, shards, "test").batches(10**6))
    inputs = np.concatenate([batch["inputs"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])

    facts = evaluation_of(line).facts

    with torch.inference_mode():
        right = load_network(line)(torch.tensor(inputs)).argmax(1).numpy() == labels
    expected = ratio(right.astype(np.float64), np.ones(len(labels)))
    assert facts["metric"] == "accuracy"
    assert facts["estimate"] == pytest.approx(expected.to_dict())
    assert facts["num_records"] == facts["num_samples"] == len(labels)
    assert 0.6 < facts["estimate"]["low"] < facts["estimate"]["value"] < 1


def test_gains_are_paired_with_the_baselines_of_the_same_records(released_points: Line) -> None:
    facts = evaluation_of(released_points).facts

    for name in ("majority", "logistic-regression"):
        found = facts["baselines"][name]
        difference = facts["estimate"]["value"] - found["value"]
        assert found["gain"]["value"] == pytest.approx(difference)
    logistic = facts["baselines"]["logistic-regression"]
    paired = logistic["gain"]["high"] - logistic["gain"]["low"]
    assert paired < logistic["high"] - logistic["low"]  # both err on much the same records
    assert facts["baselines"]["majority"]["value"] < 0.5


def test_bits_are_summed_up_by_record_and_divided_by_all_bytes(released_sentences: Line) -> None:
    line = released_sentences
    made, facts = evaluation_of(line), evaluation_of(line).facts
    loss, bits, weight = np.load(io.BytesIO(made.file("records.npy").read(line.storage))).T

    shards = manifests.current(line.storage, NAME, "shards")
    assert len(weight) == facts["num_records"] == shards.facts["splits"]["test"]["num_records"]
    assert facts["num_samples"] > facts["num_records"]
    assert facts["metric"] == "bits_per_byte"
    assert facts["estimate"]["value"] == pytest.approx(bits.sum() / weight.sum())
    np.testing.assert_allclose(bits, loss / np.log(2), rtol=1e-6)
    assert 1 < facts["estimate"]["value"] < 3


def test_text_baselines_read_the_very_texts_that_the_model_read(released_sentences: Line) -> None:
    line = released_sentences
    made = evaluation_of(line)
    weight = np.load(io.BytesIO(made.file("records.npy").read(line.storage)))[:, 2]
    told = {"zstd-19", "xz-9", "zstd-19-solid", "xz-9-solid", "6-gram"}
    lines = set((line.root / "source" / "sentences.txt").read_bytes().split(b"\n"))

    found = made.facts["baselines"]

    assert set(found) == told
    lengths = {len(text) for text in lines}
    assert set(weight.astype(int)) <= lengths  # whole records, put together from their blocks
    assert found["6-gram"]["value"] < found["zstd-19-solid"]["value"] < found["zstd-19"]["value"]
    gain = found["zstd-19"]["value"] - made.facts["estimate"]["value"]  # lower is better
    assert found["zstd-19"]["gain"]["value"] == pytest.approx(gain)
    assert compression.NGRAM_CONTEXT == 5


def test_the_metrics_are_published_beside_the_records(released_points: Line) -> None:
    made = evaluation_of(released_points)

    assert json.loads(made.file("metrics.json").read(released_points.storage)) == made.facts
    checkpoint = manifests.current(released_points.storage, NAME, "checkpoint")
    assert made.inputs["checkpoint"] == checkpoint.digest


def test_the_worst_samples_are_told_with_their_places_and_answers(released_points: Line) -> None:
    facts = evaluation_of(released_points).facts

    worst = facts["worst"]

    losses = [sample["loss"] for sample in worst]
    assert len(worst) == NUM_WORST
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > facts["loss"]["value"]
    lines = (released_points.root / "source" / "points.jsonl").read_text().splitlines()
    for sample in worst:
        assert sample["file"] == "points.jsonl"
        assert json.loads(lines[sample["record"] - 1])["label"] == sample["label"]
        assert sample["answer"] in {"0", "1", "2"} - {sample["label"]}
        assert sample["probability"] > 1 / 3
        assert sample["excerpt"] == ""  # numbers say nothing to a reader


def test_the_worst_texts_are_shown_as_they_begin(released_sentences: Line) -> None:
    line = released_sentences
    texts = (line.root / "source" / "sentences.txt").read_text().splitlines()

    worst = evaluation_of(line).facts["worst"]

    assert all(sample["excerpt"] in texts[sample["record"] - 1] for sample in worst)
    assert all(0 < len(sample["excerpt"]) <= 32 for sample in worst)
    assert "answer" not in worst[0]


def test_what_is_shown_of_a_sample_cannot_move_the_cursor_or_hide_anything() -> None:
    told = printable("a\nb\x1b[2Jc\u202ed\x00\ud800<b>")

    assert told == "a·b·[2Jc·d··<b>"


def test_token_ids_are_shown_as_numbers_unless_they_stand_for_bytes() -> None:
    columns = {"tokens": np.array([[5, 300, 7, 0]], np.uint16), "length": np.array([3])}
    words = [b"a"] * 5 + [b"x", b"y", b"z"] + [b"?"] * 292 + [b"\xff"]

    assert excerpt(columns, 0, []) == "5 300 7"
    assert excerpt(columns, 0, words) == "x\N{REPLACEMENT CHARACTER}z"
    assert excerpt({"inputs": np.zeros((1, 4))}, 0, []) == ""


def test_metrics_of_classes_are_told_beside_the_gates(released_points: Line) -> None:
    facts = evaluation_of(released_points).facts

    assert set(facts["metrics"]) == {"macro_f1", "mcc", "calibration_error", "auroc"}
    assert 0.5 < facts["metrics"]["mcc"] < facts["metrics"]["macro_f1"] < 1
    assert facts["metrics"]["auroc"] > facts["estimate"]["value"]
    assert sum(facts["reliability"]["count"]) == facts["num_samples"]
    assert (facts["drawn"], facts["num_files"]) == ("records", 1)


def test_a_language_models_bits_have_a_perplexity(released_sentences: Line) -> None:
    facts = evaluation_of(released_sentences).facts

    perplexity = facts["metrics"]["perplexity_per_byte"]
    assert perplexity == pytest.approx(2 ** facts["estimate"]["value"])


def test_records_are_judged_in_the_slices_that_the_gate_names(
    released_points: Line, released_sentences: Line
) -> None:
    of_points = {"slices": ["class"], "slice_bars": {"folder": 0.1}}
    by_class = evaluate(released_points.job("sliced", gate=of_points)).facts["slices"]
    by_length = evaluate(released_sentences.job("sliced", gate={"slices": ["length"]})).facts

    counts = evaluation_of(released_points).facts["confusion"]
    assert list(by_class) == ["class", "folder"]
    assert [part["name"] for part in by_class["class"]] == ["0", "1", "2"]
    assert [part["value"] for part in by_class["class"]] == pytest.approx(
        [row[number] / sum(row) for number, row in enumerate(counts)]
    )
    assert [part["name"] for part in by_class["folder"]] == ["."]
    assert (
        sum(part["num_records"] for part in by_length["slices"]["length"])
        == (by_length["num_records"])
    )
    assert all(part["name"].endswith(" bytes") for part in by_length["slices"]["length"])


def test_records_of_many_source_files_are_drawn_by_file(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    whole = line.root / "source" / "points.jsonl"
    lines = whole.read_text().splitlines(keepends=True)
    whole.unlink()
    for number in range(40):
        part = "".join(lines[15 * number : 15 * number + 15])
        (line.root / "source" / f"{number:02}.jsonl").write_text(part)
    line.publish(ingest(line.job()))
    shards = line.publish(pack(line.job("shards-2")))
    torch.manual_seed(0)
    network = build_network(line.spec.network, DataFacts.from_manifest(shards.facts), "")
    publish_weights(line, network)

    facts = evaluate(line.job("evaluation")).facts

    assert facts["drawn"] == "source files"
    assert 20 <= facts["num_drawn"] == facts["num_files"] <= 40 < facts["num_records"]
    assert all(sample["file"].endswith(".jsonl") for sample in facts["worst"])
    for sample in facts["worst"]:
        stored = (line.root / "source" / sample["file"]).read_text().splitlines()
        assert json.loads(stored[sample["record"] - 1])["label"] == sample["label"]


def test_a_network_that_answers_nan_is_refused(released_points: Line, tmp_path: Path) -> None:
    line = released_points.copy(tmp_path / "line")
    network = load_network(line)
    for parameter in network.parameters():
        nn.init.constant_(parameter, float("nan"))
    publish_weights(line, network)

    with pytest.raises(TrainingError, match="NaN or infinite scores"):
        evaluate(line.job("evaluation-of-nan"))


def test_a_network_file_edited_after_the_training_is_refused(
    released_sentences: Line, tmp_path: Path
) -> None:
    line = released_sentences.copy(tmp_path / "line")
    trained = manifests.current(line.storage, NAME, "checkpoint").facts["code"]
    path = line.root / "source" / "networks.py"
    assert trained == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(path.read_text() + "# edited\n")

    with pytest.raises(SpecError, match="is not the one that the checkpoint was trained") as caught:
        evaluate(line.job("evaluation-of-other-code"))

    assert trained[:12] in caught.value.found
    assert "put the file back" in caught.value.fix
