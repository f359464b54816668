"""The records as samples in zstd shards, split by content, exact duplicates dropped."""

from typing import Any

import dagster as dg

from assets.step import PipelineFolder, Step, Told
from millrace.manifest import Manifest
from millrace.pictures import Bar, Spot, bar_chart, frontier_chart, markdown
from millrace.spec import PipelineSpec, has_tokenizer

UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1))


def build_shards(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/shards`."""
    step = Step(
        pipeline,
        "shards",
        "pack",
        version=2,
        tell=_tell,
        inputs=("source_files", *(["tokenizer"] if has_tokenizer(pipeline.spec.task) else [])),
        keyed_by=lambda spec: [
            spec.task.model_dump(),
            spec.split.model_dump(),
            spec.shards.model_dump(),
            *([list(spec.train.mix)] if spec.train.mix else []),  # which files, not how much
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
    if "sources" in facts:
        metadata["samples_of_sources"] = dg.MetadataValue.md(_sources_table(facts["sources"]))
    metadata |= _layout(made)
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


def _layout(made: Manifest) -> dict[str, Any]:
    """The level and frame size, why, and the frontier they were chosen from."""
    chosen, measured = made.facts["layout"], made.measured["layout"]
    told: dict[str, Any] = {
        "level": chosen["level"],
        "frame_bytes": chosen["frame_bytes"],
        "layout_reason": measured["reason"],
    }
    if not (points := measured.get("points")):
        return told
    largest = max(measured["raw_bytes"] / point["ratio"] for point in points)
    unit, unit_bytes = next((unit, size) for unit, size in UNITS if largest >= size or size == 1)
    spots = []
    for point in sorted(points, key=lambda point: (point["frame_bytes"], point["level"])):
        is_chosen = {name: point[name] for name in chosen} == chosen
        spots.append(
            Spot(
                point["encode_bytes_per_second"] / 1e6,
                measured["raw_bytes"] / point["ratio"] / unit_bytes,
                f"level {point['level']}" + (", chosen" if is_chosen else ""),
                f"frames of {point['frame_bytes'] / 2**20:g} MiB",
                chosen=is_chosen,
            )
        )
    picture = frontier_chart(
        "What each level and frame size would take",
        spots,
        x_label="encode, MB per CPU second (log). Line: no other is faster and smaller",
        y_label=f"stored, {unit}",
    )
    return told | {
        "frontier": dg.MetadataValue.md(markdown(picture, "frontier")),
        "points": dg.MetadataValue.md(_points_table(points)),
        "expected_reads": measured["reads"],
        "link_mb_per_second": measured["link"]["read_bytes_per_second"] / 1e6,
        "link_request_ms": measured["link"]["request_seconds"] * 1e3,
    }


def _sources_table(sources: dict[str, dict[str, int]]) -> str:
    splits = list(next(iter(sources.values())))
    heads = ["| source |", *(f" {split} |" for split in splits)]
    rows = [
        f"| `{name}` | " + " | ".join(f"{count:,}" for count in counts.values()) + " |"
        for name, counts in sources.items()
    ]
    return "\n".join(["".join(heads), "|---" * (1 + len(splits)) + "|", *rows])


def _points_table(points: list[dict[str, Any]]) -> str:
    heads = "| level | frame, MiB | ratio | encode MB/s | decode MB/s | $ in all |"
    rows = [
        f"| {point['level']} | {point['frame_bytes'] / 2**20:g} | {point['ratio']:.3f} "
        f"| {point['encode_bytes_per_second'] / 1e6:,.1f} "
        f"| {point['decode_bytes_per_second'] / 1e6:,.0f} | {point['usd']:.3g} |"
        for point in points
    ]
    return "\n".join([heads, "|---|---|---|---|---|---|", *rows])
