"""One step of a pipeline: reuse what is published for its key, else make it, and tell Dagster.

spec + digests of the inputs --> key --> a manifest on the store? --> reuse it
                                     --> else run the engine, follow its events
manifest --> current pointer, data version, metadata, checks
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.metadata import common, predicted
from millrace import manifest as manifests
from millrace.errors import GateError, MillraceError, NotFoundError, ProcessDiedError
from millrace.frozen import digest
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.plan import history
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage
from resources.compute import Compute
from resources.storage import Storage

RETRIES_AFTER_DEATH = 2

Inputs = Mapping[str, Manifest]
Told = tuple[dict[str, Any], list[dg.AssetCheckResult]]


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline as loaded: its name, its folder and what its defs.yaml says."""

    name: str
    folder: str
    spec: PipelineSpec


@dataclass(frozen=True)
class Step:
    """How one noun of a pipeline is made and shown.

    Args:
        pipeline: The pipeline it belongs to.
        noun: Its name in the asset key.
        verb: What the engine calls making it.
        version: Raised when the engine would make something else from the same spec and inputs.
        inputs: Nouns it is made from.
        beside: Manifests it is made from besides, which are no assets upstream; by noun.
        after: Nouns that it waits for without being made from them; their blocking checks hold it.
        is_of_machine: Whether it is made anew on another kind of machine.
        keyed_by: The part of the spec that decides what is made, besides the inputs.
        tell: Metadata and check results for a manifest.
        tune: The spec to make it with, given the inputs; where it differs from the pipeline's.
    """

    pipeline: PipelineFolder
    noun: str
    verb: str
    version: int
    tell: Callable[[Manifest, PipelineSpec], Told]
    inputs: tuple[str, ...] = ()
    beside: Callable[[FsspecStorage, Inputs], Inputs] = lambda _storage, _inputs: {}
    after: tuple[str, ...] = ()
    is_of_machine: bool = False
    keyed_by: Callable[[PipelineSpec], Any] = lambda _spec: None
    tune: Callable[[PipelineSpec, Inputs], PipelineSpec] = lambda spec, _inputs: spec

    @property
    def key(self) -> dg.AssetKey:
        """Asset key `<pipeline>/<noun>`."""
        return dg.AssetKey([self.pipeline.name, self.noun])

    def build_asset(
        self,
        *,
        kind: str,
        description: str,
        checks: Sequence[dg.AssetCheckSpec] = (),
        priority: int = 0,
    ) -> dg.AssetsDefinition:
        """The asset `<pipeline>/<noun>` with its checks; of what is ready, less priority waits."""

        @dg.asset(
            key=self.key,
            group_name=self.pipeline.name,
            deps=[dg.AssetKey([self.pipeline.name, n]) for n in (*self.inputs, *self.after)],
            code_version=digest(self.version, self.keyed_by(self.pipeline.spec))[:12],
            pool=self.pipeline.name,  # one run of a pipeline at a time: dagster.yaml limits it to 1
            check_specs=checks,
            kinds={kind},
            description=description,
            op_tags={"dagster/priority": str(priority)} if priority else None,
        )
        def asset(
            context: dg.AssetExecutionContext, storage: Storage, compute: Compute
        ) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster takes it only without one
            return self.materialize(context, storage, compute)

        return asset

    def check(self, name: str, description: str, *, blocking: bool = True) -> dg.AssetCheckSpec:
        """The specification of a check on this asset."""
        return dg.AssetCheckSpec(name, asset=self.key, description=description, blocking=blocking)

    def materialize(
        self, context: dg.AssetExecutionContext, storage: Storage, compute: Compute
    ) -> dg.MaterializeResult[Any]:
        """Reuse or make the manifest and report it.

        Raises:
            dg.Failure: With the engine's error in three parts; not retried.
            dg.RetryRequested: A process was killed; the next attempt resumes.
        """
        try:
            return self._materialize(context, storage.open(), storage.url, compute)
        except ProcessDiedError as error:
            context.log.warning(str(error))
            raise dg.RetryRequested(max_retries=RETRIES_AFTER_DEATH) from error
        except MillraceError as error:
            raise dg.Failure(
                description=str(error),
                metadata={"asked": error.asked, "found": error.found, "fix": error.fix},
                allow_retries=False,
            ) from error

    def _materialize(
        self,
        context: dg.AssetExecutionContext,
        storage: FsspecStorage,
        url: str,
        compute: Compute,
    ) -> dg.MaterializeResult[Any]:
        inputs = {
            noun: manifests.current(storage, self.pipeline.name, noun) for noun in self.inputs
        }
        _refuse_mixed(inputs)
        inputs |= self.beside(storage, inputs)
        spec = self.tune(self.pipeline.spec, inputs)
        job = Job(
            pipeline=self.pipeline.name,
            folder=self.pipeline.folder,
            spec=spec,
            store=url,
            work=compute.work,
            inputs={noun: made.path for noun, made in inputs.items()},
            key=self._address(spec, inputs, compute.machine),
            machine=compute.machine,
            price_file=compute.price_file,
            usd_per_hour=compute.usd_per_hour,
            mtbf_hours=compute.mtbf_hours,
            storage_price=compute.storage_price(url),
        )
        made = manifests.find(storage, job.pipeline, self.noun, job.key) if inputs else None
        is_reused = made is not None
        if made is None:
            last = _last(storage, job.pipeline, self.noun)
            made = self._make(context, storage, compute, job)
            is_unchanged = last is not None and last.digest == made.digest
        else:
            is_unchanged = True
        if is_unchanged:
            context.log.info("unchanged: %s of %s is reused", made.path, made.made_at)
        manifests.point(storage, made)
        metadata, checks = self.tell(made, spec)
        return dg.MaterializeResult(
            asset_key=self.key,
            metadata=metadata
            | common(made, url, is_reused=is_reused)
            | predicted(history.of_manifest(storage, made))
            | {"unchanged": is_unchanged},
            check_results=checks,
            data_version=dg.DataVersion(made.digest),
        )

    def _address(self, spec: PipelineSpec, inputs: Inputs, machine: str) -> str:
        digests = {noun: made.digest for noun, made in inputs.items()}
        more = [machine] if self.is_of_machine else []
        return digest(self.noun, self.version, self.keyed_by(spec), digests, *more)

    def _make(
        self,
        context: dg.AssetExecutionContext,
        storage: FsspecStorage,
        compute: Compute,
        job: Job,
    ) -> Manifest:
        path = ""
        for event in compute.run(self.verb, job):
            if event["event"] == "made":
                path = event["path"]
            elif event["event"] == "validation":
                numbers = {name: value for name, value in event.items() if name != "event"}
                context.log_event(dg.AssetObservation(self.key, metadata=numbers))
                context.log.info(_sentence("validation", numbers))
            else:
                context.log.info(_log_line(event))
        assert path, f"`millrace {self.verb}` ended well without a manifest"
        return manifests.read(storage, path)


