"""The source files as listed and profiled: which records there are, and which were rejected."""

from typing import Any

import dagster as dg

from assets.step import PipelineFolder, Step, Told
from millrace.manifest import Manifest
from millrace.pictures import Bar, bar_chart, markdown
from millrace.spec import PipelineSpec

SHOWN_FILES = 20


def build_source_files(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/source_files`."""
    step = Step(
        pipeline,
        "source_files",
        "ingest",
        version=1,
        tell=_tell,
        keyed_by=lambda spec: [
            spec.source.model_dump(),
            spec.task.model_dump(),
            *spec.gate.fields,
        ],
    )
    checks = [
        step.check("not_empty", "At least one record can be used."),
        step.check("nothing_rejected", "No record was rejected.", blocking=False),
    ]
    return step.build_asset(kind="file", checks=checks, description=__doc__ or "")


def _tell(made: Manifest, _spec: PipelineSpec) -> Told:
    facts = made.facts
    bars = [Bar(name, size / 1e6) for name, size in facts["bytes_by_format"].items()]
    largest = sorted(facts["files"], key=lambda file: -file["num_bytes"])[:SHOWN_FILES]
    rejections = [item for file in facts["files"] for item in file["rejections"]]
    metadata = {
        "profile": dg.MetadataValue.md(
            markdown(bar_chart("Source bytes by format", bars, unit="MB"), "profile")
        ),
        "num_files": len(facts["files"]),
        "source_bytes": facts["num_bytes"],
        "num_records": facts["num_records"],
        "num_rejected": facts["num_rejected"],
        "num_duplicates": facts["num_duplicates"],
        "largest_files": dg.MetadataValue.md(
            _table(
                ["file", "bytes", "records"],
                [[f["path"], f["num_bytes"], f["records"][1] - f["records"][0]] for f in largest],
            )
        ),
        "rejections": dg.MetadataValue.md(
            _table(["where", "reason"], rejections[:SHOWN_FILES]) if rejections else "none"
        ),
    }
    few = [f"{where}: {reason}" for where, reason in rejections[:SHOWN_FILES]]
    checks = [
        dg.AssetCheckResult(
            check_name="not_empty",
            passed=facts["num_records"] > 0,
            metadata={"num_records": facts["num_records"]},
        ),
        dg.AssetCheckResult(
            check_name="nothing_rejected",
            passed=facts["num_rejected"] == 0,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"num_rejected": facts["num_rejected"], "first": few},
        ),
    ]
    return metadata, checks


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    def cells(row: list[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"

    return "\n".join([cells(heads), "|" + "---|" * len(heads), *(cells(row) for row in rows)])
