"""What every materialization tells: where it lies, and its seconds and dollars, predicted too."""

from typing import Any

from millrace.manifest import Manifest
from millrace.plan.history import Entry


def common(made: Manifest, url: str, *, is_reused: bool) -> dict[str, Any]:
    """Place, size, seconds and dollars; what is reused took nothing this time."""
    seconds, usd = round(made.seconds, 2), round(made.usd, 6)
    return {
        "manifest": f"{url}/{made.path}",
        "num_bytes": made.num_bytes,
        "seconds": 0.0 if is_reused else seconds,
        "usd": 0.0 if is_reused else usd,
        "made_in_seconds": seconds,
        "made_for_usd": usd,
    }


def predicted(entry: Entry | None) -> dict[str, Any]:
    """What the run that made it was expected to take; nothing where nothing was expected."""
    if entry is None or entry.predicted is None:
        return {}
    usd = entry.predicted.times(entry.usd_per_hour / 3600)
    return {
        "predicted_seconds": round(entry.predicted.value, 2),
        "predicted_seconds_low": round(entry.predicted.low, 2),
        "predicted_seconds_high": round(entry.predicted.high, 2),
        "predicted_usd": round(usd.value, 6),
        "prediction_held": entry.predicted.holds(entry.seconds),
    }
