"""Plan and account as assets: what the UI shows, what they hold up, and what they do not."""

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.checkpoint import build_checkpoint
from assets.cost import build_cost
from assets.pipeline import build_chain
from assets.plan import build_plan
from assets.step import PipelineFolder
from millrace.manifest import Manifest
from millrace.plan import history
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage
from resources.compute import Compute
from resources.storage import Storage

# Fixtures of the shell's other tests: pytest finds them by their names here.
from tests.test_pipelines import (
    NOUNS,
    ROOT,
    Site,
    copied,
    finished,
    materialize,
    spec,
)

__all__ = ["copied", "finished", "spec"]
FOLDER = str(ROOT / "pipelines" / "digits")


def shown(result: dg.ExecuteInProcessResult, noun: str) -> dict[str, Any]:
    """What the UI shows of a materialization."""
    (made,) = result.asset_materializations_for_node(f"digits__{noun}")
    return {name: value.value for name, value in made.metadata.items()}


def test_every_step_of_the_chain_leaves_a_record(finished: tuple[Site, int, str]) -> None:
    storage = FsspecStorage(finished[0].store)

    found = {noun: history.newest(storage, "digits", noun) for noun in NOUNS}

    assert {noun: len(entries) for noun, entries in found.items()} == dict.fromkeys(NOUNS, 1)
    for noun in ("study", "checkpoint"):
        assert found[noun][0].predicted is not None
    assert found["shards"][0].predicted is None  # nothing was known before the first run


def test_the_plan_shows_options_a_picture_and_its_check(copied: Site, spec: PipelineSpec) -> None:
    result = materialize(build_plan(PipelineFolder("digits", FOLDER, spec)), copied)

    told = shown(result, "plan")
    assert "| local (" in told["options"] or "| local |" in told["options"]
    assert told["cost_against_time"].startswith("![cost against time](data:image/svg+xml;base64,")
    assert told["training_seconds_low"] < told["training_seconds"]
    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, check.blocking) == (True, True)


def test_a_training_that_cannot_be_afforded_is_never_begun(
    copied: Site, spec: PipelineSpec
) -> None:
    poor = spec.with_parts({"train": spec.train.model_dump() | {"max_usd": 1e-9, "steps": 299}})
    shutil.rmtree(Path(copied.store, "digits", "study"))
    chain = build_chain(PipelineFolder("digits", FOLDER, poor)).assets or ()
    wanted = {"plan", "study", "checkpoint"}
    assets = [a for a in chain if isinstance(a, dg.AssetsDefinition) and a.key.path[-1] in wanted]
    resources = {
        "storage": Storage(url=copied.store),
        "compute": Compute(work=str(copied.home / "work")),
    }

    result = dg.materialize(assets, resources=resources, raise_on_error=False)

    assert not result.success
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert "max_usd 1e-09: even the low end of its predicted price" in (check.description or "")
    assert not Path(copied.store, "digits", "study").exists()


def test_the_account_compares_prices_and_names_the_bottleneck(
    copied: Site, spec: PipelineSpec
) -> None:
    shutil.rmtree(Path(copied.store, "digits", "cost"))

    result = materialize(build_cost(PipelineFolder("digits", FOLDER, spec)), copied)

    told, made = shown(result, "cost"), copied.current("cost")
    assert result.success
    for noun in NOUNS[:-1]:
        assert f"| {noun} | " in told["steps"]
    assert " takes most, " in told["bottleneck"]
    assert told["run_usd"] == pytest.approx(_usd(copied, NOUNS[:-1]))
    assert told["usd_per_point"] == pytest.approx(told["run_usd"] / told["points_over_baseline"])
    assert told["calibration"].startswith("![")
    assert set(made.measured["storage"]) == set(NOUNS[:-1])
    (check,) = result.get_asset_check_evaluations()
    assert not check.blocking


def _usd(site: Site, nouns: tuple[str, ...]) -> float:
    return sum(site.current(noun).usd for noun in nouns)


def test_a_shut_gate_holds_the_release_and_not_the_account(
    copied: Site, spec: PipelineSpec
) -> None:
    for noun in ("evaluation", "release", "cost"):
        shutil.rmtree(Path(copied.store, "digits", noun))
    strict = spec.with_parts({"gate": {"bar": 0.99999, "beats": ["majority"]}})
    chain = build_chain(PipelineFolder("digits", FOLDER, strict)).assets or ()
    wanted = {"checkpoint", "evaluation", "release", "cost"}
    assets = [a for a in chain if isinstance(a, dg.AssetsDefinition) and a.key.path[-1] in wanted]
    resources = {
        "storage": Storage(url=copied.store),
        "compute": Compute(work=str(copied.home / "work")),
    }

    result = dg.materialize(assets, resources=resources, raise_on_error=False)

    assert not result.success
    assert not Path(copied.store, "digits", "release").exists()
    made: Manifest = copied.current("cost")
    assert "evaluation" in made.measured["stages"]  # it waited for it
    assert "release" not in made.measured["stages"]
    assert made.measured["quality"]["gained"] > 0


def test_a_reused_step_tells_what_the_run_that_made_it_was_expected_to_take(
    copied: Site, spec: PipelineSpec
) -> None:

    result = materialize(build_checkpoint(PipelineFolder("digits", FOLDER, spec)), copied)

    told = shown(result, "checkpoint")

    assert told["unchanged"]
    assert told["predicted_seconds_low"] < told["predicted_seconds"]
    assert told["predicted_usd"] > 0
    assert json.dumps(told["prediction_held"]) in ("true", "false")
