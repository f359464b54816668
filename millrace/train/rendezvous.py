"""Where hosts meet: torch elastic's rendezvous, in the hosts' own order, and quick to miss one.

The first host keeps a small store; hosts come, are numbered, and tell that they live. A host that
falls silent is missed by the others in LOST_SECONDS, where a collective would wait for minutes.
"""

import json
import os
import socket
import time

from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from millrace.telemetry import log
from millrace.train.hosts import Hosts

LOST_SECONDS = 20.0
LAST_CALL_SECONDS = 10
"""What a training that has its least number of hosts waits for more, before it begins without."""
STORE_SECONDS = 30
"""What an operation on the store may take: a host that is cut off ends its ranks after it."""
_ERROR = "millrace/error"


class Meeting(RendezvousHandler):
    """One training's rendezvous as torch elastic's agent uses it.

    Args:
        hosts: Who takes part, and where.
        address: Of this host, as the others reach it.
        run_id: The same on all hosts.
        join_seconds: How long to wait for the least number of hosts.
    """

    def __init__(self, hosts: Hosts, address: str, run_id: str, join_seconds: int) -> None:
        self._hosts, self._address = hosts, address
        parameters = RendezvousParameters(
            backend="c10d",
            endpoint=f"{hosts.address}:{hosts.port}",
            run_id=run_id,
            min_nodes=hosts.least,
            max_nodes=hosts.most,
            local_addr=address,
            is_host=str(hosts.is_first).lower(),
            read_timeout=STORE_SECONDS,
            join_timeout=join_seconds,
            last_call_timeout=LAST_CALL_SECONDS,
        )
        # Else torch keeps the ranks' meeting place of the first round, where a later host
        # waits in vain.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        backend, self._store = create_backend(parameters)
        self._inner = create_handler(self._store, backend, parameters)
        self._round: RendezvousInfo | None = None
        self._beats = 0
        self._heard: dict[int, tuple[bytes, float]] = {}

    def get_backend(self) -> str:
        """The name of torch's own part of it."""
        return str(self._inner.get_backend())

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet: torch numbers hosts by address, we by the cluster's number, the first first."""
        self._round = None
        inner = self._inner.next_rendezvous()
        store, size = inner.store, inner.world_size
        card = json.dumps([self._hosts.number, inner.rank, self._address, _free_port()])
        store.set(f"host/{inner.rank}", card)
        cards = sorted(json.loads(store.get(f"host/{rank}")) for rank in range(size))
        position = next(i for i, card in enumerate(cards) if card[1] == inner.rank)
        _, _, address, port = cards[0]
        self._heard = {i: (b"", time.monotonic()) for i in range(size) if i != position}
        self._round = RendezvousInfo(store, position, size, RendezvousStoreInfo(address, port))
        if self._hosts.most > 1:
            log(
                f"training on {size} of at most {self._hosts.most} hosts, here as number {position}"
            )
        return self._round

    def num_nodes_waiting(self) -> int:
        """Hosts that wish to come in; also 1 when one is lost, since then, too, all meet again."""
        if self._round is not None and self._heard:
            lost = self._listen(self._round)
            if lost:
                log(f"lost the hosts {lost} of this training: going on from the last checkpoint")
                return 1
        return int(self._inner.num_nodes_waiting())

    def _listen(self, met: RendezvousInfo) -> list[int]:
        """Tell that this host lives, and which of the others have long said nothing."""
        self._beats, store = self._beats + 1, met.store
        store.set(f"beat/{met.rank}", str(self._beats))
        now = time.monotonic()
        for other, (last, _) in self._heard.items():
            said = store.get(f"beat/{other}") if store.check([f"beat/{other}"]) else b""
            if said != last:
                self._heard[other] = (said, now)
        return [other for other, (_, when) in self._heard.items() if now - when > LOST_SECONDS]

    def tell_error(self, error: dict[str, str]) -> None:
        """Leave an error for the first host, which tells whoever follows."""
        self._store.set(_ERROR, json.dumps(error))

    def told_error(self) -> dict[str, str] | None:
        """The error that another host left."""
        if not self._store.check([_ERROR]):
            return None
        error: dict[str, str] = json.loads(self._store.get(_ERROR))
        return error

    def is_closed(self) -> bool:
        """Whether a host has ended the training for all."""
        return bool(self._inner.is_closed())

    def set_closed(self) -> None:
        """End the training for all."""
        self._inner.set_closed()

    def get_run_id(self) -> str:
        """The id of this training."""
        return str(self._inner.get_run_id())

    def shutdown(self) -> bool:
        """Close it."""
        return bool(self._inner.shutdown())


def answers(hosts: Hosts, seconds: float = 1.0) -> bool:
    """Whether the first host's store is there."""
    try:
        with socket.create_connection((hosts.address, hosts.port), seconds):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
