"""Checkpoints: written in parts by a thread beside the training, published whole, read back.

    training stands at a step --> copies in main memory (staging) --> the training goes on
        each rank's thread: part-00001.safetensors --> its layout, to the first rank
        the first rank's thread, when all have told: manifest.json (last), older ones deleted

<pipeline>/checkpoint/<key>/step-00000200/{part-00000.safetensors, ..., manifest.json}
"""

import json
import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from millrace import manifest as manifests
from millrace.errors import CorruptError, MillraceError, NotFoundError, StorageError
from millrace.manifest import Manifest
from millrace.storage import Storage, StoredFile
from millrace.telemetry import emit, log
from millrace.train.parts import (
    Layout,
    Piece,
    Staging,
    blank_state,
    merged,
    pieces_of,
    put_state,
    read_into,
    state_of,
    whole,
)
from millrace.train.world import World, patience

KEEP = 2
NOUN = "checkpoint"
WEIGHTS = "weights.safetensors"
POLL_SECONDS = 0.02
ALONE = World(0, 1, torch.device("cpu"))


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
    guard: Mapping[str, Any] = field(default_factory=dict)
    """What the guard against spikes goes by, and the batches that it skips."""


def full_weights(network: nn.Module) -> dict[str, Tensor]:
    """The whole state dict; every rank must ask where the weights are sharded."""
    return {name: whole(value.detach()) for name, value in network.state_dict().items()}


