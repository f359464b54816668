"""The proof of exactness: the last place that can be resumed is resumed, and followed for a while.

Losses are functions of all weights before them, so a loss that differs in no bit after a few
updates says that state, samples and arithmetic were the same. It costs these updates once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from millrace.train.checkpoint import Checkpoints
from millrace.train.loop import Trainer
from millrace.train.world import World

REPLAYED = 4
"""Updates compared."""

Sums = tuple[float, float, float]


@dataclass
class Witness:
    """The first updates after a place that can be resumed, as they went the first time."""

    step: int = 0
    sums: list[Sums] = field(default_factory=list)
    """Of each update over all ranks: loss, weight, norm of the gradient."""

    def see(self, step: int, summed: Sequence[Sequence[float]]) -> None:
        """Keep the first of the updates that ended at `step`, if they come next."""
        first = step - len(summed)
        if first == self.step + len(self.sums) and len(self.sums) < REPLAYED:
            left = REPLAYED - len(self.sums)
            self.sums += [(loss, weight, norm) for loss, weight, norm in summed[:left]]


@dataclass(frozen=True)
class Proof:
    """What the replay found."""

    step: int
    num_updates: int
    """0 where the checkpoint could not be written, or read again."""
    is_equal: bool

    def told(self) -> dict[str, object]:
        """For a manifest."""
        return {
            "replayed_from": self.step,
            "replayed_updates": self.num_updates,
            "replay_is_equal": self.is_equal,
        }


def replay(trainer: Trainer, checkpoints: Checkpoints, witness: Witness, world: World) -> Proof:
    """Resume the witness's place and update as often as it saw; the trainer is of no use then."""
    skips = trainer.guard.skips  # a roll-back's are not in the checkpoint that it went back to
    trainer.go_back(checkpoints, witness.step)
    trainer.guard.skips = skips
    if trainer.step != witness.step:
        return Proof(trainer.step, 0, is_equal=False)
    trainer.guard.taken()
    trainer.run_to(witness.step + len(witness.sums))
    found = [tuple(row) for row in world.sum(trainer.guard.taken().clone()).tolist()]
    return Proof(witness.step, len(found), found == witness.sums)
