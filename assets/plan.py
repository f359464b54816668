"""The plan: what study and training will take, here and elsewhere, before either begins."""

from typing import Any

import dagster as dg

from assets.step import PipelineFolder, Step, Told
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.pictures import markdown
from millrace.plan.outlook import Outlook, refusal
from millrace.plan.words import HEADS, as_markdown, choice_in_words, picture, rows
from millrace.spec import PipelineSpec


def build_plan(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/plan`; the study waits for its check."""

    def keyed_by(spec: PipelineSpec) -> Any:
        return [
            spec.network.model_dump(),
            source_digest(spec.network, pipeline.folder),
            spec.train.model_dump(),
            spec.search.model_dump(),
        ]

    def tell(made: Manifest, spec: PipelineSpec) -> Told:
        outlook = Outlook.model_validate(made.measured["outlook"])
        return _metadata(outlook), [_check(pipeline.name, outlook, spec)]

    step = Step(
        pipeline,
        "plan",
        "forecast",
        version=1,
        tell=tell,
        inputs=("shards",),
        is_of_machine=True,
        keyed_by=keyed_by,
    )
    checks = [
        step.check(
            "affordable",
            "The low end of the training's prediction is within max_usd and max_hours.",
        )
    ]
    return step.build_asset(kind="plan", checks=checks, description=__doc__ or "")


def _metadata(outlook: Outlook) -> dict[str, Any]:
    here = outlook.here
    told: dict[str, Any] = {
        "options": dg.MetadataValue.md(as_markdown(HEADS, rows(outlook))),
        "cost_against_time": dg.MetadataValue.md(markdown(picture(outlook), "cost against time")),
        "choice": choice_in_words(outlook),
        "basis": outlook.basis,
        "study_seconds": outlook.study.value,
        "training_seconds": outlook.training.value,
        "training_seconds_low": outlook.training.low,
        "training_seconds_high": outlook.training.high,
        "run_usd": here.usd.value,
        "step_seconds": outlook.step_seconds,
        "memory_bytes": round(outlook.memory_bytes.value),
    }
    if here.joules:
        told |= {"joules": here.joules, "energy": here.energy_basis}
    return told


def _check(name: str, outlook: Outlook, spec: PipelineSpec) -> dg.AssetCheckResult:
    refused = refusal(name, spec.train, outlook.training, outlook.here.usd_per_hour)
    return dg.AssetCheckResult(
        check_name="affordable",
        passed=refused is None,
        description=str(refused) if refused else "inside the limits, or none is set",
        metadata={
            "low_seconds": outlook.training.low,
            "low_usd": outlook.training.low / 3600 * outlook.here.usd_per_hour,
        },
    )
