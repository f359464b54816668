"""What a machine costs per hour, from an editable price file."""

import os
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from millrace.errors import SpecError
from millrace.frozen import Frozen
from millrace.spec import sentences

Usd = Annotated[float, Field(ge=0)]


class Machine(Frozen):
    """The price of one kind of machine."""

    usd_per_hour: Usd = 0.0
    """For the machine as a whole."""
    usd_per_core_hour: Usd = 0.0
    """For each of its cores, on top."""


class Prices(Frozen):
    """All of a price file."""

    machines: dict[str, Machine]

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
