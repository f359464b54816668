"""Frozen descriptions of the networks a pipeline may train: ours by name, or the user's own."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from millrace.frozen import NUMBER, Fraction, Frozen, NonNegativeInt, PositiveInt

TASK_OF_NETWORK = {
    "ngram_copy": "language_model",
    "gpt": "language_model",
    "lstm": "language_model",
    "conv": "classification",
    "vit": "classification",
    "mlp": "classification",
    "encoder": "text_classification",
    "motif_conv": "text_classification",
    "qaoa": "maxcut",
}
"""The only task that each network of ours is for."""


class NgramCopyNetwork(Frozen):
    """Language model over bytes: hashed n-grams, and copying from its own context."""

    name: Literal["ngram_copy"]
    """Says which network it is."""
    width: PositiveInt = 64
    """Channels."""
    table_bits: Annotated[int, Field(ge=8, le=24), NUMBER] = 14
    """Each n-gram order hashes into 2**table_bits rows."""


class GptNetwork(Frozen):
    """Language model in the manner of GPT, over bytes or token ids."""

    name: Literal["gpt"]
    """Says which network it is."""
    width: PositiveInt = 128
    """Channels."""
    depth: PositiveInt = 4
    """Blocks of attention and MLP."""
    heads: NonNegativeInt = 0
    """Of the attention; must divide the width. 0 gives each 32 channels."""
    dropout: Fraction = 0.0
    """Share of the channels dropped while training."""
    tied: bool = False
    """Whether the logits use the embedding's weights: fewer parameters where ids are many."""
    ngram_bits: Annotated[int, Field(ge=0, le=24), NUMBER] = 0
    """Also look up the last 2 to 6 ids together, each n-gram order hashed into 2**ngram_bits rows:
    much for little compute where data are few. 0 does not."""

    @model_validator(mode="after")
    def _divide_the_width(self) -> "GptNetwork":
        if self.heads and self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        channels = self.width // self.heads if self.heads else self.width
        if channels % 2:
            raise ValueError(f"a head needs an even number of channels, not {channels}")
        return self


class LstmNetwork(Frozen):
    """Recurrent language model over bytes or token ids: much for little compute."""

    name: Literal["lstm"]
    """Says which network it is."""
    width: PositiveInt = 256
    """Channels of the memory."""
    depth: PositiveInt = 1
    """Layers."""
    dropout: Fraction = 0.0
    """Share of the channels dropped after each layer while training."""


class ConvNetwork(Frozen):
    """Small convolutional classifier of images."""

    name: Literal["conv"]
    """Says which network it is."""
    width: PositiveInt = 32
    """Channels of the first convolution; each further one, after the image was halved, has twice as
    many, up to 8 times."""
    dropout: Fraction = 0.1
    """Share of the features dropped before the last layer while training."""


class VitNetwork(Frozen):
    """Vision transformer: attention between the patches of an image."""

    name: Literal["vit"]
    """Says which network it is."""
    width: PositiveInt = 64
    """Channels."""
    depth: PositiveInt = 4
    """Blocks of attention and MLP."""
    heads: NonNegativeInt = 0
    """Of the attention; must divide the width. 0 gives each 32 channels."""
    patch: NonNegativeInt = 0
    """Pixels of a patch's side. 0 takes the least that gives at most 64 patches."""
    dropout: Fraction = 0.1
    """Share of the channels dropped while training."""

    @model_validator(mode="after")
    def _divide_the_width(self) -> "VitNetwork":
        if self.heads and self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class EncoderNetwork(Frozen):
    """Classifier of texts: hashed n-grams as in fastText, and a transformer over them."""

    name: Literal["encoder"]
    """Says which network it is."""
    unit: Literal["word", "byte"] = "word"
    """What is looked up: a word (letters, digits and _ in a row, in lower case; every other visible
    byte is one by itself), or a byte."""
    ngrams: PositiveInt = 2
    """Up to so many units in a row are looked up together."""
    table_bits: Annotated[int, Field(ge=8, le=24), NUMBER] = 16
    """Each n-gram order hashes into 2**table_bits rows."""
    patch: PositiveInt = 8
    """Units that make one position of the transformer, the mean of their n-grams."""
    width: PositiveInt = 64
    """Channels."""
    depth: NonNegativeInt = 1
    """Blocks of attention and MLP. 0: the mean of all n-grams decides, as in fastText."""
    heads: NonNegativeInt = 0
    """Of the attention; must divide the width. 0 gives each 32 channels."""
    pool: Literal["mean", "first"] = "mean"
    """What is classified: the mean over all positions, or a first position of its own ([CLS])."""
    dropout: Fraction = 0.2
    """Share of the units, and of the channels, dropped while training."""

    @model_validator(mode="after")
    def _be_able_to_pool(self) -> "EncoderNetwork":
        if self.heads and self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if self.pool == "first" and not self.depth:
            raise ValueError("pool first: without blocks (depth 0) the first position sees nothing")
        return self


