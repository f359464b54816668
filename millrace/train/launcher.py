"""The engines that start a training's ranks, chosen by one line of configuration."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from millrace.errors import SpecError
from millrace.job import Job
from millrace.storage import default_store

_LAUNCHERS = {
    "local": "millrace.train.elastic:launch_local",
    "torchrun": "millrace.train.elastic:launch_hosts",
    "ray": "millrace.train.ray_cluster:launch_ray",
}


class Launcher(Protocol):
    """Runs `python -m millrace rank JOB` once per rank, and writes their events to our output."""

    def __call__(self, job: Job) -> None:
        """Return when all ranks are done.

        Raises:
            ProcessDiedError: A rank or a host was lost, and another attempt may well succeed.
            SystemExit: A rank failed, and has emitted its error.
        """


def launch_ranks(job: Job) -> None:
    """Train through the engine that the job names."""
    module, _, function = _LAUNCHERS[job.launcher].partition(":")
    try:
        launch: Launcher = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise SpecError(
            f"train {job.pipeline} with MILLRACE_COMPUTE={job.launcher}",
            f"it needs a package that is not installed ({error})",
            f"pip install 'millrace[{job.launcher}]'",
        ) from error
    launch(job)


def main(arguments: Sequence[str]) -> int:
    """`python -m millrace join PIPELINE`: take part in the trainings of the first host."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise SpecError(
            "join the trainings of a pipeline",
            f"the arguments are {list(arguments)}",
            "python -m millrace join PIPELINE, with MILLRACE_STORE and the hosts in the "
            "environment (docs/compute.md); it runs until it is stopped",
        )
    # Imported here: it loads torch.
    from millrace.train.elastic import join  # noqa: PLC0415

    home = Path(os.environ.get("DAGSTER_HOME", "dagster_home")).absolute()
    join(arguments[0], default_store(), os.environ.get("MILLRACE_WORK", str(home / "work")))
    return 0
