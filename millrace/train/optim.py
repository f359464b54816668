"""The optimizer and its schedule, both functions of the spec and the step alone."""

import math

import torch
from torch import nn

from millrace.spec import TrainSpec

BETAS = (0.9, 0.98)
EPSILON = 1e-9
"""Below torch's default: the rows of a large table see gradients of 1e-6 and less."""


def build_optimizer(network: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); vectors and embeddings are not decayed.

    A network may learn some tables faster than the rest: its attribute `rate_scales` maps a
    submodule's name to the multiple of the learning rate that its parameters take.
    """
    scales: dict[str, float] = getattr(network, "rate_scales", {})
    embeddings = {
        id(module.weight)
        for module in network.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.dim() > 1 and id(parameter) not in embeddings
        decay = spec.weight_decay if is_matrix else 0.0
        scale = next((s for part, s in scales.items() if name.startswith(f"{part}.")), 1.0)
        groups.setdefault((decay, scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "scale": scale}
            for (decay, scale), parameters in groups.items()
        ],
        lr=spec.learning_rate,
        betas=BETAS,
        eps=EPSILON,
        fused=True,
    )


def learning_rate(step: int, spec: TrainSpec, steps: int) -> float:
    """Rate of the update that leads from `step` to `step + 1`: linear warm-up, then cosine to 0."""
    warmup = round(spec.warmup * steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
