"""Frozen description of a gate: what a checkpoint must show to become a release."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from millrace.frozen import NUMBER, Frozen, unknown_key

PROPERTIES = ("class", "folder", "length", "source")
FIELD = "field:"


def _check_slicing(name: str) -> str:
    if name not in PROPERTIES and (not name.startswith(FIELD) or name == FIELD):
        raise ValueError(f"{unknown_key(name, PROPERTIES, 'slicing')}, and field:NAME")
    return name


Slicing = Annotated[str, AfterValidator(_check_slicing)]
"""A property of records by which they are divided into slices."""


class GateSpec(Frozen):
    """What a checkpoint must show on the test split to become a release; see [gate](gate.md)."""

    beats: tuple[str, ...] = ()
    """Baselines that the metric's interval must lie clear of: `zstd-19`, `xz-9`, `zstd-19-solid`,
    `xz-9-solid`, `6-gram`; of token ids `unigram`; of classes `majority`, `logistic-regression`;
    of texts' classes these and `naive-bayes`;
    of graphs `random`, `local-search`; empty means the task's own."""
    bar: Annotated[float | Literal["none"], NUMBER] = "none"
    """Value of the metric that its whole interval must reach."""
    tolerance: Annotated[Annotated[float, Field(ge=0)] | Literal["auto"], NUMBER] = "auto"
    """How much worse than the current release, in the metric's unit, is still accepted. `auto` is
    1 % of the metric's value of that release."""
    slices: tuple[Slicing, ...] = ()
    """Properties by which test records are divided, each part judged by itself: `class`; `folder`
    of the source file; `length` in quarters, of texts; `source`, where `source.url` names several;
    `field:NAME`, a field of the record. None may be shown to be worse than the release by more than
    the tolerance."""
    slice_bars: dict[Slicing, Annotated[float, NUMBER]] = Field(default={})
    """By such a property: value of the metric that the interval of every slice must reach,
    `{class: 0.8}`."""

    @property
    def slicings(self) -> tuple[Slicing, ...]:
        """All properties to divide by, in alphabetical order."""
        return tuple(sorted({*self.slices, *self.slice_bars}))

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of records to divide by, in alphabetical order."""
        return tuple(name.removeprefix(FIELD) for name in self.slicings if name not in PROPERTIES)

    def refuse_unfit(self, *, has_classes: bool, has_lengths: bool, has_sources: bool) -> None:
        """Refuse to divide by what records of a pipeline do not have.

        Raises:
            ValueError: A slicing asks for it.
        """
        lacking = {
            "class": "" if has_classes else "the task has no classes",
            "length": "" if has_lengths else "the task's records are all of one length",
            "source": "" if has_sources else "`source.url` names no sources",
        }
        for slicing in self.slicings:
            if reason := lacking.get(slicing, ""):
                raise ValueError(f"gate: slices by {slicing}: {reason}")
