"""The task `maxcut`: graphs from a made source to a release that cuts them."""

import io
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from assets.checkpoint import loss_chart
from millrace import manifest as manifests
from millrace.data.columns import Columns
from millrace.data.fields import build_encoder
from millrace.data.samples import Samples
from millrace.data.splits import SPLITS
from millrace.data.values import LabelIndex, UnusableRecordError
from millrace.errors import SpecError
from millrace.graphs import local_cuts, to_pairs
from millrace.manifest import Manifest
from millrace.models.facts import DataFacts
from millrace.models.qaoa import Qaoa
from millrace.spec import MaxcutTask
from millrace.train.checkpoint import WEIGHTS, load_weights
from millrace.train.objective import build_objective, to_batch
from tests.pipelines_for_tests import NAME, ROOT, Line, build_graphs

TASK = MaxcutTask(kind="maxcut", vertices=5)
CYCLE = [[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    made = build_graphs(tmp_path_factory.mktemp("graphs"))
    for verb, noun in (("train", "checkpoint"), ("evaluate", "evaluation"), ("release", "release")):
        made.run(verb, made.job(noun))
    return made


def current(line: Line, noun: str) -> Manifest:
    return manifests.current(line.storage, NAME, noun)


def stored(line: Line, split: str) -> Columns:
    return next(Samples(line.storage, current(line, "shards"), split).batches(1000))


def test_the_loss_is_drawn_in_the_unit_of_its_task(line: Line) -> None:
    svg = loss_chart(current(line, "checkpoint").facts["curve"], line.spec.task)

    assert "share of the edges not cut" in svg
    assert "nats" not in svg


def test_a_sample_is_a_number_for_each_pair_and_the_largest_cut() -> None:
    encoder = build_encoder(TASK)
    values = [encoder.extract({"edges": edges}) for edges in (CYCLE, [[2, 1]], [[1, 2]])]

    columns = encoder.samples(values, LabelIndex())

    assert columns["inputs"].tolist()[0] == to_pairs(CYCLE, 5).tolist()
    assert columns["optimum"].tolist() == [4, 1, 1]
    assert values[1].content_id == values[2].content_id  # the same graph, written otherwise
    assert values[0].split_id != values[1].split_id


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no field `edges`"),
        ({"edges": []}, "a graph without edges has no cut"),
        ({"edges": "0-1"}, "is no list of edges"),
        ({"edges": [1, 2]}, "is no list of edges"),
        ({"edges": [[0, 5]]}, r"does not join two of the vertices 0 to n - 1, n = 5"),
        ({"edges": [[0, 1], [1, 0]]}, "is there twice"),
    ],
)
def test_a_record_that_holds_no_graph_is_rejected_with_a_reason(
    record: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnusableRecordError, match=reason):
        build_encoder(TASK).extract(record)


def test_the_objective_is_the_share_of_edges_that_is_expected_to_be_missed() -> None:
    encoder, objective = build_encoder(TASK), build_objective(TASK)
    values = [encoder.extract({"edges": edges}) for edges in (CYCLE, [[0, 1], [1, 2]])]
    batch = to_batch(encoder.samples(values, LabelIndex()), torch.device("cpu"))
    network = Qaoa(DataFacts(0, (10,)), depth=1)
    with torch.no_grad():
        network.gamma.zero_()

    scores = objective.scores(network, batch)

    assert scores.loss_B.tolist() == pytest.approx([0.5, 0.5])
    assert scores.metric_B.tolist() == pytest.approx([2.5 / 4, 1 / 2])
    assert scores.weight_B.tolist() == [1, 1]
    scores.loss_B.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it so
    assert network.gamma.grad is not None
    assert network.gamma.grad.item() < 0  # a larger angle cuts more


def test_what_is_packed_are_the_graphs_of_the_source_without_duplicates(line: Line) -> None:
    shards = current(line, "shards").facts

    counts = [shards["splits"][split]["num_records"] for split in SPLITS]

    assert sum(counts) == 80
    assert shards["classes"] == []
    assert all((stored(line, split)["inputs"].sum(1) == 18).all() for split in SPLITS)


def test_training_raises_the_ratio_and_the_gate_asks_for_more_than_chance(line: Line) -> None:
    curve = current(line, "checkpoint").facts["curve"]
    trained = [point["train_loss"] for point in curve if "train_loss" in point]
    facts = current(line, "evaluation").facts

    assert trained[-1] < trained[0] < 0.5
    assert facts["metric"] == "approximation_ratio"
    assert facts["baselines"]["random"]["gain"]["low"] > 0
    assert facts["baselines"]["random"]["value"] < facts["estimate"]["value"] < 1


def test_the_metric_and_its_baselines_are_means_over_the_test_graphs(line: Line) -> None:
    test, made = stored(line, "test"), current(line, "evaluation")
    network = Qaoa(DataFacts(0, (66,)), depth=1)
    load_weights(network, current(line, "checkpoint").file(WEIGHTS).read(line.storage))

    with torch.inference_mode():
        expected = network(torch.tensor(test["inputs"])).numpy() / test["optimum"]

    found = np.load(io.BytesIO(made.file("records.npy").read(line.storage)))
    assert found[:, 1] == pytest.approx(expected)
    assert made.facts["estimate"]["value"] == pytest.approx(expected.mean())
    local = local_cuts(test["inputs"]) / test["optimum"]
    assert made.facts["baselines"]["local-search"]["value"] == pytest.approx(local.mean())
    assert made.facts["baselines"]["random"]["value"] == pytest.approx((9 / test["optimum"]).mean())


def test_a_release_answers_with_a_cut_that_is_one(line: Line) -> None:
    command = [
        sys.executable, "-m", "millrace", "predict", NAME, "--store", str(line.root / "store")
    ]  # fmt: skip
    asked = [json.dumps({"edges": CYCLE}), json.dumps({"edges": [[0, 99]]})]

    found = subprocess.run(
        command, input="\n".join(asked), capture_output=True, text=True, cwd=ROOT, check=False
    )

    answer, refused = (json.loads(told) for told in found.stdout.splitlines())
    assert answer["cut"] == sum(answer["sides"][u] != answer["sides"][v] for u, v in CYCLE) == 4
    assert len(answer["sides"]) == 5
    assert 2.5 < answer["expected_cut"] < 4
    assert "[0, 99] does not join two of the vertices" in refused["error"]
    assert found.returncode == 1


def test_a_spec_of_more_vertices_than_can_be_simulated_is_refused(line: Line) -> None:
    for vertices in (1, 21):
        with pytest.raises(SpecError, match=f"vertices {vertices}: from 2 to 20"):
            line.spec.with_parts({"task": {"kind": "maxcut", "vertices": vertices}})
    with pytest.raises(SpecError, match="network qaoa needs task maxcut, not classification"):
        line.spec.with_parts({"task": {"kind": "classification", "shape": [66]}})
