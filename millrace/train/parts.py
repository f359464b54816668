"""A state dict in parts: what each rank writes of it as safetensors, and how it is read again.

    network, optimizer --> tensors by name --> this rank's pieces --> part-00001.safetensors
    layout of a manifest, tensors to fill  --> reads of pieces (resharded) --> filled tensors

The planners of torch.distributed.checkpoint decide which rank holds which piece and which reads
fill a tensor of another layout. Its own storage is not used: that pickles the metadata.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from millrace.errors import CorruptError
from millrace.manifest import Manifest
from millrace.storage import Storage

PART_BYTES = 64 * 2**20
"""What every rank holds alike is written by one rank up to this size, by more above it."""
State = dict[str, Tensor]
Layout = dict[str, dict[str, Any]]
"""By tensor: dtype, size, and of each piece its offsets, its sizes and its file."""


@dataclass(frozen=True)
class Piece:
    """The part of a tensor that a rank writes."""

    name: str
    tensor: Tensor
    offsets: tuple[int, ...]
    """Where it begins in the whole tensor."""
    size: tuple[int, ...]
    """Of the whole tensor."""

    def layout(self, file: str) -> dict[str, Any]:
        """What a manifest tells of it."""
        return {
            "dtype": str(self.tensor.dtype).removeprefix("torch."),
            "size": list(self.size),
            "pieces": [[list(self.offsets), list(self.tensor.shape), file]],
        }


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """All tensors of a training by name; those of the optimizer under their parameter's name."""
    state = {f"network.{name}": value.detach() for name, value in network.state_dict().items()}
    names: dict[Tensor, str] = {value: name for name, value in network.named_parameters()}
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            assert isinstance(value, Tensor), f"the optimizer's {entry} is no tensor"
            state[f"optimizer.{names[parameter]}.{entry}"] = value.detach()
    return state


def blank_state(network: nn.Module, layout: Layout) -> State:
    """Tensors to read a checkpoint into, laid out over the ranks as the network is now."""
    blank = {
        f"network.{name}": torch.empty_like(value) for name, value in network.state_dict().items()
    }
    parameters = dict(network.named_parameters())
    for key, told in layout.items():
        if key.startswith("optimizer."):
            like = parameters[key.removeprefix("optimizer.").rpartition(".")[0]]
            dtype = getattr(torch, told["dtype"])
            blank[key] = (
                torch.empty_like(like.detach(), dtype=dtype)
                if list(like.shape) == told["size"]
                else torch.empty(told["size"], dtype=dtype)
            )
    return blank


def put_state(network: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Inverse of `state_of`, for a network and optimizer of the same names and shapes."""
    network.load_state_dict(
        {
            name.removeprefix("network."): value
            for name, value in state.items()
            if name.startswith("network.")
        }
    )
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = optimizer.state_dict()["param_groups"]
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            name, _, entry = key.removeprefix("optimizer.").rpartition(".")
            entries.setdefault(name, {})[entry] = value
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered = {
        number: entries[names[parameter]]
        for number, parameter in enumerate(ordered)
        if names[parameter] in entries
    }
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def pieces_of(state: State, rank: int, world_size: int) -> list[Piece]:
    """What this rank writes; over all ranks each element once. Asks no other rank."""
    alike = {name: value for name, value in state.items() if not is_sharded(value)}
    writers = _writers(alike, world_size)
    pieces = [
        Piece(name, value, (0,) * value.dim(), tuple(value.shape))
        for name, value in alike.items()
        if writers[name] == rank
    ]
    sharded = {name: value for name, value in state.items() if name not in alike}
    return pieces + (_shards(sharded) if sharded else [])


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; its module takes long to load, and is loaded where there is one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a sharded one: then every rank must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # a DTensor


def _shards(state: State) -> list[Piece]:
    """This rank's pieces of sharded tensors."""
    from torch.distributed.checkpoint.default_planner import (  # noqa: PLC0415  half a second
        DefaultSavePlanner,
    )

    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(state, is_coordinator=True)
    pieces = []
    for item in planner.create_local_plan().items:
        told = item.tensor_data
        assert told is not None, f"{item.index.fqn} is no tensor"
        is_empty = told.chunk.sizes.numel() == 0 < told.size.numel()  # more ranks than rows
        if not is_empty and _is_first_copy(state[item.index.fqn]):
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor), f"{item.index.fqn} is no tensor"
            place = tuple(told.chunk.offsets), tuple(told.size)
            pieces.append(Piece(item.index.fqn, tensor, *place))
    return pieces


