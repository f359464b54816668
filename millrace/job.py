"""What a process of ours is to make."""

from typing import Annotated, Literal

from pydantic import Field

from millrace.cost import StoragePrice
from millrace.frozen import Frozen
from millrace.spec import PipelineSpec


class Job(Frozen):
    """One noun of one pipeline, to be made at a known address."""

    pipeline: str
    """Name of the pipeline: its folder's."""
    folder: str
    """The pipeline's folder here; relative source paths and `file.py:Class` start from it."""
    spec: PipelineSpec
    store: str
    """URL under which everything is published. Keys and endpoints come from the environment."""
    work: str
    """Local folder for what need not outlive the machine (studies, scratch)."""
    key: str = ""
    """Address of what is to be made: the digest of its spec and inputs."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Noun to manifest path of what it is made from."""
    machine: str = "local"
    """Kind of the machine the job runs on, in the price file."""
    price_file: str = ""
    """The price file here, for what compares machines; empty: not known."""
    usd_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """Price of the machine the job runs on."""
    mtbf_hours: Annotated[float, Field(gt=0)] = 2000.0
    """Between failures of that machine, which decides how often a training checkpoints."""
    launcher: Literal["local", "ray", "torchrun"] = "local"
    """The engine that starts the ranks of a training."""
    network_source: str = ""
    """The text of the user's network file, in a job that other hosts take up."""
    storage_price: StoragePrice = StoragePrice()
    """Price of the store, which decides how hard shards are compressed."""
