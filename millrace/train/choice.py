"""The choice of a training's strategy: taken up where an earlier attempt made it, else measured.

<pipeline>/checkpoint/<key>/strategy.json --> the same choice, or the same bits would not come out
                      none there --> probe --> fit, precision, compiling --> written there
"""

import math
from collections.abc import Sequence

import torch
from pydantic import ValidationError

from millrace import manifest as manifests
from millrace.errors import CorruptError, NotFoundError
from millrace.frozen import Frozen
from millrace.job import Job
from millrace.storage import Storage
from millrace.telemetry import log
from millrace.train.checkpoint import NOUN
from millrace.train.loop import TrainingData
from millrace.train.probe import Probe, peak_flops_per_second
from millrace.train.strategy import (
    WORTH_COMPILING_SECONDS,
    WORTH_MEASURING_SECONDS,
    Needs,
    Paces,
    Strategy,
    choose_precision,
    fit,
    is_worth_compiling,
)
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
        storage: Where the choice lies, or is written by the first rank.
        steps: Updates of the whole training.
    """
    path = f"{manifests.folder(job.pipeline, NOUN, job.key)}/{FILE}"
    found = _read(storage, path, world)
    is_known = torch.tensor([found is not None], device=world.device, dtype=torch.int64)
    all_know = bool(world.rows(is_known).all())
    if found is not None and all_know:
        return found
    made = measure(job, data, world, steps)
    if world.is_first:
        log(made.told)
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


def measure(job: Job, data: TrainingData, world: World, steps: int) -> Choice:
    """Measure on every rank at once and choose from what all of them found."""
    probe = Probe(job, data, world)
    share = job.spec.train.batch // world.size
    needs = _worst_needs(probe.needs(), world)
    strategy, why_it_fits = fit(needs, share, world.size)
    why = {"memory": why_it_fits}
    flops = probe.flops_per_sample()
    if strategy.is_recomputing:
        probe.recompute()
    if strategy.parallel == "fsdp":
        # No rank holds the network alone, so no microbatch can be timed: by its products only.
        strategy, why["precision"] = _faster_products(strategy, world)
        seconds = flops / peak_flops_per_second(world.device, strategy.precision)
        seconds *= math.ceil(share / strategy.microbatches)
    else:
        strategy = _least_fitting(probe.fitted(strategy), strategy, world)
        strategy, seconds = _fastest(probe, strategy, why, world, steps)
    peak = peak_flops_per_second(world.device, strategy.precision)
    return Choice(
        strategy=strategy,
        world_size=world.size,
        device=_device(world),
        why=why,
        microbatch_seconds=seconds,
        flops_per_sample=flops,
        kept_bytes_per_sample=needs.sample_bytes,
        peak_flops_per_second=peak,
    )


def _fastest(
    probe: Probe, strategy: Strategy, why: dict[str, str], world: World, steps: int
) -> tuple[Strategy, float]:
    """The strategy in the precision, and compiled if it pays, and its microbatch's seconds."""
    (plain,) = _slowest(probe.paces([strategy]), world)
    left = steps * strategy.microbatches
    if plain * left < WORTH_MEASURING_SECONDS:
        why["speed"] = f"about {plain * left:.1f} s of training are not worth measuring more"
        return strategy, plain
    halved = strategy.model_copy(update={"precision": "bfloat16"})
    plain, half = _slowest(probe.paces([strategy, halved]), world)
    paces = Paces(float32_seconds=plain, bfloat16_seconds=half)
    precision, why["precision"] = choose_precision(paces)
    strategy = strategy.model_copy(update={"precision": precision})
    seconds = half if precision == "bfloat16" else plain
    if seconds * left < WORTH_COMPILING_SECONDS:
        why["compile"] = f"about {seconds * left:.0f} s of training are too few for it"
        return strategy, seconds
    return _compiled(probe, strategy, why, world, Paces(float32_seconds=seconds), left)


def _compiled(
    probe: Probe,
    strategy: Strategy,
    why: dict[str, str],
    world: World,
    paces: Paces,
    left: int,
) -> tuple[Strategy, float]:
    faster = strategy.model_copy(update={"is_compiled": True})
    failure = ""
    try:
        found = probe.compiled_pace(faster)
    except Exception as error:  # noqa: BLE001  compilers fail in many ways; each is a reason
        failure, found = f"{type(error).__name__}: {error}"[:200], (math.inf, 0.0)
    seconds, compile_seconds = _slowest(found, world)
    if not math.isfinite(seconds):
        why["compile"] = f"it failed ({failure or 'on another rank'})"
        return strategy, paces.float32_seconds
    update = {"compiled_seconds": seconds, "compile_seconds": compile_seconds}
    pays, why["compile"] = is_worth_compiling(paces.model_copy(update=update), left)
    return (faster, seconds) if pays else (strategy, paces.float32_seconds)


def _slowest(values: Sequence[float], world: World) -> list[float]:
    """Each of the values as the slowest rank found it, on every rank."""
    told = torch.tensor(values, dtype=torch.float64, device=world.device)
    found: list[float] = world.rows(told).amax(0).tolist()
    return found


def _worst_needs(needs: Needs, world: World) -> Needs:
    """The most that any rank needs, and the least that any has."""
    told = [float(value) for value in needs.model_dump().values()]
    *most, free = _slowest([*told[:-1], -told[-1]], world)
    return Needs.model_validate(
        dict(zip(Needs.model_fields, [*map(int, most), int(-free)], strict=True))
    )


def _least_fitting(found: Strategy, strategy: Strategy, world: World) -> Strategy:
    (parts,) = _slowest([float(found.microbatches)], world)
    return strategy.model_copy(update={"microbatches": int(parts)})


def _faster_products(strategy: Strategy, world: World) -> tuple[Strategy, str]:
    kinds = ("float32", "bfloat16")
    paces = [1 / peak_flops_per_second(world.device, kind) for kind in kinds]
    plain, half = (1e12 * pace for pace in _slowest(paces, world))
    precision, why = choose_precision(Paces(float32_seconds=plain, bfloat16_seconds=half))
    update = {"precision": precision}
    return strategy.model_copy(update=update), why.replace("a microbatch", "a TFLOP of products")


def _device(world: World) -> str:
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