def _refuse_mixed(inputs: Inputs) -> None:
    """Refuse inputs that were not made from each other.

    A checkpoint trained on other splits than those it is evaluated on has seen its test records.
    """
    for noun, made in inputs.items():
        for origin, told in made.inputs.items():
            if origin in inputs and inputs[origin].digest != told:
                raise GateError(
                    f"use the current {noun} of {made.pipeline}",
                    f"it was made from {origin} {told[:12]}, the current one is "
                    f"{inputs[origin].digest[:12]}",
                    f"Materialize {made.pipeline}/{noun} first, or the whole pipeline in one run",
                )


def trained_spec(spec: PipelineSpec, inputs: Inputs) -> PipelineSpec:
    """The spec the current checkpoint was trained with."""
    facts = inputs["checkpoint"].facts
    return spec.with_parts({"network": facts["network"], "train": facts["train"]})


def _last(storage: FsspecStorage, pipeline: str, noun: str) -> Manifest | None:
    try:
        return manifests.current(storage, pipeline, noun)
    except NotFoundError:
        return None


def _log_line(event: Mapping[str, Any]) -> str:
    if event["event"] == "log":
        return str(event["message"])
    fields = {name: value for name, value in event.items() if name not in ("event", "what")}
    if event["event"] == "progress":
        done, total = fields.pop("done"), fields.pop("total")
        return _sentence(f"{event['what']} {done}/{total}", fields)
    return _sentence(str(event["event"]), fields)


def _sentence(head: str, fields: Mapping[str, Any]) -> str:
    shown = (
        f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in fields.items()
    )
    return f"{head}: " + ", ".join(shown)
