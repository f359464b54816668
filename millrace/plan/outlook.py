"""The outlook: what a study and a training will take, decided from what is known of them.

evidence + entries of earlier runs --> time model --> intervals --> compute options --> the choice
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from millrace.cost import Prices
from millrace.data.bill import STEPS_SHARE_OF_A_TRIAL
from millrace.errors import GateError
from millrace.frozen import Frozen
from millrace.plan.evidence import Evidence
from millrace.plan.fit import Run, TimeModel, errors_left_out, fit
from millrace.plan.history import Entry, runs_of
from millrace.plan.options import Demand, Option, cheapest, options
from millrace.plan.spread import Interval, spread
from millrace.plan.stages import predict_step, size_of
from millrace.plan.time_model import default_constants, step_seconds, training_seconds
from millrace.spec import PipelineSpec, TrainSpec
from millrace.work import NonNegative, Work

STUDY_START_SECONDS = 3.0
"""Until a study's workers have loaded torch and the data: a guess, of two cores."""
LOOKS_OF_A_TRIAL = 13 / 9
"""Validations of a trial: at a ninth; of the better third at a third, and of theirs at the end."""
CHECKPOINT_BYTES_PER_SECOND = 2e8
CHECKPOINT_SECONDS = 0.05
"""Of a checkpoint: a guess until a training has written one."""
LAUNCH_SECONDS = 4.0
"""From a failure to a rank's first line: a guess, of two cores."""
PRIOR_MEMORY = (3e8, 1.0, 1.5)
"""Bytes of a process with torch, then multiples of the state's and of the kept bytes."""


class Outlook(Frozen):
    """What is predicted of a run, and the compute option that was chosen for it."""

    machine: str
    """Kind of the machine that was planned on."""
    basis: str
    """What the predictions rest on, in words."""
    study: Interval
    """Seconds."""
    training: Interval
    """Seconds of a training that nothing interrupts."""
    step_seconds: NonNegative
    """Of one update."""
    shares: dict[str, float]
    """Of the training's seconds: start, updates, validations."""
    memory_bytes: Interval
    """The most that a rank holds."""
    options: tuple[Option, ...]
    """Study and training together, this machine first."""
    chosen: str
    """The cheapest option inside the deadline; empty where there is none."""
    deadline_hours: float | None
    """None: without one."""

    @property
    def here(self) -> Option:
        """The run on the machine that was planned on."""
        return self.options[0]


@dataclass(frozen=True)
class Past:
    """What earlier runs of a pipeline took."""

    trainings: Sequence[Entry]
    studies: Sequence[Entry]


def foresee(
    spec: PipelineSpec,
    evidence: Evidence,
    past: Past,
    prices: Prices,
    machine: str,
    num_cores: int,
    deadline_hours: float = math.inf,
) -> Outlook:
    """Predict a study and a training.

    Args:
        spec: What is to be run.
        evidence: What is known of it before it runs.
        past: What earlier runs took.
        prices: All machines.
        machine: The kind of this one.
        num_cores: Of this one.
        deadline_hours: Study and training are to be done in; infinite: whenever.
    """
    evidence = evidence.of_spec(spec)
    work = expected_work(evidence, past.trainings)
    prior = default_constants(work.device)
    runs = runs_of(past.trainings, machine, work.device)
    model = TimeModel.of([*evidence.probes, *runs], prior)
    parts = training_seconds(work, model.constants)
    demand = Demand(
        machine,
        num_cores,
        study=_study(spec, evidence, past, model, machine),
        training=_training(work, evidence, model, errors_left_out(runs, prior, evidence.probes)),
        work=work,
        constants=model.constants,
        checkpoint_seconds=_checkpoint_seconds(runs, work),
        restart_seconds=LAUNCH_SECONDS + parts.start,
        watts=_measured_watts([*past.trainings, *past.studies], machine),
        speeds=_measured_speeds(past.trainings, model, work, machine),
    )
    found = options(demand, prices)
    best = cheapest(found, deadline_hours)
    return Outlook(
        machine=machine,
        basis=_basis(evidence, runs),
        study=demand.study,
        training=demand.training,
        step_seconds=model.step_seconds(work),
        shares={name: seconds / parts.total for name, seconds in asdict(parts).items()},
        memory_bytes=_memory(work, evidence, past.trainings, machine),
        options=tuple(found),
        chosen=best.name if best else "",
        deadline_hours=deadline_hours if math.isfinite(deadline_hours) else None,
    )


def _training(
    work: Work, evidence: Evidence, model: TimeModel, errors: Sequence[float]
) -> Interval:
    """Seconds of a training, the interval reaching over whatever the study may make of it."""
    around = [model.seconds(variant) for variant in (work, evidence.work, *evidence.variants)]
    low, high = (spread(end, errors) for end in (min(around), max(around)))
    return Interval(value=model.seconds(work), low=low.low, high=high.high)


