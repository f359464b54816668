"""The ranks of one training: who this process is, on which device, and how they add up."""

import ipaddress
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from millrace.telemetry import log
from millrace.train.hosts import interface_of, local_address


@dataclass(frozen=True)
class World:
    """This process among the ranks."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls) -> "World":
        """Join the process group that the launcher describes in the environment.

        nccl where every rank on this machine has a GPU of its own, else gloo on CPU with the
        cores shared out.
        """
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        device = choose_device(local_rank, local_size, is_first=rank == 0)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(num_threads(local_size))
        backend = "nccl" if device.type == "cuda" else "gloo"
        _choose_interface()
        dist.init_process_group(backend, timeout=patience())
        return cls(rank, size, device)

    @classmethod
    def alone(cls, threads: int = 0) -> "World":
        """One rank without a process group; `threads` 0 leaves torch's own choice."""
        if threads:
            torch.set_num_threads(threads)
        return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def num_nodes(self) -> int:
        """Machines, if each runs as many ranks as this one."""
        return max(1, self.size // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank; exact for equal inputs in any order."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def rows(self, values: Tensor) -> Tensor:
        """The values of all ranks, a row for each in their order, on every rank."""
        rows = torch.zeros(self.size, *values.shape, dtype=values.dtype, device=values.device)
        rows[self.rank] = values
        return self.sum(rows)

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            dist.destroy_process_group()


def patience() -> timedelta:
    """How long ranks wait for each other: a dead one ends all of them in bounded time."""
    return timedelta(seconds=float(os.environ.get("MILLRACE_COLLECTIVE_SECONDS", "300")))


def num_threads(local_size: int) -> int:
    """Threads of a rank on the CPU: OMP_NUM_THREADS, else its share of the cores it may use."""
    if told := os.environ.get("OMP_NUM_THREADS"):
        return int(told)
    usable = getattr(os, "sched_getaffinity", None)  # macOS has none
    cores = len(usable(0)) if usable else (os.cpu_count() or 1)
    return max(1, cores // local_size)


def _choose_interface() -> None:
    """Have gloo and nccl talk over the network by which the first rank is reached.

    Left alone, gloo takes the one that the host's own name leads to, which may be no way out.
    """
    own = local_address(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    name = interface_of(own)
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if not ipaddress.ip_address(own).is_loopback:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def choose_device(local_rank: int, local_size: int, *, is_first: bool) -> torch.device:
    """A GPU of its own for each rank of this machine, else the CPU for all; the first says so."""
    gpus = torch.cuda.device_count()
    if gpus >= local_size:
        return torch.device("cuda", local_rank)
    if gpus and is_first:
        log(
            f"training on the CPU: {local_size} ranks on this machine, but only {gpus} GPU(s). "
            f"Set `train.ranks` to {gpus} to use them"
        )
    return torch.device("cpu")
