import math
import os
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text

from millrace.errors import CorruptError, SpecError, StorageError
from millrace.search import SearchSpec
from millrace.tune import record as records
from millrace.tune.coordinator import Coordinator, new_study
from millrace.tune.memo import Memo
from millrace.tune.record import VARIABLE, Record, studies_url
from millrace.tune.rung import Rung, Training
from tests.formula_pool import FormulaPool, bowl

STORAGES = ("sqlite", "journal", pytest.param("postgres", marks=pytest.mark.services))
RATE = {"train.learning_rate": {"low": 1e-4, "high": 1.0, "log": True}}
SEARCH = SearchSpec.model_validate({"space": RATE, "trials": 12})
NAME = "0123abcd"


@pytest.fixture(params=STORAGES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a storage of each kind."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if request.param == "postgres":
        found: str = request.getfixturevalue("postgres_url")
        return found
    return f"{request.param}:///{tmp_path / 'studies'}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return tmp_path / "studies.db"


@pytest.fixture(scope="module")
def ended() -> tuple[list[FrozenTrial], list[tuple[Training, Rung]]]:
    """The trials and repetitions of a study in which some fail."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pool = FormulaPool(
        lambda values, step, repetition: (
            math.nan
            if float(values["train.learning_rate"]) > 0.5
            else bowl(values, step, repetition)
        )
    )
    study = new_study(SEARCH, [{"train.learning_rate": 0.3}, {"train.learning_rate": 0.6}])
    coordinator = Coordinator(study, SEARCH, pool)
    return list(coordinator.search()), list(coordinator.repeat())


Ended = tuple[list[FrozenTrial], list[tuple[Training, Rung]]]


def add_all(record: Record, ended: Ended) -> None:
    for trial in ended[0]:
        record.add(trial)
    for training, rung in ended[1]:
        record.add_repetition(training, rung)


def test_what_is_recorded_need_not_be_trained_again(url: str, ended: Ended) -> None:
    trials, repetitions = ended
    for _ in range(2):  # by a coordinator that was killed, and by the next one
        add_all(Record(url, NAME), ended)

    record, pool = Record(url, NAME), FormulaPool()
    study = new_study(SEARCH, [{"train.learning_rate": 0.3}, {"train.learning_rate": 0.6}])
    anew = Coordinator(study, SEARCH, Memo(pool, record.known()))
    again, repeated = list(anew.search()), list(anew.repeat())

    assert record.num_trials == 12
    assert [trial.number for trial in again] == [trial.number for trial in trials]
    assert [trial.params for trial in again] == [trial.params for trial in trials]
    assert [training for training, _ in repeated] == [training for training, _ in repetitions]
    assert pool.trained == []


def test_a_storage_is_read_by_optuna_as_a_dashboard_would(url: str, ended: Ended) -> None:
    name = "shown"
    add_all(Record(url, name), ended)
    storage: str | optuna.storages.BaseStorage = url
    if url.startswith("journal"):
        backend = optuna.storages.journal.JournalFileBackend(url.removeprefix("journal:///"))
        storage = optuna.storages.JournalStorage(backend)

    shown = optuna.load_study(study_name=name, storage=storage)

    trials = shown.get_trials(deepcopy=False)
    whole = [trial for trial in ended[0] if trial.state.is_finished()]
    assert [trial.user_attrs["trial"] for trial in trials] == [trial.number for trial in whole]
    assert {trial.state for trial in trials} == {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }
    best = [trial for trial in ended[0] if trial.value == shown.best_value]
    assert [trial.params for trial in best] == [shown.best_params]


def test_a_file_that_is_gone_is_noticed_and_the_next_one_begins_anew(
    file: Path, ended: Ended
) -> None:
    record = Record(f"sqlite:///{file}", NAME)
    record.add(ended[0][0])
    file.unlink()

    with pytest.raises(StorageError, match=r"record trial \d+ in .*studies\.db: the file is gone"):
        record.add(ended[0][1])

    assert Record(f"sqlite:///{file}", NAME).num_trials == 0


def test_a_locked_database_is_named_and_goes_on_when_it_is_let_go(
    file: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "WAIT_SECONDS", 0.2)
    record = Record(f"sqlite:///{file}", NAME)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match=r"database is locked\. Make room, or let"):
            record.add(ended[0][0])

    anew = Record(f"sqlite:///{file}", NAME)
    anew.add(ended[0][0])

    assert Record(f"sqlite:///{file}", NAME).num_trials == 1


def test_a_full_disk_is_named_and_the_study_goes_on_when_there_is_room(
    file: Path, ended: Ended
) -> None:
    record = Record(f"sqlite:///{file}", NAME)
    record.add(ended[0][0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"record trial .*Make room"):
            add_all(record, ended)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    add_all(Record(f"sqlite:///{file}", NAME), ended)

    assert record.num_trials == 1
    assert Record(f"sqlite:///{file}", NAME).num_trials == 12


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_damaged_storage_is_named(file: Path, kind: str) -> None:
    file.write_bytes(b"this is no database\n" * 100)

    with pytest.raises(CorruptError, match=r"studies\.db: .*Delete the file"):
        Record(f"{kind}:///{file}", NAME)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match="open the studies in "):
        Record(f"sqlite:///{tmp_path / 'file' / 'studies.db'}", NAME)


@pytest.mark.services
def test_a_locked_postgres_is_named_without_its_password(
    postgres_url: str, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "WAIT_SECONDS", 1)
    record = Record(postgres_url, "locked")
    engine = create_engine(postgres_url)
    with engine.connect() as other:
        other.execute(text("LOCK TABLE trials IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(StorageError, match="record trial") as caught:
            record.add(ended[0][0])
    engine.dispose()
    record.add(ended[0][0])

    assert "secret" not in str(caught.value)
    assert "timeout" in caught.value.found
    assert record.num_trials == 1


@pytest.mark.parametrize(
    "url", ["mysql://user:secret@host/db", "studies.db", "sqlite://", "redis://host", "nonsense:"]
)
def test_a_url_of_no_storage_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SpecError, match=f"record studies where {VARIABLE} says") as caught:
        Record(url, NAME)

    assert "secret" not in str(caught.value)


def test_the_environment_says_where_studies_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert studies_url(tmp_path / "p.db") == f"sqlite:///{tmp_path}{os.sep}p.db"

    monkeypatch.setenv(VARIABLE, "journal:////tmp/studies.log")
    assert studies_url(tmp_path / "p.db") == "journal:////tmp/studies.log"
