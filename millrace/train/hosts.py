"""The hosts of one training: how many, which one this is, and where they meet."""

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from millrace.errors import SpecError
from millrace.spec import TrainSpec

PORT = 29400
_GET_INTERFACE_ADDRESS = 0x8915  # SIOCGIFADDR of Linux


@dataclass(frozen=True)
class Hosts:
    """What the cluster tells a host about the training's hosts."""

    least: int
    """Hosts without which the training waits."""
    most: int
    number: int
    """Of this host; 0 is the first one, where all meet and the events are followed."""
    address: str
    """Of the first host, as the others reach it."""
    port: int = PORT

    @property
    def is_first(self) -> bool:
        """Whether the others come to this host."""
        return self.number == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Hosts":
        """From MILLRACE_NNODES, MILLRACE_NODE_RANK and MILLRACE_RDZV_ENDPOINT, else the cluster's.

        Slurm tells SLURM_NNODES and SLURM_NODEID, an indexed Job of Kubernetes
        JOB_COMPLETION_INDEX; MASTER_ADDR and MASTER_PORT name the first host in both.

        Raises:
            SpecError: Something is missing or no number.
        """
        told = _first(environment, "MILLRACE_NNODES", "NNODES", "SLURM_NNODES")
        least, _, most = told.partition(":")
        number = _first(
            environment, "MILLRACE_NODE_RANK", "NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX"
        )
        endpoint = environment.get("MILLRACE_RDZV_ENDPOINT", "")
        if not endpoint:
            endpoint = _first(environment, "MASTER_ADDR") + ":" + environment.get("MASTER_PORT", "")
        address, _, port = endpoint.rpartition(":") if ":" in endpoint else (endpoint, "", "")
        try:
            hosts = cls(
                int(least), int(most or least), int(number), address.strip("[]"), int(port or PORT)
            )
        except ValueError as error:
            raise SpecError(
                "read which hosts take part",
                f"{error} (hosts {told!r}, this one's number {number!r}, endpoint {endpoint!r})",
                "Set MILLRACE_NNODES=2 or 1:2, MILLRACE_NODE_RANK=0 and "
                "MILLRACE_RDZV_ENDPOINT=host:29400",
            ) from None
        if not (1 <= hosts.least <= hosts.most and hosts.number >= 0):
            raise SpecError(
                "read which hosts take part",
                f"the hosts are {told!r} and this one's number is {number}",
                "Set MILLRACE_NNODES to a number or to LEAST:MOST, and number hosts from 0",
            )
        return hosts

    def ranks_per_host(self, train: TrainSpec) -> int:
        """How many of the ranks each host runs.

        Raises:
            SpecError: The hosts cannot share the ranks, or fewer hosts not the batch.
        """
        per_host, over = divmod(train.ranks, self.most)
        if over or not per_host:
            raise SpecError(
                f"train on {self.most} hosts",
                f"train.ranks ({train.ranks}) is no multiple of that",
                "Set `train.ranks` to the number of ranks on all hosts together",
            )
        for hosts in range(self.least, self.most):
            if train.batch % (hosts * per_host):
                raise SpecError(
                    f"train on {self.least} to {self.most} hosts of {per_host} ranks",
                    f"{hosts * per_host} ranks cannot share a batch of {train.batch}",
                    "Make `train.batch` a multiple of every number of ranks in that range, or raise"
                    " the least in MILLRACE_NNODES",
                )
        return per_host


def _first(environment: Mapping[str, str], *names: str) -> str:
    """The first of these variables that is set; SpecError if none is."""
    for name in names:
        if environment.get(name):
            return environment[name]
    raise SpecError(
        "train on hosts that the cluster gives (MILLRACE_COMPUTE=torchrun)",
        f"none of {', '.join(names)} is set",
        f"Set {names[0]}; docs/compute.md shows Slurm and Kubernetes",
    )


def local_address(address: str, port: int = PORT) -> str:
    """The address of this host by which it reaches another; nothing is sent.

    Raises:
        SpecError: The other's name is not known, or there is no way to it.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SpecError(
            f"reach the first host, {address}",
            str(error),
            "Correct MILLRACE_RDZV_ENDPOINT or MASTER_ADDR, or mend the name service",
        ) from error


def interface_of(address: str) -> str:
    """The network interface that carries an IPv4 address of this host; empty if none is found."""
    if ipaddress.ip_address(address).version != 4:
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(asking.fileno(), _GET_INTERFACE_ADDRESS, request)
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
