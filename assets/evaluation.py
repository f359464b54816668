"""The checkpoint's quality on held-out records, with intervals, beside baselines and release."""

from typing import Any

import dagster as dg

from assets.step import Inputs, PipelineFolder, Step, Told, trained_spec
from millrace.evaluation.charts import (
    confusion_picture,
    quality_picture,
    reliability_picture,
    slices_picture,
)
from millrace.evaluation.gate import Outcome, decide
from millrace.evaluation.predecessor import find_predecessor
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.pictures import markdown
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage


def build_evaluation(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/evaluation`."""
    step = Step(
        pipeline,
        "evaluation",
        "evaluate",
        version=2,
        tell=_tell,
        inputs=("source_files", "shards", "checkpoint"),
        beside=_release,
        keyed_by=lambda spec: [source_digest(spec.network, pipeline.folder), spec.gate.slicings],
        tune=trained_spec,
    )
    told = "The intervals clear the gate's bar, the baselines and the release before."
    checks = [step.check("gate", told)]
    return step.build_asset(kind="evaluation", checks=checks, description=__doc__ or "")


def _release(storage: FsspecStorage, inputs: Inputs) -> Inputs:
    """The release that the checkpoint has to stand beside; it is made downstream of this asset."""
    found = find_predecessor(storage, inputs["shards"], inputs["checkpoint"])
    return {} if found is None else {"release": found}


def _tell(made: Manifest, spec: PipelineSpec) -> Told:
    facts = made.facts
    estimate, verdict = facts["estimate"], decide(spec.gate, facts)
    metadata: dict[str, Any] = {
        **_pictures(facts),
        facts["metric"]: estimate["value"],
        f"{facts['metric']}_low": estimate["low"],
        f"{facts['metric']}_high": estimate["high"],
        "test_loss": facts["loss"]["value"],
        "test_records": facts["num_records"],
        "intervals_by": f"drawing {facts['num_drawn']} {facts['drawn']}",
        "verdict": str(verdict),
        **facts["metrics"],
        "worst_samples": dg.MetadataValue.table([dg.TableRecord(row) for row in facts["worst"]]),
    }
    if "gain" in facts["release"]:
        metadata["gain_over_release"] = facts["release"]["gain"]["value"]
    for name, found in facts["baselines"].items():
        metadata[f"baseline_{name.replace('-', '_')}"] = found["value"]
    check = dg.AssetCheckResult(
        check_name="gate",
        passed=verdict.outcome is Outcome.PASS,
        description=str(verdict),
        metadata={rule.asked: f"{rule.outcome}: {rule.found}" for rule in verdict.rules},
    )
    return metadata, [check]


def _pictures(facts: Any) -> dict[str, dg.MetadataValue[Any]]:
    """What the facts allow to be drawn."""
    drawn = {"quality": quality_picture(facts)}
    if "confusion" in facts:
        drawn |= {"confusion": confusion_picture(facts), "reliability": reliability_picture(facts)}
    drawn |= {f"by_{slicing}": slices_picture(facts, slicing) for slicing in facts["slices"]}
    return {name: dg.MetadataValue.md(markdown(svg, name)) for name, svg in drawn.items()}