def _writers(state: State, world_size: int) -> dict[str, int]:
    """Which rank writes each tensor that all hold: the one with the least so far."""
    total = sum(value.nbytes for value in state.values())
    loads = [0] * min(world_size, max(1, total // PART_BYTES))
    writers = {}
    for name in sorted(state, key=lambda name: (-state[name].nbytes, name)):
        writers[name] = loads.index(min(loads))
        loads[writers[name]] += state[name].nbytes
    return writers


def _is_first_copy(tensor: Any) -> bool:
    """Whether no rank of a lower number holds the same piece of a DTensor."""
    coordinate = tensor.device_mesh.get_coordinate()
    return coordinate is not None and all(
        place == 0 or not placement.is_replicate()
        for place, placement in zip(coordinate, tensor.placements, strict=True)
    )


def merged(layouts: Iterable[Layout]) -> Layout:
    """The layout of a whole checkpoint from those of all parts."""
    whole: Layout = {}
    for layout in layouts:
        for name, told in layout.items():
            if name in whole:
                whole[name]["pieces"] += told["pieces"]
            else:
                whole[name] = told | {"pieces": list(told["pieces"])}
    for name, told in whole.items():
        elements = sum(torch.Size(sizes).numel() for _, sizes, _ in told["pieces"])
        size = torch.Size(told["size"]).numel()
        assert elements == size, f"{elements} of {size} elements of {name} were written"
    return whole


def put_whole(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load an ordinary state dict into a network, sharded or not; every rank must ask."""
    if not any(is_sharded(value) for value in network.state_dict().values()):
        network.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import (  # noqa: PLC0415  half a second
        StateDictOptions,
        set_model_state_dict,
    )

    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(network, dict(state), options=options)


@dataclass(frozen=True)
class _Read:
    """A part of a stored piece, and the part of a tensor that it fills."""

    name: str
    file: str
    offsets: tuple[int, ...]
    """In the piece."""
    lengths: tuple[int, ...]
    target: Tensor


def read_into(state: State, storage: Storage, made: Manifest) -> None:
    """Fill tensors of any layout from a checkpoint; each file is read whole and proven.

    Raises:
        CorruptError: A file is damaged, or of another network; the tensors may be half filled.
        NotFoundError: A file is gone.
    """
    layout: Layout = made.facts["tensors"]
    for name, value in state.items():
        found = layout[name]["size"] if name in layout else "none"
        if found != list(value.shape):
            raise CorruptError(
                f"fill {name} of shape {list(value.shape)} from {made.path}",
                f"there it has {found}",
                "It was written for another network; the one before it is tried",
            )
    cut = {
        name: value
        for name, value in state.items()
        if is_sharded(value) or len(layout[name]["pieces"]) > 1
    }
    reads = [
        _Read(name, layout[name]["pieces"][0][2], (0,) * value.dim(), tuple(value.shape), value)
        for name, value in state.items()
        if name not in cut
    ]
    reads += _resharding(cut, layout) if cut else []
    for file in sorted({read.file for read in reads}):
        tensors = load_tensors(made.file(file).read(storage))
        for read in reads:
            if read.file == file:
                part = tensors[read.name]
                for dim, (start, length) in enumerate(zip(read.offsets, read.lengths, strict=True)):
                    part = part.narrow(dim, start, length)
                read.target.copy_(part)


def _resharding(state: State, layout: Layout) -> list[_Read]:
    """The reads that fill tensors which lie in other pieces than they are wanted in."""
    from torch.distributed.checkpoint.default_planner import (  # noqa: PLC0415  half a second
        DefaultLoadPlanner,
    )
    from torch.distributed.checkpoint.metadata import (  # noqa: PLC0415  half a second
        ChunkStorageMetadata,
        Metadata,
        TensorProperties,
        TensorStorageMetadata,
    )

    told = {
        name: TensorStorageMetadata(
            TensorProperties(dtype=getattr(torch, layout[name]["dtype"])),
            torch.Size(layout[name]["size"]),
            [
                ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                for offsets, sizes, _ in layout[name]["pieces"]
            ],
        )
        for name in state
    }
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(state, Metadata(dict(told)), is_coordinator=False)
    reads = []
    for item in planner.finish_plan(planner.create_local_plan()).items:
        name, stored = item.storage_index.fqn, list(item.storage_index.offset or ())
        file = next(f for offsets, _, f in layout[name]["pieces"] if offsets == stored)
        target = planner.resolve_tensor(item).detach()
        place = tuple(item.storage_offsets), tuple(item.lengths)
        reads.append(_Read(name, file, *place, target))
    return reads


class Staging:
    """Copies of a rank's pieces in main memory, in buffers that are used again.

    Fresh memory would be faulted in page by page each time. On a GPU the copies go to pinned
    memory and behind the work that is queued: the host does not wait for them here.
    """

    def __init__(self) -> None:
        self._buffers: State = {}
        self._names: list[str] = []
        self._copied: torch.cuda.Event | None = None

    def copy(self, pieces: Iterable[Piece]) -> None:
        """Copy all; the training may change its tensors afterwards."""
        pieces = list(pieces)
        self._names = [piece.name for piece in pieces]
        for piece in pieces:
            buffer = self._buffers.get(piece.name)
            is_cuda = piece.tensor.is_cuda
            if buffer is None or buffer.shape != piece.tensor.shape:
                self._buffers[piece.name] = buffer = torch.empty(
                    piece.tensor.shape, dtype=piece.tensor.dtype, pin_memory=is_cuda
                )
            buffer.copy_(piece.tensor, non_blocking=is_cuda)
        if any(piece.tensor.is_cuda for piece in pieces):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it so
            self._copied.record()

    def wait(self) -> State:
        """The copies, once they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name: self._buffers[name] for name in self._names}
