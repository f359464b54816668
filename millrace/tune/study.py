"""The study of a pipeline: from its job to a manifest with the values that train best.

smaller widths, where the full one is too dear --> a learning rate
the default, that rate, the last study's best --> coordinator <--> memo <--> warm workers
                                           each trial that ends --> the record
                                           the choice --> manifest and export on the store
"""

import contextlib
import fcntl
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from millrace import manifest as manifests
from millrace.errors import NotFoundError, StorageError
from millrace.frozen import Scalar
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, StoredFile
from millrace.telemetry import emit, log
from millrace.tune.coordinator import Coordinator, new_study
from millrace.tune.halving import rungs
from millrace.tune.memo import Memo
from millrace.tune.places import placed
from millrace.tune.pool import WorkerPool
from millrace.tune.proposals import leaders, proposals
from millrace.tune.record import Record, studies_url
from millrace.tune.repetitions import Choice
from millrace.tune.transfer import Transfer, through, transfer

NOUN = "study"


def tune(job: Job) -> Manifest:
    """Run the study to its end and describe it with the best values found.

    Raises:
        TrainingError: No trial ended with a finite loss inside the limits.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = FsspecStorage(job.store)
    shards = manifests.read(storage, job.inputs["shards"])
    folder = Path(job.work, "studies")
    with (
        _held(folder / f"{job.pipeline}-{job.key}.lock"),
        placed(job) as (here, start),
        WorkerPool(start, here.spec.search.workers) as pool,
    ):
        record = Record(studies_url(folder / f"{job.pipeline}.db"), job.key)
        if record.num_trials:
            log(f"the study goes on after {record.num_trials} trials")
        narrow = _transfer(here, storage, pool)
        first = _proposals(job, narrow, _last_trials(job, storage))
        study = new_study(here.spec.search, first)
        memo = Memo(pool, record.known())
        left_seconds = _budget_seconds(here) - narrow.seconds
        coordinator = Coordinator(study, here.spec.search, memo, left_seconds)
        choice = _run(here, coordinator, record)
    return _describe(here, storage, shards, study, coordinator, choice, narrow)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock file: two runs of one study would train everything twice.

    The kernel lets go of it when the process dies.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        fix = "Set MILLRACE_WORK to a folder that can be written to"
        raise StorageError(f"hold {path}", str(error), fix) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another run has this study in hand: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _usd_per_second(job: Job) -> float:
    """Of one worker: they share the machines."""
    return job.usd_per_hour / 3600 / job.spec.search.workers


def _budget_seconds(job: Job) -> float:
    """The study's limits of time and of money as device-seconds."""
    search, price = job.spec.search, _usd_per_second(job)
    seconds = math.inf if search.max_seconds == "none" else search.max_seconds
    if search.max_usd == "none" or price == 0:
        return seconds
    return min(seconds, search.max_usd / price)


def _last_trials(job: Job, storage: FsspecStorage) -> list[dict[str, Any]]:
    """The trials of this pipeline's last study, none where there is none but this one."""
    try:
        last = manifests.current(storage, job.pipeline, NOUN)
    except NotFoundError:
        return []
    except StorageError as error:
        log(f"the study begins without the last one's best values: {error}")
        return []
    return [] if last.key == job.key else list(last.facts["trials"])


def _transfer(job: Job, storage: FsspecStorage, pool: WorkerPool) -> Transfer:
    """What smaller widths tell of this one, as an earlier process of the study found it, or now."""
    path = f"{manifests.folder(job.pipeline, NOUN, job.key)}/transfer.json"
    try:
        return Transfer.from_dict(json.loads(storage.read(path)))
    except NotFoundError:
        pass
    except (StorageError, LookupError, TypeError, ValueError) as error:
        log(f"smaller widths are trained anew: {path}: {error}")
    found = transfer(job.spec, _budget_seconds(job), through(pool))
    if found.seconds:
        log(f"learning rate from smaller widths {found.why}")
        storage.write(path, json.dumps(found.to_dict(), indent=1).encode())
    return found