class MotifConvNetwork(Frozen):
    """Classifier of sequences of letters, such as DNA: convolutions that look for motifs."""

    name: Literal["motif_conv"]
    """Says which network it is."""
    letters: Annotated[str, Field(min_length=2)] = "ACGT"
    """The alphabet, upper and lower case alike; other bytes, such as N, count as none."""
    width: PositiveInt = 64
    """Motifs that are looked for."""
    kernel: PositiveInt = 15
    """Letters of a motif."""
    depth: PositiveInt = 1
    """Convolutions; those after the first look at motifs near each other."""
    parts: PositiveInt = 1
    """The sequence is divided evenly into so many parts, in each of which the best match counts. 1:
    it does not matter where; `task.block_bytes`: it does to the letter."""
    dropout: Fraction = 0.1
    """Share of the matches dropped before the last layer while training."""


class QaoaNetwork(Frozen):
    """Quantum approximate optimization algorithm, simulated: angles that cut graphs."""

    name: Literal["qaoa"]
    """Says which network it is."""
    depth: PositiveInt = 1
    """Layers, each with two angles."""


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


class HuggingFaceNetwork(Frozen):
    """A model of the Hugging Face hub, or of a local folder, by the `transformers` library."""

    name: Annotated[str, Field(pattern=r"^hf:.+")]
    """`hf:FOLDER`, beside the pipeline's defs.yaml or absolute, or `hf:OWNER/NAME` on the hub. Its
    weights must be safetensors, and code from the hub is never run."""
    revision: str = "main"
    """Of a model on the hub: a branch, tag or commit. Only a commit stands for one version."""
    pretrained: bool = True
    """Whether to begin with its weights; else it begins with new ones, of its configuration."""

    @property
    def place(self) -> str:
        """The folder or name."""
        return self.name.removeprefix("hf:")


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
    if str(name).startswith("hf:"):
        return "hf"
    return "custom" if ":" in str(name) else str(name)


def _named(value: Any) -> Any:
    """`network: gpt` for `network: {name: gpt}`."""
    return {"name": value} if isinstance(value, str) else value


_Known = Annotated[
    Annotated[NgramCopyNetwork, Tag("ngram_copy")]
    | Annotated[GptNetwork, Tag("gpt")]
    | Annotated[LstmNetwork, Tag("lstm")]
    | Annotated[ConvNetwork, Tag("conv")]
    | Annotated[VitNetwork, Tag("vit")]
    | Annotated[MlpNetwork, Tag("mlp")]
    | Annotated[EncoderNetwork, Tag("encoder")]
    | Annotated[MotifConvNetwork, Tag("motif_conv")]
    | Annotated[QaoaNetwork, Tag("qaoa")]
    | Annotated[HuggingFaceNetwork, Tag("hf")]
    | Annotated[CustomNetwork, Tag("custom")],
    Discriminator(
        _network_tag,
        custom_error_type="unknown_network",
        custom_error_message=(
            "`name` must be ngram_copy, gpt, lstm, conv, vit, mlp, encoder, motif_conv, qaoa, "
            "hf:NAME, or file.py:Class for your own network"
        ),
    ),
]
Network = Annotated[_Known, BeforeValidator(_named)]