def weights_to_bytes(network: nn.Module) -> bytes:
    """The state dict as safetensors; every rank must ask where the weights are sharded."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in full_weights(network).items():
        tensor = value.cpu().contiguous()
        # Tied weights come under each of their names; safetensors refuses memory that is shared.
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return save_tensors(tensors)


def load_weights(network: nn.Module, data: bytes) -> None:
    """Put safetensors bytes into a network of the same shape."""
    network.load_state_dict(load_tensors(data))


class Checkpoints:
    """The checkpoints on the way to the one with this key.

    Args:
        storage: The store.
        pipeline: Its name.
        key: Of the checkpoint that the training ends with.
        world: The ranks. All of them save and resume together.
    """

    def __init__(self, storage: Storage, pipeline: str, key: str, world: World = ALONE) -> None:
        self._storage, self._pipeline, self._world = storage, pipeline, world
        self._noun = manifests.folder(pipeline, NOUN, key).removeprefix(f"{pipeline}/")
        self._staging = Staging()
        self._writer: threading.Thread | None = None
        self._num_begun = 0
        self._failure: BaseException | None = None
        self._losses: dict[int, float] = {}
        self.published_at = 0
        """Step of the last one published; only the first rank knows."""
        self.write_seconds = math.nan
        """What the last write took, beside the training."""

    @property
    def is_busy(self) -> bool:
        """Whether this rank is still writing: at most one checkpoint is on its way."""
        return self._writer is not None and self._writer.is_alive()

    def begin(self, place: Place, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copy the state and let a thread publish it. Every rank must ask, at the same place.

        A write that fails is told as an event, and the next checkpoint is another attempt. The
        newest few and the best are kept.
        """
        self.finish()
        pieces = pieces_of(state_of(network, optimizer), self._world.rank, self._world.size)
        self._staging.copy(pieces)
        self._num_begun += 1
        # A daemon: a process that fails does not wait for parts of ranks that are no more.
        self._writer = threading.Thread(
            target=self._publish, args=(place, pieces, self._num_begun), daemon=True
        )
        self._writer.start()

    def finish(self) -> None:
        """Return when nothing of this rank's is on its way."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            raise self._failure

    def save(self, place: Place, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Publish the state at a place, and wait for it."""
        self.begin(place, network, optimizer)
        self.finish()

    def resume(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, *, before: int = 0
    ) -> Place:
        """Load the newest checkpoint that is whole to every rank: the beginning if there is none.

        Args:
            network: Laid out over the ranks as it will be trained, whatever wrote the checkpoint.
            optimizer: On its parameters.
            before: Only those of earlier steps; 0: any.

        Raises:
            StorageError: The store does not answer. That is no reason to begin again at step 0.
        """
        steps = {step for step in self.steps() if step < (before or math.inf)}
        while newest := self._newest(steps):
            steps = {step for step in steps if step < newest}
            found = self._read(newest, network)
            if self._newest({0 if found else 1}):  # some rank could not read it
                continue
            assert found is not None, "every rank has read it"
            state, place = found
            put_state(network, optimizer, state)
            return place
        return Place()

    def steps(self) -> list[int]:
        """The steps of what is published, ascending."""
        below = self._storage.list(f"{self._pipeline}/{self._noun}")
        names = [path.split("/") for path in below if path.endswith("/manifest.json")]
        return sorted(
            int(parts[-2].removeprefix("step-")) for parts in names if parts[-2].startswith("step-")
        )

    def forget(self, after: int) -> None:
        """Delete those of later steps, which a roll-back has undone."""
        self._delete(step for step in self.steps() if step > after)

    def clear(self) -> None:
        """Delete all of them, and what attempts that were killed left of others."""
        self.finish()
        self._delete(self.steps())
        for path in self._storage.list(f"{self._pipeline}/{self._noun}"):
            if "/step-" in path:
                self._storage.delete(path)

    def _newest(self, steps: Iterable[int]) -> int:
        """The largest number that any rank knows, 0 if there is none."""
        mine = max(steps, default=0)
        known = self._world.rows(torch.tensor([mine], device=self._world.device))
        return int(known.max())

    def _read(self, step: int, network: nn.Module) -> tuple[dict[str, Tensor], Place] | None:
        """The state of a checkpoint on this rank; None, and a log line, if it is not whole."""
        try:
            made = manifests.read(self._storage, self._path(step))
            facts = dict(made.facts)
            if (layout := facts.pop("tensors", None)) is None:
                log(f"checkpoint skipped: {made.path} is of an earlier version of Millrace")
                return None
            state = blank_state(network, layout)
            read_into(state, self._storage, made)
        except (CorruptError, NotFoundError) as error:
            log(f"checkpoint skipped: {error}")
            return None
        return state, Place(**facts, **made.measured)

    def _path(self, step: int) -> str:
        folder = manifests.folder(self._pipeline, self._noun, f"step-{step:08d}")
        return f"{folder}/manifest.json"

    def _publish(self, place: Place, pieces: list[Piece], number: int) -> None:
        """The thread's edge: what is no error of the store ends the training."""
        try:
            self._publish_part(place, pieces, number)
        except BaseException as error:  # noqa: BLE001  raised again by `finish`
            self._failure = error

    def _publish_part(self, place: Place, pieces: list[Piece], number: int) -> None:
        """This rank's part; on the first rank also the manifest."""
        start = time.perf_counter()
        try:
            part = self._write_part(place.step, pieces)
            if not self._world.is_first:
                self._tell(number, part)
                return
            parts = [part, *(self._hear(number, rank) for rank in range(1, self._world.size))]
            self._write_manifest(place, parts)
        except MillraceError as error:
            if self._world.is_first:
                emit("checkpoint_failed", step=place.step, error=str(error))
            else:
                self._tell(number, {"failed": str(error)})
            return
        self.write_seconds = time.perf_counter() - start
        emit("checkpoint", step=place.step, write_seconds=round(self.write_seconds, 4))

    def _write_part(self, step: int, pieces: list[Piece]) -> dict[str, Any]:
        """Write what is staged; its file and layout as JSON can say it."""
        if not pieces:
            return {"layout": {}}
        name = f"part-{self._world.rank:05d}.safetensors"
        path = f"{self._path(step).rpartition('/')[0]}/{name}"
        file = StoredFile.written(self._storage, path, save_tensors(self._staging.wait()))
        return {"file": asdict(file), "layout": {p.name: p.layout(name) for p in pieces}}

    def _write_manifest(self, place: Place, parts: list[dict[str, Any]]) -> None:
        layouts: list[Layout] = [part["layout"] for part in parts]
        facts = asdict(place)
        measured = {"seconds": facts.pop("seconds")}
        made = Manifest(
            self._pipeline,
            self._noun,
            f"step-{place.step:08d}",
            files=tuple(StoredFile.from_dict(part["file"]) for part in parts if "file" in part),
            facts=facts | {"tensors": merged(layouts)},
            measured=measured,
        )
        # Not conditional: a checkpoint found damaged is replaced when its step comes round again.
        self._storage.write(made.path, made.to_bytes())
        self.published_at = place.step
        self._losses[place.step] = _last_validation(place.curve)
        self._prune()

    def _prune(self) -> None:
        steps = self.steps()
        for step in steps:
            if step not in self._losses:
                try:
                    curve = manifests.read(self._storage, self._path(step)).facts["curve"]
                except (CorruptError, NotFoundError):
                    curve = []
                self._losses[step] = _last_validation(curve)
        self._delete(superfluous({step: self._losses[step] for step in steps}))

    def _delete(self, steps: Iterable[int]) -> None:
        """Delete checkpoints, of each the manifest first: without it nothing is there."""
        for step in list(steps):
            path = self._path(step)
            self._storage.delete(path)
            for file in self._storage.list(path.rpartition("/")[0]):
                self._storage.delete(file)

    # Threads of the ranks speak through the process group's own key-value store: JSON under one
    # key for each rank and checkpoint. A collective would have to queue among the training's.

    def _tell(self, number: int, told: Mapping[str, Any]) -> None:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"millrace/checkpoint/{number}/{self._world.rank}", json.dumps(told))

    def _hear(self, number: int, rank: int) -> dict[str, Any]:
        store = dist.distributed_c10d._get_default_store()
        key = f"millrace/checkpoint/{number}/{rank}"
        deadline = time.monotonic() + patience().total_seconds()
        pause = threading.Event()
        # Looked for, not waited for: a waiting call would lock the store to the training's threads.
        while not store.check([key]):
            if time.monotonic() > deadline:
                raise StorageError(
                    "publish a checkpoint",
                    f"rank {rank} has not written its part in time",
                    "Look at that rank's log; the next checkpoint is another attempt",
                )
            pause.wait(POLL_SECONDS)
        told: dict[str, Any] = json.loads(store.get(key))
        store.delete_key(key)
        if "failed" in told:
            raise StorageError(
                "publish a checkpoint",
                f"rank {rank} could not write its part: {told['failed']}",
                "The next checkpoint is another attempt",
            )
        return told


def superfluous(losses: Mapping[int, float]) -> list[int]:
    """Which steps' checkpoints may go: all but the newest few and the best of the rest.

    Args:
        losses: By step, the validation loss that was last seen then; infinite before the first.
    """
    older = sorted(losses)[:-KEEP]
    best = min(losses, key=lambda step: (losses[step], -step), default=0)
    return [step for step in older if step != best]


def _last_validation(curve: Iterable[Mapping[str, float]]) -> float:
    losses = [point["validation_loss"] for point in curve if "validation_loss" in point]
    return losses[-1] if losses else math.inf
