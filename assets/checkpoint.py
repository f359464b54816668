"""The trained weights: the best spec of the study, data-parallel, resumable at any moment."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from assets.step import PipelineFolder, Step, Told
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.pictures import line_chart, markdown
from millrace.spec import UNKEYED, PipelineSpec, Task
from millrace.tasks import LOSS_UNITS

_MEASURED = ("tokens_per_second", "mfu", "data_stall", "memory_bytes")


def build_checkpoint(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/checkpoint`."""

    def keyed_by(spec: PipelineSpec) -> Any:
        return [
            spec.network.model_dump(),
            source_digest(spec.network, pipeline.folder),
            spec.train.model_dump(exclude=set(UNKEYED)),
        ]

    step = Step(
        pipeline,
        "checkpoint",
        "train",
        version=1,
        tell=_tell,
        inputs=("shards", "study"),
        keyed_by=keyed_by,
        tune=lambda spec, inputs: spec.with_values(inputs["study"].facts["best_values"]),
    )
    checks = [
        step.check("learned", "The last validation loss is below the first training loss."),
        step.check(
            "exact",
            "Resumed once more at the end, the first updates repeat what they were bit for bit.",
            blocking=False,
        ),
    ]
    return step.build_asset(kind="pytorch", checks=checks, description=__doc__ or "")


def loss_chart(curve: Sequence[Mapping[str, float]], task: Task) -> str:
    """A checkpoint's curve in the unit of its task's loss, as SVG."""
    return line_chart(
        "Loss",
        {"training": _points(curve, "train_loss"), "validation": _points(curve, "validation_loss")},
        x_label="step",
        y_label=LOSS_UNITS[task.baselines],
        log_y=True,
    )


def _points(curve: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(point["step"], point[name]) for point in curve if name in point]


def _tell(made: Manifest, spec: PipelineSpec) -> Told:
    facts, measured, curve = made.facts, made.measured, made.facts["curve"]
    first = _points(curve, "train_loss")[0][1]
    last = _points(curve, "validation_loss")[-1][1]
    picture = loss_chart(curve, spec.task)
    metadata = {
        "loss": dg.MetadataValue.md(markdown(picture, "loss")),
        "train_loss": _points(curve, "train_loss")[-1][1],
        "validation_loss": last,
        "parameters": facts["parameters"],
        "steps": facts["steps"],
        "ranks": spec.train.ranks,
        "resumed_at_step": measured["resumed_at"],
        "samples_per_second": measured["samples_per_second"],
        "device": measured["device"],
        "strategy": dg.MetadataValue.json(measured.get("strategy", {})),
        **{name: measured[name] for name in _MEASURED if name in measured},
        "learning_rate": spec.train.learning_rate,
    }
    if spec.train.mix:
        metadata["mix"] = spec.train.mixture
    check = dg.AssetCheckResult(
        check_name="learned",
        passed=last < first,
        metadata={"first_train_loss": first, "last_validation_loss": last},
    )
    return metadata, [check, _exact(measured)]


def _exact(measured: Mapping[str, Any]) -> dg.AssetCheckResult:
    """Whether a resumed training repeats itself here: on some GPUs' kernels it may not."""
    told = {name: value for name, value in measured.items() if name.startswith("replay")}
    return dg.AssetCheckResult(
        check_name="exact",
        passed=measured.get("replay_is_equal", False),
        severity=dg.AssetCheckSeverity.WARN,
        metadata=told,
    )
