"""A network under a strategy: sharded or replicated, compiled, its blocks recomputed.

The parameters keep their names under every strategy, so that state dicts fit all of them.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from millrace.models.blocks import blocks_of
from millrace.train.strategy import Strategy
from millrace.train.world import World


def lay_out(network: nn.Module, strategy: Strategy, world: World) -> nn.Module:
    """Bring a network to its device, in place, and return what is to be called in training.

    A strategy that says how many threads compute sets them for the whole process.

    Args:
        network: On the CPU; its own parameters are the ones that are trained.
        strategy: How.
        world: This process among the ranks.
    """
    if strategy.threads:
        torch.set_num_threads(strategy.threads)
    if strategy.is_recomputing:
        recompute_blocks(network)
    if strategy.parallel == "fsdp" and world.size > 1:
        _shard(network, strategy, world)
        return network
    network.to(world.device)
    model = compiled(network) if strategy.is_compiled else network
    if world.size == 1:
        return model
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    settle_buckets(replica)
    return replica


def compiled(network: nn.Module) -> nn.Module:
    """A module that compiles the network when it is first called."""
    module: nn.Module = torch.compile(network)  # type: ignore[assignment]  # a module for a module
    return module


def recompute_blocks(network: nn.Module) -> None:
    """Keep only the inputs of blocks for the backward (Chen et al. 2016)."""
    for block in blocks_of(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _shard(network: nn.Module, strategy: Strategy, world: World) -> None:
    # Imported here: most trainings do without, and start sooner.
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(world.device.type, (world.size,))
    dtype = torch.bfloat16 if strategy.precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for part in (*blocks_of(network), network):
        fully_shard(part, mesh=mesh, mp_policy=policy)


@runtime_checkable
class _Sharded(Protocol):
    """What an FSDPModule adds to a module; its own class takes long to import."""

    def set_requires_gradient_sync(self, requires_gradient_sync: bool) -> None:
        """Whether the next backward averages gradients over the ranks."""


class _Touch(nn.Module):
    """Stands in for a network in one backward that gives each parameter a gradient of zeros."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network  # DDP looks for its buffers

    def forward(self) -> Tensor:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.stack([parameter.sum() for parameter in trained]).sum() * 0.0


def settle_buckets(replica: DistributedDataParallel) -> None:
    """Lay the buckets of gradients out for good, before the first step.

    DDP lays them out anew after its first backward, by the order in which gradients came. With
    three ranks or more a gradient's place in its bucket decides the order in which the ranks'
    values are added, so the first step of a resumed process would differ in its last bits from
    the same step of an unbroken one. Here both go through a first backward of zeros.
    """
    network = replica.module
    replica.module = _Touch(network)
    replica().backward()
    replica.module = network
    network.zero_grad(set_to_none=True)


def accumulating(model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """For one microbatch: gradients are averaged over the ranks in the last one only."""
    if isinstance(model, _Sharded):
        model.set_requires_gradient_sync(is_last)
    elif isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


def precise(strategy: Strategy, device: torch.device) -> torch.autocast:
    """The context of a forward."""
    is_bfloat16 = strategy.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16)
