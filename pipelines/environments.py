"""The resources of this environment: on a laptop by default, elsewhere by environment variables."""

import os
from pathlib import Path

import dagster as dg

from millrace.storage import default_store
from resources.compute import Compute
from resources.storage import Storage


def build_resources() -> dict[str, dg.ConfigurableResource]:  # type: ignore[type-arg]  # its idiom
    """Store and machine.

    MILLRACE_STORE    URL of the store (default: dagster_home/store)
    MILLRACE_WORK     local folder for studies and scratch (default: dagster_home/work)
    MILLRACE_MACHINE  kind of this machine in resources/prices.yaml (default: local)
    MILLRACE_COMPUTE  what starts the ranks of a training: local, ray or torchrun (default: local)
    """
    home = Path(os.environ.get("DAGSTER_HOME", "dagster_home")).absolute()
    return {
        "storage": Storage(url=default_store()),
        "compute": Compute(
            work=os.environ.get("MILLRACE_WORK", str(home / "work")),
            machine=os.environ.get("MILLRACE_MACHINE", "local"),
            launcher=os.environ.get("MILLRACE_COMPUTE", "local"),
        ),
    }
