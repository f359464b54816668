"""The blocks of a network: what is sharded, recomputed and updated by Muon one by one."""

from torch import nn


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The modules in its longest nn.ModuleList, ours and those of other libraries alike.

    A deep network keeps its repeated blocks in one (`blocks`, `layers`, `h`); empty without any.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=_num_parameters, default=nn.ModuleList()))


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
