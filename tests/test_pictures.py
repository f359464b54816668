import base64
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.pictures import Axis, Bar, bar_chart, line_chart, markdown

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
