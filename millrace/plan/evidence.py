"""What is known of a training before it runs: its quantities, and what a few steps of it took."""

from collections.abc import Iterable

from millrace.frozen import Frozen, NonNegativeInt, digest
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.plan.fit import Run
from millrace.spec import PipelineSpec
from millrace.work import Work


class Evidence(Frozen):
    """Quantities of a training and of the study's trials, and probes of both."""

    key: str
    """Of what it depends on: another network, batch or machine asks for new evidence."""
    work: Work
    """The training as the spec is written."""
    variants: tuple[Work, ...] = ()
    """The training at the ends of the search space, as far as they change its quantities."""
    trial: Work
    """A trial of the study, of `search.steps` steps, before it is pruned."""
    probes: tuple[Run, ...] = ()
    """What their probes took, alone on the machine."""
    memory_bytes: NonNegativeInt = 0
    """Held by the process that tried; 0: it was no process of its own kind."""

    def of_spec(self, spec: PipelineSpec) -> "Evidence":
        """The same for other numbers of steps and validations, which nothing else depends on."""
        train = spec.train
        told = {
            "steps": train.steps,
            "validations": train.num_validations,
            "validate_samples": min(train.validate_samples, self.work.validate_samples)
            or train.validate_samples,
        }
        return self.model_copy(
            update={
                "work": self.work.model_copy(update=told),
                "variants": tuple(work.model_copy(update=told) for work in self.variants),
                "trial": self.trial.model_copy(update={"steps": spec.search.steps}),
            }
        )


def evidence_key(job: Job, shards: Manifest, num_cores: int) -> str:
    """What evidence depends on: all but how long is trained, and what changes no step's time."""
    spec = job.spec
    fields = {"batch", "ranks", "optimizer"}
    return digest(
        spec.network.model_dump(),
        source_digest(spec.network, job.folder),
        spec.train.model_dump(include=fields),
        spec.search.model_dump(include={"space", "together", "ranks"}),
        shards.facts["fields"],
        job.machine,
        num_cores,
    )


def from_run(key: str, work: Work, spec: PipelineSpec) -> Evidence:
    """Evidence without a probe: the quantities of the last recorded training of this pipeline."""
    trial = work.model_copy(update={"ranks": spec.search.ranks, "batch": spec.train.batch})
    return Evidence(key=key, work=work, trial=trial).of_spec(spec)


def extremes(spec: PipelineSpec) -> Iterable[PipelineSpec]:
    """The spec at the ends of each searched field that changes what a step is."""
    for path, values in spec.search.space.items():
        if path.startswith("network.") or path == "train.batch":
            for value in values.samples():
                if value != spec.values_at([path])[path]:
                    yield spec.with_values({path: value})
