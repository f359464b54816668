"""The records as samples in zstd shards, split by content, exact duplicates dropped."""

from typing import Any

import dagster as dg

from assets.step import PipelineFolder, Step, Told
from millrace.manifest import Manifest
from millrace.pictures import Bar, bar_chart, markdown
from millrace.spec import PipelineSpec


def build_shards(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/shards`."""
    step = Step(
        pipeline,
        "shards",
        "pack",
        version=1,
        tell=_tell,
        inputs=("source_files",),
        keyed_by=lambda spec: [
            spec.task.model_dump(),
            spec.split.model_dump(),
            spec.shards.model_dump(),
        ],
    )
    checks = [
        step.check("round_trip", "Every shard, read back from the store, holds what was written."),
        step.check("splits_disjoint", "No record's inputs occur in two splits."),
    ]
    return step.build_asset(kind="zstd", checks=checks, description=__doc__ or "")


def _tell(made: Manifest, _spec: PipelineSpec) -> Told:
    facts, splits = made.facts, made.facts["splits"]
    raw_bytes = sum(split["raw_bytes"] for split in splits.values())
    bars = []
    for name, split in splits.items():
        bars.append(Bar(f"{name}, raw", split["raw_bytes"] / 1e6))
        bars.append(Bar(f"{name}, stored", split["num_bytes"] / 1e6, strong=True))
    metadata: dict[str, Any] = {
        "sizes": dg.MetadataValue.md(
            markdown(bar_chart("Bytes before and after zstd", bars, unit="MB"), "sizes")
        ),
        "num_shards": len(facts["shards"]),
        "raw_bytes": raw_bytes,
        "ratio": raw_bytes / max(1, made.num_bytes),
        "num_duplicates_dropped": facts["num_duplicates"],
    }
    for name, split in splits.items():
        metadata[f"{name}_records"] = split["num_records"]
        metadata[f"{name}_samples"] = split["num_samples"]
    if facts["classes"]:
        metadata["classes"] = ", ".join(facts["classes"])
    checks = [
        dg.AssetCheckResult(
            check_name="round_trip",
            passed=facts["frames_read_back"] == facts["num_frames"],
            metadata={"frames_read_back": facts["frames_read_back"]},
        ),
        dg.AssetCheckResult(
            check_name="splits_disjoint",
            passed=facts["overlapping_records"] == 0,
            metadata={"overlapping_records": facts["overlapping_records"]},
        ),
    ]
    return metadata, checks
