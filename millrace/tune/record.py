"""The record of a study in Optuna's storage: every trial once, when it has ended.

What is known of those that rest at a rung stands beside them, as attributes of the study.

The study itself is in the coordinator's memory. What is recorded serves people (`optuna-dashboard`
on the same URL) and a coordinator that takes the place of one that died: it begins the study anew,
and what is recorded need not be trained again. So no trial is ever RUNNING in the storage.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from millrace.errors import CorruptError, SpecError, StorageError
from millrace.tune.memo import Key
from millrace.tune.rung import Rung, Training, settings

VARIABLE = "MILLRACE_STUDIES"
WAIT_SECONDS = 20
"""For a database that is locked, or does not answer."""
_NUMBER, _REPETITIONS, _RESTING = "trial", "repetitions", "resting"
_DAMAGED = ("not a database", "malformed", "Expecting", "Extra data")


class Record:
    """One study in a storage.

    Args:
        url: `sqlite:///FILE`, `postgresql+psycopg2://..` or `journal:///FILE`.
        name: Of the study; made if there is none.

    Raises:
        SpecError: The URL is none of these.
        CorruptError: The storage is damaged.
        StorageError: The storage cannot be used.
    """

    def __init__(self, url: str, name: str) -> None:
        self._file, self._shown = _place(url)
        with self._guarded("open the studies", is_made=False):
            self._study = optuna.create_study(
                study_name=name, storage=_open(url, self._file), load_if_exists=True
            )
            trials = self._study.get_trials(deepcopy=False)
        self._trials = {int(trial.user_attrs[_NUMBER]): trial for trial in trials}
        rows = (name for name in self._attributes() if name.startswith(_RESTING))
        self._resting = {int(name.split()[1]) for name in rows}

    @property
    def num_trials(self) -> int:
        """Trials of which something is recorded."""
        return len(self._trials.keys() | self._resting)

    def known(self) -> dict[Key, Rung]:
        """All that has been trained, by what decides it."""
        known: dict[Key, Rung] = {}
        attributes = self._attributes()
        resting = [row for name, row in attributes.items() if name.startswith(_RESTING)]
        for row in [*map(_row, self._trials.values()), *resting]:
            for key, rung in _rungs(row):
                if key not in known or known[key].seconds < rung.seconds:  # 0: it was known before
                    known[key] = rung
        for name, told in self._repetitions().items():
            number, repetition = map(int, name.split(":"))
            if number in self._trials:
                values = settings(self._trials[number].params)
                known[values, repetition, told["step"]] = Rung(**told | {"loss": _nan(told)})
        return known

    def add(self, trial: FrozenTrial) -> None:
        """Record a trial that has come to rest or has ended, unless it is.

        Raises:
            StorageError: The storage cannot be written.
        """
        if trial.number in self._trials:
            return
        if not trial.state.is_finished():
            with self._guarded(f"record trial {trial.number}"):
                self._study.set_user_attr(f"{_RESTING} {trial.number}", _row(trial))
            self._resting.add(trial.number)
            return
        with self._guarded(f"record trial {trial.number}"):
            trial.user_attrs[_NUMBER] = trial.number
            self._study.add_trial(trial)
        self._trials[trial.number] = trial

    def add_repetition(self, training: Training, rung: Rung) -> None:
        """Record how a repetition ended, unless it is.

        Raises:
            StorageError: The storage cannot be written.
        """
        name, told = "{}:{}".format(*training), self._repetitions()
        if name in told:
            return
        row = {
            "loss": None if math.isnan(rung.loss) else rung.loss,
            "step": rung.step,
            "seconds": rung.seconds,
            "failed": rung.failed,
        }
        with self._guarded(f"record repetition {training[1]} of trial {training[0]}"):
            self._study.set_user_attr(_REPETITIONS, told | {name: row})

    def _repetitions(self) -> dict[str, dict[str, Any]]:
        return dict(self._attributes().get(_REPETITIONS, {}))

    def _attributes(self) -> dict[str, Any]:
        with self._guarded("read the study"):
            return self._study.user_attrs

    @contextmanager
    def _guarded(self, asked: str, *, is_made: bool = True) -> Iterator[None]:
        """Tell what goes wrong in three parts."""
        try:
            if is_made and self._file is not None and not self._file.exists():
                raise FileNotFoundError("the file is gone")  # SQLite would go on writing to it
            yield
        except (SQLAlchemyError, StorageInternalError, OSError, ValueError) as error:
            cause = error.__cause__ or error
            found = " ".join(str(getattr(cause, "orig", cause)).split())  # without the statement
            asked = f"{asked} in {self._shown}"
            if any(words in found for words in _DAMAGED):
                fix = "Delete the file: its studies begin anew"
                raise CorruptError(asked, found, fix) from error
            fix = "Make room, or let the database answer, and run it again: the study goes on"
            raise StorageError(asked, found, fix) from error


def studies_url(default: Path) -> str:
    """Where studies are recorded: as the environment says, else in an SQLite file."""
    return os.environ.get(VARIABLE) or f"sqlite:///{default}"


def _place(url: str) -> tuple[Path | None, str]:
    """The file behind a URL, if it is one, and the URL without its password."""
    try:
        parsed = make_url(url)
    except SQLAlchemyError:
        parsed = None
    kind = parsed.get_backend_name() if parsed is not None else ""
    if parsed is None or kind not in ("sqlite", "postgresql", "journal") or not parsed.database:
        raise SpecError(
            f"record studies where {VARIABLE} says",
            f"a URL of kind {kind or 'unknown'!r}, or without a database",
            "Use sqlite:////folder/file.db, postgresql+psycopg2://user:password@host/database or "
            "journal:////folder/file.log",
        )
    if kind == "postgresql":
        return None, parsed.render_as_string(hide_password=True)
    return Path(parsed.database), parsed.database


def _open(url: str, file: Path | None) -> BaseStorage:
    if file is None:
        waits = f"-c lock_timeout={WAIT_SECONDS}s -c statement_timeout={WAIT_SECONDS}s"
        arguments = {"connect_timeout": WAIT_SECONDS, "options": waits}
        return RDBStorage(url, engine_kwargs={"connect_args": arguments})
    file.parent.mkdir(parents=True, exist_ok=True)
    if url.startswith("journal:"):
        return JournalStorage(JournalFileBackend(str(file)))
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": WAIT_SECONDS}})


def _row(trial: FrozenTrial) -> dict[str, Any]:
    """What is known of a trial, in plain values."""
    losses = {str(step): loss for step, loss in trial.intermediate_values.items()}
    return {"values": dict(trial.params), "losses": losses, **trial.user_attrs}


def _rungs(row: Mapping[str, Any]) -> Iterator[tuple[Key, Rung]]:
    """What a recorded trial's rungs were found to be."""
    for name, told in row["rungs"].items():
        loss = row["losses"].get(name, math.nan)
        yield (
            (settings(row["values"]), 0, told["to"]),
            Rung(
                loss,
                told["step"],
                told["seconds"],
                row.get("failed", "") if math.isnan(loss) else "",
                row.get("memory_bytes", 0),
                row.get("latency_seconds", 0.0),
                told["step_seconds"],
            ),
        )


def _nan(row: Mapping[str, Any]) -> float:
    return math.nan if row["loss"] is None else float(row["loss"])
