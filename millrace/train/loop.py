"""The training loop: stream, forward, backward, update, and now and then look and save.

Trainer.run_to(step) --> batches of the stream --> updates
                     --> every so often: the curve, the validation loss, a checkpoint
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from millrace.data.columns import Columns, take
from millrace.data.images import decoded
from millrace.data.order import choose
from millrace.data.samples import Samples
from millrace.data.stream import Stream
from millrace.errors import SpecError, TrainingError
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.spec import TrainSpec
from millrace.storage import Storage
from millrace.train.checkpoint import Checkpoints, Place
from millrace.train.feed import Feed, parts
from millrace.train.guard import MOST_ROLL_BACKS, Guard, Spike, back_to
from millrace.train.meter import Spent
from millrace.train.objective import build_objective, mean_loss, to_batch
from millrace.train.optim import build_optimizer, learning_rate, set_learning_rate
from millrace.train.parallel import accumulating, lay_out, precise
from millrace.train.parts import put_whole, whole
from millrace.train.scores import Batch, Scores
from millrace.train.strategy import Strategy
from millrace.train.world import World

CURVE_POINTS = 100
_LOWER = "Lower `train.learning_rate`, check the network, or look for extreme inputs"

Point = dict[str, float]


@dataclass(frozen=True)
class TrainingData:
    """The splits training looks at; trainings in one process can share it."""

    train: tuple[tuple[Samples, float], ...]
    """What is streamed, each source of a mixture with its weight."""
    validation: Samples
    facts: DataFacts
    weight_per_sample: float
    """What a sample's loss is divided by: the bytes of a block, else 1."""

    @classmethod
    def load(cls, storage: Storage, shards: Manifest, mix: Mapping[str, float]) -> "TrainingData":
        """From a shards manifest and `train.mix`.

        Raises:
            SpecError: The shards were not packed for the keys of this mixture.
        """
        tokens = shards.facts["fields"].get("tokens")
        return cls(
            _weighted(storage, shards, mix),
            Samples(storage, shards, "validation"),
            DataFacts.from_manifest(shards.facts),
            float(tokens[1][0]) if tokens else 1.0,
        )

    def close(self) -> None:
        """Give up what is being fetched ahead."""
        for samples in (self.validation, *(samples for samples, _ in self.train)):
            samples.close()


def _weighted(
    storage: Storage, shards: Manifest, mix: Mapping[str, float]
) -> tuple[tuple[Samples, float], ...]:
    """The train split, or its part of each source; in the order of keys, not of the YAML."""
    if not mix:
        return ((Samples(storage, shards, "train"), 1.0),)
    if sorted(mix) != (known := sorted(shards.facts.get("sources", ()))):
        raise SpecError(
            f"train on a mixture of {', '.join(sorted(mix))}",
            f"{shards.path} was packed for {', '.join(known) or 'no mixture'}",
            f"Materialize {shards.pipeline}/shards first, or the whole pipeline in one run",
        )
    return tuple((Samples(storage, shards, "train", source=key), mix[key]) for key in sorted(mix))


