import base64
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.pictures import (
    Axis,
    Bar,
    Spot,
    Upright,
    bar_chart,
    frontier_chart,
    line_chart,
    markdown,
    parallel_chart,
    pareto,
)

numbers = st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf])
points = st.lists(st.tuples(numbers, numbers), max_size=5)


def texts(svg: str) -> list[str]:
    """The words of a picture; fails where it is not well-formed XML."""
    # The picture is our own, and parsing it is the test.
    return [element.text or "" for element in ElementTree.fromstring(svg).iter()]  # noqa: S314


def coordinates(svg: str) -> list[float]:
    return [float(x) for x in re.findall(r' (?:cx|cy|x|y)="([^"]+)"', svg)]


@given(st.dictionaries(st.text(max_size=5), points, max_size=3), st.text(max_size=5), st.booleans())
def test_any_series_and_any_text_make_well_formed_pictures(
    series: dict[str, list[tuple[float, float]]], title: str, log_y: bool
) -> None:
    svg = line_chart(
        title,
        series,
        x_label="<x>",
        y_label='"y" & z',
        log_y=log_y,
        dots=frozenset(list(series)[:1]),
    )

    assert texts(svg)
    assert all(math.isfinite(x) for x in coordinates(svg))
    assert "nan" not in re.sub(r">[^<]*<", "><", svg)


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(1.0, math.nan), (math.inf, 1.0)]}])
def test_a_chart_of_nothing_says_so(series: dict[str, list[tuple[float, float]]]) -> None:
    assert "nothing to show" in texts(line_chart("t", series, x_label="x", y_label="y"))


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("line", [[(5.0, 2.0)], [(0.0, 2.0), (1.0, 2.0), (2.0, 2.0)]])
def test_a_single_point_and_a_constant_lie_in_the_middle(
    line: list[tuple[float, float]], log_y: bool
) -> None:
    svg = line_chart("t", {"a": line}, x_label="x", y_label="y", log_y=log_y)

    drawn = re.search(r'<polyline points="([^"]+)"', svg)
    assert drawn is not None
    assert {pair.split(",")[1] for pair in drawn[1].split()} == {"145.0"}


def test_markup_in_labels_is_shown_not_obeyed() -> None:
    svg = bar_chart("<script>&", [Bar("<b>&\0\ud800", 1.0, 0.5, 2.0)], unit="</svg>")

    assert {"<script>&", "<b>&\ufffd\ufffd", "</svg>"} <= set(texts(svg))


@given(st.lists(st.builds(Bar, st.text(max_size=4), st.floats(0, 1e12)), max_size=4))
def test_any_bars_make_well_formed_pictures(bars: list[Bar]) -> None:
    svg = bar_chart("t", bars, unit="s")

    assert len(texts(svg)) >= 2 * len(bars)
    assert all(math.isfinite(x) for x in coordinates(svg))


def test_a_longer_bar_is_a_larger_value_and_carries_its_interval() -> None:
    svg = bar_chart("t", [Bar("a", 1.0), Bar("b", 2.0, 1.5, 2.5, strong=True)], unit="s")

    widths = [float(x) for x in re.findall(r'height="16" |width="([\d.]+)" height="16"', svg) if x]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert svg.count("<path") == 1


@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e9))
def test_ticks_are_a_few_values_inside_the_range(low: float, span: float) -> None:
    axis = Axis(low, low + span, 0, 100)

    ticks = axis.ticks()

    assert len(ticks) <= 8
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) + 1e-6 for tick in ticks)


def test_a_picture_in_markdown_is_a_data_uri() -> None:
    svg = bar_chart("t", [], unit="s")

    text = markdown(svg, "sizes")

    assert text.startswith("![sizes](data:image/svg+xml;base64,")
    assert base64.b64decode(text.rsplit(",", 1)[1].rstrip(")")).decode() == svg


spots = st.builds(Spot, numbers, numbers, st.text(max_size=5), st.text(max_size=3), st.booleans())
near_spots = st.builds(
    Spot, st.floats(1, 1000), st.floats(0, 10), st.just("level 9, chosen"), st.sampled_from("abc")
)


