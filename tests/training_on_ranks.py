"""What each of several ranks does in a test: python -m tests.training_on_ranks PROGRAM JOB OUT."""

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from millrace import manifest as manifests
from millrace.job import Job
from millrace.storage import FsspecStorage
from millrace.train import parallel
from millrace.train.checkpoint import Checkpoints, weights_to_bytes
from millrace.train.choice import settle
from millrace.train.loop import Trainer, TrainingData
from millrace.train.strategy import Strategy
from millrace.train.world import World


def take_up(job: Job, data: TrainingData, world: World) -> Any:
    """The weights after 6 steps at once, and after 3 and 3 of a trainer that takes the state up."""
    with closing(Trainer(job, data, world)) as unbroken:
        unbroken.run_to(3)
        states = copy.deepcopy((unbroken.network.state_dict(), unbroken.optimizer.state_dict()))
        unbroken.run_to(6)
        weights = [unbroken.network.state_dict()]
    with closing(Trainer(job, data, world)) as resumed:
        resumed.network.load_state_dict(states[0])
        resumed.optimizer.load_state_dict(states[1])
        resumed.step = 3
        resumed.run_to(6)
        weights.append(resumed.network.state_dict())
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def take_up_unsettled(job: Job, data: TrainingData, world: World) -> Any:
    """The same where DDP lays its buckets out anew after the first backward."""
    parallel.settle_buckets = lambda replica: None
    return take_up(job, data, world)


def shard(job: Job, data: TrainingData, world: World) -> Any:
    """The curves of a replicated training and of a sharded one, with the names of parameters."""
    found = []
    strategies = (
        Strategy(),
        Strategy(parallel="fsdp"),
        Strategy(parallel="fsdp", microbatches=3, is_recomputing=True),
    )
    for strategy in strategies:
        with closing(Trainer(job, data, world, strategy=strategy)) as trainer:
            trainer.run_to(8)
            trainer.validate()
            found.append([trainer.curve, list(trainer.network.state_dict())])
    return found


def choose(job: Job, data: TrainingData, world: World) -> Any:
    """The choice, which is the same on every rank."""
    choice = settle(job, data, world, FsspecStorage(job.store), job.spec.train.steps)
    told = torch.tensor([choice.microbatch_seconds, choice.flops_per_sample], dtype=torch.float64)
    rows = world.rows(told)
    assert (rows == rows[0]).all(), "every rank has the same choice"
    return choice.model_dump()


def _strategy_of(job: Job) -> Strategy:
    """By the key of the job: `fsdp/...` shards."""
    return Strategy(parallel="fsdp" if job.key.startswith("fsdp") else "ddp")


def save(job: Job, data: TrainingData, world: World) -> Any:
    """Save at step 4 and go on to 8: digests of the weights at both, and the curve."""
    checkpoints = Checkpoints(FsspecStorage(job.store), job.pipeline, "on-ranks", world)
    with closing(Trainer(job, data, world, strategy=_strategy_of(job))) as trainer:
        trainer.run_to(4)
        checkpoints.begin(trainer.place(1.5), trainer.network, trainer.optimizer)
        told = [_digest(trainer)]
        trainer.run_to(8)  # beside the write: what is written was copied before
        checkpoints.finish()
        world.wait()
        return [*told, _digest(trainer), trainer.curve]


def resume(job: Job, data: TrainingData, world: World) -> Any:
    """Take up what `save` has saved."""
    checkpoints = Checkpoints(FsspecStorage(job.store), job.pipeline, "on-ranks", world)
    with closing(Trainer(job, data, world, strategy=_strategy_of(job))) as trainer:
        trainer.resume(checkpoints)
        assert trainer.step == 4
        told = [_digest(trainer)]
        trainer.run_to(8)
        return [*told, _digest(trainer), trainer.curve]


def _digest(trainer: Trainer) -> str:
    return hashlib.sha256(weights_to_bytes(trainer.network)).hexdigest()


PROGRAMS: Mapping[str, Callable[[Job, TrainingData, World], Any]] = {
    function.__name__: function
    for function in (take_up, take_up_unsettled, shard, choose, save, resume)
}


def main() -> None:
    """Run a program on this rank; the first writes what it found."""
    program, job_path, output = sys.argv[1:]
    job = Job.model_validate_json(Path(job_path).read_bytes())
    storage = FsspecStorage(job.store)
    world = World.join()
    shards = manifests.read(storage, job.inputs["shards"])
    with closing(TrainingData.load(storage, shards, job.spec.train.mix)) as data:
        found = PROGRAMS[program](job, data, world)
    if world.is_first:
        Path(output).write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    main()
