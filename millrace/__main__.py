"""Every process of the engine: python -m millrace VERB ..."""

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from millrace.errors import MillraceError
from millrace.job import Job
from millrace.launch import tie_to_parent
from millrace.manifest import Manifest, publish
from millrace.plan.diary import Diary
from millrace.storage import FsspecStorage
from millrace.telemetry import emit

# What a step of a pipeline runs on a job; imported when asked for, since torch alone takes seconds.
_STEPS = {
    "ingest": "millrace.data.ingest:ingest",
    "learn": "millrace.data.vocabulary:learn_tokenizer",
    "pack": "millrace.data.pack:pack",
    "forecast": "millrace.plan.forecast:forecast",
    "tune": "millrace.tune.study:tune",
    "worker": "millrace.tune.gang:run_worker",
    "trial_rank": "millrace.tune.gang:run_trial_rank",
    "train": "millrace.train.launcher:launch_ranks",
    "rank": "millrace.train.member:run_member",
    "evaluate": "millrace.evaluation.evaluate:evaluate",
    "release": "millrace.release:release",
    "account": "millrace.plan.account:account",
}
# What a person types.
_COMMANDS = {
    "export": "millrace.export:main",
    "join": "millrace.train.launcher:main",
    "plan": "millrace.plan.command:main",
    "predict": "millrace.predict:main",
    "report": "millrace.report:main",
}
USAGE = """usage: python -m millrace predict PIPELINE [--help]     ask a released model
       python -m millrace report PIPELINE [--help]      what was made, how good, at what cost
       python -m millrace plan PIPELINE [--help]        what a run will take, and where best
       python -m millrace export PIPELINE [--help]      its samples in another format
       python -m millrace join PIPELINE                 train as one more host of its training
"""


def main(arguments: Sequence[str]) -> int:
    """Run one verb; the exit status."""
    verb = arguments[0] if arguments else ""
    if verb in _COMMANDS:
        try:
            return int(_load(_COMMANDS[verb])(arguments[1:]))
        except MillraceError as error:
            sys.stderr.write(f"millrace {verb}: {error}\n")
            return 1
    if verb not in _STEPS or len(arguments) != 2:
        sys.stderr.write(USAGE)
        return 2
    tie_to_parent()
    try:
        _run_step(verb, Path(arguments[1]))
    except MillraceError as error:
        emit("error", **error.to_event())
        return 1
    return 0


def _run_step(verb: str, path: Path) -> None:
    """Run a step; the manifest it returns is published with what it took, and so is a record."""
    start = time.perf_counter()
    job = Job.model_validate_json(path.read_bytes())
    storage = FsspecStorage(job.store)
    diary = Diary(storage, job, verb)
    made = _load(_STEPS[verb])(job)
    seconds = time.perf_counter() - start
    if isinstance(made, Manifest):
        usd = seconds / 3600 * job.usd_per_hour
        made = publish(storage, replace(made, seconds=seconds, usd=usd))
        diary.keep(made, seconds)
        emit("made", path=made.path)
    elif verb == "train":  # its first rank has published
        diary.keep_published(seconds)


def _load(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return loaded


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
