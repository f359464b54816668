"""Frozen descriptions of the tasks a pipeline may be for: what is taken from a record."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from millrace.frozen import NUMBER, Frozen, PositiveInt

BASELINES = {
    "language_model": ("zstd-19", "xz-9", "zstd-19-solid", "xz-9-solid", "6-gram"),
    "language_model of token ids": ("unigram",),
    "classification": ("majority", "logistic-regression"),
    "text_classification": ("majority", "naive-bayes", "logistic-regression"),
    "maxcut": ("random", "local-search"),
}
LOSS_UNITS = {
    "language_model": "nats per byte",
    "language_model of token ids": "nats per id",
    "classification": "nats",
    "text_classification": "nats",
    "maxcut": "share of the edges not cut",
}
"""What a loss is counted in, by the keys of BASELINES."""
MOST_VERTICES = 20
"""Of a graph of a `maxcut`: 2**19 amplitudes, 4 MiB for each layer while training."""


class BpeTokenizer(Frozen):
    """Byte-pair encoding, learned from the training split by a step of its own."""

    kind: Literal["bpe"]
    """Says which tokenizer it is."""
    vocabulary: Annotated[int, Field(ge=257, le=2**20), NUMBER] = 4096
    """Ids: the 256 bytes, and the pairs of ids that occurred most often when they were merged."""


class FileTokenizer(Frozen):
    """A byte-level tokenizer that is there already, as that of a model to go on with."""

    kind: Literal["file"]
    """Says which tokenizer it is."""
    path: Annotated[str, Field(min_length=1)]
    """Its `tokenizer.json`, beside the pipeline's defs.yaml or absolute."""
    vocabulary: Annotated[int, Field(ge=257, le=2**20), NUMBER]
    """Ids that the network has: at least as many as the file."""


# What pydantic puts into the place of an error; none can be a key of the YAML.
_BYTES, _BPE, _FILE = "no tokenizer", "bpe tokenizer", "tokenizer of a file"


def _tokenizer_tag(value: Any) -> str:
    if isinstance(value, str):
        return _BYTES
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return _FILE if kind == "file" else _BPE


Tokenizer = Annotated[
    Annotated[Literal["bytes"], Tag(_BYTES)]
    | Annotated[BpeTokenizer, Tag(_BPE)]
    | Annotated[FileTokenizer, Tag(_FILE)],
    Discriminator(_tokenizer_tag),
]


class LanguageModelTask(Frozen):
    """Predict each byte of a text, or each token id of a list, from those before it."""

    kind: Literal["language_model"]
    """Says which task it is."""
    text: str = "text"
    """The record's field that holds the text (`sequence` for FASTA); an empty text is no record."""
    block_bytes: PositiveInt = 1024
    """Bytes per sample: a text is cut into blocks of this length."""
    tokenizer: Annotated[Tokenizer, Field(exclude_if=lambda value: value == "bytes")] = "bytes"
    """`bytes`: every byte is a token. `{kind: bpe, vocabulary: 4096}`, or `{kind: file, path:
    tokenizer.json, vocabulary: 50257}`: texts become token ids, cut into blocks of `block_tokens`;
    the metric stays bits per byte."""
    tokens: str = ""
    """The record's field that holds a list of token ids, to be taken in place of a text; it needs
    `gpt` or a network of your own, and compressors are no baselines to it."""
    vocabulary: PositiveInt = 256
    """With `tokens`: how many ids there are, from 0 on. A record with another one is rejected."""
    block_tokens: PositiveInt = 1024
    """With `tokens` or a `tokenizer`: ids per sample, in place of `block_bytes`."""

    @model_validator(mode="after")
    def _know_what_is_read(self) -> "LanguageModelTask":
        is_ids_without_field = not self.tokens and self.vocabulary != 256
        if is_ids_without_field or (not self.reads_ids and self.block_tokens != 1024):
            raise ValueError(
                "vocabulary and block_tokens are of token ids: name their field, or give "
                "block_tokens a `tokenizer`"
            )
        if self.tokens and self.tokenizer != "bytes":
            raise ValueError("tokens are ids already: leave `tokenizer` out")
        return self

    @property
    def baselines(self) -> str:
        """Key of BASELINES and of LOSS_UNITS."""
        return "language_model of token ids" if self.tokens else "language_model"

    @property
    def reads_ids(self) -> bool:
        """Whether a network sees token ids, not bytes."""
        return bool(self.tokens) or self.tokenizer != "bytes"

    @property
    def num_ids(self) -> int:
        """How many ids, or values of a byte, there are."""
        return self.vocabulary if self.tokenizer == "bytes" else self.tokenizer.vocabulary

    @property
    def block(self) -> int:
        """Bytes or token ids per sample."""
        return self.block_tokens if self.reads_ids else self.block_bytes


