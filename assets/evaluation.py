"""The checkpoint's quality on held-out records, with intervals, beside honest baselines."""

from typing import Any

import dagster as dg

from assets.step import PipelineFolder, Step, Told, trained_spec
from millrace.gate import Outcome, decide
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.pictures import markdown
from millrace.report import quality_picture
from millrace.spec import PipelineSpec


def build_evaluation(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/evaluation`."""
    step = Step(
        pipeline,
        "evaluation",
        "evaluate",
        version=1,
        tell=_tell,
        inputs=("shards", "checkpoint"),
        keyed_by=lambda spec: source_digest(spec.network, pipeline.folder),
        tune=trained_spec,
    )
    checks = [step.check("gate", "The intervals clear the gate's bar and baselines.")]
    return step.build_asset(kind="evaluation", checks=checks, description=__doc__ or "")


def _tell(made: Manifest, spec: PipelineSpec) -> Told:
    facts = made.facts
    estimate, baselines = facts["estimate"], facts["baselines"]
    verdict = decide(spec.gate, facts)
    metadata: dict[str, Any] = {
        "quality": dg.MetadataValue.md(markdown(quality_picture(facts), "quality")),
        facts["metric"]: estimate["value"],
        f"{facts['metric']}_low": estimate["low"],
        f"{facts['metric']}_high": estimate["high"],
        "test_loss": facts["loss"]["value"],
        "test_records": facts["num_records"],
        "verdict": str(verdict),
    }
    if "macro_f1" in facts:
        metadata["macro_f1"] = facts["macro_f1"]
    for name, found in baselines.items():
        metadata[f"baseline_{name.replace('-', '_')}"] = found["value"]
    check = dg.AssetCheckResult(
        check_name="gate",
        passed=verdict.outcome is Outcome.PASS,
        description=str(verdict),
        metadata={rule.asked: f"{rule.outcome}: {rule.found}" for rule in verdict.rules},
    )
    return metadata, [check]
