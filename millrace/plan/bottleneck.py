"""The bottleneck: where a run's seconds went, and which change would save most of them.

manifests and timing --> shares of the time
                     --> changes to the spec, each with what it would save --> the cheapest fix
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from millrace.manifest import Manifest
from millrace.plan.fit import Run
from millrace.plan.spot import Failures
from millrace.plan.time_model import Constants, reduce_seconds, step_seconds, training_seconds
from millrace.plan.words import in_seconds, in_usd
from millrace.spec import PipelineSpec

WORTH_SHARE = 0.02
"""Of a run's price: what saves less is not worth a change."""


@dataclass(frozen=True)
class Saving:
    """A change and what it would save in a run like this one."""

    fix: str
    usd: float
    seconds: float = 0.0
    """0 where it saves money alone."""


def shares(
    made: Mapping[str, Manifest], run: Run | None, constants: Constants, launch_seconds: float
) -> dict[str, float]:
    """Seconds by what they were spent on, most first; the training's by its parts.

    Args:
        made: What was made, by noun.
        run: The training; None where it told no parts.
        constants: Of the time model: they tell the all-reduce from the rest of an update.
        launch_seconds: Of the training's processes before a rank's first line, and after its end.
    """
    found = {noun: manifest.seconds for noun, manifest in made.items()}
    if run is not None and found.pop("checkpoint", None) is not None:
        timing = run.timing
        busy = max(0.0, timing.loop_seconds - timing.waited_seconds)
        reduce = busy * reduce_seconds(run.work, constants) / step_seconds(run.work, constants)
        found |= {
            "training: updates": busy - min(busy, reduce),
            "training: all-reduce": min(busy, reduce),
            "training: waiting for data": timing.waited_seconds,
            "training: validations": timing.validation_seconds,
            "training: checkpoints": timing.stall_seconds,
            "training: start": timing.start_seconds,
            "training: launch": launch_seconds,
        }
    known = {what: seconds for what, seconds in found.items() if seconds > 0}
    return dict(sorted(known.items(), key=lambda item: -item[1]))


def savings(
    spec: PipelineSpec,
    study: Manifest,
    run: Run | None,
    constants: Constants,
    mtbf_hours: float,
    usd_per_hour: float,
    num_cores: int,
) -> list[Saving]:
    """Changes to the spec that would save something, most first.

    Args:
        spec: As the run had it.
        study: What the search made.
        run: The training; None where it told no parts.
        constants: Of the time model.
        mtbf_hours: Between failures of this machine.
        usd_per_hour: Its price.
        num_cores: Of this machine.
    """
    found = _of_study(spec, study, num_cores)
    if run is not None:
        found |= _of_waits(spec, run, mtbf_hours) | _of_ranks(run, constants)
    priced = [
        Saving(fix, seconds / 3600 * usd_per_hour, seconds)
        for fix, seconds in found.items()
        if seconds > 0
    ]
    return sorted(priced, key=lambda saving: -saving.usd)


def _of_study(spec: PipelineSpec, study: Manifest, num_cores: int) -> dict[str, float]:
    search, found = spec.search, {}
    if study.facts["best_trial"] == 0 and search.trials > 1:
        half = -(-search.trials // 2)
        fix = f"`search.trials: {half}`, since no trial was better than the spec as written"
        found[fix] = study.seconds * (1 - half / search.trials)
    useful = min(num_cores // search.ranks, search.together)
    if search.workers < useful:
        found[f"`search.workers: {useful}`"] = study.seconds * (1 - search.workers / useful)
    return found


def _of_waits(spec: PipelineSpec, run: Run, mtbf_hours: float) -> dict[str, float]:
    timing, train = run.timing, spec.train
    found = {
        "samples that come faster: a larger MILLRACE_CACHE_BYTES, a nearer store, or a lower "
        "`shards.level`": timing.waited_seconds
    }
    looks = run.work.validations
    if looks > 1:
        fewer = -(-looks // 2)
        fix = f"`train.validate_every: {2 * train.validate_every}`"
        found[fix] = timing.validation_seconds * (1 - fewer / looks)
    if train.checkpoint_every != "auto" and timing.num_checkpoints:
        each = timing.stall_seconds / timing.num_checkpoints
        best = Failures(max(each, 1e-3), 0.0, 3600 * mtbf_hours).interval_seconds
        needed = min(timing.num_checkpoints, int(timing.loop_seconds / best))
        found["`train.checkpoint_every: auto`"] = each * (timing.num_checkpoints - needed)
    return found


def _of_ranks(run: Run, constants: Constants) -> dict[str, float]:
    """Fewer ranks with more threads each, by the time model: the same cores, less to agree on."""
    work = run.work
    now = training_seconds(work, constants).total
    found = {}
    for ranks in range(1, work.ranks):
        if work.batch % ranks == 0:
            threads = work.threads * work.ranks // ranks if work.device == "cpu" else 1
            fewer = work.model_copy(update={"ranks": ranks, "threads": threads})
            saved = 1 - training_seconds(fewer, constants).total / now
            found[f"`train.ranks: {ranks}` (by the time model)"] = saved * run.seconds
    return found


def sentence(spent: Mapping[str, float], found: Sequence[Saving], total_usd: float) -> str:
    """The bottleneck, its cheapest fix and what that saves."""
    total = sum(spent.values())
    what, seconds = next(iter(spent.items()))
    start = f"{what} takes most, {in_seconds(seconds)} of {in_seconds(total)}"
    best = max(found, key=lambda saving: saving.usd, default=None)
    if best is None or best.usd < WORTH_SHARE * total_usd:
        return f"{start}; no change known here saves {WORTH_SHARE:.0%} of the price"
    time = f"{in_seconds(best.seconds)} and " if best.seconds else ""
    share = best.usd / total_usd if total_usd else 0.0
    return f"{start}; the cheapest fix is {best.fix}: saves {time}{in_usd(best.usd)} ({share:.0%})"