class ClassificationTask(Frozen):
    """Predict a record's label from its numbers or its image."""

    kind: Literal["classification"]
    """Says which task it is."""
    label: str = "label"
    """The record's field that holds the class; an image's label is its folder's name."""
    inputs: tuple[str, ...] = ()
    """The record's fields of numbers, or of arrays of numbers; empty means all but the label in the
    natural order of their names (`x2` before `x10`), whatever their order in the file."""
    images: Literal["none", "pixels", "coded"] = "none"
    """For records that are image files or have a field `image`: store their `pixels` (fast to read,
    large), or JPEG and PNG as they came, `coded` (small, decoded when read). `none`: numbers."""
    shape: tuple[PositiveInt, ...]
    """Shape of one sample: the fields are laid out in this order. Of images [1 or 3, height,
    width]: 1 makes them gray, and those of another size are resized."""

    @property
    def baselines(self) -> str:
        """Key of BASELINES and of LOSS_UNITS."""
        return "classification"

    @model_validator(mode="after")
    def _lay_out_images(self) -> "ClassificationTask":
        if self.images == "none":
            return self
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
            raise ValueError(
                f"shape {list(self.shape)}: an image's is [1 or 3, height, width] (images: "
                f"{self.images})"
            )
        if self.inputs:
            raise ValueError(f"inputs name numbers; leave them out with images: {self.images}")
        return self


def has_tokenizer(task: Frozen) -> bool:
    """Whether texts are encoded by a tokenizer, which a step of its own learns or takes up."""
    return isinstance(task, LanguageModelTask) and task.tokenizer != "bytes"


class TextClassificationTask(Frozen):
    """Predict a record's label from its text, be it prose, source code or DNA."""

    kind: Literal["text_classification"]
    """Says which task it is."""
    text: str = "text"
    """The record's field that holds the text (`sequence` for FASTA); white space at its ends is no
    part of it, and an empty text is no record."""
    label: str = "label"
    """The record's field that holds the class. Whole text files and FASTA also have `label`, their
    folder's name, and `top_folder`, the first folder of their path below the url's fixed part, or
    the source's name where it has one."""
    block_bytes: PositiveInt = 1024
    """Bytes per sample; shorter texts are filled up with zeros."""
    longer: Literal["cut", "divide"] = "cut"
    """What becomes of a longer text: `cut` keeps its beginning; `divide` makes samples of all of
    it, each with the text's label, all in one split; an end of less than a quarter is dropped."""

    @property
    def baselines(self) -> str:
        """Key of BASELINES and of LOSS_UNITS."""
        return "text_classification"


class MaxcutTask(Frozen):
    """Cut as many edges of a graph as can be by dividing its vertices in two."""

    kind: Literal["maxcut"]
    """Says which task it is."""
    edges: str = "edges"
    """The record's field that holds the edges, `[[0, 1], [1, 2], ...]`."""
    vertices: PositiveInt = 14
    """Of the largest graph, at most 20; each is simulated with 2**(vertices - 1) amplitudes.
    Smaller graphs are filled up with vertices without edges."""

    @model_validator(mode="after")
    def _fit_into_memory(self) -> "MaxcutTask":
        if not 2 <= self.vertices <= MOST_VERTICES:
            raise ValueError(
                f"vertices {self.vertices}: from 2 to {MOST_VERTICES} can be simulated; with each "
                "one more, time and memory double"
            )
        return self

    @property
    def baselines(self) -> str:
        """Key of BASELINES and of LOSS_UNITS."""
        return "maxcut"


Task = Annotated[
    LanguageModelTask | ClassificationTask | TextClassificationTask | MaxcutTask,
    Field(discriminator="kind"),
]
