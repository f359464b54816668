"""The blocks of a network: what is sharded, recomputed and updated by Muon one by one."""

from torch import nn


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The modules in its largest nn.ModuleList, ours and those of other libraries alike.

    A deep network keeps its repeated blocks in one (`blocks`, `layers`, `h`); empty without any.
    """
    lists = [list(part) for part in network.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=_num_parameters, default=[])


def _num_parameters(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