def _proposals(
    job: Job, narrow: Transfer, last_trials: list[dict[str, Any]]
) -> list[dict[str, Scalar]]:
    space = job.spec.search.space
    default = job.spec.values_at(space)
    others = [*narrow.values, *leaders(last_trials)]
    found = proposals(default, others, space)
    if len(found) > 1:
        log(
            f"{len(found) - 1} are tried after the default, from smaller widths "
            f"({len(narrow.values)}) and the last study"
        )
    return found


def _run(job: Job, coordinator: Coordinator, record: Record) -> Choice:
    """Run a study to its end, recording what comes to rest and what ends."""
    done = 0
    for trial in coordinator.search():
        record.add(trial)
        for training, rung in coordinator.repeated():
            record.add_repetition(training, rung)
        if coordinator.num_seen > done or trial.state is TrialState.COMPLETE:
            done = coordinator.num_seen
            _tell_progress(job, coordinator, done, trial.state.name)
    for training, rung in coordinator.repeat():
        record.add_repetition(training, rung)
    return coordinator.choice()


def _tell_progress(job: Job, coordinator: Coordinator, done: int, state: str) -> None:
    """How far the study is, what it has cost, and what is left of it."""
    search, account = job.spec.search, coordinator.account
    left = account.spent_seconds / done * (search.trials - done)
    left += coordinator.repetition_seconds
    left = min(left, account.budget_seconds - account.spent_seconds)
    emit(
        "progress",
        what="trials",
        done=done,
        total=search.trials,
        state=state,
        best_loss=coordinator.best_loss,
        spent_seconds=round(account.spent_seconds, 3),
        usd=round(account.spent_seconds * _usd_per_second(job), 6),
        eta_seconds=round(max(0.0, left) / search.workers, 1),
    )


def _describe(
    job: Job,
    storage: FsspecStorage,
    shards: Manifest,
    study: optuna.Study,
    coordinator: Coordinator,
    choice: Choice,
    narrow: Transfer,
) -> Manifest:
    trials = [one for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
    rows = [_row(trial, choice) for trial in trials]
    path = f"{manifests.folder(job.pipeline, NOUN, job.key)}/study.json"
    export = json.dumps({"study": job.key, "trials": rows}, indent=1).encode()
    found = coordinator.correlation
    facts = {
        "trials": rows,
        "best_trial": choice.trial,
        "best_values": rows[choice.trial]["values"],
        "best_loss": rows[choice.trial]["loss"],
        "best_mean": _finite(choice.mean(choice.trial)),
        "default_loss": rows[0]["loss"],
        "default_mean": _finite(choice.mean(0)),
        "seed_noise": _finite(choice.noise),
        "rungs": list(rungs(job.spec.search.steps)),
        "rung_correlation": _finite(found.value),
        "num_correlated": found.num_trials,
        "is_first_rung_given_up": coordinator.is_first_rung_given_up,
        "stopped": coordinator.stopped,
        "importance": _importance(study),
        "transfer": narrow.verified_by(rows).to_dict(),
    }
    seconds = {str(trial.number): _seconds(trial) for trial in trials}
    spent = coordinator.account.spent_seconds + narrow.seconds
    return Manifest(
        job.pipeline,
        NOUN,
        job.key,
        inputs={"shards": shards.digest},
        files=(StoredFile.written(storage, path, export),),
        facts=facts,
        measured={
            "seconds_by_trial": seconds,
            "spent_seconds": spent,
            "spent_usd": spent * _usd_per_second(job),
        },
    )


def _row(trial: FrozenTrial, choice: Choice) -> dict[str, Any]:
    own = trial.value if trial.state is TrialState.COMPLETE else None
    fresh = [_finite(loss) for loss in choice.losses.get(trial.number, ())[1:]]
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": dict(trial.params),
        "loss": own,
        "repetitions": fresh,
        "rungs": {str(step): loss for step, loss in trial.intermediate_values.items()},
        "constraints": trial.constraints,
    }


def _seconds(trial: FrozenTrial) -> float:
    return sum(float(row["seconds"]) for row in trial.user_attrs["rungs"].values())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _importance(study: optuna.Study) -> dict[str, float]:
    """Share of each field in how good a trial was (PED-ANOVA, Watanabe et al. 2023)."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()  # loads sklearn: 1 CPU second
    return optuna.importance.get_param_importances(study, evaluator=evaluator)
