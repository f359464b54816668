"""The choice of a training's strategy: taken up where an earlier attempt made it, else measured.

<pipeline>/checkpoint/<key>/strategy.json --> the same choice, or the same bits would not come out
              none there --> timings --> what fits the memory --> written there
                                         precision --> microbatches --> threads --> compiling
"""

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import ValidationError

from millrace import manifest as manifests
from millrace.errors import CorruptError, NotFoundError, TrainingError
from millrace.frozen import Frozen
from millrace.job import Job
from millrace.storage import Storage
from millrace.telemetry import log
from millrace.train.checkpoint import NOUN
from millrace.train.loop import TrainingData
from millrace.train.strategy import (
    WORTH_COMPILING_SECONDS,
    WORTH_MEASURING_SECONDS,
    Paces,
    Strategy,
    choose_precision,
    fit,
    is_worth_compiling,
    ms,
)
from millrace.train.sweep import doubling, fastest
from millrace.train.timings import Timings
from millrace.train.world import World

FILE = "strategy.json"


class Choice(Frozen):
    """A strategy, for which ranks it was chosen, why, and the figures that are used later."""

    strategy: Strategy
    world_size: int
    """For another number of ranks it is made anew."""
    device: str
    """Kind of the ranks' devices, likewise."""
    why: dict[str, str]
    """A sentence with figures for each part of the choice."""
    microbatch_seconds: float
    """Forward and backward, as chosen."""
    flops_per_sample: float
    """Of forward and backward."""
    kept_bytes_per_sample: int = 0
    """What the forward keeps for the backward."""
    peak_flops_per_second: float
    """Of one rank, in the precision chosen."""

    @property
    def told(self) -> str:
        """The choice in a line."""
        strategy = self.strategy
        words = ["FSDP2" if strategy.parallel == "fsdp" else f"{self.world_size} replicas"]
        words += [strategy.precision, "compiled" if strategy.is_compiled else "not compiled"]
        if strategy.microbatches > 1:
            words.append(f"{strategy.microbatches} microbatches")
        if strategy.threads:
            words.append(f"{strategy.threads} threads")
        if strategy.is_recomputing:
            words.append("blocks recomputed")
        reasons = "; ".join(f"{what}: {why}" for what, why in self.why.items())
        return f"strategy: {', '.join(words)} ({reasons})"


def settle(job: Job, data: TrainingData, world: World, storage: Storage, steps: int) -> Choice:
    """The choice for this job on these ranks; every rank must ask, and gets the same.

    Args:
        job: What is trained.
        data: Its splits.
        world: This process among the ranks.
        storage: Where the choice lies, or is written by the first rank; likewise what it rests on.
        steps: Updates of the whole training.
    """
    path = f"{manifests.folder(job.pipeline, NOUN, job.key)}/{FILE}"
    found = _read(storage, path, world)
    is_known = torch.tensor([found is not None], device=world.device, dtype=torch.int64)
    all_know = bool(world.rows(is_known).all())
    if found is not None and all_know:
        return found
    timings = Timings(job, data, world, storage)
    made = measure(job, world, timings, steps)
    if world.is_first:
        log(made.told)
        timings.keep()
        storage.write(path, made.model_dump_json(indent=1).encode())
    return made


def _read(storage: Storage, path: str, world: World) -> Choice | None:
    try:
        choice = Choice.model_validate_json(storage.read(path))
    except NotFoundError:
        return None
    except (CorruptError, ValidationError) as error:
        log(f"the strategy is chosen anew: {path}: {error}")
        return None
    fits = (choice.world_size, choice.device) == (world.size, _device(world))
    return choice if fits else None


def measure(job: Job, world: World, timings: Timings, steps: int) -> Choice:
    """Choose from the figures of all ranks, which measure what is not known at once.

    Raises:
        TrainingError: Not even a single sample fits the memory of a device.
    """
    share = job.spec.train.batch // world.size
    try:
        needs, flops = timings.needs(), timings.flops_per_sample()
    except torch.OutOfMemoryError as error:
        raise _too_large() from error
    strategy, why_it_fits = fit(needs, share, world.size)
    why = {"memory": why_it_fits}
    if strategy.parallel == "fsdp":
        # No rank holds the network alone, so no microbatch can be timed: by its products only.
        strategy, why["precision"] = _faster_products(strategy, timings)
        seconds = flops / timings.peak_flops_per_second(strategy.precision)
        seconds *= math.ceil(share / strategy.microbatches)
    else:
        strategy = _fitting(timings, strategy, share)
        strategy, seconds = _fastest(timings, strategy, why, share, steps)
    return Choice(
        strategy=strategy,
        world_size=world.size,
        device=_device(world),
        why=why,
        microbatch_seconds=seconds,
        flops_per_sample=flops,
        kept_bytes_per_sample=needs.sample_bytes,
        peak_flops_per_second=timings.peak_flops_per_second(strategy.precision),
    )


