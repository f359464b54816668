"""The coordinator of a study: asks in waves, compares at rungs, tells when a wave is done.

    ask a wave --> rung jobs to warm workers --> losses --> report, prune --> next rung ... --> tell

A wave is told as a whole and its sampler is seeded by what came before, so a study is the same
whatever the timing and the number of workers, and one that was killed goes on as if it never was.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from millrace import manifest as manifests
from millrace.errors import CorruptError, TrainingError
from millrace.frozen import Scalar
from millrace.job import Job
from millrace.launch import write_job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, StoredFile
from millrace.telemetry import Progress, emit, log
from millrace.tune.halving import rungs
from millrace.tune.pool import Pool, Rung, RungJob
from millrace.tune.space import suggest

NOUN = "study"
REDUCTION = 3
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def tune(job: Job) -> Manifest:
    """Run the study to its number of trials and describe it with the best values found.

    Raises:
        TrainingError: No trial ended with a finite loss.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = FsspecStorage(job.store)
    shards = manifests.read(storage, job.inputs["shards"])
    folder = Path(job.work, "studies")
    path = write_job(job, "worker")
    folder.mkdir(exist_ok=True)
    try:
        with _held(folder / f"{job.pipeline}-{job.key}.lock"):
            study = _run(job, _open_database(folder / f"{job.pipeline}.db"), path)
    finally:
        path.unlink(missing_ok=True)
    return _describe(job, storage, shards, study)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock file: of two runs of one study, each would clear away the other's trials.

    The kernel lets go of it when the process dies.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another run has this study in hand: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_database(path: Path) -> RDBStorage:
    try:
        storage = RDBStorage(f"sqlite:///{path}")
        storage.get_all_studies()
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise CorruptError(
            f"open the studies in {path}",
            " ".join(str(error.__cause__ or error).split()),
            "Delete the file: its studies begin anew",
        ) from error
    return storage


def _run(job: Job, database: RDBStorage, worker_job: Path) -> optuna.Study:
    """Run the waves that the study still lacks."""
    search = job.spec.search
    study = _open_study(job, database)
    done = len(study.get_trials(deepcopy=False, states=FINISHED))
    if done:
        log(f"the study goes on after {done} trials")
    if done == search.trials:
        return study
    progress = Progress(
        "trials", search.trials, done, every_seconds=0, usd_per_hour=job.usd_per_hour
    )
    with Pool(worker_job, min(search.workers, os.cpu_count() or 1)) as pool:
        while done < search.trials:
            size = min(search.together, search.trials - done)
            _run_wave(job, study, pool, size)
            for trial in study.get_trials(deepcopy=False)[done:]:
                progress.step(None, state=trial.state.name, best_loss=_best_loss(study))
            study, done = _open_study(job, database), done + size
    return study


def _open_study(job: Job, storage: RDBStorage) -> optuna.Study:
    """The persisted study without the trials of an unfinished wave, its sampler seeded anew.

    Whole waves are kept, not single trials: the waves after a kill are then those of an unbroken
    study.
    """
    name, search = job.key, job.spec.search
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    trials: list[FrozenTrial] = []
    if name in names:
        old = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
        trials = [trial for trial in old if trial.state in FINISHED]
        if len(trials) < search.trials:
            trials = trials[: len(trials) // search.together * search.together]
        if len(trials) < len(old):
            optuna.delete_study(study_name=name, storage=storage)
            names.remove(name)
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        direction="minimize",
        sampler=optuna.samplers.TPESampler(
            seed=search.seed + len(trials), n_startup_trials=2 * search.together
        ),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=rungs(search.steps)[0], reduction_factor=REDUCTION
        ),
    )
    if name not in names:
        study.add_trials(trials)
    if not trials:
        study.enqueue_trial(job.spec.values_at(search.space))
    return study


