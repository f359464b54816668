"""What the run took against what was predicted, what quality cost, and what to change first."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.step import Inputs, PipelineFolder, Step, Told
from millrace import manifest as manifests
from millrace.errors import NotFoundError
from millrace.manifest import Manifest
from millrace.pictures import Bar, bar_chart, line_chart, markdown
from millrace.plan.spread import Interval
from millrace.plan.words import as_markdown, in_seconds, in_usd, with_ends
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage

HEADS = ("step", "seconds", "predicted", "held", "$", "predicted $", "$ of the store")
_MAY_LACK = ("tokenizer", "plan", "evaluation", "release")
_NAMES = {"study": "study", "checkpoint": "training"}


def build_cost(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/cost`.

    It is made from what there is, and waits, by its priority, for whatever else can run: a gate
    that is shut holds the release, not the account.
    """
    step = Step(
        pipeline,
        "cost",
        "account",
        version=1,
        tell=_tell,
        inputs=("source_files", "shards", "study", "checkpoint"),
        beside=_what_there_is,
    )
    checks = [
        step.check(
            "prediction_held", "The 90 % intervals of study and training held.", blocking=False
        )
    ]
    return step.build_asset(kind="cost", checks=checks, description=__doc__ or "", priority=-1)


def _what_there_is(storage: FsspecStorage, inputs: Inputs) -> Inputs:
    """Of what a run may lack, what is there and was made from these inputs."""
    pipeline = inputs["checkpoint"].pipeline
    found = {}
    for noun in _MAY_LACK:
        try:
            made = manifests.current(storage, pipeline, noun)
        except NotFoundError:
            continue
        told = {origin: made.inputs[origin] for origin in made.inputs if origin in inputs}
        if all(inputs[origin].digest == digest for origin, digest in told.items()):
            found[noun] = made
    return found


def _tell(made: Manifest, _spec: PipelineSpec) -> Told:
    told = made.measured
    stages, quality = told["stages"], told["quality"]
    spent = [Bar(what, seconds) for what, seconds in told["spent"].items()]
    metadata: dict[str, Any] = {
        "steps": dg.MetadataValue.md(as_markdown(HEADS, _rows(told))),
        "where_the_time_went": dg.MetadataValue.md(
            markdown(bar_chart("Where the time went", spent, unit="seconds"), "where the time went")
        ),
        "calibration": dg.MetadataValue.md(
            markdown(_picture(told["calibration"]), "predictions of the last runs")
        ),
        "bottleneck": told["bottleneck"],
        "savings": dg.MetadataValue.md(_savings_table(told["savings"])),
        "run_usd": sum(stage["usd"] for stage in stages.values()),
        "store_usd": sum(bill["total"] for bill in told["storage"].values()),
    }
    if quality:
        metadata |= {
            "points_over_baseline": quality["gained"],
            "usd_per_point": quality["usd_per_point"],
            "next_point_usd": quality["next_point_usd"],
        }
    return metadata, [_check(stages)]


def _check(stages: Mapping[str, Any]) -> dg.AssetCheckResult:
    known = {_NAMES[noun]: stages[noun]["held"] for noun in _NAMES if "held" in stages[noun]}
    return dg.AssetCheckResult(
        check_name="prediction_held",
        passed=all(known.values()),
        severity=dg.AssetCheckSeverity.WARN,
        description="" if known else "nothing was predicted: these steps ran before a plan",
        metadata=known,
    )


def _rows(told: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for noun, stage in told["stages"].items():
        predicted = ["", "", ""]
        if "predicted" in stage:
            interval = Interval.model_validate(stage["predicted"])
            held = "yes" if stage["held"] else "no"
            predicted = [with_ends(interval, in_seconds), held, in_usd(stage["predicted_usd"])]
        span, held, usd = predicted
        store = in_usd(told["storage"][noun]["total"])
        rows.append(
            [noun, in_seconds(stage["seconds"]), span, held, in_usd(stage["usd"]), usd, store]
        )
    return rows


def _savings_table(savings: list[dict[str, Any]]) -> str:
    rows = [
        [one["fix"], in_seconds(one["seconds"]) if one["seconds"] else "", in_usd(one["usd"])]
        for one in savings
    ]
    return as_markdown(("change", "saves", "$"), rows)


def _picture(calibration: Mapping[str, Any]) -> str:
    """Actual to predicted seconds over the last runs, inside the training's intervals."""
    series = {
        f"{_NAMES[noun]}, actual": list(enumerate(told["ratios"], 1))
        for noun, told in calibration.items()
    }
    ends = calibration["checkpoint"]
    lines = {
        "90 % interval, high end": list(enumerate(ends["highs"], 1)),
        "90 % interval, low end": list(enumerate(ends["lows"], 1)),
    }
    return line_chart(
        "Actual to predicted seconds",
        {**series, **lines},
        x_label="run, the last one right",
        y_label="ratio",
        log_y=True,
        dots=frozenset(series),
    )
