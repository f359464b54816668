"""The Optuna study: which values of the search space train best."""

from typing import Any

import dagster as dg

from assets.step import PipelineFolder, Step, Told
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.pictures import Bar, bar_chart, line_chart, markdown
from millrace.spec import UNKEYED, PipelineSpec

# What a trial does not depend on: it trains on one rank, for the study's own number of steps.
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
        version=1,
        tell=_tell,
        inputs=("shards",),
        after=("plan",),
        keyed_by=keyed_by,
    )
    checks = [
        step.check(
            "no_worse_than_default", "The best trial's loss is at most that of the spec as written."
        )
    ]
    return step.build_asset(kind="optuna", checks=checks, description=__doc__ or "")


def _tell(made: Manifest, _spec: PipelineSpec) -> Told:
    facts = made.facts
    complete = [
        (trial["number"], trial["loss"]) for trial in facts["trials"] if trial["loss"] is not None
    ]
    best_so_far = [
        (number, min(loss for other, loss in complete if other <= number)) for number, _ in complete
    ]
    rungs = {
        f"trial {trial['number']}": [(int(s), loss) for s, loss in trial["rungs"].items()]
        for trial in facts["trials"]
        if len(trial["rungs"]) > 1
    }
    history = line_chart(
        "Optimization history",
        {"best so far": best_so_far, "complete trial": complete},
        x_label="trial",
        y_label="validation loss",
        dots=frozenset({"complete trial"}),
    )
    learning = line_chart(
        "Trials by rung", rungs, x_label="step", y_label="validation loss", log_y=True
    )
    states = [trial["state"] for trial in facts["trials"]]
    default, best = facts["default_loss"], facts["best_loss"]
    metadata: dict[str, Any] = {
        "history": dg.MetadataValue.md(markdown(history, "history")),
        "rungs": dg.MetadataValue.md(markdown(learning, "rungs")),
        "best_loss": best,
        "num_trials": len(states),
        "num_pruned": states.count("PRUNED"),
        "num_failed": states.count("FAIL"),
        "best_values": facts["best_values"],
    }
    if default is not None:
        metadata["default_loss"] = default
    if facts["importance"]:
        bars = [Bar(name, share, strong=True) for name, share in facts["importance"].items()]
        picture = bar_chart("Parameter importance (PED-ANOVA)", bars, unit="share")
        metadata["importance"] = dg.MetadataValue.md(markdown(picture, "importance"))
    check = dg.AssetCheckResult(
        check_name="no_worse_than_default",
        passed=default is None or best <= default,
        metadata={"best_loss": best, "default_loss": default if default is not None else "failed"},
    )
    return metadata, [check]
