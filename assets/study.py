"""The Optuna study: which values of the search space train best."""

from typing import Any

import dagster as dg

from assets.step import PipelineFolder, Step, Told
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.pictures import markdown
from millrace.spec import UNKEYED, PipelineSpec
from millrace.tune.pictures import (
    cost_chart,
    history_chart,
    importance_chart,
    rung_chart,
    transfer_chart,
    values_chart,
)

# What a trial does not depend on: it trains on `search.ranks`, for the study's own number of steps.
_NOT_SEARCHED = {"steps", "ranks", "validate_every"} | UNKEYED


def build_study(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/study`."""

    def keyed_by(spec: PipelineSpec) -> Any:
        return [
            spec.network.model_dump(),
            source_digest(spec.network, pipeline.folder),
            spec.train.model_dump(exclude=_NOT_SEARCHED),
            spec.search.model_dump(exclude={"workers"}),
        ]

    step = Step(
        pipeline,
        "study",
        "tune",
        version=2,
        tell=_tell,
        inputs=("shards",),
        after=("plan",),
        keyed_by=keyed_by,
    )
    checks = [
        step.check(
            "no_worse_than_default",
            "The best trial's mean loss over its seeds is at most that of the spec as written.",
        )
    ]
    return step.build_asset(kind="optuna", checks=checks, description=__doc__ or "")


def _tell(made: Manifest, spec: PipelineSpec) -> Told:
    facts = made.facts
    states = [trial["state"] for trial in facts["trials"]]
    default, best = facts["default_mean"], facts["best_mean"]
    pictures = {
        "history": history_chart(facts),
        "rungs": rung_chart(facts),
        "cost": cost_chart(facts, made.measured["seconds_by_trial"]),
        "parallel": values_chart(facts, spec.search.space),
    }
    if facts["importance"]:
        pictures["importance"] = importance_chart(facts)
    if facts["transfer"]["values"]:
        pictures["transfer"] = transfer_chart(facts["transfer"])
    metadata: dict[str, Any] = {
        "smaller_widths": facts["transfer"]["why"],
        **{name: dg.MetadataValue.md(markdown(svg, name)) for name, svg in pictures.items()},
        "best_loss": facts["best_loss"],
        "num_trials": len(states),
        "num_pruned": states.count("PRUNED"),
        "num_failed": states.count("FAIL"),
        "best_values": facts["best_values"],
        "device_seconds": made.measured["spent_seconds"],
        "device_usd": made.measured["spent_usd"],
        **{
            name: facts[name]
            for name in (
                "best_mean",
                "default_loss",
                "default_mean",
                "seed_noise",
                "rung_correlation",
            )
            if facts[name] is not None
        },
    }
    if facts["stopped"]:
        metadata["stopped"] = facts["stopped"]
    check = dg.AssetCheckResult(
        check_name="no_worse_than_default",
        passed=default is None or (best is not None and best <= default),
        metadata={"best_mean": _told(best), "default_mean": _told(default)},
    )
    return metadata, [check]


def _told(loss: float | None) -> float | str:
    return "failed" if loss is None else loss
