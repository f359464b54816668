"""The search of a spec: which fields a study may vary, for how long, and for how much."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from millrace.frozen import (
    NUMBER,
    Frozen,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Scalar,
)

Limit = Annotated[PositiveFloat | Literal["none"], NUMBER]


class Range(Frozen):
    """Numbers from `low` to `high`; whole numbers when both ends are."""

    low: Annotated[float | int, NUMBER]
    """The smallest number that may be drawn."""
    high: Annotated[float | int, NUMBER]
    """The largest."""
    log: bool = False
    """Whether equal ratios, not equal differences, are equally likely."""

    @model_validator(mode="after")
    def _hold_a_number(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range must start above 0, not at {self.low}")
        return self

    def holds(self, value: Scalar) -> bool:
        """Whether the value lies in the range."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= float(value) <= self.high

    def samples(self) -> tuple[Scalar, ...]:
        """Its ends and, where they are not whole, a number between that is not whole either."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return (self.low, self.high)
        between = self.low + (self.high - self.low) / 2**0.5
        return (self.low, self.high, between)


class Choices(Frozen):
    """One of the listed values."""

    choices: Annotated[tuple[Scalar, ...], Field(min_length=1)]
    """The values; a single one pins the field."""

    def holds(self, value: Scalar) -> bool:
        """Whether the value is one of the choices."""
        return value in self.choices

    def samples(self) -> tuple[Scalar, ...]:
        """All of them."""
        return self.choices


def _values_tag(value: Any) -> str:
    has_choices = "choices" in value if isinstance(value, Mapping) else isinstance(value, Choices)
    return "choices" if has_choices else "range"


Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(_values_tag),
]


class SearchSpec(Frozen):
    """The Optuna study: what may vary, how many trials, how long each trains, what it may take."""

    space: Annotated[dict[str, Values], Field(min_length=1)]
    """Field path (`train.learning_rate`, `network.width`) to the values it may take; the spec's own
    value must be among them."""
    trials: PositiveInt = 12
    """Trials at most; the first is the spec as written."""
    steps: Annotated[int, Field(ge=9), NUMBER] = 90
    """Steps of a trial that is never pruned; the first two rungs are a ninth and a third."""
    together: PositiveInt = 4
    """Trials in hand at once: a larger number keeps more workers busy, a smaller one lets
    each trial learn from more of the earlier ones. Results depend on it, not on `workers`."""
    workers: PositiveInt = 2
    """Warm processes that train the trials."""
    ranks: Annotated[PositiveInt, Field(exclude_if=lambda number: number == 1)] = 1
    """Data-parallel processes that train each trial, a worker of so many; must divide every batch.
    Results depend on it."""
    seed: NonNegativeInt = 0
    """Of the sampler."""
    repetitions: NonNegativeInt = 1
    """How often each of the leading trials and the spec as written is trained once more, with fresh
    seeds, before one is chosen by its mean; 0 trusts the luck of single trainings."""
    max_seconds: Limit = "none"
    """Device-seconds, a second of one worker, that a study may take; it then trains costlier trials
    for fewer steps, and is no longer the same each time."""
    max_usd: Limit = "none"
    """Dollars likewise, by the price of the machine."""
    max_memory_bytes: Annotated[PositiveInt | Literal["none"], NUMBER] = "none"
    """Bytes that a training may need, of its state and of one batch's forward, on each of
    `ranks`. A trial that needs more cannot win."""
    max_latency_seconds: Limit = "none"
    """Seconds that the answer to one sample may take. A trial that is slower cannot win; what is
    measured differs from run to run."""