def expected_work(evidence: Evidence, trainings: Sequence[Entry]) -> Work:
    """The training that the study will probably ask for: the last one's, if it can be.

    The search space's ends bound the parameters; an entry outside them is of another network.
    """
    known = [evidence.work, *evidence.variants]
    sizes = [work.parameters for work in known]
    last = next((entry.work for entry in reversed(trainings) if entry.work), None)
    if last is None or last.device != evidence.work.device:
        return evidence.work
    fits = min(sizes) <= last.parameters <= max(sizes)
    fits = fits and last.batch in {work.batch for work in known}
    if not fits or last.ranks != evidence.work.ranks:
        return evidence.work
    now = evidence.work
    told = {name: getattr(now, name) for name in ("steps", "validations", "validate_samples")}
    return last.model_copy(update=told)


def refusal(
    pipeline: str, train: TrainSpec, training: Interval, usd_per_hour: float
) -> GateError | None:
    """Why this training is not to be begun: even its low end exceeds `max_usd` or `max_hours`."""
    low_usd = training.low / 3600 * usd_per_hour
    asked = f"train {pipeline} within"
    fix = "Raise the limit, or lower `train.steps`, the batch or the network's size"
    if train.max_usd != "none" and low_usd > train.max_usd:
        found = f"even the low end of its predicted price is {low_usd:.4g} USD"
        return GateError(f"{asked} train.max_usd {train.max_usd:g}", found, fix)
    if train.max_hours != "none" and training.low > 3600 * train.max_hours:
        found = f"even the low end of its predicted time is {training.low / 3600:.4g} hours"
        return GateError(f"{asked} train.max_hours {train.max_hours:g}", found, fix)
    return None


def _study(
    spec: PipelineSpec, evidence: Evidence, past: Past, model: TimeModel, machine: str
) -> Interval:
    """By earlier studies of this pipeline on such a machine; before any, by its trials' steps."""
    known = predict_step(past.studies, size_of("study", spec, {}), machine)
    if known is not None:
        return known
    search, trial = spec.search, evidence.trial
    together = min(search.workers, search.together, search.trials)
    looks = trial.model_copy(update={"validations": 1})
    each = (
        STEPS_SHARE_OF_A_TRIAL * search.steps * step_seconds(trial, model.constants)
        + LOOKS_OF_A_TRIAL * training_seconds(looks, model.constants).validations
    )
    return spread(STUDY_START_SECONDS + search.trials * each / together, [])


def _checkpoint_seconds(runs: Sequence[Run], work: Work) -> float:
    """The loop held up by one checkpoint, as earlier runs were; before any, by its bytes."""
    timings = [run.timing for run in runs if run.timing.num_checkpoints]
    if timings:
        return float(np.median([one.stall_seconds / one.num_checkpoints for one in timings]))
    return CHECKPOINT_SECONDS + work.state_bytes / CHECKPOINT_BYTES_PER_SECOND


def _memory(work: Work, evidence: Evidence, trainings: Sequence[Entry], machine: str) -> Interval:
    """Peak bytes of a rank, from earlier trainings and the probe's process."""
    known = [
        (entry.work, float(entry.memory_bytes))
        for entry in trainings
        if entry.machine == machine and entry.work and entry.memory_bytes
    ]
    if evidence.memory_bytes and evidence.probes and work.device == "cpu":
        known.append((evidence.probes[0].work, float(evidence.memory_bytes)))
    value = _predicted_bytes(work, known)
    errors = [
        math.log(found / _predicted_bytes(one, [*known[:i], *known[i + 1 :]]))
        for i, (one, found) in enumerate(known)
        if len(known) > 1
    ]
    return spread(value, errors)


def _predicted_bytes(work: Work, known: Sequence[tuple[Work, float]]) -> float:
    prior = np.array(PRIOR_MEMORY)
    if not known:
        return float(prior @ _memory_quantities(work))
    rows = np.array([_memory_quantities(one) for one, _ in known])
    found = fit(rows, np.array([taken for _, taken in known]), prior)
    return float(found @ _memory_quantities(work))


def _memory_quantities(work: Work) -> tuple[float, float, float]:
    return (1.0, work.state_bytes, work.share / work.microbatches * work.kept_bytes_per_sample)


def _measured_watts(entries: Sequence[Entry], machine: str) -> float:
    """Mean power of earlier runs here, where the machine told it; else 0."""
    told = [entry for entry in entries if entry.machine == machine and entry.joules]
    seconds = math.fsum(entry.seconds for entry in told)
    return math.fsum(entry.joules for entry in told) / seconds if seconds else 0.0


def _measured_speeds(
    trainings: Sequence[Entry], model: TimeModel, here: Work, machine: str
) -> dict[str, float]:
    """Speed of other machines beside this one: what their trainings would take here, to there."""
    ratios: dict[str, list[float]] = {}
    for entry in trainings:
        if entry.machine != machine and entry.run is not None and entry.run.seconds > 0:
            told = {"threads": here.threads, "device": here.device}
            seconds = model.seconds(entry.run.work.model_copy(update=told))
            ratios.setdefault(entry.machine, []).append(seconds / entry.run.seconds)
    return {name: float(np.median(found)) for name, found in ratios.items()}


def _basis(evidence: Evidence, runs: Sequence[Run]) -> str:
    probed = f"a probe of {evidence.probes[0].work.steps} steps" if evidence.probes else "no probe"
    trainings = f"{len(runs)} recorded training" + ("" if len(runs) == 1 else "s")
    return f"{probed} and {trainings}"
