"""What a network may need to know about its data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DataFacts:
    """What the training split is like; for bytes and token ids, only the first two."""

    num_classes: int
    """Outputs per position: classes, token ids, or 256 for bytes."""
    shape: tuple[int, ...]
    """One sample's shape: (channels, height, width), (features,) or (bytes or token ids,)."""
    mean: tuple[float, ...] = ()
    """Of the training inputs, for each channel or feature."""
    deviation: tuple[float, ...] = ()
    """Standard deviation of the same."""
    is_per_position: bool = False
    """Whether every position of a sample is predicted, not the sample as a whole."""

    @classmethod
    def from_manifest(cls, facts: Mapping[str, Any]) -> "DataFacts":
        """From the facts of a shards manifest."""
        fields = facts["fields"]
        if "tokens" in fields:
            vocabulary = facts.get("vocabulary", 256)
            return cls(vocabulary, tuple(fields["tokens"][1]), is_per_position=True)
        shape = tuple(fields["text" if "text" in fields else "inputs"][1])
        mean, deviation = tuple(facts["mean"]), tuple(facts["deviation"])
        return cls(len(facts["classes"]), shape, mean, deviation)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a release's spec."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "DataFacts":
        """Inverse of `to_dict`, also after a trip through JSON."""
        found: dict[str, Any] = {
            key: tuple(each) if isinstance(each, list) else each for key, each in value.items()
        }
        return cls(**found)
