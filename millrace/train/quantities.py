"""The quantities of a training that its time depends on, as a network and its shards have them."""

from dataclasses import dataclass

from torch import nn

from millrace.manifest import Manifest
from millrace.models.blocks import blocks_of
from millrace.spec import TrainSpec
from millrace.work import Work


@dataclass(frozen=True)
class Looked:
    """What a look at a network on a device found."""

    device: str
    """`cpu`, or the GPU's name."""
    flops_per_sample: float
    """Of forward and backward."""
    kept_bytes_per_sample: float
    """What the forward keeps for the backward."""
    microbatches: int = 1
    """Parts in which a rank differentiates its share of a batch."""


def work_of(
    spec: TrainSpec, shards: Manifest, network: nn.Module, looked: Looked, *, threads: int
) -> Work:
    """The training of a network in the quantities that its time depends on.

    Args:
        spec: How long and on how many ranks.
        shards: The data.
        network: Whole or sharded; only its shape counts.
        looked: What was found of it.
        threads: Of each rank, where it has no GPU.
    """
    splits = shards.facts["splits"]
    train, validation = splits["train"], splits["validation"]
    return Work(
        steps=spec.steps,
        batch=spec.batch,
        ranks=spec.ranks,
        threads=threads if looked.device == "cpu" else 1,
        device=looked.device,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        blocks=len(blocks_of(network)),
        microbatches=looked.microbatches,
        flops_per_sample=looked.flops_per_sample,
        kept_bytes_per_sample=looked.kept_bytes_per_sample,
        raw_bytes_per_sample=train["raw_bytes"] / max(1, train["num_samples"]),
        validations=spec.num_validations,
        validate_samples=min(spec.validate_samples, validation["num_samples"]),
    )