@given(st.lists(spots, max_size=6))
def test_any_spots_make_well_formed_pictures(drawn: list[Spot]) -> None:
    svg = frontier_chart("t", drawn, x_label="<x>", y_label="y & z")

    assert texts(svg)
    assert all(math.isfinite(x) for x in coordinates(svg))
    assert "nan" not in re.sub(r">[^<]*<", "><", svg)


@given(st.lists(near_spots, max_size=30))
def test_the_frontier_holds_the_spots_that_no_other_beats(drawn: list[Spot]) -> None:
    best = pareto(drawn)

    assert [spot.x for spot in best] == sorted(spot.x for spot in best)
    for spot in drawn:
        assert any(other.x >= spot.x and other.y <= spot.y for other in best)
    for spot in best:
        assert not any(
            other.x >= spot.x and other.y <= spot.y and (other.x, other.y) != (spot.x, spot.y)
            for other in drawn
        )


@given(st.lists(near_spots, min_size=1, max_size=30))
def test_labels_of_spots_cover_neither_each_other_nor_a_spot(drawn: list[Spot]) -> None:
    svg = frontier_chart("t", drawn, x_label="x", y_label="y")

    boxes = [
        label_box(float(x), float(y), anchor)
        for x, y, anchor in re.findall(
            r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"[^>]*>level 9, chosen<', svg
        )
    ]
    dots = [
        (float(x) - 3, float(y) - 3, float(x) + 3, float(y) + 3)
        for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3.5"', svg)
    ]
    assert boxes
    for i, box in enumerate(boxes):
        assert not any(overlap(box, other) for other in [*boxes[:i], *dots])
        assert box[0] >= 0
        assert box[2] <= 640


def label_box(x: float, y: float, anchor: str) -> tuple[float, float, float, float]:
    width = 5.5 * len("level 9, chosen")
    left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
    return (left, y - 8, left + width, y + 1)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_the_chosen_spot_is_ringed_and_named_and_each_series_has_a_color() -> None:
    drawn = [
        Spot(100.0, 3.0, "level 3", "1 MiB"),
        Spot(10.0, 2.0, "level 9, chosen", "4 MiB", chosen=True),
        Spot(1.0, 2.5, "level 19", "1 MiB"),
    ]

    svg = frontier_chart("t", drawn, x_label="x", y_label="y")

    assert {"level 3", "level 9, chosen", "level 19", "1 MiB", "4 MiB"} <= set(texts(svg))
    assert svg.count('r="8"') == 1
    assert svg.count("<circle") == 4
    assert len(set(re.findall(r'r="3.5" fill="([^"]+)"', svg))) == 2
    line = re.search(r'<polyline points="([^"]+)"', svg)
    assert line is not None
    assert len(line[1].split()) == 2  # level 19 is beaten by the chosen one


values = numbers | st.text(max_size=3) | st.booleans()


@given(st.lists(st.tuples(st.text(max_size=5), values, values), max_size=4), st.booleans())
def test_any_values_make_well_formed_parallel_coordinates(
    columns: list[tuple[str, float | str, float | str]], log: bool
) -> None:
    uprights = [Upright(name, [first, second], log=log) for name, first, second in columns]

    svg = parallel_chart("<t>", uprights, good=frozenset({0}), chosen=1)

    assert texts(svg)
    assert all(math.isfinite(x) for x in coordinates(svg))
    assert svg.count("<polyline") == (2 if columns else 0)


def test_parallel_coordinates_order_numbers_upwards_and_show_the_ends() -> None:
    rate = Upright("rate", [0.001, 0.01, 0.1], log=True)
    kind = Upright("kind", ["b", "a", "b"])

    low, middle, high = rate.places()
    svg = parallel_chart("t", [rate, kind], good=frozenset(), chosen=2)

    assert low > middle > high
    assert middle == pytest.approx((low + high) / 2)
    assert kind.places()[0] == kind.places()[2] != kind.places()[1]
    assert {"rate", "0.1", "0.001", "a", "b"} <= set(texts(svg))
    assert 'stroke-width="3"' in svg.split("<polyline")[-1]


@pytest.mark.parametrize("uprights", [[], [Upright("rate", [])]])
def test_parallel_coordinates_of_nothing_say_so(uprights: list[Upright]) -> None:
    svg = parallel_chart("t", uprights, good=frozenset(), chosen=0)

    assert "nothing to show" in texts(svg)