def _run_wave(job: Job, study: optuna.Study, pool: Pool, size: int) -> None:
    search = job.spec.search
    asked = [study.ask() for _ in range(size)]
    values = {trial.number: suggest(trial, search.space) for trial in asked}
    alive, ended = list(asked), dict[int, tuple[TrialState, float | None]]()
    seconds = dict.fromkeys(values, 0.0)
    for step in rungs(search.steps):
        jobs = [RungJob(trial.number, values[trial.number], step) for trial in alive]
        found = {done.trial: rung for done, rung in _train(pool, jobs)}
        for trial in alive:
            rung = found[trial.number]
            seconds[trial.number] += rung.seconds
            ended_as = _judge(trial, step, rung, is_last=step == search.steps)
            if ended_as is not None:
                ended[trial.number] = ended_as
                pool.forget(trial.number)
        alive = [trial for trial in alive if trial.number not in ended]
    for trial in asked:
        state, loss = ended[trial.number]
        trial.set_user_attr("seconds", seconds[trial.number])
        study.tell(trial, loss, state=state)


def _train(pool: Pool, jobs: list[RungJob]) -> list[tuple[RungJob, Rung]]:
    results = []
    for done, rung in pool.run(jobs):
        emit("rung", trial=done.trial, step=done.to, loss=rung.loss if not rung.failed else None)
        if rung.failed:
            log(f"trial {done.trial} failed: {rung.failed}")
        results.append((done, rung))
    return results


def _judge(
    trial: optuna.Trial, step: int, rung: Rung, *, is_last: bool
) -> tuple[TrialState, float | None] | None:
    """How the trial ends at this rung, or None if it goes on, as the first, the default, does."""
    if rung.failed:
        return TrialState.FAIL, None
    trial.report(rung.loss, step)
    if is_last:
        return TrialState.COMPLETE, rung.loss
    if trial.should_prune() and trial.number > 0:
        return TrialState.PRUNED, None
    return None


def _best_loss(study: optuna.Study) -> float | None:
    values = [t.value for t in study.get_trials(deepcopy=False) if t.value is not None]
    return min(values, default=None)


def _describe(job: Job, storage: FsspecStorage, shards: Manifest, study: optuna.Study) -> Manifest:
    trials = study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    if not complete:
        raise TrainingError(
            f"find the best of {len(trials)} trials of {job.pipeline}",
            "none ended with a finite loss",
            "Narrow `search.space`, look at the trials' errors above, or check the network",
        )
    best = min(complete, key=lambda trial: (trial.value, trial.number))
    rows = [_row(trial, job) for trial in trials]
    seconds = {trial.number: trial.user_attrs["seconds"] for trial in trials}
    path = f"{manifests.folder(job.pipeline, NOUN, job.key)}/study.json"
    export = json.dumps({"study": job.key, "trials": rows}, indent=1).encode()
    default = trials[0].value
    facts = {
        "trials": rows,
        "best_trial": best.number,
        "best_values": rows[best.number]["values"],
        "best_loss": best.value,
        "default_loss": default,
        "rungs": list(rungs(job.spec.search.steps)),
        "importance": _importance(study),
    }
    return Manifest(
        job.pipeline,
        NOUN,
        job.key,
        inputs={"shards": shards.digest},
        files=(StoredFile.written(storage, path, export),),
        facts=facts,
        measured={"seconds_by_trial": seconds},
    )


def _row(trial: FrozenTrial, job: Job) -> dict[str, Any]:
    values: dict[str, Scalar] = {path: trial.params[path] for path in job.spec.search.space}
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": values,
        "loss": trial.value,
        "rungs": {str(step): loss for step, loss in trial.intermediate_values.items()},
    }


def _importance(study: optuna.Study) -> dict[str, float]:
    """Share of each field in how good a trial was (PED-ANOVA, Watanabe et al. 2023)."""
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    complete = [t for t in study.get_trials(deepcopy=False) if t.state is TrialState.COMPLETE]
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    return optuna.importance.get_param_importances(study, evaluator=evaluator)
