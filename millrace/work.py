"""What a training is to do and what that took: all that predictions of time go by."""

from typing import Annotated

from pydantic import Field

from millrace.frozen import Frozen, NonNegativeInt, PositiveInt

NonNegative = Annotated[float, Field(ge=0)]


class Work(Frozen):
    """A training in the quantities that its time depends on."""

    steps: PositiveInt
    """Updates."""
    batch: PositiveInt
    """Samples of an update, over all ranks."""
    ranks: PositiveInt
    """Processes that share each batch."""
    threads: PositiveInt
    """Of each rank; 1 on a GPU."""
    device: str
    """`cpu`, or the name of the GPU."""
    parameters: NonNegativeInt
    """Of the network."""
    blocks: NonNegativeInt
    """Repeated blocks of the network; 0 without any."""
    microbatches: PositiveInt = 1
    """Parts in which a rank differentiates its share of a batch."""
    flops_per_sample: NonNegative
    """Of forward and backward."""
    kept_bytes_per_sample: NonNegative
    """What the forward of one sample keeps for its backward."""
    raw_bytes_per_sample: NonNegative
    """Of a sample as shards hold it, decoded."""
    validations: NonNegativeInt
    """Looks at the validation split."""
    validate_samples: NonNegativeInt
    """Samples of one look."""

    @property
    def share(self) -> float:
        """Samples of an update on one rank."""
        return self.batch / self.ranks

    @property
    def gradient_bytes(self) -> float:
        """What an all-reduce adds up."""
        return 4.0 * self.parameters

    @property
    def state_bytes(self) -> float:
        """Weights, gradients and both moments of the optimizer, in float32."""
        return 16.0 * self.parameters


class Timing(Frozen):
    """What the last attempt at a training took, by what it was spent on. Seconds are the first
    rank's own.
    """  # noqa: D205  the first sentence needs the second

    start_seconds: NonNegative
    """From the rank's first line to the first update: joining, building, probing, resuming."""
    loop_seconds: NonNegative
    """All updates with the looks between them, without validations and checkpoints."""
    waited_seconds: NonNegative
    """Of the loop, waiting for data."""
    validation_seconds: NonNegative
    """All looks at the validation split."""
    stall_seconds: NonNegative
    """The loop held up by checkpoints."""
    num_checkpoints: NonNegativeInt
    """Written on the way."""
    resumed_at: NonNegativeInt = 0
    """The step that the attempt began at."""
