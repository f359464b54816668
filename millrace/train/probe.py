"""Short measurements before a training: its bytes, its FLOPs and how fast its microbatches go.

All of it happens on a network of its own that is thrown away: the one that is trained begins with
untouched weights, buffers and random state.
"""

import math
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from millrace.data.columns import take
from millrace.data.images import decoded
from millrace.job import Job
from millrace.models.blocks import blocks_of
from millrace.models.build import build_network
from millrace.train.loop import TrainingData
from millrace.train.objective import build_objective, mean_loss, to_batch
from millrace.train.parallel import compiled, precise, recompute_blocks
from millrace.train.scores import Batch
from millrace.train.strategy import Needs, Strategy
from millrace.train.world import World

REPEATS = 3
PEAK_SIZES = {"cpu": 768, "cuda": 8192}
"""Sides of the matrices whose product tells a device's peak: long enough for its clock."""


class Probe:
    """A network of a job and samples of its data, to measure on.

    Args:
        job: What will be trained.
        data: Its splits.
        world: This process among the ranks.
    """

    def __init__(self, job: Job, data: TrainingData, world: World) -> None:
        self._network = build_network(job.spec.network, data.facts, job.folder).train()
        self._objective = build_objective(job.spec.task)
        self._share = job.spec.train.batch // world.size
        self._weight = data.weight_per_sample
        first = data.validation.frame(0)
        number = len(next(iter(first.values())))
        self._columns = next(
            decoded(
                iter([take(first, np.arange(min(number, self._share)))]), data.validation.fields
            )
        )
        weights_bytes = _num_bytes(self._network.parameters())
        # A network that leaves no room for its gradients is looked at on the host.
        fits = 2 * weights_bytes < free_bytes(world.device)
        self._device = world.device if fits else torch.device("cpu")
        self._network.to(self._device)
        self._state_bytes = 4 * weights_bytes
        self._threads = torch.get_num_threads()
        self._compiled: nn.Module | None = None
        self._is_recomputing = False

    def needs(self) -> Needs:
        """Bytes of its state, and of what one sample's forward keeps."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self._network.parameters()}
        kept: dict[int, int] = {}
        between: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        def look(_: nn.Module, inputs: Sequence[object]) -> None:
            for value in inputs:
                if isinstance(value, Tensor):
                    between[value.data_ptr()] = value.nbytes

        blocks = blocks_of(self._network)
        hooks = [block.register_forward_pre_hook(look) for block in blocks]
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self._loss(self._network, self._batch(1), Strategy())
        for hook in hooks:
            hook.remove()
        del loss
        sample_bytes = sum(kept.values())
        recomputed = sample_bytes // len(blocks) + sum(between.values()) if blocks else sample_bytes
        return Needs(
            state_bytes=self._state_bytes,
            sample_bytes=sample_bytes,
            recomputed_bytes=min(sample_bytes, recomputed),
            free_bytes=free_bytes(self._device),
        )

    def flops_per_sample(self) -> float:
        """Floating-point operations of one sample's forward and backward, nothing recomputed."""
        # Imported here: ranks that take up a training whose FLOPs are known do without.
        from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

        # The counter knows no formula for the CPU's fused attention, but those of its parts.
        plain = sdpa_kernel(SDPBackend.MATH) if self._device.type == "cpu" else nullcontext()
        with plain, FlopCounterMode(display=False) as counter:
            self._loss(self._network, self._batch(1), Strategy()).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        self._network.zero_grad(set_to_none=True)
        return float(counter.get_total_flops())

    @property
    def has_batch_norm(self) -> bool:
        """Whether what a sample gives depends on the others of its microbatch."""
        return any(isinstance(module, _BatchNorm) for module in self._network.modules())

    def paces(self, strategies: Sequence[Strategy]) -> list[float]:
        """Seconds of a microbatch, forward and backward: the median of three, or infinite.

        They are tried in turn, so that a busy moment of the machine does not hit one alone. A
        microbatch that finds no room in the device's memory takes infinitely long.
        """
        timed: list[list[float]] = [[] for _ in strategies]
        for _ in range(1 + REPEATS):
            for found, strategy in zip(timed, strategies, strict=True):
                if math.inf not in found:
                    found.append(self._time(strategy))
        torch.set_num_threads(self._threads)
        # The first one warmed up; where that one failed it stands alone.
        return [statistics.median(found[1:] or found) for found in timed]

    def compile_seconds(self, strategy: Strategy) -> float:
        """What compiling takes, the first microbatch included."""
        return self._time(strategy)

    def _time(self, strategy: Strategy) -> float:
        """Seconds of a microbatch; infinite where the device's memory does not suffice."""
        torch.set_num_threads(strategy.threads or self._threads)
        if strategy.is_recomputing and not self._is_recomputing:
            recompute_blocks(self._network)
            self._is_recomputing = True
        try:
            moments = self._moments()
            batch = self._batch(math.ceil(self._share / strategy.microbatches))
            start = self._now()
            self._loss(self._model(strategy), batch, strategy).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
            seconds = self._now() - start
            del moments
        except torch.OutOfMemoryError:
            seconds = math.inf
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        self._network.zero_grad(set_to_none=True)
        return seconds

    def _moments(self) -> Tensor:
        """The room that the optimizer's moments will take beside a microbatch, on a GPU."""
        num_bytes = self._state_bytes // 2 if self._device.type == "cuda" else 0
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def _model(self, strategy: Strategy) -> nn.Module:
        """The network as this strategy calls it; compiled once."""
        if not strategy.is_compiled:
            return self._network
        if self._compiled is None:
            self._compiled = compiled(self._network)
        return self._compiled

    def _loss(self, model: nn.Module, batch: Batch, strategy: Strategy) -> Tensor:
        with precise(strategy, self._device):
            scores = self._objective.scores(model, batch)
        return mean_loss(scores, self._share, self._weight)

    def _batch(self, size: int) -> Batch:
        """So many samples, the known ones again and again."""
        number = len(next(iter(self._columns.values())))
        return to_batch(take(self._columns, np.arange(size) % number), self._device)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # what was asked for is to be timed, not the asking
        return time.perf_counter()


def seconds_per_flop(device: torch.device, precision: str) -> float:
    """The least that a rank takes in a large matrix product of this precision."""
    side = PEAK_SIZES.get(device.type, PEAK_SIZES["cpu"])
    left = torch.ones(side, side, dtype=getattr(torch, precision), device=device)
    best = math.inf
    for _ in range(2 + REPEATS):
        start = time.perf_counter()
        torch.mm(left, left)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best / (2 * side**3)


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def free_bytes(device: torch.device) -> int:
    """Free memory of a rank's device; of a machine without a GPU, its part of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        table = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = int(dict(line.split(":", 1) for line in table)["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: half of all is a guess
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
