"""The optimizer and its schedule, both functions of the spec and the step alone."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from millrace.models.blocks import blocks_of
from millrace.spec import TrainSpec

BETAS = (0.9, 0.98)
EPSILON = 1e-9
"""Below torch's default: the rows of a large table see gradients of 1e-6 and less."""
DECAY_SHARE = 0.2
"""Of a `wsd` training, in which its rate falls (Haegele et al. 2024: a fifth is enough)."""
Group = dict[str, Any]


def build_optimizer(network: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or Muon for hidden matrices and AdamW for the rest.

    Vectors and embeddings are not decayed. A network may learn some tables faster than the rest:
    its attribute `rate_scales` maps a submodule's name to the multiple of the learning rate that
    its parameters take.
    """
    muon = _hidden_matrices(network) if spec.optimizer == "muon" else set()
    scales: dict[str, float] = getattr(network, "rate_scales", {})
    embeddings = _embeddings(network)
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.dim() > 1 and id(parameter) not in embeddings
        decay = spec.weight_decay if is_matrix else 0.0
        scale = next((s for part, s in scales.items() if name.startswith(f"{part}.")), 1.0)
        groups.setdefault((id(parameter) in muon, decay, scale), []).append(parameter)
    told: dict[bool, list[Group]] = {True: [], False: []}
    for (is_muon, decay, scale), parameters in groups.items():
        told[is_muon].append({"params": parameters, "weight_decay": decay, "scale": scale})
    if told[True]:
        return MuonAdamW(told[True], told[False], spec.learning_rate)
    return _adamw(told[False], spec.learning_rate)


def _adamw(groups: list[Group], rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=EPSILON, fused=True)


def _embeddings(network: nn.Module) -> set[int]:
    kinds = nn.Embedding | nn.EmbeddingBag
    return {id(module.weight) for module in network.modules() if isinstance(module, kinds)}


def _hidden_matrices(network: nn.Module) -> set[int]:
    """Ids of the matrices inside the blocks; without blocks, of all but embeddings and the last."""
    blocks = blocks_of(network)
    embeddings = _embeddings(network)
    inside = [p for block in blocks for p in block.parameters()] or list(network.parameters())
    found = [id(p) for p in inside if p.dim() == 2 and p.requires_grad and id(p) not in embeddings]
    return set(found if blocks else found[:-1])


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for some groups and AdamW for the others, as one optimizer.

    Muon's update is scaled to the root mean square of AdamW's (Liu et al. 2025), so that one
    learning rate and decay serve both.

    Args:
        matrices: Groups of matrices.
        others: Groups of everything else.
        rate: Learning rate.
    """

    def __init__(self, matrices: list[Group], others: list[Group], rate: float) -> None:
        muon = torch.optim.Muon(matrices, lr=rate, adjust_lr_fn="match_rms_adamw")
        parts: list[torch.optim.Optimizer] = [muon]
        if others:
            parts.append(_adamw(others, rate))
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts, self._num_matrix_groups = parts, len(matrices)

    # torch's own signature has overloads for a closure, which no loop of ours hands over.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters."""
        assert closure is None, "the loop differentiates before it updates"
        # Loading a state replaces groups and state by new ones: both parts look at the present.
        cut = self._num_matrix_groups
        for part, groups in zip(
            self._parts, (self.param_groups[:cut], self.param_groups[cut:]), strict=False
        ):
            part.param_groups, part.state = groups, self.state
            part.step()


def learning_rate(step: int, spec: TrainSpec, steps: int) -> float:
    """Rate of the update that leads from `step` to `step + 1`: linear warm-up, then `schedule`."""
    warmup = round(spec.warmup * steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    return spec.learning_rate * _SCHEDULES[spec.schedule](step, warmup, steps)


def _cosine(step: int, warmup: int, steps: int) -> float:
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def _wsd(step: int, warmup: int, steps: int) -> float:
    """1, then 1 - sqrt in the last part: better than a straight line (Haegele et al. 2024)."""
    decay = max(1, min(round(DECAY_SHARE * steps), steps - warmup))
    done = (step - (steps - decay)) / decay
    return 1 - math.sqrt(max(0.0, done))


_SCHEDULES: Mapping[str, Callable[[int, int, int], float]] = {"cosine": _cosine, "wsd": _wsd}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
