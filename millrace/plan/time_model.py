"""The time model: seconds of a training from its quantities and a constant for each of them.

    t_step = max(t_data, t_compute + t_reduce + t_optimizer)
    t_compute = k * (a0 + L * a1) + b * L * a2 + F / r + A / m
    t_reduce  = max(0, 2 (N - 1) * alpha + 2 (N - 1) / N * S / B - w * t_backward)
    T = start + warm-up + n * t_step + evaluations

k microbatches, L blocks; b samples, F FLOPs and A kept bytes of a rank's share, each over the
rank's threads; N ranks, S bytes of gradients. The all-reduce is a ring's (Patarasu and Yuan 2009):
2 (N - 1) hops, each of S / N bytes. Of three parts of forward and backward the backward takes two
(Kaplan et al. 2020, table 1).
"""

from dataclasses import dataclass

from millrace.work import Work

BACKWARD_SHARE = 2 / 3
VALIDATION_SHARE = 1 / 3
"""Of the FLOPs of forward and backward, those of a forward alone."""


@dataclass(frozen=True)
class StepConstants:
    """Seconds of one unit of each quantity of an update."""

    microbatch: float
    """a0: calling the network forward and backward once, whatever its size."""
    block: float
    """a1: likewise, each of its blocks."""
    block_sample: float
    """a2: a block's work on a sample that neither FLOPs nor kept bytes tell, on one thread, such as
    softmax. Without it, 22 GPTs of 32 to 128 channels are predicted from each other with a mean
    error of 9.4 %, with it of 5.1 %."""
    flop: float
    """1/r: a floating-point operation on one thread, or on a GPU."""
    kept_byte: float
    """1/m: a byte that the forward keeps, on one thread: what moves memory and computes little."""
    hop: float
    """alpha: a message of the all-reduce."""
    reduced_byte: float
    """1/B: a byte of the all-reduce."""
    parameter: float
    """The optimizer's update of a parameter, on one thread."""


@dataclass(frozen=True)
class Constants:
    """All constants of the time model, in seconds; each is of one unit of its quantity."""

    step: StepConstants
    warm_up: float
    """What the first updates take beyond the later ones."""
    start: float
    """From a rank's first line to the first update, whatever is trained."""
    start_rank: float
    """More of it for each rank."""
    start_flop: float
    """More of it for each of a share's FLOPs: the strategy is chosen by trying."""
    validation: float
    """A look at the validation split, whatever its size."""
    validation_flop: float
    """A floating-point operation of it."""
    data_byte: float = 0.0
    """A raw byte of samples, from the store to the batch, by all ranks together."""
    overlap: float = 0.0
    """w: the share of the backward that hides the all-reduce; 0 where ranks share their cores."""


def default_constants(device: str) -> Constants:
    """Orders of magnitude, for a device on which nothing has been measured.

    Of the CPU: fitted to the CPU seconds of single-threaded GPTs, benchmarks/predict.py's, and
    guesses for the all-reduce and the start. Of a GPU: guesses, and values of data sheets at the
    shares that are usually reached, 40 % of an A100's FLOPs and half of its bandwidths.
    """
    if device == "cpu":
        step = StepConstants(6e-4, 6e-4, 4e-4, 1 / 80e9, 5e-10, 2e-4, 1 / 0.8e9, 1e-9)
        return Constants(step, 0.05, 0.3, 0.2, 10 / 80e9, 0.08, 1 / 80e9, 1 / 0.8e9)
    step = StepConstants(1e-3, 1e-4, 1e-6, 1 / 1.2e14, 1 / 5e11, 2e-5, 1 / 1e11, 1 / 4e10)
    return Constants(step, 1.0, 5.0, 0.2, 10 / 1.2e14, 0.05, 1 / 1.2e14, 1 / 2e9, 0.5)


def step_quantities(work: Work) -> tuple[float, ...]:
    """Of one update, what each of `StepConstants` multiplies, in their order."""
    share, threads = work.share, work.threads
    return (
        work.microbatches,
        work.microbatches * work.blocks,
        share * work.blocks / threads,
        share * work.flops_per_sample / threads,
        share * work.kept_bytes_per_sample / threads,
        *reduce_quantities(work),
        work.parameters / threads,
    )


def reduce_quantities(work: Work) -> tuple[float, float]:
    """Messages and bytes that a rank sends in one update's all-reduce."""
    hops = 2 * (work.ranks - 1)
    return (hops, hops / work.ranks * work.gradient_bytes)


def loop_quantities(work: Work) -> tuple[float, ...]:
    """Of all updates: the warm-up's one, then what each of `StepConstants` multiplies."""
    return (1.0, *(work.steps * quantity for quantity in step_quantities(work)))


def start_quantities(work: Work) -> tuple[float, ...]:
    """Of the start: one, ranks, and FLOPs of a rank's share."""
    return (1.0, work.ranks, work.share * work.flops_per_sample / work.threads)


def validation_quantities(work: Work) -> tuple[float, ...]:
    """Of all validations: their number, and FLOPs of a rank's part of them."""
    flops = VALIDATION_SHARE * work.flops_per_sample * work.validate_samples / work.ranks
    return (work.validations, work.validations * flops / work.threads)


def step_seconds(work: Work, constants: Constants) -> float:
    """Seconds of one update, data that arrives too late included."""
    constant = constants.step
    k, blocks, block_samples, flops, kept_bytes, *_, parameters = step_quantities(work)
    compute = k * constant.microbatch + blocks * constant.block
    compute += block_samples * constant.block_sample
    compute += flops * constant.flop + kept_bytes * constant.kept_byte
    reduce = max(
        0.0, reduce_seconds(work, constants) - constants.overlap * BACKWARD_SHARE * compute
    )
    updates = compute + reduce + parameters * constant.parameter
    return max(data_seconds(work, constants), updates)


def reduce_seconds(work: Work, constants: Constants) -> float:
    """Seconds of one update's all-reduce, nothing of it hidden."""
    hops, reduced_bytes = reduce_quantities(work)
    return hops * constants.step.hop + reduced_bytes * constants.step.reduced_byte


def data_seconds(work: Work, constants: Constants) -> float:
    """Seconds until one update's samples are there, if nothing else went on."""
    return work.batch * work.raw_bytes_per_sample * constants.data_byte


@dataclass(frozen=True)
class TrainingSeconds:
    """A training's seconds, by what they are spent on."""

    start: float
    updates: float
    validations: float

    @property
    def total(self) -> float:
        """All of it, checkpoints and restarts apart."""
        return self.start + self.updates + self.validations


def training_seconds(work: Work, constants: Constants) -> TrainingSeconds:
    """Seconds of a training that nothing interrupts."""
    one, ranks, flops = start_quantities(work)
    looks, look_flops = validation_quantities(work)
    return TrainingSeconds(
        start=one * constants.start + ranks * constants.start_rank + flops * constants.start_flop,
        updates=constants.warm_up + work.steps * step_seconds(work, constants),
        validations=looks * constants.validation + look_flops * constants.validation_flop,
    )
