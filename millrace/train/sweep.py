"""A doubling sweep: a knob is doubled as long as that is measured to be faster."""

import math
from collections.abc import Callable, Mapping, Sequence

LEAST_GAIN = 1.15
"""A faster way must be faster by this: less is the noise of a shared machine."""


def doubling(
    first: int, last: int, seconds_of: Callable[[Sequence[int]], Sequence[float]]
) -> dict[int, float]:
    """Seconds at `first`, twice that and so on, at most `last`, to the first that is no faster.

    What fails (infinite seconds, such as out of memory) does not end the sweep: a later value may
    succeed.

    Args:
        first: Where it begins.
        last: Where it ends at the latest; the last step to it may be less than a doubling.
        seconds_of: Measures values beside each other.
    """
    found = {first: seconds_of([first])[0]}
    best = value = first
    while value < last:
        value = min(last, 2 * value)
        if math.isinf(found[best]):
            found[value] = seconds_of([value])[0]
        else:
            found[value] = seconds_of([best, value])[1]
            if found[value] >= found[best]:
                break
        best = value
    return found


def fastest(found: Mapping[int, float]) -> int:
    """The first value that works, or a later one that is faster by `LEAST_GAIN`."""
    chosen = next(iter(found))
    for value, seconds in found.items():
        if found[chosen] > LEAST_GAIN * seconds:
            chosen = value
    return chosen
