"""Frozen descriptions of every run: what a pipeline's YAML says, checked where it is built."""

from collections.abc import Iterable, Mapping
from operator import not_
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from millrace.errors import SpecError
from millrace.frozen import (
    NUMBER,
    CronLine,
    Fraction,
    Frozen,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Scalar,
    located_sentences,
    number_or_auto,
    unknown_key,
)
from millrace.gates import GateSpec
from millrace.networks import (
    TASK_OF_NETWORK,
    ConvNetwork,
    CustomNetwork,
    EncoderNetwork,
    GptNetwork,
    HuggingFaceNetwork,
    LstmNetwork,
    MlpNetwork,
    MotifConvNetwork,
    Network,
    NgramCopyNetwork,
    QaoaNetwork,
    VitNetwork,
)
from millrace.search import Choices, Range, SearchSpec, Values
from millrace.sources import SourceSpec
from millrace.tasks import (
    BASELINES,
    BpeTokenizer,
    ClassificationTask,
    FileTokenizer,
    LanguageModelTask,
    MaxcutTask,
    Task,
    TextClassificationTask,
    has_tokenizer,
)

# Of what is imported: networks, tasks, sources, search, gates are part of the spec to its readers.
__all__ = [
    "BASELINES",
    "BpeTokenizer",
    "Choices",
    "ClassificationTask",
    "ConvNetwork",
    "CustomNetwork",
    "EncoderNetwork",
    "FileTokenizer",
    "GateSpec",
    "GptNetwork",
    "HuggingFaceNetwork",
    "LanguageModelTask",
    "LstmNetwork",
    "MaxcutTask",
    "MlpNetwork",
    "MotifConvNetwork",
    "Network",
    "NgramCopyNetwork",
    "QaoaNetwork",
    "Range",
    "SearchSpec",
    "SourceSpec",
    "Task",
    "TextClassificationTask",
    "Values",
    "VitNetwork",
    "has_tokenizer",
]

# Fields of `train` that no trial can be compared by, and why.
NOT_SEARCHED = {
    "train.steps": "every trial trains for `search.steps`",
    "train.ranks": "every trial trains on `search.ranks`",
    "train.seed": "a lucky seed is no better a setting",
    "train.checkpoint_every": "trials keep no checkpoints",
    "train.max_usd": "trials train for `search.steps`",
    "train.max_hours": "trials train for `search.steps`",
    "train.validate_every": "trials validate at the study's own steps",
    "train.validate_samples": "losses on other samples cannot be compared",
    "train.mix": "it says what the model is for; a trial draws single values, not a table",
}
# Fields of `train` that change nothing of what is made: they are no part of any key or digest.
UNKEYED = frozenset({"checkpoint_every", "max_usd", "max_hours"})
LEAST_SHARE = 0.001
"""Of a mixture's source: the stream keeps shares to a thousandth (`data.order.PERIOD`)."""


def sentences(error: ValidationError) -> list[str]:
    """What a validation found wrong, a sentence each, led by the key where it was found."""
    return [sentence for _, sentence in located_sentences(error)]


class SplitSpec(Frozen):
    """Shares of the records held out, decided by a hash of each record's content."""

    validation: Fraction = 0.1
    """Share of the records that the study and training may look at."""
    test: Fraction = 0.1
    """Share of the records that only the evaluation sees."""
    seed: NonNegativeInt = 0
    """Another seed draws other splits."""

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> "SplitSpec":
        if self.validation + self.test >= 1 or 0 in (self.validation, self.test):
            raise ValueError(
                f"validation ({self.validation}) and test ({self.test}) must both be above 0 "
                "and leave records to train on"
            )
        return self


class ShardsSpec(Frozen):
    """How samples are laid out on the store."""

    level: Annotated[
        Annotated[int, Field(ge=1, le=22)] | Literal["auto"], number_or_auto(1, 22)
    ] = "auto"
    """zstd level, 1 to 22. `auto` takes the cheapest by speeds measured on a sample, prices and the
    expected number of reads, and 3 where the difference is too small to matter."""
    frame_bytes: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], number_or_auto(1)] = (
        "auto"
    )
    """Raw bytes in a frame, the unit that is fetched, verified and decoded alone. `auto` takes the
    cheapest, as for `level`, and 1 MiB where the difference is too small to matter."""
    shard_bytes: PositiveInt = 64 * 2**20
    """Raw bytes in a shard."""
    unit_bytes: PositiveInt = 16 * 2**20
    """Source bytes packed together: what is packed again when one of its files changes."""


