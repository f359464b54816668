"""The machine that steps run on: starts their processes, follows them, knows their price."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from millrace.cost import Prices, StoragePrice
from millrace.errors import SpecError
from millrace.job import Job
from millrace.launch import follow

LAUNCHERS = ("local", "ray", "torchrun")


class Compute(dg.ConfigurableResource):  # type: ignore[type-arg]  # dagster's own idiom
    """This machine."""

    work: str
    """Local folder for what need not outlive the machine: studies, scratch."""
    machine: str = "local"
    """Its kind in the price file."""
    launcher: str = "local"
    """The engine that starts the ranks of a training: local, ray or torchrun."""
    price_file: str = str(Path(__file__).with_name("prices.yaml"))

    @property
    def usd_per_hour(self) -> float:
        """Price of this machine."""
        return Prices.read(Path(self.price_file)).usd_per_hour(self.machine)

    @property
    def mtbf_hours(self) -> float:
        """Hours between failures of this machine."""
        return Prices.read(Path(self.price_file)).mtbf_hours(self.machine)

    def storage_price(self, url: str) -> StoragePrice:
        """Price of the store behind a URL."""
        return Prices.read(Path(self.price_file)).storage_price(url)

    def run(self, verb: str, job: Job) -> Iterator[dict[str, Any]]:
        """Run a step in processes of its own and yield its events.

        Raises:
            SpecError: There is no such launcher.
        """
        if self.launcher not in LAUNCHERS:
            raise SpecError(
                "start trainings as MILLRACE_COMPUTE says",
                f"it is {self.launcher!r}",
                f"Set it to one of {', '.join(LAUNCHERS)}; docs/compute.md tells them apart",
            )
        return follow(verb, job.model_copy(update={"launcher": self.launcher}))
