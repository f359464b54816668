"""Start the ranks of a training through torch elastic on this machine, one process each."""

import os
import sys
import uuid

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from millrace.errors import ProcessDiedError
from millrace.job import Job
from millrace.launch import environment_of_child, write_job


def launch_ranks(job: Job) -> None:
    """Run `python -m millrace rank` once per rank until all are done.

    Args:
        job: What to train, with the number of ranks; each rank reads it as JSON.

    Raises:
        ProcessDiedError: A rank was killed. (One that fails emits its error itself.)
        SystemExit: A rank failed.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.spec.train.ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # another attempt is the caller's decision, and resumes all the same
        monitor_interval=0.2,
    )
    path = write_job(job, "rank")
    os.environ.update(environment_of_child())
    try:
        elastic_launch(config, sys.executable)("-m", "millrace", "rank", str(path))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise ProcessDiedError(
                f"train {job.pipeline} on {job.spec.train.ranks} ranks",
                f"rank {rank} was killed by signal {-failure.exitcode}",
                "Run it again: it resumes from the last checkpoint",
            ) from None
        raise SystemExit(1) from None
    except SignalException as error:  # torch has passed it on and waited for the ranks
        raise ProcessDiedError(
            f"train {job.pipeline} on {job.spec.train.ranks} ranks",
            f"it was told to stop by {error.sigval.name}",
            "Run it again: it resumes from the last checkpoint",
        ) from None
    finally:
        path.unlink(missing_ok=True)