class TrainSpec(Frozen):
    """One training: how long, how fast, on how many ranks."""

    steps: PositiveInt
    """Optimizer updates."""
    batch: PositiveInt
    """Samples per step, over all ranks."""
    ranks: PositiveInt = 2
    """Data-parallel processes; must divide the batch."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate of the optimizer."""
    weight_decay: Annotated[float, Field(ge=0), NUMBER] = 0.01
    """Of matrices; vectors and embeddings are not decayed."""
    warmup: Fraction = 0.1
    """Share of the steps in which the rate rises; it then falls to 0 by `schedule`."""
    schedule: Annotated[
        Literal["cosine", "wsd"], Field(exclude_if=lambda name: name == "cosine")
    ] = "cosine"
    """`cosine` falls from the peak on; `wsd` stays at it and falls in the last fifth of the steps
    (warmup, stable, decay)."""
    optimizer: Annotated[
        Literal["adamw", "muon"], Field(exclude_if=lambda name: name == "adamw")
    ] = "adamw"
    """`muon` orthogonalizes the updates of hidden matrices and leaves embeddings, the last layer
    and vectors to AdamW; the same `learning_rate` is for both."""
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    seed: NonNegativeInt = 0
    """Of the initial weights, the order of samples and dropout."""
    checkpoint_every: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"], number_or_auto(1)
    ] = "auto"
    """Steps between checkpoints. `auto` loses the least time to writing and to repeating: by the
    measured cost of a checkpoint and the hours between failures in the price file."""
    max_usd: Annotated[PositiveFloat | Literal["none"], NUMBER] = "none"
    """Dollars, over all attempts, at which training stops at a checkpoint. Raise it to go on."""
    max_hours: Annotated[PositiveFloat | Literal["none"], NUMBER] = "none"
    """Hours, over all attempts, at which training stops at a checkpoint. Raise it to go on."""
    validate_every: PositiveInt = 100
    """Steps between looks at the validation split."""
    validate_samples: PositiveInt = 512
    """Samples of the validation split to look at, the first ones."""
    mix: Annotated[dict[str, PositiveFloat], Field(exclude_if=not_)] = Field(default={})
    """How much each of several sources counts in training: weights by name (`source.url`) or by
    globs over listed paths, `{wiki: 3, "code/*.py": 1}`. A file belongs to the first key that
    matches it. Empty: every sample alike. Validation and test are not weighted."""

    @model_validator(mode="after")
    def _share_the_batch_evenly(self) -> "TrainSpec":
        if self.batch % self.ranks:
            raise ValueError(f"batch ({self.batch}) must be a multiple of ranks ({self.ranks})")
        return self

    @model_validator(mode="after")
    def _serve_every_source(self) -> "TrainSpec":
        for key, share in self.shares.items():
            if share < LEAST_SHARE:
                raise ValueError(
                    f"mix: `{key}` has a share of {share:.2g}; the least is {LEAST_SHARE}"
                )
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Each source's share of the training samples by `mix`, in the order of their keys."""
        total = sum(self.mix.values())
        return {key: self.mix[key] / total for key in sorted(self.mix)}

    @property
    def num_validations(self) -> int:
        """Looks at the validation split; the last step has one in any case."""
        return -(-self.steps // self.validate_every)

    @property
    def mixture(self) -> str:
        """The shares in percent, for people to read."""
        return ", ".join(f"{100 * share:.3g} % {key}" for key, share in self.shares.items())


class PipelineSpec(Frozen):
    """Everything a pipeline's defs.yaml says."""

    description: str = ""
    """Shown on the group's assets in the UI."""
    source: SourceSpec
    task: Task
    split: SplitSpec = SplitSpec()
    shards: ShardsSpec = ShardsSpec()
    network: Network
    train: TrainSpec
    search: SearchSpec
    gate: GateSpec = GateSpec()
    schedule: CronLine = ""
    """A cron line (`0 2 * * *`): when to run the whole pipeline; empty means by hand."""
    watch: bool = False
    """Whether the sensor that starts a run when source files change is on from the start."""

    @model_validator(mode="after")
    def _fit_together(self) -> "PipelineSpec":
        name, kind = self.network.name, self.task.kind
        needed = TASK_OF_NETWORK.get(name, kind)
        if needed != kind:
            raise ValueError(f"network {name} needs task {needed}, not {kind}")
        if isinstance(self.network, HuggingFaceNetwork) and kind in ("classification", "maxcut"):
            raise ValueError(f"network {name} reads texts or token ids, which no {kind} has")
        if isinstance(self.task, ClassificationTask) and name in ("conv", "vit"):
            shape = list(self.task.shape)
            if len(shape) != 3:
                raise ValueError(f"network {name} needs a shape of 3 sizes, not {shape}")
        if (
            isinstance(self.task, LanguageModelTask)
            and name == "ngram_copy"
            and self.task.reads_ids
        ):
            raise ValueError(
                f"network {name} reads bytes; token ids (task.tokens, task.tokenizer) need gpt, "
                "lstm or one of your own"
            )
        known = BASELINES[self.task.baselines]
        for baseline in self.gate.beats:
            if baseline not in known:
                told = unknown_key(baseline, known, "baseline")
                raise ValueError(f"gate.beats: {told} of a {self.task.baselines}")
        self.gate.refuse_unfit(
            has_classes=kind in ("classification", "text_classification"),
            has_lengths=kind in ("language_model", "text_classification"),
            has_sources=not isinstance(self.source.url, str),
        )
        try:
            self.mix_globs  # noqa: B018  computing it checks it
        except ValueError as error:
            raise ValueError(f"train.mix: {error}") from None
        self._refuse_unusable_space()
        return self

    def _refuse_unusable_space(self) -> None:
        for path in self.search.space:
            if path in NOT_SEARCHED:
                raise ValueError(f"search.space `{path}`: no use to vary it, {NOT_SEARCHED[path]}")
        self.values_at(self.search.space)  # refuses a path that is no field
        self._refuse_unshared_batch(self.train.batch, "search.ranks")
        for path, values in self.search.space.items():
            for value in values.samples():
                try:
                    _replaced(self, {path: value})
                except ValueError as error:
                    raise ValueError(f"search.space `{path}`: value {value}: {error}") from None
                if path == "train.batch":
                    self._refuse_unshared_batch(value, f"search.space `{path}`")
            ranks = max(self.train.ranks, self.search.ranks)
            if path == "train.batch" and isinstance(values, Range) and ranks > 1:
                raise ValueError(
                    f"search.space `{path}`: not every number from {values.low} to {values.high} "
                    f"is a multiple of ranks ({ranks}); list multiples as `choices`"
                )

    def _refuse_unshared_batch(self, batch: Scalar, path: str) -> None:
        if int(batch) % self.search.ranks:
            raise ValueError(
                f"{path}: a batch of {batch} must be a multiple of search.ranks "
                f"({self.search.ranks}), which share it in each trial"
            )

    @property
    def mix_globs(self) -> dict[str, str]:
        """Each key of `train.mix` with the glob over listed paths that it stands for."""
        return self.source.globs(self.train.mix)

    def values_at(self, paths: Iterable[str]) -> dict[str, Scalar]:
        """The spec's own value of each field path."""
        train = {name: getattr(self.train, name) for name in TrainSpec.model_fields}
        parts = {"network": self.network.model_dump(), "train": train}
        found: dict[str, Scalar] = {}
        for path in paths:
            part, _, field = path.partition(".")
            if field not in parts.get(part, {}):
                raise ValueError(f"search.space: {unknown_key(path, _searchable(self))}")
            found[path] = parts[part][field]
        return found

    def with_values(self, values: Mapping[str, Scalar]) -> "PipelineSpec":
        """A copy with the fields at these paths (`train.learning_rate`) changed, checked anew.

        Raises:
            SpecError: A path is no field, or the changed spec is wrong.
        """
        try:
            parts = _replaced(self, values)
        except ValueError as error:
            raise SpecError(f"change {', '.join(values)}", str(error), _FIX) from None
        return self.with_parts(parts)

    def with_parts(self, parts: Mapping[str, Any]) -> "PipelineSpec":
        """A copy with whole parts (`network`, `train`) replaced by these values, checked anew.

        Raises:
            SpecError: The changed spec is wrong.
        """
        try:
            return PipelineSpec.model_validate(self.model_dump() | dict(parts))
        except ValidationError as error:
            found = "; ".join(sentences(error))
            raise SpecError(f"change {', '.join(parts)} of the spec", found, _FIX) from None


_FIX = "Correct defs.yaml, or materialize again what was made from another one"


def _replaced(spec: PipelineSpec, values: Mapping[str, Scalar]) -> dict[str, Any]:
    """The dumped `network` and `train` of `spec` with `values` put in, each valid by itself."""
    parts = {"network": spec.network.model_dump(), "train": spec.train.model_dump()}
    for path, value in values.items():
        part, _, field = path.partition(".")
        if part not in parts or not field or "." in field:
            raise ValueError(unknown_key(path, _searchable(spec)))
        parts[part][field] = value
    try:
        type(spec.network).model_validate(parts["network"])
        TrainSpec.model_validate(parts["train"])
    except ValidationError as error:
        raise ValueError("; ".join(sentences(error))) from None
    return parts


def _searchable(spec: PipelineSpec) -> list[str]:
    train = {f"train.{field}" for field in TrainSpec.model_fields} - NOT_SEARCHED.keys()
    return sorted(train) + [f"network.{field}" for field in spec.network.model_dump()]