def _fitting(timings: Timings, strategy: Strategy, share: int) -> Strategy:
    """The strategy with as many microbatches as are shown to fit the memory."""
    while math.isinf(timings.seconds([strategy])[0]):
        if strategy.microbatches >= share:
            raise _too_large()
        strategy = strategy.with_changes(microbatches=min(share, 2 * strategy.microbatches))
    return strategy


def _too_large() -> TrainingError:
    return TrainingError(
        "lay a training out on its devices",
        "a single sample does not fit the memory of one of them",
        "Take a smaller network or shorter samples, or a device with more memory",
    )


def _fastest(
    timings: Timings, strategy: Strategy, why: dict[str, str], share: int, steps: int
) -> tuple[Strategy, float]:
    """The strategy with what makes it faster, and its microbatch's seconds."""
    (plain,) = timings.seconds([strategy])
    expected_seconds = plain * strategy.microbatches * steps
    if expected_seconds < WORTH_MEASURING_SECONDS:
        why["speed"] = f"about {expected_seconds:.1f} s of training are not worth measuring more"
        return strategy, plain
    halved = strategy.with_changes(precision="bfloat16")
    plain, half = timings.seconds([strategy, halved])
    paces = Paces(float32_seconds=plain, bfloat16_seconds=half)
    precision, why["precision"] = choose_precision(paces)
    strategy = strategy.with_changes(precision=precision)
    strategy = _in_microbatches(timings, strategy, why, share)
    strategy = _on_threads(timings, strategy, why)
    (seconds,) = timings.seconds([strategy])
    left = steps * strategy.microbatches
    if seconds * left < WORTH_COMPILING_SECONDS:
        why["compile"] = f"about {seconds * left:.0f} s of training are too few for it"
        return strategy, seconds
    return _compiled(timings, strategy, why, left)


def _in_microbatches(
    timings: Timings, strategy: Strategy, why: dict[str, str], share: int
) -> Strategy:
    """With more and smaller microbatches where they are faster: they may fit a cache."""
    if not timings.is_divisible():
        why["microbatches"] = "batch norm would see fewer samples of a batch that is cut"
        return strategy

    def step_seconds(numbers: Sequence[int]) -> list[float]:
        cut = [strategy.with_changes(microbatches=number) for number in numbers]
        return [n * seconds for n, seconds in zip(numbers, timings.seconds(cut), strict=True)]

    found = doubling(strategy.microbatches, share, step_seconds)
    why["microbatches"] = f"a batch takes {_told(found, 'in')}"
    return strategy.with_changes(microbatches=fastest(found))


def _on_threads(timings: Timings, strategy: Strategy, why: dict[str, str]) -> Strategy:
    """On fewer threads than it may use where these wait for each other more than they help."""
    most = timings.most_threads()
    if most == 1:
        return strategy

    def on(part: int) -> Strategy:
        return strategy.with_changes(threads=most // part if part > 1 else 0)

    found = doubling(1, most, lambda parts: timings.seconds([on(part) for part in parts]))
    told = {most // part: seconds for part, seconds in found.items()}
    why["threads"] = f"a microbatch takes {_told(told, 'on')}"
    return on(fastest(found))


def _compiled(
    timings: Timings, strategy: Strategy, why: dict[str, str], left: int
) -> tuple[Strategy, float]:
    """Compiled, if that pays back over the microbatches that are left."""
    (plain,) = timings.seconds([strategy])
    faster = strategy.with_changes(is_compiled=True)
    compile_seconds, failure = timings.compile_seconds(faster)
    if math.isinf(compile_seconds):
        why["compile"] = f"it failed ({failure})"
        return strategy, plain
    plain, seconds = timings.seconds([strategy, faster])
    paces = Paces(float32_seconds=plain, compiled_seconds=seconds, compile_seconds=compile_seconds)
    pays, why["compile"] = is_worth_compiling(paces, left)
    return (faster, seconds) if pays else (strategy, plain)


def _faster_products(strategy: Strategy, timings: Timings) -> tuple[Strategy, str]:
    plain, half = (1e12 / timings.peak_flops_per_second(p) for p in ("float32", "bfloat16"))
    precision, why = choose_precision(Paces(float32_seconds=plain, bfloat16_seconds=half))
    why = why.replace("a microbatch", "a TFLOP of products")
    return strategy.with_changes(precision=precision), why


def _told(found: Mapping[int, float], word: str) -> str:
    return ", ".join(f"{ms(seconds)} {word} {value}" for value, seconds in found.items())


def _device(world: World) -> str:
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
