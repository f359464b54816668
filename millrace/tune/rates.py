"""The best learning rate of a width, from those of smaller ones: parabolas, a line, an interval.

    losses over log2(rate), a parabola for each width --> its lowest point
    lowest points over log2(width), a line --> the rate at the width that is wanted
    the same with losses drawn anew from what the parabolas left over --> the interval

That a line will do, and how steep it may be, is theory: in a network of the usual parametrization
that Adam trains, the rate that keeps an update's effect constant falls as 1 / width for hidden
matrices and the last layer, and stays where it is for embeddings and vectors (Yang et al. 2022,
Tensor Programs V, table 3). The rate that is best for all together lies between.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEEPEST, FLATTEST = -1.0, 0.0
"""Slopes of log2(rate) over log2(width) that theory allows; a fit beyond them is noise."""
NEAR_BELOW, NEAR_ABOVE = 2.5, 1.5
"""Octaves from the best rate beyond which rates are left out: the loss is no parabola there, least
of all above, where trainings diverge."""
LEAST_RATES = 4
"""Of a parabola: with three nothing would be left over that tells how far to trust it."""
MOST_FIRST_RATES = 6
FURTHER = (-2.0, -0.5, 0.5, -1.5, 1.25, 0.25, -0.25)
"""Octaves from the best rate at which further ones are tried, in this order."""
LEAST_DISTANCE = 0.2
"""Octaves between two rates of a width: nearer ones tell little new."""
DRAWS = 400
CONFIDENCE = 0.9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """One training of a width at a rate."""

    width: int
    rate: float
    loss: float
    """Infinite where it failed."""


@dataclass(frozen=True, eq=False)
class Parabola:
    """The loss of a width over log2(rate), near its best rate."""

    width: int
    octaves: Floats
    """log2 of the rates, R of them."""
    losses: Floats
    """As measured, (R,)."""

    def __post_init__(self) -> None:
        assert len(set(self.octaves.tolist())) >= LEAST_RATES, "too few rates for a parabola"

    @property
    def best_octave(self) -> float:
        """log2 of the rate with the lowest loss."""
        return float(self.lowest(self.losses[None])[0])

    @property
    def best_loss(self) -> float:
        """The loss there."""
        curve = np.array(self._coefficients(self.losses[None])[0])
        return float(curve @ (self.best_octave - self._center) ** np.arange(3))

    @property
    def curvature(self) -> float:
        """What the loss gains an octave from the best rate, at least 0."""
        return max(0.0, float(self._coefficients(self.losses[None])[0, 2]))

    @property
    def fitted(self) -> Floats:
        """The parabola at the rates, (R,)."""
        fitted: Floats = self._powers @ self._coefficients(self.losses[None])[0]
        return fitted

    def lowest(self, losses: Floats) -> Floats:
        """Where parabolas through losses (N, R) are lowest: log2 of the rate, (N,).

        A parabola that opens downwards is lowest at the rate with the lowest loss. None is followed
        beyond the rates that were tried.
        """
        _, slope, bend = self._coefficients(losses).T
        opens_up = bend > 0
        vertex = self._center - slope / (2 * np.where(opens_up, bend, 1.0))
        found = np.where(opens_up, vertex, self.octaves[losses.argmin(1)])
        clipped: Floats = np.clip(found, self.octaves.min(), self.octaves.max())
        return clipped

    @property
    def _center(self) -> float:
        return float(self.octaves.mean())

    @property
    def _powers(self) -> Floats:
        return np.vander(self.octaves - self._center, 3, increasing=True)

    def _coefficients(self, losses: Floats) -> Floats:
        """Constant, slope and bend of the parabola through each row, (N, 3)."""
        return losses @ np.linalg.pinv(self._powers).T


@dataclass(frozen=True)
class Extrapolation:
    """The best rate at a width that was not tried."""

    rate: float
    low: float
    """The interval, of `CONFIDENCE`."""
    high: float
    slope: float
    """Of log2(rate) over log2(width)."""
    loss: float
    """What the same line through the lowest losses leads to."""
    noise: float
    """Standard deviation of a loss about its parabola."""


def parabola(trained: Iterable[Trained]) -> Parabola | None:
    """The parabola of one width; None where too few rates lie near the best one."""
    finite = [one for one in trained if math.isfinite(one.loss)]
    if not finite:
        return None
    near = _near(finite)
    octaves = np.array([math.log2(one.rate) for one in near])
    if len(set(octaves.tolist())) < LEAST_RATES:
        return None
    return Parabola(near[0].width, octaves, np.array([one.loss for one in near]))


def extrapolate(
    parabolas: Sequence[Parabola], width: int, low: float, high: float, *, seed: int = 0
) -> Extrapolation:
    """The best rate at `width`, held between `low` and `high`.

    Args:
        parabolas: Of two smaller widths or more.
        width: The one that is wanted.
        low: The least rate that may be told.
        high: The largest.
        seed: Of the draws for the interval.
    """
    assert len({one.width for one in parabolas}) > 1, "one width leads nowhere"
    widths = np.array([math.log2(one.width) for one in parabolas])
    left_over = np.concatenate([one.losses - one.fitted for one in parabolas])
    noise = math.sqrt((left_over**2).sum() / (len(left_over) - 3 * len(parabolas)))
    draw = np.random.default_rng(seed)
    best = np.array([[one.best_octave] for one in parabolas])
    drawn = np.stack(
        [
            one.lowest(one.fitted + noise * draw.standard_normal((DRAWS, len(one.losses))))
            for one in parabolas
        ]
    )
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    ends = np.quantile(_led_to(widths, drawn, width)[0], tails)
    (octave,), (slope,) = _led_to(widths, best, width)
    losses = np.array([one.best_loss for one in parabolas])
    told = np.clip(np.exp2([octave, *ends]), low, high)
    return Extrapolation(
        rate=float(told[0]),
        low=float(min(told)),
        high=float(max(told)),
        slope=float(slope),
        loss=float(np.polyval(np.polyfit(widths, losses, 1), math.log2(width))),
        noise=noise,
    )


def _led_to(widths: Floats, octaves: Floats, width: int) -> tuple[Floats, Floats]:
    """Where lines through octaves (W, N) over log2 of widths (W,) lead, and their slopes, (N,)."""
    from_middle = widths - widths.mean()
    slopes = np.clip(from_middle @ octaves / (from_middle @ from_middle), STEEPEST, FLATTEST)
    return octaves.mean(0) + slopes * (math.log2(width) - widths.mean()), slopes


def first_rates(low: float, high: float, around: float | None = None) -> list[float]:
    """Rates to begin a width with: over the whole range, or an octave about a likely one.

    Args:
        low: The least rate.
        high: The largest.
        around: Where the best one is likely.
    """
    bottom, top = math.log2(low), math.log2(high)
    if around is not None:
        middle = math.log2(around)
        octaves = [middle - 1, middle, middle + 1]
    else:
        number = min(MOST_FIRST_RATES, max(2, 1 + round(top - bottom)))
        octaves = np.linspace(bottom, top, number).tolist()
    return sorted({2 ** min(top, max(bottom, octave)) for octave in octaves})


def next_rate(trained: Sequence[Trained], low: float, high: float) -> float | None:
    """The rate that a width still needs for its parabola, or None if it needs no more.

    First the best rate needs one on either side, then the parabola needs `LEAST_RATES`.

    Args:
        trained: All trainings of one width.
        low: The least rate that may be tried.
        high: The largest.
    """
    finite = [one for one in trained if math.isfinite(one.loss)]
    if not finite:
        return None
    best = math.log2(min(finite, key=lambda one: one.loss).rate)
    tried = [math.log2(one.rate) - best for one in trained]
    open_sides = [s for s in (-1.0, 1.0) if not any(0 < s * x <= NEAR_ABOVE for x in tried)]
    steps = [*open_sides, *FURTHER] if len(_near(finite)) < LEAST_RATES else open_sides
    for step in steps:
        octave = min(math.log2(high), max(math.log2(low), best + step))
        if all(abs(octave - best - x) >= LEAST_DISTANCE for x in tried):
            return float(2**octave)
    return None


def _near(finite: Sequence[Trained]) -> list[Trained]:
    """Those that a parabola is laid through."""
    best = math.log2(min(finite, key=lambda one: one.loss).rate)
    return [one for one in finite if -NEAR_BELOW <= math.log2(one.rate) - best <= NEAR_ABOVE]
