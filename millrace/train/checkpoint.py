"""Checkpoints: weights and optimizer state as safetensors, published whole, the newest resumed.

<pipeline>/checkpoint/<key>/step-00000200/{weights,optimizer}.safetensors, manifest.json (last)
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from millrace import manifest as manifests
from millrace.errors import CorruptError, NotFoundError
from millrace.manifest import Manifest
from millrace.storage import Storage, StoredFile
from millrace.telemetry import log

KEEP = 2
NOUN = "checkpoint"
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class Place:
    """Where a training stands, besides its tensors."""

    step: int = 0
    """Updates done."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """The losses so far."""
    recent: list[list[float]] = field(default_factory=list)
    """Loss and weight summed up since the curve's last point, by rank."""
    seconds: float = 0.0
    """Spent so far by all attempts; measured, so no part of the digest."""


def weights_to_bytes(network: nn.Module) -> bytes:
    """The state dict as safetensors."""
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    return save_tensors(tensors)


def load_weights(network: nn.Module, data: bytes) -> None:
    """Put safetensors bytes into a network of the same shape."""
    network.load_state_dict(load_tensors(data))


def _optimizer_to_bytes(optimizer: torch.optim.Optimizer) -> bytes:
    state: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return save_tensors(
        {
            f"{number}.{name}": value.detach().cpu().contiguous()
            for number, entry in state.items()
            for name, value in entry.items()
        }
    )


def _load_optimizer(optimizer: torch.optim.Optimizer, data: bytes) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_tensors(data).items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


class Checkpoints:
    """The checkpoints on the way to the one with this key."""

    def __init__(self, storage: Storage, pipeline: str, key: str) -> None:
        self._storage, self._pipeline = storage, pipeline
        self._noun = manifests.folder(pipeline, NOUN, key).removeprefix(f"{pipeline}/")

    def save(self, place: Place, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Publish the state at a place; the newest few are kept."""
        key = f"step-{place.step:08d}"
        folder = manifests.folder(self._pipeline, self._noun, key)
        files = (
            StoredFile.written(self._storage, f"{folder}/{WEIGHTS}", weights_to_bytes(network)),
            StoredFile.written(
                self._storage, f"{folder}/{OPTIMIZER}", _optimizer_to_bytes(optimizer)
            ),
        )
        facts = asdict(place)
        measured = {"seconds": facts.pop("seconds")}
        made = Manifest(
            self._pipeline, self._noun, key, files=files, facts=facts, measured=measured
        )
        # Not conditional: a checkpoint found damaged is replaced when its step comes round again.
        self._storage.write(made.path, made.to_bytes())
        for old in self._steps()[:-KEEP]:
            self._delete(old)

    def resume(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Place:
        """Load the newest whole checkpoint and tell its place: the beginning when there is none.

        Raises:
            StorageError: The store does not answer. That is no reason to begin again at step 0.
        """
        for path in reversed(self._steps()):
            try:
                made = manifests.read(self._storage, path)
                weights = made.file(WEIGHTS).read(self._storage)
                state = made.file(OPTIMIZER).read(self._storage)
            except (CorruptError, NotFoundError) as error:
                log(f"checkpoint skipped: {error}")
                continue
            load_weights(network, weights)
            _load_optimizer(optimizer, state)
            return Place(**made.facts, **made.measured)
        return Place()

    def clear(self) -> None:
        """Delete all of them."""
        for path in self._steps():
            self._delete(path)

    def _steps(self) -> list[str]:
        """Paths of the manifests, oldest first."""
        below = self._storage.list(f"{self._pipeline}/{self._noun}")
        return sorted(
            path for path in below if path.endswith("/manifest.json") and "/step-" in path
        )

    def _delete(self, path: str) -> None:
        """Delete a checkpoint, its manifest first: without it nothing is there."""
        self._storage.delete(path)
        for file in self._storage.list(path.rsplit("/", 1)[0]):
            self._storage.delete(file)
