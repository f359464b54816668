"""The tokenizer: byte pairs of the training texts, merged as often as they occur, or one given."""

import dagster as dg

from assets.step import PipelineFolder, Step, Told
from millrace.data.tokenizer import given_digest
from millrace.manifest import Manifest
from millrace.spec import PipelineSpec


def build_tokenizer(pipeline: PipelineFolder) -> dg.AssetsDefinition:
    """The asset `<pipeline>/tokenizer`, for a language model whose task names one."""
    step = Step(
        pipeline,
        "tokenizer",
        "learn",
        version=1,
        tell=_tell,
        inputs=("source_files",),
        keyed_by=lambda spec: [
            spec.task.model_dump(),
            spec.split.model_dump(),
            *filter(None, [given_digest(spec.task, pipeline.folder)]),
        ],
    )
    return step.build_asset(kind="json", description=__doc__ or "")


def _tell(made: Manifest, _spec: PipelineSpec) -> Told:
    return {name: made.facts[name] for name in ("vocabulary", "num_texts", "bytes_per_token")}, []
