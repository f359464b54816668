"""Frozen descriptions of the networks a pipeline may train: ours by name, or the user's own."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from millrace.frozen import NUMBER, Fraction, Frozen, PositiveInt


class NgramCopyNetwork(Frozen):
    """Language model over bytes: hashed n-grams, and copying from its own context."""

    name: Literal["ngram_copy"]
    """Says which network it is."""
    width: PositiveInt = 64
    """Channels."""
    table_bits: Annotated[int, Field(ge=8, le=24), NUMBER] = 14
    """Each n-gram order hashes into 2**table_bits rows."""


class ConvNetwork(Frozen):
    """Small convolutional classifier of images."""

    name: Literal["conv"]
    """Says which network it is."""
    width: PositiveInt = 32
    """Channels of the first convolution; the second has twice as many."""
    dropout: Fraction = 0.1
    """Share of the features dropped before the last layer while training."""


class MlpNetwork(Frozen):
    """Fully connected classifier of flat numbers."""

    name: Literal["mlp"]
    """Says which network it is."""
    width: PositiveInt = 128
    """Units of each hidden layer."""
    depth: PositiveInt = 2
    """Hidden layers."""
    dropout: Fraction = 0.1
    """Share of the units dropped while training."""


class CustomNetwork(BaseModel):
    """The user's own `torch.nn.Module`: further keys are handed to its constructor."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[\w./-]+\.py:\w+$")]
    """`file.py:Class`, the file lying beside the pipeline's defs.yaml."""

    @property
    def file_name(self) -> str:
        """Name of the file that holds the class."""
        return self.name.partition(":")[0]


def _network_tag(value: Any) -> str:
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    return "custom" if ":" in str(name) else str(name)


Network = Annotated[
    Annotated[NgramCopyNetwork, Tag("ngram_copy")]
    | Annotated[ConvNetwork, Tag("conv")]
    | Annotated[MlpNetwork, Tag("mlp")]
    | Annotated[CustomNetwork, Tag("custom")],
    Discriminator(
        _network_tag,
        custom_error_type="unknown_network",
        custom_error_message=(
            "`name` must be ngram_copy, conv, mlp, or file.py:Class for your own network"
        ),
    ),
]
