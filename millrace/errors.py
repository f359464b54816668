"""The errors a caller may catch, each saying what was asked, what was found and what to do.

MillraceError
├── SpecError           the user's YAML, search space or command is wrong
├── SourceError         a source file is missing, unreadable or unusable
├── StorageError        the store cannot be reached or refused
│   ├── NotFoundError       no such object
│   ├── ExistsError         a conditional write lost against another writer
│   ├── DeadlineError       the store did not answer, or not fast enough
│   ├── CorruptError        bytes do not match the digest their manifest names
│   └── VersionError        it was written in a newer format than this version reads
├── TrainingError       training ran and its outcome cannot be used (NaN, no step)
├── BudgetError         training came to its limit of time or money, and stands at a checkpoint
├── GateError           the gate does not let this checkpoint become a release
├── ProcessFailedError  a process of ours ended with an error that is not ours
└── ProcessDiedError    a process of ours was killed: worth another attempt
    └── StoppedError        it was told to stop (SIGTERM), and stands at a checkpoint
"""

from collections.abc import Mapping


class MillraceError(Exception):
    """An error in three parts that survives the trip from one process to another.

    Args:
        asked: what was to be done, naming the object.
        found: what was met instead.
        fix: what the reader can do about it.
    """

    def __init__(self, asked: str, found: str, fix: str) -> None:
        super().__init__(asked, found, fix)
        self.asked, self.found, self.fix = asked, found, fix

    def __str__(self) -> str:
        return f"{self.asked}: {self.found}. {self.fix}"

    def to_event(self) -> dict[str, str]:
        """The error as the fields of an `error` event."""
        kind = type(self).__name__
        return {"type": kind, "asked": self.asked, "found": self.found, "fix": self.fix}


class SpecError(MillraceError, ValueError):
    """The user's YAML, search space or command is wrong."""


class SourceError(MillraceError):
    """A source file is missing, unreadable or unusable."""


class StorageError(MillraceError):
    """The store cannot be reached or refused."""


class NotFoundError(StorageError):
    """No such object."""


class ExistsError(StorageError):
    """A conditional write lost against another writer."""


class DeadlineError(StorageError):
    """The store did not answer, or not fast enough."""


class CorruptError(StorageError):
    """Bytes do not match the digest their manifest names."""


class VersionError(StorageError):
    """What is to be read was written in a newer format."""


class TrainingError(MillraceError):
    """Training ran and its outcome cannot be used."""


class BudgetError(MillraceError):
    """Training came to `train.max_usd` or `train.max_hours`; it can go on from a checkpoint."""


class GateError(MillraceError):
    """The gate does not let this checkpoint become a release."""


class ProcessFailedError(MillraceError):
    """A process of ours ended with an error that is not ours: the user's network, a bug."""


class ProcessDiedError(MillraceError):
    """A process of ours was killed; another attempt may well succeed."""


class StoppedError(ProcessDiedError):
    """A training was told to stop (SIGTERM), and has written a checkpoint to go on from."""


_BY_NAME = {
    kind.__name__: kind
    for kind in (
        SpecError, SourceError, StorageError, NotFoundError, ExistsError, DeadlineError,
        CorruptError, VersionError, TrainingError, BudgetError, GateError, ProcessFailedError,
        ProcessDiedError, StoppedError,
    )
}  # fmt: skip


def from_event(event: Mapping[str, str]) -> MillraceError:
    """Rebuild the error that another process emitted with `MillraceError.to_event`."""
    kind = _BY_NAME.get(event["type"], MillraceError)
    return kind(event["asked"], event["found"], event["fix"])
