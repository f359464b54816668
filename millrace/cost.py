"""What a machine costs per hour and a store per byte, from an editable price file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from millrace.errors import SpecError
from millrace.frozen import Frozen
from millrace.spec import sentences

SPOT_MTBF_HOURS = 24.0
MTBF_HOURS = 2000.0
"""Of a machine that the price file knows no better. (16,384 GPUs failed 419 times in 54 days:
once in 6,300 hours for a machine of eight, says table 5 of Llama Team 2024.)"""
Usd = Annotated[float, Field(ge=0)]
_GIB = 2**30
# Other schemes that fsspec takes for the same store.
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs", "local": "file"}


def is_spot(machine: str) -> bool:
    """Whether machines of this kind may be taken back at any time."""
    return "spot" in machine


def steady_twin(machine: str) -> str:
    """The name that the same machine has in the price file when nobody takes it back."""
    return machine.replace("spot", "on-demand")


class Machine(Frozen):
    """The price of one kind of machine."""

    usd_per_hour: Usd = 0.0
    """For the machine as a whole."""
    usd_per_core_hour: Usd = 0.0
    """For each of its cores, on top."""
    mtbf_hours: Usd = 0.0
    """Between failures of one such machine, reboots and notices included; 0: not known."""
    cores: Annotated[int, Field(ge=0)] = 0
    """0: as many as the machine that plans has."""
    counts: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1,)
    """How many of them may train together: the numbers that a plan looks at."""
    relative_speed: Usd = 0.0
    """Of one core (where priced by core) or one machine, beside one of `local`; 0: not known, and a
    plan says nothing of it until a run there is recorded."""
    watts: Usd = 0.0
    """Drawn by the machine at work, besides its cores; 0: not known."""
    watts_per_core: Usd = 0.0
    """Drawn by each core at work."""


class StoragePrice(Frozen):
    """The price of one kind of store."""

    usd_per_gib_month: Usd = 0.0
    """For what lies there."""
    usd_per_gib_read: Usd = 0.0
    """For what is read from it: egress."""
    usd_per_1000_reads: Usd = 0.0
    """For requests that read."""
    usd_per_1000_writes: Usd = 0.0
    """For requests that write."""
    months_kept: Usd = 0.0
    """How long shards lie there, where it differs from what the price file says for all stores."""


@dataclass(frozen=True)
class Traffic:
    """What a step leaves on a store and moves to and from it."""

    kept_bytes: float
    num_writes: float
    read_bytes: float
    num_reads: float


@dataclass(frozen=True)
class StorageBill:
    """US dollars for what lies on a store and for what moves, by what they are paid for."""

    storage: float
    transfer: float
    requests: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.storage + self.transfer + self.requests


def storage_bill(traffic: Traffic, price: StoragePrice) -> StorageBill:
    """What a store costs: bytes kept for `months_kept`, bytes read, and requests."""
    return StorageBill(
        storage=traffic.kept_bytes / _GIB * price.usd_per_gib_month * price.months_kept,
        transfer=traffic.read_bytes / _GIB * price.usd_per_gib_read,
        requests=traffic.num_reads / 1000 * price.usd_per_1000_reads
        + traffic.num_writes / 1000 * price.usd_per_1000_writes,
    )


class Prices(Frozen):
    """All of a price file."""

    machines: dict[str, Machine]
    storage: dict[str, StoragePrice] = Field(default_factory=dict)
    """By the scheme of the store's URL; a kind that is not listed costs nothing."""
    months_kept: Usd = 6.0
    """How long shards lie on the store before someone deletes them."""

    @classmethod
    def read(cls, path: Path) -> "Prices":
        """Read a price file; SpecError if it is missing or wrong."""
        asked = f"read the price file {path}"
        fix = "See resources/prices.yaml for the form"
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except ValidationError as error:
            raise SpecError(asked, "; ".join(sentences(error)), fix) from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SpecError(asked, str(error), fix) from error

    def usd_per_hour(self, machine: str, cores: int = 0) -> float:
        """Price of a machine of this kind with that many cores (0: this one's)."""
        if machine not in self.machines:
            raise SpecError(
                f"find the price of the machine `{machine}`",
                f"the price file knows {', '.join(sorted(self.machines))}",
                "Add it, or set MILLRACE_MACHINE to one of these",
            )
        price = self.machines[machine]
        return price.usd_per_hour + price.usd_per_core_hour * (cores or os.cpu_count() or 1)

    def watts(self, machine: str, cores: int) -> float:
        """Power of a machine of this kind at work, as the file says; 0: it does not."""
        price = self.machines[machine]
        return price.watts + price.watts_per_core * cores

    def mtbf_hours(self, machine: str) -> float:
        """Hours between failures of one machine of this kind; a guess where the file has none."""
        self.usd_per_hour(machine)  # refuses an unknown one
        guess = SPOT_MTBF_HOURS if is_spot(machine) else MTBF_HOURS
        return self.machines[machine].mtbf_hours or guess

    def storage_price(self, url: str) -> StoragePrice:
        """Price of the store behind a URL; a path without a scheme is a local folder."""
        scheme, separator, _ = url.partition("://")
        kind = _ALIASES.get(scheme, scheme) if separator else "file"
        price = self.storage.get(kind, StoragePrice())
        return price.model_copy(update={"months_kept": price.months_kept or self.months_kept})
