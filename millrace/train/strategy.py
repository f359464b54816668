"""How a training is laid out on its devices, decided from what was measured.

Needs (bytes) --> fit --> DDP or FSDP2, microbatches, recomputing
Paces (seconds of a microbatch) --> precision --> is_worth_compiling
"""

import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from millrace.frozen import Frozen, NonNegativeInt, PositiveInt
from millrace.train.sweep import LEAST_GAIN

USABLE_SHARE = 0.8
"""Of free memory: the rest is for temporaries, the allocator's gaps and a second batch."""
TEMPORARIES = 1.5
"""Peak of a backward to what the forward kept for it: gradients of activations come on top."""
WORTH_MEASURING_SECONDS = 120.0
"""A training shorter than this goes on as it is: measuring would cost a notable share of it, and
its bits would depend on how busy the machine was meanwhile."""
WORTH_COMPILING_SECONDS = 300.0
"""Compiling takes about a minute: it must be able to save more than that."""
NonNegativeSeconds = Annotated[float, Field(ge=0)]


class Strategy(Frozen):
    """What a rank does with its network; a function of nothing that differs between ranks."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Each rank holds the whole network, or (FSDP2) its part of weights, gradients and moments."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights, moments and losses stay float32."""
    is_compiled: bool = False
    """By torch.compile."""
    microbatches: PositiveInt = 1
    """A rank's share of a batch is differentiated in so many parts."""
    is_recomputing: bool = False
    """Whether the backward computes the inside of each block again instead of keeping it."""
    threads: NonNegativeInt = 0
    """Of a rank that computes on the CPU; 0: as many as it began with."""

    def with_changes(self, **changes: Any) -> "Strategy":
        """A copy with some of it changed."""
        return self.model_copy(update=changes)

    @property
    def words(self) -> str:
        """All that a microbatch's seconds depend on, in words: by these its figures are kept."""
        words = [self.precision, f"{self.microbatches} microbatches", f"{self.threads} threads"]
        words += ["compiled"] if self.is_compiled else []
        words += ["blocks recomputed"] if self.is_recomputing else []
        return ", ".join(words)


class Needs(Frozen):
    """Bytes that a training takes and has on one rank."""

    state_bytes: NonNegativeInt
    """Weights, gradients and the optimizer's moments of the whole network."""
    sample_bytes: NonNegativeInt
    """What the forward of one sample keeps for its backward."""
    recomputed_bytes: NonNegativeInt
    """The same where only the inputs of blocks and the inside of one block are kept."""
    free_bytes: NonNegativeInt
    """Free memory of the rank's device."""


def fit(needs: Needs, share: int, world_size: int) -> tuple[Strategy, str]:
    """The layout that fits the memory, and why.

    Sharding comes before recomputing, and parts of a batch before both: they cost least.

    Args:
        needs: What it takes.
        share: Samples of a batch on one rank.
        world_size: Number of ranks.
    """
    usable = USABLE_SHARE * needs.free_bytes
    least = TEMPORARIES * min(needs.sample_bytes, needs.recomputed_bytes)
    is_sharded = world_size > 1 and needs.state_bytes + least > usable
    left = usable - needs.state_bytes / (world_size if is_sharded else 1)
    is_recomputing = left < TEMPORARIES * needs.sample_bytes
    bytes_each = TEMPORARIES * (needs.recomputed_bytes if is_recomputing else needs.sample_bytes)
    together = max(1, min(share, int(left / max(1.0, bytes_each))))
    strategy = Strategy(
        parallel="fsdp" if is_sharded else "ddp",
        microbatches=math.ceil(share / together),
        is_recomputing=is_recomputing,
    )
    why = (
        f"weights and moments take {_gib(needs.state_bytes)}, a sample {_gib(needs.sample_bytes)} "
        f"of {_gib(needs.free_bytes)} free"
    )
    return strategy, why


class Paces(Frozen):
    """Seconds of one rank's microbatch, forward and backward; infinite where it failed."""

    float32_seconds: NonNegativeSeconds
    """In float32."""
    bfloat16_seconds: NonNegativeSeconds = math.inf
    """With products in bfloat16; infinite where not tried."""
    compiled_seconds: NonNegativeSeconds = math.inf
    """Compiled, in the faster precision; infinite where not tried."""
    compile_seconds: NonNegativeSeconds = 0.0
    """To compile."""

    model_config = ConfigDict(allow_inf_nan=True)


def choose_precision(paces: Paces) -> tuple[Literal["float32", "bfloat16"], str]:
    """The faster precision, and why."""
    ratio = paces.float32_seconds / paces.bfloat16_seconds
    why = f"a microbatch takes {ms(paces.float32_seconds)} in float32"
    if math.isfinite(paces.bfloat16_seconds):
        why += f" and {ms(paces.bfloat16_seconds)} in bfloat16"
    return ("bfloat16" if ratio >= LEAST_GAIN else "float32"), why


def is_worth_compiling(paces: Paces, microbatches_left: int) -> tuple[bool, str]:
    """Whether compiling pays back over the rest of the training, and why."""
    before = min(paces.float32_seconds, paces.bfloat16_seconds)
    saved = (before - paces.compiled_seconds) * microbatches_left
    is_faster = before >= LEAST_GAIN * paces.compiled_seconds
    why = (
        f"compiled in {paces.compile_seconds:.1f} s, a microbatch takes "
        f"{ms(paces.compiled_seconds)} instead of {ms(before)}, {microbatches_left} are left"
    )
    return is_faster and saved > paces.compile_seconds, why


def ms(seconds: float) -> str:
    """Milliseconds, for people to read."""
    return f"{1000 * seconds:.3g} ms"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"
