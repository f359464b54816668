"""The Pipeline component: a defs.yaml becomes the chain of assets from source files to release."""

from pathlib import Path
from typing import Self

import dagster as dg
from pydantic import BaseModel

from assets.automation import build_automation
from assets.checkpoint import build_checkpoint
from assets.cost import build_cost
from assets.evaluation import build_evaluation
from assets.plan import build_plan
from assets.release import build_release
from assets.shards import build_shards
from assets.source_files import build_source_files
from assets.step import PipelineFolder
from assets.study import build_study
from assets.tokenizer import build_tokenizer
from millrace.spec import PipelineSpec, has_tokenizer


class Pipeline(dg.Component):
    """One data set, network and search space: source files -> shards -> plan -> study ->
    checkpoint -> evaluation -> release -> cost.
    """  # noqa: D205  Dagster shows the whole docstring as the component's description

    def __init__(self, spec: PipelineSpec) -> None:
        self.spec = spec

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """What `attributes` in the YAML must look like."""
        return PipelineSpec

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Build the component from the checked attributes."""
        assert isinstance(attributes, PipelineSpec), "Dagster validates with get_model_cls"
        return cls(attributes)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The pipeline's assets, checks, job, schedule and sensor."""
        folder = Path(context.path)
        folder = folder if folder.is_dir() else folder.parent
        return build_chain(PipelineFolder(folder.name, str(folder), self.spec))


def build_chain(pipeline: PipelineFolder) -> dg.Definitions:
    """A pipeline's assets with their checks, its job, schedule and sensor."""
    assets = [
        build_source_files(pipeline),
        *([build_tokenizer(pipeline)] if has_tokenizer(pipeline.spec.task) else []),
        build_shards(pipeline),
        build_plan(pipeline),
        build_study(pipeline),
        build_checkpoint(pipeline),
        build_evaluation(pipeline),
        build_release(pipeline),
        build_cost(pipeline),
    ]
    return dg.Definitions.merge(dg.Definitions(assets=assets), build_automation(pipeline))