class Trainer:
    """One training: network, optimizer, stream and the number of updates done.

    Args:
        job: What to train.
        data: The splits.
        world: This process among the ranks.
        steps: Updates the schedule is laid out for, where that is not the spec's own number.
        strategy: How the network is laid out; by default whole, in float32, not compiled.
    """

    def __init__(
        self,
        job: Job,
        data: TrainingData,
        world: World,
        *,
        steps: int = 0,
        strategy: Strategy = Strategy(),  # noqa: B008  frozen
    ) -> None:
        spec = job.spec.train
        self._spec, self._world, self._strategy = spec, world, strategy
        self.validated_by = spec
        """Its seed draws the samples to look at: losses compare where it is the same."""
        self.steps = steps or spec.steps
        self.step = 0
        self.curve: list[Point] = []
        self.seconds_before = 0.0
        """Seconds that earlier attempts spent up to the checkpoint that was taken up."""
        self._objective = build_objective(job.spec.task)
        self._data = data
        self._build = partial(_built, job, data.facts)
        self.network = self._build()
        self._model = lay_out(self.network, strategy, world)
        self.optimizer = build_optimizer(self.network, spec)
        self._stream = Stream(
            data.train,
            spec.batch,
            seed=spec.seed,
            rank=world.rank,
            world_size=world.size,
        )
        self._feed = Feed(self._stream, world.device)
        self._curve_every = max(1, self.steps // CURVE_POINTS)
        self.spent = Spent()
        self.gradient_norm = torch.zeros((), device=world.device)
        """Of the last update, before clipping."""
        self._recent = torch.zeros(2, dtype=torch.float64, device=world.device)
        self.guard = Guard(world.device)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self._world.device

    def resume(self, checkpoints: Checkpoints) -> None:
        """Take up the newest checkpoint, if there is one."""
        place = checkpoints.resume(self.network, self.optimizer)
        self.seconds_before = place.seconds
        self._take_up(place)

    def go_back(self, checkpoints: Checkpoints, step: int) -> None:
        """Stand where the newest checkpoint of this step or before stood, or at the beginning."""
        place = checkpoints.resume(self.network, self.optimizer, before=step + 1)
        if place.step == 0:
            put_whole(self.network, self._build().state_dict())
            self.optimizer.state.clear()
        self._take_up(place)

    def roll_back(self, checkpoints: Checkpoints, spike: Spike) -> None:
        """Go back to before a spike, and skip the batches that led there from now on.

        Raises:
            TrainingError: It has been rolled back too often.
        """
        skips = self.guard.skips.with_spike(spike)
        if skips.num_roll_backs > MOST_ROLL_BACKS:
            raise TrainingError(
                f"train to step {spike.update + 1} of {self.steps}",
                f"the {spike.what} is {spike.value:.4g} after {MOST_ROLL_BACKS} roll-backs",
                _LOWER,
            )
        self.go_back(checkpoints, back_to(spike))
        self.guard.skips = skips

    def _seek(self) -> None:
        """Let the stream stand at the batch of the next update."""
        self._next_batch = self.guard.skips.batch_of(self.step)
        self._feed.seek(self._next_batch)

    def _take_up(self, place: Place) -> None:
        self.step, self.curve = place.step, list(place.curve)
        self.guard.resume(place.guard)
        self._recent.zero_()
        recent = self._recent.new_tensor(place.recent)
        if len(recent) == self._world.size:
            self._recent = recent[self._world.rank]
        elif len(recent) and self._world.is_first:  # other ranks than then: the sum is the same
            self._recent = recent.sum(0)

    def place(self, seconds: float = 0.0) -> Place:
        """Where the training stands, for a checkpoint; every rank must ask.

        Args:
            seconds: What all attempts have spent so far.

        Raises:
            TrainingError: The loss since the last point of the curve is no finite number.
        """
        recent = self._world.rows(self._recent)
        self._refuse_nonfinite(recent[:, 0].sum().item(), "loss")
        guard = self.guard.place() if self.guard.is_on else {}
        return Place(self.step, list(self.curve), recent.tolist(), seconds, guard)

    def run_to(self, step: int, after_step: Callable[[], object] = lambda: None) -> None:
        """Update until `step` updates are done, calling `after_step` after each.

        Raises:
            TrainingError: The loss is no finite number.
        """
        self._seek()
        while self.step < step:
            if self.guard.skips.batch_of(self.step) != self._next_batch:
                self._seek()  # rolled back, or come to batches that are skipped
            start, waited = time.perf_counter(), self._feed.waited_seconds
            self._update()
            if self.step % self._curve_every == 0 or self.step == step:
                self._extend_curve()
            waited = self._feed.waited_seconds - waited
            self.spent += Spent(1, time.perf_counter() - start, waited)
            after_step()

    def _update(self) -> None:
        self._seed_dropout()
        self.network.train()
        batch = self._feed.take()
        sums_2 = self._differentiate(batch)
        self._descend()
        self.guard.note(sums_2, self.gradient_norm)
        self._feed.fetch()  # the device still has this step to do
        self.step += 1
        self._next_batch += 1

    def _seed_dropout(self) -> None:
        # The random state is a function of the step, so that a resumed run draws the same dropout.
        sequence = np.random.SeedSequence([self._spec.seed, self.step, self._world.rank])
        seed = int(sequence.generate_state(1)[0])
        # torch.manual_seed looks for other devices first: 87 us, a twentieth of a small step.
        torch.default_generator.manual_seed(seed)
        if self._world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _differentiate(self, batch: Batch) -> Tensor:
        """Gradients of a batch, by microbatches, averaged over the ranks; its loss and weight."""
        sums_2 = torch.zeros_like(self._recent)
        share, number = self._spec.batch // self._world.size, self._strategy.microbatches
        for i, part in enumerate(parts(batch, number), 1):
            with accumulating(self._model, is_last=i == number):
                with precise(self._strategy, self._world.device):
                    scores = self._objective.scores(self._model, part)
                mean_loss(scores, share, self._data.weight_per_sample).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
            sums_2 += torch.stack([scores.loss_B.detach().sum(), scores.weight_B.sum()])
        self._recent += sums_2
        return sums_2

    def _descend(self) -> None:
        """Clip the gradients and update."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._spec.clip)
        if self._strategy.parallel == "fsdp" and self._world.size > 1:
            norm = whole(norm)
        self.gradient_norm = norm
        set_learning_rate(self.optimizer, learning_rate(self.step, self._spec, self.steps))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _extend_curve(self) -> None:
        """Add the mean loss since the last point; here, as in `place`, the device is waited for."""
        loss, weight = self._world.sum(self._recent).tolist()
        self._recent.zero_()
        if not self.guard.is_on:  # else the next look rolls back, and the curve with it
            self._refuse_nonfinite(loss / weight, "loss")
        self.curve.append({"step": self.step, "train_loss": loss / weight})

    def validate(self) -> dict[str, float]:
        """Mean loss and the metric on a seeded selection of the validation split.

        The selection is the same for any world size and at every step, so points of the curve
        compare; the first samples in stored order would be of one class where labels are folders.
        """
        self.network.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self._world.device)
        is_sharded = self._strategy.parallel == "fsdp"
        # Sharded parameters are gathered in the forward; that needs more than inference_mode has.
        with torch.no_grad() if is_sharded else torch.inference_mode():
            chosen = _selection(self._data.validation, self.validated_by, self._world)
            rounds = 0
            for columns in decoded(chosen, self._data.validation.fields):
                rounds += 1
                scores = self._score(columns)
                for i, part in enumerate((scores.loss_B, scores.metric_B, scores.weight_B)):
                    sums[i] += part.sum()
            if is_sharded:
                self._keep_up(rounds)
        loss, metric, weight = self._world.sum(sums).tolist()
        self._refuse_nonfinite(loss / weight, "validation loss")
        found = {"validation_loss": loss / weight, self._objective.metric: metric / weight}
        self.curve.append({"step": self.step, **found})
        return found

    def _score(self, columns: Columns) -> Scores:
        with precise(self._strategy, self._world.device):
            return self._objective.scores(self.network, to_batch(columns, self._world.device))

    def _keep_up(self, rounds: int) -> None:
        """Go through as many forwards as the rank that has most: all gather its parameters."""
        most = self._world.rows(torch.tensor(rounds, device=self._world.device)).max()
        for _ in range(rounds, int(most)):
            frame = self._data.validation.frame(0)
            self._score(take(frame, np.arange(1)))

    def close(self) -> None:
        """Stop the stream's threads."""
        self._stream.close()

    def _refuse_nonfinite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"train to step {self.step} of {self.steps}",
                f"the {what} is {value}",
                _LOWER,
            )


def _built(job: Job, facts: DataFacts) -> nn.Module:
    """The network as it begins: the same each time."""
    torch.manual_seed(job.spec.train.seed)
    return build_network(job.spec.network, facts, job.folder)


def _selection(samples: Samples, spec: TrainSpec, world: World) -> Iterator[Columns]:
    """This rank's microbatches of a seeded selection of samples, the whole split if that is less.

    Each frame is decoded once, by the ranks that serve samples of it; one at a time is in memory.
    """
    number = min(spec.validate_samples, len(samples))
    frames, indices = choose(samples.samples_per_frame, number, spec.seed)
    size, number = max(1, spec.batch // world.size), 0
    for frame in np.unique(frames):
        chosen = np.sort(indices[frames == frame])
        parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        mine = [part for i, part in enumerate(parts, number) if i % world.size == world.rank]
        number += len(parts)
        if mine:
            columns = samples.frame(int(frame))
            for part in mine:
                yield take(columns, part)
