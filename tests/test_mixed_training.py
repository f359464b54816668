"""A training on several sources by weight: through its real processes, killed, and looked into."""

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch

from assets.pipeline import build_chain
from assets.step import PipelineFolder
from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.errors import SpecError
from millrace.report import collect
from millrace.spec import PipelineSpec
from millrace.train.loop import Trainer, TrainingData
from millrace.train.world import World
from resources.compute import Compute
from resources.storage import Storage
from tests.pipelines_for_tests import NAME, Line, Tree, events

MIX = {"near": 3.0, "far": 1.0}
FAR = 100.0


@pytest.fixture
def mixed(points: Line, tmp_path: Path) -> Line:
    """The points, and a tenth of them once more, far away: weighted 3 to 1."""
    line = points.copy(tmp_path / "line")
    near = line.root / "source" / "points.jsonl"
    records = [json.loads(text) for text in near.read_text().splitlines()][:60]
    far = [json.dumps(record | {"x0": record["x0"] + FAR}) for record in records]
    (line.root / "source" / "far.jsonl").write_text("\n".join(far) + "\n")
    spec = line.spec.with_parts(
        {
            "source": {"url": {"near": "points.jsonl", "far": "far.jsonl"}},
            "train": line.spec.train.model_dump() | {"mix": MIX, "steps": 128},
            "search": line.spec.search.model_dump() | {"trials": 2, "together": 2},
        }
    )
    made = Line(line.root, spec)
    made.publish(ingest(made.job()))
    made.publish(pack(made.job("mixed-shards")))
    return made


def build_trainer(line: Line, *, ranks: int = 1, **train: object) -> Trainer:
    section = line.spec.train.model_dump() | {"ranks": ranks} | train
    job = line.job(train=section)
    shards = manifests.read(line.storage, job.inputs["shards"])
    data = TrainingData.load(line.storage, shards, job.spec.train.mix)
    return Trainer(job, data, World.alone(threads=1))


def first_inputs(trainer: Trainer, steps: int) -> torch.Tensor:
    """The first input of every sample that the network is trained on up to this step."""
    seen: list[torch.Tensor] = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0]))
    trainer.run_to(steps)
    return torch.cat(seen)


def test_every_source_is_trained_on_in_its_share_however_few_its_samples(mixed: Line) -> None:
    found = {}
    for weight in (3.0, 1.0):
        with closing(build_trainer(mixed, mix={"near": weight, "far": 1.0})) as trainer:
            found[weight] = first_inputs(trainer, 64)

    assert (found[3.0] > FAR / 2).sum() == 256  # of 64 * 16
    assert (found[1.0] > FAR / 2).sum() == 512


def test_the_order_of_the_keys_in_the_yaml_changes_nothing(mixed: Line) -> None:
    found = []
    for mix in (MIX, dict(reversed(MIX.items()))):
        with closing(build_trainer(mixed, mix=mix)) as trainer:
            found.append(first_inputs(trainer, 8))

    assert torch.equal(found[0], found[1])


def test_validation_is_on_the_whole_split_whatever_the_weights(mixed: Line) -> None:
    found = []
    for weight in (1.0, 9.0):
        with closing(build_trainer(mixed, mix=MIX | {"far": weight})) as trainer:
            found.append(trainer.validate())
            shards = manifests.current(mixed.storage, NAME, "shards")
            samples = shards.facts["splits"]["validation"]["num_samples"]
            assert len(trainer._data.validation) == samples

    assert found[0] == found[1]


def test_a_mixed_training_that_is_killed_ends_with_the_bits_of_an_unbroken_one(
    mixed: Line, tree: Tree, tmp_path: Path
) -> None:
    unbroken = mixed.copy(tmp_path / "unbroken")
    whole = unbroken.run("train", unbroken.job("checkpoint"))

    following = events(tree.follow("train", mixed.job("checkpoint")))
    next(event for event in following if event["event"] == "checkpoint")
    tree.kill("millrace rank")
    assert tree.is_gone()
    list(following)
    resumed = mixed.run("train", mixed.job("checkpoint"))

    assert whole.measured["resumed_at"] == 0
    assert resumed.measured["resumed_at"] >= 50
    assert resumed.digest == whole.digest
    assert resumed.facts["train"]["mix"] == MIX
    with closing(build_trainer(mixed)) as alone:  # the ranks above were two
        alone.run_to(alone.steps)
    together = [point for point in whole.facts["curve"] if "train_loss" in point]
    for one, two in zip(alone.curve, together, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


@pytest.mark.parametrize("mix", [{"near": 1.0}, {"near": 1.0, "*": 1.0}])
def test_shards_that_were_packed_for_other_keys_are_refused(
    mixed: Line, mix: dict[str, float]
) -> None:
    with pytest.raises(SpecError, match="was packed for far, near") as caught:
        build_trainer(mixed, mix=mix)

    assert "Materialize p/shards first" in caught.value.fix


def test_a_mixed_pipeline_is_released_and_other_weights_pack_nothing(mixed: Line) -> None:
    store = str(mixed.root / "shell")

    def materialize(spec: PipelineSpec) -> dict[str, dict[str, dg.MetadataValue[Any]]]:
        defs = build_chain(PipelineFolder(NAME, str(mixed.root / "source"), spec))
        assets = [each for each in defs.assets or () if isinstance(each, dg.AssetsDefinition)]
        compute = Compute(work=str(mixed.root / "shell-work"))
        result = dg.materialize(
            assets, resources={"storage": Storage(url=store), "compute": compute}
        )
        assert result.success
        told = [event.materialization for event in result.get_asset_materialization_events()]
        return {each.asset_key.path[-1]: dict(each.metadata) for each in told}

    # Whatever the weights, this is shown of so few records; the gate is not what is tried.
    spec = mixed.spec.with_parts({"gate": {"beats": ["majority"], "tolerance": 0.3}})
    told = materialize(spec)
    other = spec.train.model_dump() | {"mix": {"near": 1, "far": 1}}
    again = materialize(spec.with_parts({"train": other}))

    assert re.search(r"\| `far` \| \d+ \| \d+ \|", str(told["shards"]["samples_of_sources"].value))
    assert told["checkpoint"]["mix"].value == "25 % far, 75 % near"
    assert again["checkpoint"]["mix"].value == "50 % far, 50 % near"
    assert again["shards"]["unchanged"].value
    assert not again["checkpoint"]["unchanged"].value
    card = next(Path(store, NAME, "release").rglob("*.md")).read_text()
    assert "- Data: near: points.jsonl, far: far.jsonl; records: " in card
    assert collect(store, NAME)["released"]
