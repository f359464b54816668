"""The released model: gated, immutable, tried, and pointed at."""

from typing import Any

import dagster as dg

from assets.step import PipelineFolder, Step, Told, trained_spec
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.spec import PipelineSpec


def build_release(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/release`.

    It verifies the gate itself: a blocking check on the evaluation acts only inside its own run.
    """

    def keyed_by(spec: PipelineSpec) -> Any:
        return [
            spec.gate.model_dump(),
            spec.description,
            spec.source.model_dump(),
            spec.task.model_dump(),
            source_digest(spec.network, pipeline.folder),
        ]

    def tell(made: Manifest, _spec: PipelineSpec) -> Told:
        ask = f"python -m millrace predict {pipeline.name} --help"
        metadata = {
            made.facts["metric"]: made.facts["estimate"]["value"],
            "verdict": made.facts["verdict"],
            "files": [file.path.rsplit("/", 1)[-1] for file in made.files],
            "ask_it": dg.MetadataValue.md(f"`{ask}`"),
        }
        return metadata, []

    step = Step(
        pipeline,
        "release",
        "release",
        version=1,
        tell=tell,
        inputs=("shards", "checkpoint", "evaluation"),
        keyed_by=keyed_by,
        tune=trained_spec,
    )
    return step.build_asset(kind="safetensors", description=__doc__ or "")
