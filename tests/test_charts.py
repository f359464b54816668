"""Pictures of evaluations: what is drawn, and of how many classes and slices at most."""

from typing import Any

import numpy as np

from millrace.evaluation.charts import (
    MOST_BARS,
    MOST_CLASSES,
    confusion_picture,
    quality_picture,
    reliability_picture,
    slices_picture,
)
from millrace.evaluation.quality import further_facts
from tests.test_pictures import texts


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def facts_of(num_classes: int = 3, *, higher: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, 500)
    logits = rng.normal(size=(500, num_classes)) + 2 * np.eye(num_classes)[labels]
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    samples = {"label": labels, "probability": probability}
    names = [f"class {number}" for number in range(num_classes)]
    return {
        "metric": "accuracy" if higher else "bits_per_byte",
        "higher_is_better": higher,
        "num_records": 500,
        "estimate": interval(0.8),
        "baselines": {"majority": interval(0.3)},
        "release": {"standing": "none"},
        "slices": {
            "class": [
                {"name": name, "num_records": 10, **interval(0.5 + number / 1000)}
                for number, name in enumerate(names)
            ]
        },
        **further_facts("accuracy", 0.8, samples, names),
    }


def test_the_metric_stands_beside_baselines_and_a_release_where_there_is_one() -> None:
    facts = facts_of()
    compared = {"standing": "compared", **interval(0.7), "gain": interval(0.1)}

    first, second = quality_picture(facts), quality_picture(facts | {"release": compared})

    assert [word in texts(first) for word in ("this model", "majority")] == [True, True]
    assert "the release before" not in texts(first)
    assert "the release before" in texts(second)
    assert "accuracy on 500 held-out records" in texts(first)


def test_of_many_slices_the_worst_are_shown() -> None:
    few, many = facts_of(3), facts_of(MOST_BARS + 10)
    lower = facts_of(MOST_BARS + 10, higher=False)

    assert {"class 0 (10)", "class 2 (10)"} < set(texts(slices_picture(few, "class")))
    shown = texts(slices_picture(many, "class"))
    assert "class 0 (10)" in shown
    assert f"class {MOST_BARS + 9} (10)" not in shown
    shown = texts(slices_picture(lower, "class"))
    assert "class 0 (10)" not in shown
    assert f"class {MOST_BARS + 9} (10)" in shown


def test_a_confusion_shows_every_class_or_the_most_mistaken() -> None:
    few, many = confusion_picture(facts_of(3)), confusion_picture(facts_of(MOST_CLASSES + 6))

    assert few.count("fill-opacity") == 3**2
    assert many.count("fill-opacity") == MOST_CLASSES**2
    assert any(f"of {MOST_CLASSES + 6}, the most mistaken" in text for text in texts(many))


def test_reliability_is_drawn_beside_the_diagonal_with_its_error() -> None:
    facts = facts_of()

    svg = reliability_picture(facts)

    assert f"calibration error {facts['metrics']['calibration_error']:.3f}" in " ".join(texts(svg))
    assert svg.count("<circle") == len(facts["reliability"]["count"])
    assert "<polyline" in svg
