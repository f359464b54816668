"""What steps take and what comes of it: throughput, MFU, the data stall, memory."""

import resource
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spent:
    """Steps of this process and the time that they took."""

    steps: int = 0
    seconds: float = 0.0
    """In the loop, without validation and checkpoints."""
    waited_seconds: float = 0.0
    """Of them, waiting for data."""

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.steps + other.steps,
            self.seconds + other.seconds,
            self.waited_seconds + other.waited_seconds,
        )

    def __sub__(self, other: "Spent") -> "Spent":
        return self + Spent(-other.steps, -other.seconds, -other.waited_seconds)


@dataclass(frozen=True)
class Scale:
    """What turns steps into samples, tokens and FLOPs."""

    batch: int
    """Samples of a step, over all ranks."""
    tokens_per_sample: float
    """0 where samples are no texts."""
    flops_per_sample: float
    """Of forward and backward."""
    peak_flops_per_second: float
    """Of all ranks."""

    def rates(self, spent: Spent) -> dict[str, float]:
        """Throughput, MFU and the share of the time that was spent waiting for data.

        The MFU (model FLOP utilization, Chowdhery et al. 2022) counts what the network needs, not
        what is recomputed, and its peak is a matrix product measured on this device.
        """
        if not spent.steps or spent.seconds <= 0:
            return {}
        samples_per_second = spent.steps * self.batch / spent.seconds
        rates = {"samples_per_second": samples_per_second}
        if self.tokens_per_sample:
            rates["tokens_per_second"] = samples_per_second * self.tokens_per_sample
        flops_per_second = samples_per_second * self.flops_per_sample
        rates["mfu"] = flops_per_second / self.peak_flops_per_second
        rates["data_stall"] = spent.waited_seconds / spent.seconds
        return rates


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this rank has held: of its GPU, or resident in the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
